"""Runs whose workers torch.distributed keeps together: processes and a supervisor as with launcher=local, no master."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from easgd_cli.experiment.build import Experiment
from easgd_cli.launcher import driver
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.journal.journal import Journal
from easgd_cli.launcher.processes.local import Processes
from easgd_cli.system.files import scratch_directory
from easgd_cli.training.data_parallel import Averaging, Rendezvous, backend
from easgd_cli.training.peers import PeerLoop, PeerStart, agreement
from easgd_cli.training.worker import WorkerStart

# The launcher names a worker that stands still. A collective that gave up before would blame another worker.
_TIMEOUT = 24 * 3600.0


def launch(job: Job, experiment: Experiment, averaging: Averaging, name: str) -> Outcome:
    """Runs the job to its end; `name`: torch's name of what averages. Raises RunError when the job could not be
    started.
    """
    with scratch_directory() as directory:
        meeting = directory / "meeting"
        return driver.run(job, experiment, lambda journal: Peers(job, experiment, journal, averaging, name, meeting))


class Peers(Processes):
    """The processes of a run whose workers find each other at `meeting`."""

    def __init__(
        self, job: Job, experiment: Experiment, journal: Journal, averaging: Averaging, name: str, meeting: Path
    ):
        super().__init__(job, experiment, journal)
        many = experiment.settings.workers
        self._averaging, self._name, self._agreed = averaging, name, agreement(many)
        self._group = (many, str(meeting), backend(experiment.settings), _TIMEOUT)

    def _start_worker(self, start: WorkerStart) -> None:
        number = start.link.worker
        if number:
            start.interval = None  # worker 0 alone owns what is evaluated
        peer = PeerStart(start, Rendezvous(number, *self._group), self._averaging, self._agreed)
        self._children.start(number, PeerLoop, peer)

    def facts(self) -> dict[str, Any]:
        """Returns what else the summary says."""
        return {**super().facts(), "under": self._name}
