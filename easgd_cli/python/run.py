"""A run as an object: reads the files of the run's directory. No code that the settings name is imported."""

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
    """A run, ended or not, in its `directory`. Members read its files as they are now; damage raises UsageError."""

    directory: Path
    # of a run of this process, with the objects that were handed over: so `resume=run` needs them no more
    settings: Settings | None = field(default=None, repr=False, compare=False)

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json: status, steps, exchanges, the figures of the last evaluation, speed, where the time went."""
        return reader.summary_of(self.directory)

    @property
    def status(self) -> str | None:
        """running, completed, diverged, interrupted or failed; None if no file says so."""
        return reader.status_of(self.directory)

    @property
    def config(self) -> dict[str, Any]:
        """config.yaml: every setting. An object that was handed over stands there by its name."""
        return reader.config_of(self.directory) or {}

    @property
    def center(self) -> dict[str, Tensor]:
        """The center, a state_dict on the CPU with the model's own keys: `model.load_state_dict(run.center)`."""
        return self._saved("center")

    @property
    def average(self) -> dict[str, Tensor]:
        """The average of the center, if one is kept (average="polyak" or "moving"): a state_dict as in `center`."""
        return self._saved("average")

    def metrics(self, party: str | None = None) -> list[dict[str, Any]]:
        """Returns the record, a dictionary a row, in the order of writing: `seconds` (of training, virtual ones where
        simulated), `step` (local steps), `exchanges`, `party` and what was measured, by name; a number that is not
        finite is None.

        `party`: rows of this party only: "center", "average", "system" or "worker_00".
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
        except Exception as e:  # torch may raise anything for a file that holds something else
            raise reader.BadFile(path, f"cannot be read as parameters ({type(e).__name__})") from e


class Interrupted(KeyboardInterrupt):
    """A signal or `easgd_cli.stop()` has ended the run. `run`: goes on with `train(resume=e.run)`."""

    def __init__(self, run: Run):
        super().__init__(f"the run in {run.directory} was interrupted; train(resume=...) goes on with it")
        self.run = run


class Failed(RunError):
    """A run that had begun has failed; the text says what happened. `run`: reads the files that are left."""

    def __init__(self, reason: str, run: Run):
        super().__init__(reason)
        self.run = run
