"""What hostile files and words are made of, and what easgd must not do with them.

A file that easgd has written is changed in a few places: bits, cuts, lines, and values inside what it says. `Guard`
sees what this process does meanwhile: files written outside the places where they belong, modules of a stranger, a
processor that is used without end.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from easgd_cli.__main__ import main
from easgd_cli.errors import RunError, UsageError

FUZZED = int(os.environ.get("EASGD_FUZZ", "0"))  # examples of each test; 0: the suite's few, always the same
STRANGER = "stranger_of_a_file"  # a module that lies in the working directory, and which nobody may import to look
_SECONDS = 30.0  # of the processor, for one example
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGING = {"os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod"}
_STARTING = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.spawn"}


def examples(few: int) -> settings:
    """So many in the suite, the same at every call; EASGD_FUZZ=1000 takes a thousand others."""
    return settings(
        max_examples=FUZZED or few, derandomize=not FUZZED, deadline=None, database=None, print_blob=bool(FUZZED),
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),  # a smaller example that fails, too, would take minutes to find
    )  # fmt: skip


# ---------------------------------------------------------------- values

TEXTS = (
    "", " ", "\0", "\x1b[2J\x1b]0;owned\x07", "\u202egnp.exe", "\ud800", "a\nb\r", "x" * 5000, "../../outside",
    "/etc/passwd", "${oc.env:HOME}", "${now:%Y}", "${a}", "${", "}", "%s%n", "{0.__class__}", f"{STRANGER}:Thing",
    f"{STRANGER}.a:b", "os:system", "easgd_cli.data.preparation:os.system", "easgd_cli.algorithms:EASGD", "nan",
    "null", "true", "1e999", "0x10", "1_000", "2001-01-01", "[", "{", "'", '"', "#", ":", "- ",
    "<script>alert(1)</script>", "worker_00", "worker_99999999999", "center", "\N{ARABIC-INDIC DIGIT ONE}", "1e-320",
    "³", "\u2028", "1:30", "=", "é" * 300, "-", "--help", "~", "!!python/object:os.system", "*a", "&a",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 255, 65535, 65536, 1 << 31, -(1 << 31), 1 << 63, -(1 << 63), 1 << 64, 10**40, -(10**400), 10**400,
    0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), 1e16, True, False, None,
)  # fmt: skip


def nested(depth: int) -> Any:
    """A list in a list in a list ..."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


texts = st.sampled_from(TEXTS) | st.text(max_size=12)
scalars = st.sampled_from(NUMBERS) | texts | st.integers() | st.floats()
trees = st.recursive(
    scalars, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(texts, inside, max_size=3), max_leaves=6
)
values = scalars | trees | st.sampled_from([50, 400]).map(nested)
places = st.integers(0, 1 << 30)


# ---------------------------------------------------------------- files

Edit = tuple[str, int, int, bytes]
Change = tuple[str, int, Any]

RAW = (
    b"", b"\0", b"\xff", b"\n", b"\n\n", b"}", b"{", b"[", b"\xef\xbb\xbf", b"\x1b[31m", b"[" * 3000,
    b"{\"a\":" * 3000, b"&a [*a, *a]\n", b"a: &a [1]\nb: &b [*a,*a,*a]\n",
    b"!!python/object/apply:os.system ['touch outside']\n", b"<<: {a: 1}\n", b"? [a]\n: 1\n", b"!!binary |\n  R0lG\n",
    b"!!set {a}\n", b"!!timestamp 2001-13-45\n", b"--- \n---\n", b"%TAG ! tag:x\n", b"\t", b"9" * 5000, b"NaN",
    b"-Infinity", b"1e999", b"\xed\xa0\x80", b"PK\5\6", b"\x80\x02cos\nsystem\n", b"a: 2001-13-45\n", b"= : 1\n",
    b"0b2\n", b"190:20:30\n", b".inf\n", b"0o8",
)  # fmt: skip

edits: st.SearchStrategy[list[Edit]] = st.lists(
    st.tuples(
        st.sampled_from(("flip", "cut", "drop", "insert", "double", "swap", "replace")), places, places,
        st.sampled_from(RAW) | st.binary(max_size=8),
    ), min_size=1, max_size=3,
)  # fmt: skip
changes: st.SearchStrategy[list[Change]] = st.lists(
    st.tuples(st.sampled_from(("set", "set", "set", "drop", "rename", "add")), places, values), min_size=1, max_size=3
)


