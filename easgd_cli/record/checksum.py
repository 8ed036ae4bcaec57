"""Checksums of what is read back: CRC-32 of the whole content, by which every flipped bit and every cut is noticed.

It is against damage, not against forgery, which no checksum that lies beside its file could tell; and it takes half the
time of SHA-256. Every file has its own, inside, so that both are written at once:

config.yaml, overrides.yaml   the first line, a comment: of the lines below it
summary.json                  the last entry: of all before it
checkpoints                   the comment of the zip file that torch writes: of the file without it

center.pt and average.pt stay what torch writes; their checksums, and those of metrics.jsonl and exchanges.bin, are in
summary.json once the run has ended, and of these two for its moment in each checkpoint. Files of before have none.

A text may be edited by its user. An edit and a flipped bit are told apart by which changes a single bit could have made
to the checksum; that an edit of one character is taken for one costs its user a line to remove.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

_CHUNK = 1 << 22
_SEARCHED = 1 << 20  # bytes of a text in which the flipped bit is searched
_LINE = "# crc32 of the lines below: "
_ENTRY = ',\n  "crc32": "00000000"\n}\n'
_DIGITS = re.compile(r"[0-9a-f]{8}")
_COMMENT = b"easgd crc32 00000000"
_END = 22  # bytes of the record at a zip file's end, of which the last two are the length of the comment behind it
DAMAGED = "is damaged: its checksum is not that of its content"


@dataclass(frozen=True)
class Wrong:
    """What is wrong with a text, and in which line: with a flipped bit it is, otherwise it is as if edited."""

    sentence: str
    line: int | None


@dataclass(frozen=True)
class Held:
    """What a file holds, or its beginning: `size` bytes with this checksum, eight hexadecimal digits."""

    size: int
    crc32: str

    @classmethod
    def of(cls, data: bytes) -> Held:
        return cls(len(data), digits(zlib.crc32(data)))

    @classmethod
    def read(cls, said: Any) -> Held:
        """What `vars` gives. Raises ValueError for anything else."""
        count, crc = (said.get("size"), said.get("crc32")) if isinstance(said, dict) else (None, None)
        if type(count) is not int or count < 0 or not isinstance(crc, str) or not _DIGITS.fullmatch(crc):
            raise ValueError("is no length with a checksum")
        return cls(count, crc)

    def begins(self, file: BinaryIO) -> bool:
        """Whether the file begins with that. Raises OSError."""
        return _crc(file, self.size) == self.crc32


def digits(crc: int) -> str:
    return f"{crc:08x}"


def with_line(text: str) -> str:
    """A YAML text with its checksum."""
    return f"{_LINE}{digits(zlib.crc32(text.encode()))}\n{text}"


def wrong_line(text: str) -> Wrong | None:
    """What is wrong with the text and its checksum; None also where it has none."""
    first, _, below = text.partition("\n")
    if not _nearly(first[: len(_LINE)], _LINE):
        return None
    right = _LINE + digits(zlib.crc32(below.encode()))
    if first == right:
        return None
    if _flips(first[: len(right)], right):
        return Wrong("has a flipped bit in its checksum; remove that line", 1)
    return _changed(below, first.removeprefix(_LINE), 2, "its first line")


def with_entry(text: str) -> str:
    """A JSON object, indented by 2, with its checksum."""
    return text.removesuffix("\n}\n") + _ENTRY.replace("0" * 8, digits(zlib.crc32(text.encode())))


def wrong_entry(text: str, content: dict[str, Any]) -> Wrong | None:
    """What is wrong with the text of an object and its checksum; None also where it has none."""
    tail = text[-len(_ENTRY) :]
    if "crc32" not in content and not _nearly(_DIGITS.sub("0" * 8, tail), _ENTRY):
        return None
    body = text[: -len(_ENTRY)] + "\n}\n"
    right = with_entry(body)
    if text == right:
        return None
    if _flips(tail, right[-len(_ENTRY) :]):
        return Wrong("has a flipped bit in its checksum, crc32; remove that entry", text.count("\n") - 1)
    return _changed(body, str(content.get("crc32")), 1, "its entry crc32")


def _changed(text: str, crc: str, first_line: int, mark: str) -> Wrong:
    """What is wrong with a text that had this checksum: a flipped bit, or more."""
    data = text.encode()
    at = None
    if _DIGITS.fullmatch(crc) and len(data) <= _SEARCHED:
        at = _flipped(zlib.crc32(data) ^ int(crc, 16), len(data))
    if at is None:
        return Wrong(f"is not as easgd wrote it; without {mark} nothing is said of that", None)
    byte, bit = at
    was = data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :]
    row = data.count(b"\n", 0, byte)
    now, then = (of.split(b"\n")[row].strip().decode(errors="replace") for of in (data, was))
    said = f"is {now!r}, and was {then!r} when easgd wrote it"
    return Wrong(f"{said}; to use it as it is, remove {mark}", first_line + row)


def _flipped(difference: int, size: int) -> tuple[int, int] | None:
    """Which bit of so many bytes, (byte, bit), changes their checksum by this; None where no single one does.

    A checksum is linear: what a bit changes depends on its place alone.
    """
    changes = [_table(1 << bit) for bit in range(8)]  # by a bit of the last byte, of the one before it, and so on
    table = [_table(value) for value in range(256)]
    for byte in reversed(range(size)):
        if difference in changes:
            return byte, changes.index(difference)
        changes = [table[change & 255] ^ change >> 8 for change in changes]
    return None


def _table(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ 0xEDB88320 * (value & 1)
    return value


def _flips(text: str, right: str) -> bool:
    """Whether a single bit makes one of the other."""
    differ = [(a, b) for a, b in zip(text, right, strict=False) if a != b]
    return len(text) == len(right) and len(differ) == 1 and (ord(differ[0][0]) ^ ord(differ[0][1])).bit_count() == 1


class Summing:
    """A file that is written from its beginning to its end; knows what it holds."""

    def __init__(self, file: BinaryIO):
        self._file, self._size, self._crc = file, 0, 0

    def write(self, data: Any) -> int:
        self._crc = zlib.crc32(data, self._crc)
        self._size += memoryview(data).nbytes
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    @property
    def held(self) -> Held:
        return Held(self._size, digits(self._crc))

    def seal(self) -> None:
        """Puts the checksum into a zip file that has been written."""
        comment = _COMMENT.replace(b"0" * 8, self.held.crc32.encode())
        self._file.seek(-2, 2)
        self._file.write(len(comment).to_bytes(2, "little") + comment)


def wrong_archive(file: BinaryIO) -> str | None:
    """What is wrong with a file that torch has written; None where it is sound.

    One without a checksum of ours is held against those that torch gives its parts. Nothing in it may be packed: torch
    packs nothing, and a small file could become any size. Raises OSError.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - _END - len(_COMMENT)))
    tail = file.read()
    end, comment = tail[-_END - len(_COMMENT) : -len(_COMMENT)], tail[-len(_COMMENT) :]
    sealed = tail[-_END:-18] != b"PK\5\6" or tail[-2:] != b"\0\0"
    if sealed:
        if end[:4] != b"PK\5\6" or end[-2:] != len(_COMMENT).to_bytes(2, "little"):
            return DAMAGED if size else "is empty"
        without = size - len(_COMMENT) - 2
        file.seek(0)
        found = zlib.crc32(b"\0\0", int(_crc(file, without) or "0", 16))
        if comment != _COMMENT.replace(b"0" * 8, digits(found).encode()):
            return DAMAGED
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED or part.file_size > size for part in parts):
                return "holds packed parts, which torch does not write"
            if not sealed and archive.testzip() is not None:
                return DAMAGED
    except (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError, EOFError) as e:
        return f"is no file of torch's ({e})"
    finally:
        file.seek(0)
    return None


def _crc(file: BinaryIO, count: int) -> str | None:
    """The checksum of so many bytes from where the file stands; None where there are fewer."""
    crc = 0
    while count:
        data = file.read(min(count, _CHUNK))
        if not data:
            return None
        crc, count = zlib.crc32(data, crc), count - len(data)
    return digits(crc)


def _nearly(text: str, mark: str) -> bool:
    """Whether `text` is `mark`, or was before it was damaged: a mark that is lost would leave its file unchecked."""
    return len(text) == len(mark) and sum(a != b for a, b in zip(text, mark, strict=True)) <= 2
