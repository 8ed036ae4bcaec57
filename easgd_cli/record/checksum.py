"""Checksums of the files that are read back: CRC-32 of the whole content, which shows every flipped bit and every cut.

They are against damage, not against forgery, which no checksum beside its file could show. CRC-32 takes half the time
of SHA-256. These files have their checksum inside, so that file and checksum are written at once:

config.yaml, overrides.yaml   in the first line, a comment: the checksum of the lines below
summary.json                  in the last entry: that of everything before it
checkpoints                   in the comment of the zip file that torch writes: that of the file without the comment

center.pt and average.pt stay as torch writes them. Their checksums, and those of metrics.jsonl and exchanges.bin, are
in summary.json once the run has ended. Each checkpoint has those of the last two at its moment. Files of older versions
have no checksums.

Users may edit a text. Where one flipped bit would explain the difference to the checksum, the text counts as damaged;
otherwise as edited. An edit of a single character can so count as damage: its user then has to remove the checksum.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

_CHUNK = 1 << 22
_SEARCHED = 1 << 20  # bytes of the longest text in which the flipped bit is searched
_LINE = "# crc32 of the lines below: "
_ENTRY = ',\n  "crc32": "00000000"\n}\n'
_DIGITS = re.compile(r"[0-9a-f]{8}")
_COMMENT = b"easgd crc32 00000000"
_END = 22  # bytes of the record at a zip file's end, of which the last two are the length of the comment behind it
DAMAGED = "is damaged: its checksum is not that of its content"


@dataclass(frozen=True)
class Wrong:
    """What is wrong with a text. `line`: the line with the flipped bit; None: the text looks edited."""

    sentence: str
    line: int | None


@dataclass(frozen=True)
class Held:
    """Size in bytes and checksum (eight hexadecimal digits) of a file, or of the beginning of one."""

    size: int
    crc32: str

    @classmethod
    def of(cls, data: bytes) -> Held:
        return cls(len(data), digits(zlib.crc32(data)))

    @classmethod
    def read(cls, said: Any) -> Held:
        """Returns the Held of which `said` is the dictionary, as `vars` makes it. Raises ValueError for all else."""
        count, crc = (said.get("size"), said.get("crc32")) if isinstance(said, dict) else (None, None)
        if type(count) is not int or count < 0 or not isinstance(crc, str) or not _DIGITS.fullmatch(crc):
            raise ValueError("is no length with a checksum")
        return cls(count, crc)

    def begins(self, file: BinaryIO) -> bool:
        """Returns whether the next `size` bytes of `file` have this checksum. Raises OSError."""
        return _crc(file, self.size) == self.crc32


def digits(crc: int) -> str:
    return f"{crc:08x}"


def with_line(text: str) -> str:
    """Returns a YAML text with its checksum as the first line."""
    return f"{_LINE}{digits(zlib.crc32(text.encode()))}\n{text}"


def wrong_line(text: str) -> Wrong | None:
    """Returns what is wrong with a YAML text by its checksum; None: nothing, or there is no checksum."""
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
    """Returns the text of a JSON object, indented by 2, with its checksum as the last entry."""
    return text.removesuffix("\n}\n") + _ENTRY.replace("0" * 8, digits(zlib.crc32(text.encode())))


def wrong_entry(text: str, content: dict[str, Any]) -> Wrong | None:
    """Returns what is wrong with the text of a JSON object by its checksum; None: nothing, or it has no checksum."""
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
    """Returns what is wrong with a text that had the checksum `crc`: a flipped bit, or more. `first_line`: the number
    of the text's first line in its file; `mark`: the place of the checksum, in words.
    """
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
    """Returns the bit of `size` bytes, (byte, bit), whose flip changes their checksum by `difference`; None: no single
    bit does.

    CRC-32 is linear: the change by a flipped bit depends on the bit's place alone.
    """
    changes = [_table(1 << bit) for bit in range(8)]  # by the bits of the last byte, then of the byte before it, ...
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
    """Returns whether `text` and `right` differ by a single bit."""
    differ = [(a, b) for a, b in zip(text, right, strict=False) if a != b]
    return len(text) == len(right) and len(differ) == 1 and (ord(differ[0][0]) ^ ord(differ[0][1])).bit_count() == 1


class Summing:
    """A file that is written from beginning to end, and counts its size and checksum meanwhile."""

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
        """Adds the checksum, as a comment, to the zip file that has been written."""
        comment = _COMMENT.replace(b"0" * 8, self.held.crc32.encode())
        self._file.seek(-2, 2)
        self._file.write(len(comment).to_bytes(2, "little") + comment)


def wrong_archive(file: BinaryIO) -> str | None:
    """Returns what is wrong with a file that torch has written; None: nothing.

    A file without easgd's checksum is compared with the checksums that torch writes for its parts. Packed parts are
    refused: torch packs none, and a small file could unpack to any size. Raises OSError.
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
    """Returns the checksum of the next `count` bytes of `file`; None: there are fewer."""
    crc = 0
    while count:
        data = file.read(min(count, _CHUNK))
        if not data:
            return None
        crc, count = zlib.crc32(data, crc), count - len(data)
    return digits(crc)


def _nearly(text: str, mark: str) -> bool:
    """Returns whether `text` is `mark` up to 2 characters: a damaged mark must not leave its file unchecked."""
    return len(text) == len(mark) and sum(a != b for a, b in zip(text, mark, strict=True)) <= 2
