"""Files of published data sets: compared with the published checksums, and fetched whole or not at all."""

from __future__ import annotations

import http.client
import os
import socket
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from easgd_cli.data.vision import torchvision
from easgd_cli.errors import UsageError, why
from easgd_cli.system.files import scratch_directory
from easgd_cli.system.interruption import undone_by

_SECONDS_WITHOUT_AN_ANSWER = 30.0


@contextmanager
def reading(root: str, title: str) -> Iterator[None]:
    """Turns an OSError of the block, which reads the set in `root`, into a UsageError."""
    try:
        yield
    except OSError as e:
        raise UsageError(f"dataset.root={root}: {e.filename or title} cannot be read: {e.strerror or e}.") from e


def missing(root: str, folder: Path, title: str, holds: str) -> UsageError:
    """Returns the error that says that the set is not in `root`, which must have the folder `holds`."""
    return UsageError(
        f"dataset.root={root}: there is no {folder}; dataset.download=true fetches {title}, or say with dataset.root= "
        f"which directory holds {holds}."
    )


def check(dataset: str, folder: Path, file: Path, md5: str) -> None:
    """Raises UsageError if `file` is missing or has another checksum than `md5`."""
    if not torchvision().datasets.utils.check_integrity(str(file), md5):
        raise UsageError(
            f"dataset={dataset}: {file} is not the published file (its MD5 sum is not {md5}); move {folder} away to "
            "download it again, or write dataset.verify=false if this copy is meant to differ."
        )


def download(dataset: str, title: str, url: str, folder: Path, fetch: Callable[[Path], None]) -> None:
    """Makes `folder`, whole or not at all: `fetch` makes it in a scratch directory that it is given, then it is moved.

    `dataset`, `title` and `url`: the set's name in `dataset=`, its title and its address, for sentences. Raises
    UsageError when the set cannot be fetched, arrives damaged (for which `fetch` raises RuntimeError, as torchvision
    does), or cannot be written.
    """
    root, before = folder.parent, socket.getdefaulttimeout()
    made = [directory for directory in (root, *root.parents) if not directory.exists()]

    def discard() -> None:  # a refused run leaves nothing behind
        with suppress(OSError):  # a directory that is not empty stays
            for directory in made:
                directory.rmdir()

    try:
        root.mkdir(parents=True, exist_ok=True)
        with undone_by(discard), scratch_directory(root, prefix=f".{dataset}-") as there:
            socket.setdefaulttimeout(_SECONDS_WITHOUT_AN_ANSWER)
            fetch(there)
            os.rename(there / folder.name, folder)  # another process may have been first; then its folder stays
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as e:
        reason = getattr(e, "reason", None) or e
        raise UsageError(
            f"dataset={dataset}: could not be fetched from {url} ({reason}); without internet, copy {folder.name} into "
            f"{root}, or say where it is with dataset.root=."
        ) from e
    except RuntimeError as e:
        raise UsageError(
            f"dataset={dataset}: what came from {url} is damaged (its checksum is wrong); start again to fetch it anew."
        ) from e
    except OSError as e:
        if folder.exists():
            return
        raise UsageError(
            f"dataset.root={root}: {title} cannot be written there ({why(e)}); choose another with dataset.root=."
        ) from e
    finally:
        socket.setdefaulttimeout(before)
        discard()
