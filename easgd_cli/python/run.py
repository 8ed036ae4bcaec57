"""A run as Python sees it: what its directory holds. Nothing that it names is imported to look at it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easgd_cli.errors import RunError, UsageError
from easgd_cli.record import checksum, reader
from easgd_cli.settings.schema import Settings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Run:
    """A run, by its `directory`, however it stands, read as it is now; what is damaged raises UsageError."""

    directory: Path
    # of a run of this process, with the objects that it was handed, by which `resume=run` goes on without them
    settings: Settings | None = field(default=None, repr=False, compare=False)

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json: status, steps, exchanges, the figures of the last evaluation, speed, where the time went."""
        return reader.summary_of(self.directory)

    @property
    def status(self) -> str | None:
        """running, completed, diverged, interrupted or failed; None where nothing says so."""
        return reader.status_of(self.directory)

    @property
    def config(self) -> dict[str, Any]:
        """config.yaml: every setting. Objects that were handed over are their names."""
        return reader.config_of(self.directory) or {}

    @property
    def center(self) -> dict[str, Tensor]:
        """The center, a state_dict on the CPU with the model's own keys: `model.load_state_dict(run.center)`."""
        return self._saved("center")

    @property
    def average(self) -> dict[str, Tensor]:
        """The average of the center, where one is kept (average="polyak" or "moving"), as `center`."""
        return self._saved("average")

    def metrics(self, party: str | None = None) -> list[dict[str, Any]]:
        """The record, a dictionary a row, in the order of writing: `seconds` (of training, virtual ones where
        simulated), `step` (local steps), `exchanges`, `party` and what was measured, by name; a number that is not
        finite is None.

        `party`: rows of that one only, "center", "average", "system" or "worker_00".
        """
        path = self.directory / "metrics.jsonl"
        rows = reader.read_rows(path) if path.exists() else ()
        return [row for row in rows if party is None or row["party"] == party]

    def _saved(self, name: str) -> dict[str, Tensor]:
        import torch

        path = self.directory / f"{name}.pt"
        try:
            wrong = reader.wrong_at_the_end(path, reader.held_at_the_end(self.directory).get(path.name))
            with reader.open_file(path) as f:
                if (wrong := wrong or checksum.wrong_archive(f)) is not None:
                    raise reader.BadFile(path, wrong)
                f.seek(0)
                return torch.load(f, map_location="cpu", weights_only=True)
        except reader.MissingFile:
            raise UsageError(f"{self.directory}: there is no {path.name}; the run's status is {self.status}.") from None
        except UsageError:
            raise
        except Exception as e:  # of any content that torch takes for something else
            raise reader.BadFile(path, f"cannot be read as parameters ({type(e).__name__})") from e


class Interrupted(KeyboardInterrupt):
    """A signal has ended the run, or `easgd_cli.stop()`. `run`: what is left, to go on from: `train(resume=e.run)`."""

    def __init__(self, run: Run):
        super().__init__(f"the run in {run.directory} was interrupted; train(resume=...) goes on with it")
        self.run = run


class Failed(RunError):
    """A run that had begun has failed; the text says what happened. `run`: what it has left."""

    def __init__(self, reason: str, run: Run):
        super().__init__(reason)
        self.run = run
