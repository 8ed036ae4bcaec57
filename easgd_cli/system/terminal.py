"""Texts for a terminal, whose lines end between words. Where there is none lines stay whole, for grep and paste."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from contextlib import suppress
from typing import TextIO

_ENTRY = re.compile(r"( *\S.*?  +)(\S.*)")  # a word of a help text and what it means
_COMMAND = re.compile(r"(usage:)? *(easgd|\$) ")
_EXAMPLE = re.compile(r" +(easgd|\$) (?!.*  )")  # nothing but a command, to be copied


def tell(text: str) -> None:
    """A word to the user, beside the output."""
    with suppress(OSError):  # nobody reads it
        print(for_terminal(f"easgd: {text}", sys.stderr), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """`text` in one line, with what has no shape of its own as an escape: control characters, ends of lines, marks of
    direction. What a file says goes through here on its way to a terminal or a page, which it could command else.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def for_terminal(text: str, file: TextIO) -> str:
    """`text` as it is to be written to `file`: every line printable, no word longer than a line broken."""
    text = "\n".join(map(printable, text.split("\n")))
    return "\n".join(_wrapped(line, 0) for line in text.split("\n")) if file.isatty() else text


def with_command(text: str, command: str) -> str:
    """What a command is for, and the command; on a narrow terminal in a line of its own, unbroken, to be copied."""
    text, command = printable(text), printable(command)
    if not sys.stdout.isatty() or len(text) + 1 + len(command) <= _width():
        return f"{text} {command}"
    return f"{_wrapped(text, 0)}\n  {command}"


def help_text(text: str) -> str:
    """A help text, its paragraphs and entries filled anew where the terminal is narrower than they are."""
    lines = text.split("\n")
    if not sys.stdout.isatty() or max(map(len, lines)) <= _width():
        return text
    filled: list[str] = []
    hang: int | None = None  # where the paragraph goes on that the last line is of
    for line in lines:
        indent = len(line) - len(line.lstrip())
        entry, command = _ENTRY.fullmatch(line), _COMMAND.match(line)
        if line and indent == hang and entry is None and command is None:
            filled[-1] += f" {line.strip()}"
            continue
        filled.append(line)
        hang = None if command or not line else len(entry[1]) if entry else indent
    return "\n".join(_wrapped(line, _hang(line), " \\" if _EXAMPLE.match(line) else "") for line in filled)


def _hang(line: str) -> int:
    """Where the further lines of a paragraph begin."""
    entry, indent = _ENTRY.fullmatch(line), len(line) - len(line.lstrip())
    hang = len(entry[1]) if entry else indent + 7 * bool(_COMMAND.match(line))  # as wide as `usage: `
    return hang if hang <= _width() // 2 else indent + 4


def _wrapped(line: str, hang: int, broken: str = "") -> str:
    """The line as several where it is too long, each but the last with `broken` at its end."""
    if len(line) <= _width():
        return line
    indent = len(line) - len(line.lstrip())
    parts = textwrap.wrap(
        line.lstrip(), _width() - len(broken), initial_indent=line[:indent], subsequent_indent=" " * hang,
        break_long_words=False, break_on_hyphens=False, replace_whitespace=False,
    )  # fmt: skip
    return f"{broken}\n".join(parts)


def _width() -> int:
    return shutil.get_terminal_size().columns
