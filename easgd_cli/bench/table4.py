"""What workers' seconds are spent on in real runs, by workers and tau: the paper's Table 4 (p. 24) on this hardware."""

from __future__ import annotations

from dataclasses import dataclass

from easgd_cli.bench.measure import number
from easgd_cli.bench.runs import recorded
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.record.metrics import PARTS
from easgd_cli.settings.schema import Settings

# The paper's figures, by model (CIFAR, ImageNet): the number of steps of 128 images, and by (workers, tau) the seconds
# of computation, data loading and communication of these steps on the paper's GPU cluster. The rows of tau = 1 are
# DOWNPOUR's, those of tau = 10 EASGD's.
_PAPER = {
    "convnet7": (400, {
        (1, 1): (12, 1, 0), (4, 1): (11, 2, 3), (8, 1): (11, 2, 5), (16, 1): (11, 2, 9),
        (4, 10): (11, 2, 1), (8, 10): (11, 2, 1), (16, 10): (12, 2, 1),
    }),
    "convnet11": (1024, {
        (1, 1): (1248, 20, 0), (4, 1): (1323, 24, 173), (8, 1): (1239, 61, 284),
        (4, 10): (1254, 58, 7), (8, 10): (1266, 84, 11),
    }),
}  # fmt: skip
_PAPERS_TAU = {"downpour": 1, "easgd": 10}
_PAPERS_BATCH = 128


@dataclass(frozen=True)
class Spent:
    """Seconds of a run's `steps` local steps, the mean over its workers. `paper`: the seconds of the same row in the
    paper, None without one; `paper_steps`: the paper's number of steps.
    """

    what: str
    algo: str
    workers: int
    tau: int
    batch_size: int
    steps: int
    compute: float
    data: float
    communication: float
    other: float
    samples_per_second: float  # of all workers
    paper: tuple[int, int, int] | None
    paper_steps: int | None

    def columns(self) -> dict[str, str]:
        """Returns the cells of a table's row by heading, seconds in the paper's order: compute, data, communication."""
        spent = self.compute + self.data + self.communication + self.other
        return {
            "method": self.algo, "p": str(self.workers), "tau": str(self.tau),
            "compute / data / comm.": f"{number(self.compute, 3)} / {number(self.data, 2)} / "
            f"{number(self.communication, 2)}", "other": number(self.other, 2),
            "comm. %": f"{100 * self.communication / spent:.2g}",
            "paper": "-" if self.paper is None else " / ".join(map(str, self.paper)),
        }  # fmt: skip


def spent(s: Settings) -> Spent:
    """Makes a run of `s` and returns what its seconds were spent on. Raises UsageError without steps=, RunError."""
    prepared = build.prepare(s)
    if prepared.steps is None:
        raise UsageError(
            f"bench table4 minutes={s.minutes}: give steps=, since seconds of equally many steps are compared."
        )
    with recorded(s, prepared) as (_, summary):
        seconds, speed = summary["seconds"], summary["samples_per_second"]
    papers_steps, papers_rows = _PAPER.get(s.model["name"], (None, {})) if s.batch_size == _PAPERS_BATCH else (None, {})
    paper = papers_rows.get((s.workers, s.tau)) if _PAPERS_TAU.get(s.algo["name"]) == s.tau else None
    beside = f"; the paper's: {papers_steps:,} of {_PAPERS_BATCH}" if papers_steps is not None else ""
    return Spent(
        what=f"Seconds of a worker, {prepared.steps:,} steps of {s.batch_size} images, {s.model['name']}{beside}",
        algo=s.algo["name"],
        workers=s.workers,
        tau=s.tau,
        batch_size=s.batch_size,
        steps=prepared.steps,
        **{part: seconds[part] for part in PARTS},
        samples_per_second=speed,
        paper=paper,
        paper_steps=papers_steps if paper is not None else None,
    )
