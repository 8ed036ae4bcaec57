"""The only door to torchvision.

Imported on demand: it costs more than a second, and a wheel of torchvision built against CUDA cannot be imported beside
a torch without it unless the schemas of two operators, which nothing here calls, are declared first.
"""

from __future__ import annotations

import http.client
import os
import socket
import urllib.error
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from easgd_cli.errors import UsageError
from easgd_cli.scratch import scratch_directory

_SECONDS_WITHOUT_AN_ANSWER = 30.0


@cache
def torchvision() -> ModuleType:
    """The package. Raises UsageError when it is not installed or does not go with the installed torch."""
    try:
        try:
            import torchvision as package
        except RuntimeError as e:
            if "torchvision::nms" not in str(e):
                raise
            declared = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            import torchvision as package

            package._easgd_declared = declared  # the schemas go when the object does
    except (ImportError, RuntimeError, AttributeError) as e:
        raise UsageError(f"torchvision, which this needs, cannot be imported beside torch {torch.__version__}: {e}") from e
    return package


def cifar10_checksums() -> Mapping[str, str]:
    """The published MD5 sums of the files of CIFAR-10's Python version, by name."""
    published = torchvision().datasets.CIFAR10
    return {**dict(published.train_list), **dict(published.test_list), published.meta["filename"]: published.meta["md5"]}


def matches(file: Path, md5: str) -> bool:
    """Whether the file is there and has this checksum."""
    return bool(torchvision().datasets.utils.check_integrity(str(file), md5))


def download_cifar10(root: Path) -> None:
    """Fetches CIFAR-10 (170 MB) and puts its directory of batches into `root`, whole or not at all.

    Raises UsageError when it cannot be fetched, arrives damaged, or cannot be written.
    """
    published = torchvision().datasets.CIFAR10
    tools = torchvision().datasets.utils
    before, made = socket.getdefaulttimeout(), not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with scratch_directory(root, prefix=".cifar10-") as there:
            socket.setdefaulttimeout(_SECONDS_WITHOUT_AN_ANSWER)
            tools.download_and_extract_archive(published.url, str(there), filename=published.filename, md5=published.tgz_md5)
            os.rename(there / published.base_folder, root / published.base_folder)  # another process may have been first; then theirs stays
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as e:
        reason = getattr(e, "reason", None) or e
        raise UsageError(
            f"dataset=cifar10: could not be fetched from {published.url} ({reason}); without internet, copy cifar-10-batches-py "
            f"into {root}, or say where it is with dataset.root=."
        ) from e
    except RuntimeError as e:
        raise UsageError(f"dataset=cifar10: what came from {published.url} is damaged (its checksum is wrong); start again to fetch it anew.") from e
    except OSError as e:
        if (root / published.base_folder / published.meta["filename"]).exists():
            return
        raise UsageError(f"dataset.root={root}: CIFAR-10 cannot be written there ({e.strerror or e}); choose another with dataset.root=.") from e
    finally:
        socket.setdefaulttimeout(before)
        if made and root.is_dir() and not any(root.iterdir()):
            root.rmdir()  # a refused run leaves nothing behind
