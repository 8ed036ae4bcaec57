"""The status of each job of a sweep, in logs/NAME.json of the sweep's directory.

The job's own process writes the file, whole each time, since the job may be on another machine, where neither a pipe
nor a lock reaches. If the job has ended without a final status, the process that started it writes one.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from easgd_cli.errors import RunError, UsageError, why
from easgd_cli.record import reader, run_directory, run_files
from easgd_cli.settings import targets
from easgd_cli.system import interruption
from easgd_cli.system.files import put

QUEUED, RUNNING, INTERRUPTED, FAILED, KILLED = "queued", "running", "interrupted", "failed", "killed"
ELSEWHERE, NOT_STARTED = "running elsewhere", "not started"
_LAST = 1 << 20  # bytes at a log's end in which the last sentence is searched
# exit statuses of an interrupted job: 128 + n if it handled signal n, -n if the signal ended it before it could
_INTERRUPTED = {code for number in interruption.NUMBERS for code in (128 + number, -number)}


@dataclass(frozen=True)
class JobStatus:
    """How a job stands. `status`: one of those above or of run_directory.ENDED (completed, diverged); `pid`: the
    process on `host` that has written it.

    `before`: the job ended so in an earlier start of the sweep. `value`: that of `objective`, None if it is infinite.
    """

    status: str
    reason: str | None = None
    path: str | None = None
    before: bool = False
    pid: int | None = None
    host: str | None = None
    objective: str | None = None
    value: float | None = None

    @property
    def ended(self) -> bool:
        return self.status in (*run_directory.ENDED, INTERRUPTED, FAILED, KILLED)

    @property
    def runs_here(self) -> bool:
        """True if the job's process runs on this machine."""
        return self.status == RUNNING and self.here and self.pid is not None and _alive(self.pid)

    @property
    def here(self) -> bool:
        return self.host == platform.node()


def log(root: Path, name: str) -> Path:
    """Returns the path of the file with the job's output."""
    return root / "logs" / f"{name}.log"


def file(root: Path, name: str) -> Path:
    return root / "logs" / f"{name}.json"


def write(root: Path, name: str, said: JobStatus) -> JobStatus:
    """Writes and returns the status of job `name`, by this process unless `said` names another. Raises RunError."""
    said = replace(said, pid=said.pid or os.getpid(), host=said.host or platform.node())
    content = json.dumps({key: value for key, value in asdict(said).items() if value is not None})
    with writing(file(root, name)) as path:
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path, lambda beside: beside.write_text(content + "\n", encoding="utf-8"))
    return said


def read(root: Path, name: str) -> JobStatus:
    """Returns the last status of job `name`; queued if there is none that can be read."""
    try:
        path = file(root, name)
        content = reader.json_object(path, reader.read_text(path))
        hints = typing.get_type_hints(JobStatus)
        said = {key: targets.convert(key, content[key], hint) for key, hint in hints.items() if key in content}
        return JobStatus(**said)
    except (UsageError, TypeError):
        return JobStatus(QUEUED)


def names(root: Path) -> list[str]:
    """Returns the names of all jobs that have a status, the one with the latest last."""
    return [path.stem for path in sorted((root / "logs").glob("[!.]*.json"), key=changed)]


def changed(path: Path) -> int:
    """Returns when the file was last changed, in nanoseconds; 0 without the file."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def begin(root: Path, name: str) -> Path:
    """Removes a job's status before its process starts, and returns its log. Raises RunError and UsageError."""
    with writing(path := log(root, name)):
        path.parent.mkdir(parents=True, exist_ok=True)
        run_files.check_own(path)
        path.touch()
    with writing(file(root, name)) as said:
        said.unlink(missing_ok=True)
    return path


def settle(root: Path, name: str, pid: int | None, code: int) -> JobStatus:
    """Returns the final status of job `name`, whose process has ended: the one that the process has written, else one
    by the exit status `code`, which it writes.

    `pid`: the process, None if not known; `code` is below 0 where a signal has killed it. Raises RunError.
    """
    said = read(root, name)
    if said.ended and said.pid == pid:
        return said
    if code == 0:  # another sweep runs the job, or has run it
        return replace(said, before=True) if said.ended else JobStatus(ELSEWHERE)
    told = JobStatus(INTERRUPTED, path=said.path, pid=pid)
    if code not in _INTERRUPTED:
        if code < 0:  # KILLED, not FAILED: the cause was outside, so the job goes on when the sweep is started again
            reason = f"its process was ended by {signal.Signals(-code).name}"
        else:
            reason = _said_last(log(root, name)) or f"its process ended with status {code}"
        told = replace(told, status=KILLED if code < 0 else FAILED, reason=reason)
    return write(root, name, told)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Raises an OSError of the block as a RunError which says that the status cannot be written to `path`."""
    try:
        yield path
    except OSError as e:
        raise RunError(
            f"{path}: how the job stands cannot be written there ({why(e)}); remove what is in the way, "
            "or choose another place with hydra.sweep.dir=PATH."
        ) from e


def _alive(pid: int) -> bool:
    """Returns whether the process runs, and is no zombie, for which its parent has not yet waited."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (ProcessLookupError, PermissionError):
        return False
    except OSError:  # it has just ended, or there is no /proc, as on macOS
        return True
    return stat.rpartition(")")[2].split()[0] != "Z"


def _said_last(path: Path) -> str | None:
    """Returns the last complaint in a job's log: easgd's last sentence after the last traceback, else the last line."""
    try:
        with reader.open_file(path) as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - _LAST))
            text = f.read().decode(errors="replace")
    except (OSError, UsageError):
        return None
    after = text.rpartition("Traceback (most recent call last):")[2]
    lines = [line.strip() for line in after.splitlines() if line.strip()]
    sentences = [line.removeprefix("easgd: ") for line in lines if line.startswith("easgd: ")]
    return next(reversed(sentences or lines), None)
