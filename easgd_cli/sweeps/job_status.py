"""How each job of a sweep stands: logs/NAME.json in the sweep's directory, wherever and by whatever the job is run.

The job's own process writes its file, whole, since it may be on another machine, where neither a pipe nor a lock
reaches. Only for a job that has ended without a word it is written by whoever has started its process.
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
_LAST = 1 << 20  # bytes of a log's end in which the last sentence is looked for
# with a line, or before the job's process could say one
_INTERRUPTED = {code for number in interruption.NUMBERS for code in (128 + number, -number)}


@dataclass(frozen=True)
class JobStatus:
    """One of the statuses above, or run_directory.ENDED: completed, diverged. `pid`: the process on `host` that says
    so.

    `before`: the job had ended so in an earlier start of the sweep. `value`: of `objective`, None where it is infinite.
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
        """Whether its process runs on this machine."""
        return self.status == RUNNING and self.here and self.pid is not None and _alive(self.pid)

    @property
    def here(self) -> bool:
        return self.host == platform.node()


def log(root: Path, name: str) -> Path:
    """What a job prints."""
    return root / "logs" / f"{name}.log"


def file(root: Path, name: str) -> Path:
    return root / "logs" / f"{name}.json"


def write(root: Path, name: str, said: JobStatus) -> JobStatus:
    """Says how job `name` stands now, by this process unless `said` names another. Raises RunError."""
    said = replace(said, pid=said.pid or os.getpid(), host=said.host or platform.node())
    content = json.dumps({key: value for key, value in asdict(said).items() if value is not None})
    with writing(file(root, name)) as path:
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path, lambda beside: beside.write_text(content + "\n", encoding="utf-8"))
    return said


def read(root: Path, name: str) -> JobStatus:
    """What has been said of job `name` last; it is queued where nothing has."""
    try:
        path = file(root, name)
        content = reader.json_object(path, reader.read_text(path))
        hints = typing.get_type_hints(JobStatus)
        said = {key: targets.convert(key, content[key], hint) for key, hint in hints.items() if key in content}
        return JobStatus(**said)
    except (UsageError, TypeError):
        return JobStatus(QUEUED)


def names(root: Path) -> list[str]:
    """The jobs of which something has ever been said, the last one last."""
    return [path.stem for path in sorted((root / "logs").glob("[!.]*.json"), key=changed)]


def changed(path: Path) -> int:
    """When, in nanoseconds; 0 where there is no such file."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def begin(root: Path, name: str) -> Path:
    """Before its process starts: forgets what was said before; returns the log. Raises RunError and UsageError."""
    with writing(path := log(root, name)):
        path.parent.mkdir(parents=True, exist_ok=True)
        run_files.check_own(path)
        path.touch()
    with writing(file(root, name)) as said:
        said.unlink(missing_ok=True)
    return path


def settle(root: Path, name: str, pid: int | None, code: int) -> JobStatus:
    """What job `name` has said last, or where it could not say how it ended, what the exit status of its process says.

    `code` is below 0 where a signal has killed the process. Raises RunError.
    """
    said = read(root, name)
    if said.ended and said.pid == pid:
        return said
    if code == 0:  # another sweep has the job, or has had it
        return replace(said, before=True) if said.ended else JobStatus(ELSEWHERE)
    told = JobStatus(INTERRUPTED, path=said.path, pid=pid)
    if code not in _INTERRUPTED:
        if code < 0:  # from outside, so it goes on when the sweep is given again
            reason = f"its process was ended by {signal.Signals(-code).name}"
        else:
            reason = _said_last(log(root, name)) or f"its process ended with status {code}"
        told = replace(told, status=KILLED if code < 0 else FAILED, reason=reason)
    return write(root, name, told)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """While it lasts, what stands in the way of writing `path` is a RunError that says so."""
    try:
        yield path
    except OSError as e:
        raise RunError(
            f"{path}: how the job stands cannot be written there ({why(e)}); remove what is in the way, "
            "or choose another place with hydra.sweep.dir=PATH."
        ) from e


def _alive(pid: int) -> bool:
    """Whether it runs, and does not only wait for its parent, which may be this process, to take notice of its end."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (ProcessLookupError, PermissionError):
        return False
    except OSError:  # it has just gone, or there is no /proc, as on macOS
        return True
    return stat.rpartition(")")[2].split()[0] != "Z"


def _said_last(path: Path) -> str | None:
    """The last thing a job complained of: a sentence of easgd's after the last traceback, or the last line of that."""
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
