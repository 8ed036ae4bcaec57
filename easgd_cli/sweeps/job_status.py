"""How a job stands that another program has started, perhaps on another machine: logs/NAME.json in its sweep's directory.

Every job writes its own file, whole, and the sweep's process reads them: nothing is shared that two could write.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from easgd_cli.errors import RunError
from easgd_cli.system.files import put

_LOOK_SECONDS = 0.5
_PATIENCE_SECONDS = 60.0  # for a job that was asked to end to save what it has, and for a network's file system to show it


def log(root: Path, name: str) -> Path:
    """What a job that runs beside others prints."""
    return root / "logs" / f"{name}.log"


def write(root: Path, name: str, status: str, **facts: Any) -> None:
    """Says how job `name` stands now. Raises RunError."""
    content = {"status": status, "host": platform.node()} | {key: value for key, value in facts.items() if value is not None}
    with writing(_file(root, name)) as file:
        file.parent.mkdir(parents=True, exist_ok=True)
        put(file, lambda beside: beside.write_text(json.dumps(content) + "\n", encoding="utf-8"))


def forget(root: Path, name: str) -> None:
    """Removes what job `name` has said in an earlier start, so that it is not taken for what it says in this one. Raises RunError."""
    with writing(_file(root, name)) as file:
        file.unlink(missing_ok=True)


def read(root: Path, name: str) -> dict[str, Any]:
    """What job `name` has said last; nothing where there is nothing."""
    try:
        content = json.loads(_file(root, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def names(root: Path) -> list[str]:
    """The jobs that have ever said something, the last to have done so last."""
    return [path.stem for path in sorted((root / "logs").glob("[!.]*.json"), key=_changed)]


class Watch:
    """Tells of every job that has something new to say, until it ends. `said`: what each has said last since it began."""

    def __init__(self, root: Path, tell: Callable[[str, dict[str, Any]], None]):
        self.said: dict[str, dict[str, Any]] = {}
        self._root, self._tell = root, tell
        self._seen = {name: _changed(_file(root, name)) for name in names(root)}
        self._dead: set[str] | None = None  # once the jobs are being ended: those of this machine that had ended before without a word

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Looks every moment in a thread, since this one is in the hands of another program, and once more at the end."""
        over = threading.Event()

        def look_on() -> None:
            while not over.wait(_LOOK_SECONDS):
                self._look()

        thread = threading.Thread(target=look_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._look()
            for name in self._silent():
                self._say(name, self.said[name] | {"status": "killed", "reason": "its process has ended without a word"})

    def settle(self, last: Callable[[dict[str, Any]], bool]) -> None:
        """Waits until what every job has said is the `last` it will say, at most a minute: all have ended, but a network may show their files late."""
        _wait_until(lambda: all(last(said) for said in list(self.said.values())))

    def end(self) -> None:
        """Asks the jobs that run on this machine to end, as SIGTERM does, and waits until they have.

        What began them may begin others meanwhile, and kill those when it is told: they count as interrupted, too.
        """
        self._dead = set(self._silent())
        since = {name: read(self._root, name) for name in names(self._root) if _changed(_file(self._root, name)) != self._seen.get(name)}
        here = {name: said["pid"] for name, said in (dict(self.said) | since).items() if _runs_here(said)}
        for pid in here.values():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)
        _wait_until(lambda: not any(_runs_here(read(self._root, name)) for name in here))

    def _silent(self) -> list[str]:
        """The jobs of this machine that have ended, but for all that has been read still run."""
        return [name for name, said in list(self.said.items()) if said["status"] == "running" and said["host"] == platform.node() and not _runs_here(said)]

    def _look(self) -> None:
        for name in names(self._root):
            changed = _changed(_file(self._root, name))
            if changed != self._seen.get(name) and (said := read(self._root, name)):
                self._seen[name] = changed
                self._say(name, said)

    def _say(self, name: str, said: dict[str, Any]) -> None:
        if self._dead is not None and said["status"] == "killed" and said["host"] == platform.node() and name not in self._dead:
            said = {key: value for key, value in said.items() if key != "reason"} | {"status": "interrupted"}
        self.said[name] = said
        self._tell(name, said)


def _file(root: Path, name: str) -> Path:
    return root / "logs" / f"{name}.json"


@contextmanager
def writing(file: Path) -> Iterator[Path]:
    """While it lasts, what stands in the way of writing `file` is a RunError that says so."""
    try:
        yield file
    except OSError as e:
        raise RunError(
            f"{file}: how the job stands cannot be written there ({e.strerror}); remove what is in the way, or choose another place with hydra.sweep.dir=PATH."
        ) from e


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _runs_here(said: dict[str, Any]) -> bool:
    if said.get("status") != "running" or said.get("host") != platform.node():
        return False
    try:
        os.kill(said["pid"], 0)
    except (ProcessLookupError, PermissionError):
        return False
    return not _ended(said["pid"])


def _ended(pid: int) -> bool:
    """Whether the process has ended and only waits for its parent, which may be this one, to take notice: a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has just gone, or there is no /proc, as on macOS
        return False
    return stat.rpartition(")")[2].split()[0] == "Z"


def _wait_until(true: Callable[[], bool]) -> None:
    """At most for a minute."""
    patience = time.monotonic() + _PATIENCE_SECONDS
    while not true() and time.monotonic() < patience:
        time.sleep(_LOOK_SECONDS)
