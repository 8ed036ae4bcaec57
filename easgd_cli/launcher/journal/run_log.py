"""logs/launcher.log: what the launcher says of a run, with the time."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from easgd_cli.errors import RunError, why
from easgd_cli.system import interruption, streams

log = logging.getLogger("easgd.launcher")


class RunLog:
    """Has the launcher's logger write to logs/launcher.log until `close`. Raises RunError."""

    def __init__(self, run_dir: Path, command: str | None):
        logs = run_dir / "logs"
        try:
            logs.mkdir(exist_ok=True)
            self._handler = logging.StreamHandler(streams.log_to(logs / "launcher.log"))
        except OSError as e:
            raise RunError(f"{logs}: the run's log cannot be written there: {why(e)}.") from e
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(self._handler)
        log.setLevel(logging.INFO)
        log.propagate = log.disabled = False  # the logging configuration of other code may have set them
        log.info("run %s, process %d: %s", run_dir, os.getpid(), command)

    def show_stacks(self) -> None:
        """Writes the stacks of this process into the log."""
        log.warning("SIGQUIT: the stacks of all processes are in the logs; the run goes on")
        interruption.show_stacks(self._handler.stream)

    def close(self) -> None:
        """Closes the file."""
        log.removeHandler(self._handler)
        self._handler.close()
        self._handler.stream.close()