def mangled(content: bytes, edits: list[Edit]) -> bytes:
    """The bytes with bits flipped, parts cut out or put in, lines doubled or exchanged."""
    for kind, a, b, raw in edits:
        if not content:
            return raw
        at, to = sorted((a % len(content), b % len(content)))
        if kind == "flip":
            content = content[:at] + bytes([content[at] ^ 1 << b % 8]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "drop":
            content = content[:at] + content[to:]
        elif kind == "insert":
            content = content[:at] + raw + content[at:]
        elif kind == "replace":
            content = content[:at] + raw + content[at + len(raw) :]
        else:
            lines = content.splitlines(keepends=True)
            i, j = a % len(lines), b % len(lines)
            if kind == "double":
                lines.insert(j, lines[i])
            else:
                lines[i], lines[j] = lines[j], lines[i]
            content = b"".join(lines)
    return content


def changed(tree: Any, changes: list[Change]) -> Any:
    """The same with other values in it, some gone, under another name, or more of them. The tree itself is changed."""
    for kind, at, value in changes:
        holders = list(_holders(tree))
        if not holders:
            return value
        holder, key = holders[at % len(holders)]
        if kind == "set":
            holder[key] = value
        elif kind == "drop":
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, value)
        elif kind == "add" or not isinstance(value, str | int | float | None):
            holder[str(value)[:40]] = value
        else:
            holder[value] = holder.pop(key)
    return tree


def _holders(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Everything inside: what holds it, and its key or place there."""
    inside_of = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, inside in list(inside_of):
        yield tree, key
        yield from _holders(inside)


def as_json(tree: Any) -> bytes:
    """As JSON, and what is no JSON as Python writes it."""
    try:
        return json.dumps(tree, indent=2).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError):
        return repr(tree).encode("utf-8", "surrogatepass")


def as_yaml(tree: Any) -> bytes:
    try:
        return yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, RecursionError, UnicodeError, TypeError):
        return as_json(tree)


# ---------------------------------------------------------------- what must not happen


class Guard:
    """What Python tells of this process while somebody looks. `inside`: where files may be written."""

    def __init__(self) -> None:
        self._inside: tuple[str, ...] | None = None
        self._wrong: list[str] = []
        sys.addaudithook(self._audit)

    @contextmanager
    def watching(self, *inside: Path) -> Iterator[None]:
        """Raises AssertionError for what was written elsewhere, started or imported from a stranger, and for what takes
        too long.
        """
        self._inside, self._wrong = tuple(os.path.realpath(path) for path in (*inside, "/dev/null", "/dev/shm")), []
        before, kept = signal.signal(signal.SIGVTALRM, _too_long), sys.dont_write_bytecode
        sys.dont_write_bytecode = True  # which Python writes where it imports one of our modules for the first time
        signal.setitimer(signal.ITIMER_VIRTUAL, _SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)
            self._inside, sys.dont_write_bytecode = None, kept
        assert not self._wrong, self._wrong
        assert STRANGER not in sys.modules

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._inside is None:
            return
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, int) and isinstance(flags, int) and flags & _WRITING and path is not None:
                self._look(event, path)
        elif event in _CHANGING:
            for path in arguments[:2]:
                if isinstance(path, str | bytes | os.PathLike):
                    self._look(event, path)
        elif event in _STARTING:
            if arguments[0] != "git":
                self._wrong.append(f"{event} {arguments[0]!r}")
        elif event == "import" and str(arguments[0]).startswith(STRANGER):
            self._wrong.append(f"{event} {arguments[0]!r}")

    def _look(self, event: str, path: Any) -> None:
        real = os.path.realpath(os.fsdecode(path))
        assert self._inside is not None
        if not any(real == where or real.startswith(where + os.sep) for where in self._inside):
            self._wrong.append(f"{event} {real}")


def _too_long(*_: object) -> None:
    raise AssertionError(f"it takes more than {_SECONDS:g} s of the processor")


GUARD = Guard()


def command(words: list[str], *inside: Path) -> int:
    """Runs one, which may write below `inside` only: it is done, or refuses in printable sentences. Returns its
    status.
    """
    out, err = io.StringIO(), io.StringIO()
    with GUARD.watching(*inside), redirect_stdout(out), redirect_stderr(err):
        status = main(words)
    said = err.getvalue()
    assert status in (0, 1, 2), (words, status, said)
    check_printable(out.getvalue(), said)
    if status == 2:
        assert said.startswith("easgd: ") and said.count("\neasgd: ") < 6, (words, said)
    assert "Traceback" not in said, said
    return status


def refusal(read: Callable[[], object], *inside: Path) -> UsageError | RunError | None:
    """What the reader refuses the file with, if it does; nothing else may come out of it."""
    try:
        with GUARD.watching(*inside):
            read()
    except (UsageError, RunError) as e:
        check_printable(str(e))
        assert str(e).strip(), "a refusal without a word"
        return e
    return None


def check_printable(*texts: str) -> None:
    """No control character goes to a terminal, nor anything that it could not show."""
    for text in texts:
        for line in text.split("\n"):
            assert line.replace("\t", "").isprintable(), repr(line)
        text.encode()
