"""Files of published data sets: held against the published checksums, and fetched whole or not at all."""

from __future__ import annotations

import http.client
import os
import socket
import urllib.error
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from easgd_cli.data.vision import torchvision
from easgd_cli.errors import UsageError, why
from easgd_cli.system.files import scratch_directory
from easgd_cli.system.interruption import undone_by

_SECONDS_WITHOUT_AN_ANSWER = 30.0


def matches(file: Path, md5: str) -> bool:
    """Whether the file is there and has this checksum."""
    return bool(torchvision().datasets.utils.check_integrity(str(file), md5))


def download(dataset: str, title: str, url: str, folder: Path, fetch: Callable[[Path], None]) -> None:
    """Makes `folder` of what `fetch` leaves under that name in the directory it is given, whole or not at all.

    `dataset` is the option and `title` the set's name, for sentences; `url` is where it comes from. Raises UsageError
    when it cannot be fetched, arrives damaged (for which `fetch` raises RuntimeError, as torchvision does), or cannot
    be written.
    """
    root, before = folder.parent, socket.getdefaulttimeout()
    made = [directory for directory in (root, *root.parents) if not directory.exists()]

    def discard() -> None:  # a refused run leaves nothing behind
        with suppress(OSError):  # what holds something stays
            for directory in made:
                directory.rmdir()

    try:
        root.mkdir(parents=True, exist_ok=True)
        with undone_by(discard), scratch_directory(root, prefix=f".{dataset}-") as there:
            socket.setdefaulttimeout(_SECONDS_WITHOUT_AN_ANSWER)
            fetch(there)
            os.rename(there / folder.name, folder)  # another process may have been first; then theirs stays
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as e:
        reason = getattr(e, "reason", None) or e
        raise UsageError(
            f"dataset={dataset}: could not be fetched from {url} ({reason}); without internet, copy "
            f"{folder.name} into {root}, "
            "or say where it is with dataset.root=."
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
