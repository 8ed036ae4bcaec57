"""The directory of a run: named after its overrides, made for it alone, locked while it runs."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import yaml

from easgd_cli.errors import UsageError, why
from easgd_cli.record import checksum, reader
from easgd_cli.settings.schema import Settings
from easgd_cli.system.files import put

_LONGEST = 120  # characters of a name before the rest becomes a hash; file systems allow 255 bytes
_FRACTION = re.compile(r"(?<![\w.])\d+\.\d+(?:[eE][-+]?\d+)?(?![\w.])")
_DATE = len("2026-01-01_00-00-00")
ENDED = ("completed", "diverged")  # statuses of a run that has its result


def named_by(overrides: Sequence[str], prefix: str = "", digits: int | None = None) -> str:
    """Returns a name for these overrides: sorted, of letters, digits and `=,._-` only, cut with a hash where it is too
    long.

    With a prefix, room is left for a date before the name; without overrides the name is empty. `digits`: how many
    significant digits of each number are kept; the names of different overrides may then be the same.
    """
    name = ",".join(sorted(clean(o if digits is None else _rounded(o, digits)) for o in overrides))
    room = _LONGEST - (_DATE + len(prefix) if prefix else 0)
    if len(name) > room:
        name = f"{name[:room]}-{digest(sorted(overrides))}"
    return prefix + name if name else ""


def _rounded(override: str, digits: int) -> str:
    key, equals, value = override.partition("=")

    def shorter(number: re.Match[str]) -> str:
        short = f"{float(number[0]):.{digits}g}"
        return number[0] if float(short) == float(number[0]) else short

    return key + equals + _FRACTION.sub(shorter, value)


def clean(text: str) -> str:
    """Returns `text` with all but letters, digits and `=,._-` as `-`, without quotes, outer blanks and `+`."""
    return re.sub(r"[^A-Za-z0-9=,._-]+", "-", re.sub(r"['\"+]", "", text).strip())


def digest(lines: Sequence[str]) -> str:
    """Returns a hash of `lines`, of eight hexadecimal digits."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def create(path: Path, alone: bool = False) -> Path:
    """Makes the directory `path` and returns it; where `path` is taken, `path.2`, `path.3` and so on.

    `alone`: raises FileExistsError where `path` is taken. Raises UsageError when the directory cannot be made.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(
            f"hydra.run.dir={path}: is a file, and a run needs a directory; choose another with hydra.run.dir=PATH."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for candidate in candidates(path):
            try:
                candidate.mkdir()
                return candidate
            except FileExistsError:
                if alone or not candidate.exists():  # a broken link
                    raise
        raise AssertionError("unreachable")
    except OSError as e:
        if alone and isinstance(e, FileExistsError):
            raise
        raise UsageError(
            f"hydra.run.dir={path}: the directory of the run cannot be made ({_why(e)}); choose another with "
            "hydra.run.dir=PATH."
        ) from e


def candidates(path: Path) -> Iterator[Path]:
    """Yields `path`, `path.2`, `path.3` and so on."""
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.name}.{number}")
        number += 1


def write_config(path: Path, settings: Settings, overrides: Sequence[str]) -> None:
    """Writes config.yaml, with all settings of the run, and overrides.yaml. Raises UsageError when it cannot."""
    try:
        _put(path / "config.yaml", yaml.safe_dump(asdict(settings), sort_keys=False, allow_unicode=True))
        _put(path / "overrides.yaml", yaml.safe_dump(list(overrides), allow_unicode=True))
    except OSError as e:
        raise UsageError(
            f"{path}: the run's configuration cannot be written there ({_why(e)}); choose another place with "
            "hydra.run.dir=PATH."
        ) from e


@contextmanager
def held(path: Path, shared: bool = False) -> Iterator[None]:
    """Locks the directory `path` during the block, against all other processes; `shared`: against those alone that lock
    it without `shared`. Raises UsageError when another process has locked it.

    The lock is on the directory itself and dies with the process, so nothing is left to clean up. Raises
    FileNotFoundError where the directory is missing, or was removed before it could be locked.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UsageError(f"{path}: another process is running this run; wait for it to end, or stop it.") from e
        except OSError:
            pass  # a file system without locks, as some networks have: other processes are not noticed there
        if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        yield
    finally:
        os.close(descriptor)


# The files of a run in its directory, beside config.yaml.
_LEFT = (
    "overrides.yaml", "metrics.jsonl", "exchanges.bin", "events.out.tfevents.*", "summary.json", "center.pt",
    "average.pt",
    "checkpoint/.*", "logs/*.log", "logs/trace_*.json", "logs/.*", "snapshots/*", "report/*",
)  # fmt: skip
# the reserve, and files that were being written under another name, to be renamed
_UNFINISHED = re.compile(
    r"\.\d+\.(config\.yaml|overrides\.yaml|metrics\.jsonl|exchanges\.bin)"
    r"|\.reserve|\.(metrics\.jsonl|summary\.json|center\.pt|average\.pt|\d+_step_\d+\.pt)\.\d+"
)


def clear(path: Path) -> bool:
    """Removes the directory of a run that came to nothing and returns True; returns False, and removes nothing, where
    the directory has a file that is not a run's, or a summary.json that says nothing readable.

    A directory without config.yaml is of a run that was killed while its directory was made: it is empty, or has a
    file that was being written. config.yaml, which marks the directory as a run's, is removed last, so that a call that
    was killed can be repeated. The caller has locked the directory (`held`). Raises OSError.
    """
    inside = [entry for entry in path.iterdir() if entry.name != "config.yaml"]
    known = _LEFT if (path / "config.yaml").exists() else ()
    files = [
        file for entry in inside for file in ([entry] if entry.is_symlink() or not entry.is_dir() else entry.rglob("*"))
    ]
    if path.is_symlink() or not all(
        _UNFINISHED.fullmatch(file.name) or any(file.match(pattern) for pattern in known) for file in files
    ):
        return False
    try:
        if (path / "summary.json").exists() and not reader.summary_of(path):
            return False
    except reader.BadFile:  # its content is not known, so nothing is removed
        return False
    for entry in inside:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    (path / "config.yaml").unlink(missing_ok=True)
    path.rmdir()
    return True


def remove_unfinished(path: Path) -> None:
    """Removes unfinished files of a killed run in `path`, which the caller has locked (`held`). Raises OSError."""
    for directory in (path, path / "checkpoint"):
        for file in directory.glob(".*"):
            if _UNFINISHED.fullmatch(file.name) and (file.is_symlink() or file.is_file()):
                file.unlink()


def discard(path: Path, above: Sequence[Path] = ()) -> None:
    """Removes a directory that `create` made for a run that was then refused, and the empty ones of `above`."""
    shutil.rmtree(path, ignore_errors=True)
    for parent in above:
        with suppress(OSError):
            parent.rmdir()


def _put(path: Path, text: str) -> None:
    put(path, lambda beside: beside.write_text(checksum.with_line(text), encoding="utf-8"))


def _why(e: OSError) -> str:
    return f"{why(e)}: {e.filename}" if e.filename else why(e)
