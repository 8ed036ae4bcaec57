"""From a job to its outcome: a supervisor, driven by processes or by a virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from easgd_cli.errors import RunError, UsageError
from easgd_cli.experiment.build import Experiment
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.journal.journal import Journal
from easgd_cli.launcher.journal.run_log import log
from easgd_cli.launcher.signals import Signals
from easgd_cli.launcher.supervisor.supervisor import Supervisor
from easgd_cli.system import interruption


class Driver(Protocol):
    """Tells a supervisor what happens, and carries out its commands."""

    supervisor: Supervisor

    def start(self) -> None:
        """Starts all parties. Raises RunError, MemoryError or OSError."""

    def handle_next(self) -> None:
        """Waits for what happens next, at most a moment, and does what the supervisor asks for."""

    def end(self) -> None:
        """Ends all parties, whatever has happened."""

    def facts(self) -> dict[str, Any]:
        """Returns what else the summary says."""

    def show_stacks(self) -> None:
        """Has every party write its stacks into its log."""

    def release(self) -> None:
        """Gives back what the driver holds beside its parties."""


def run(job: Job, experiment: Experiment, make: Callable[[Journal], Driver]) -> Outcome:
    """Runs the job to its end. Raises RunError when it could not be started or recorded."""
    # from the log's first line to the very end: no Ctrl-C may cost the summary or a file that is being written
    with Signals() as signals:
        journal = Journal(job, experiment)
        try:
            driver = _make(journal, make)
            try:
                with interruption.stacks_shown(partial(_show_stacks, journal, driver)):
                    return _to_the_end(driver, signals)
            finally:
                driver.release()
        finally:
            journal.release()


def _make(journal: Journal, make: Callable[[Journal], Driver]) -> Driver:
    """Returns the driver. Raises RunError where the checkpoint has values with which no run can go on."""
    try:
        return make(journal)
    except (RunError, MemoryError, OSError, UsageError):
        raise
    except Exception as e:
        if journal.resumed is None:
            raise
        raise RunError(_cannot_go_on(journal, e)) from e


def _cannot_go_on(journal: Journal, e: Exception) -> str:
    """Returns what a run that goes on says of a defect: its checkpoint may be at fault. Logs the traceback."""
    assert journal.resumed is not None
    name = journal.resumed.name
    log.error("going on from %s", name, exc_info=e)
    return (
        f"checkpoint/{name}: nobody can go on from it ({type(e).__name__}: {e}); where that was is in "
        "logs/launcher.log. Remove it to go on from an older checkpoint, if there is one."
    )


def _show_stacks(journal: Journal, driver: Driver) -> None:
    journal.show_stacks()
    driver.show_stacks()


def _to_the_end(driver: Driver, signals: Signals) -> Outcome:
    supervisor = driver.supervisor
    try:
        driver.start()
        while not supervisor.over:
            driver.handle_next()
            for number in signals.take():
                supervisor.interrupted(number)
    except (RunError, MemoryError, OSError) as e:  # for example, the record cannot be written
        supervisor.fail(str(e))
    except Exception as e:  # a defect: the record says so before it is shown
        if driver.supervisor.journal.resumed is not None:  # or the checkpoint is at fault, though its checksum is right
            supervisor.fail(_cannot_go_on(supervisor.journal, e))
            with suppress(Exception):  # ending the parties may fail for the same reason
                driver.end()
            return supervisor.outcome()
        supervisor.fail(f"{type(e).__name__}: {e}")
        driver.end()
        with suppress(Exception):
            supervisor.outcome(**driver.facts())
        raise
    driver.end()
    return supervisor.outcome(**driver.facts())
