"""The data sets of photos: `imagefolder`, any folder of folders, and `imagenet`, ILSVRC2012 as the paper uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from easgd_cli.data import folders, preparation
from easgd_cli.data.listing import changed
from easgd_cli.data.sources import Files, Shards, Source
from easgd_cli.data.stored import StoredImages
from easgd_cli.errors import UsageError

_LOADERS = 256  # threads at most
_NAMED = 5  # classes that a sentence names


def imagefolder(
    root: str,
    resize: int = 256,
    crop: int = 224,
    flip: bool = True,
    prepared: str | None = None,
    loaders: int | None = None,
    ahead: int = 2,
) -> StoredImages:
    """Returns root/train/CLASS/* to train on, root/val/CLASS/* or root/test/CLASS/* to test on. Raises UsageError."""
    return _photos("imagefolder", root, resize, crop, flip, prepared, loaders, ahead)


def imagenet(
    root: str,
    resize: int = 256,
    crop: int = 221,
    flip: bool = True,
    prepared: str | None = None,
    loaders: int | None = None,
    ahead: int = 2,
) -> StoredImages:
    """Returns ILSVRC2012: smallest side 256, random 221x221 crops, mirrored (paper p. 21). Raises UsageError."""
    return _photos("imagenet", root, resize, crop, flip, prepared, loaders, ahead)


# For each of these data sets the function that finds its images below a root.
LISTED: dict[str, Callable[[str], folders.Folders]] = {
    "imagefolder": lambda root: folders.listed("imagefolder", root),
    "imagenet": folders.listed_imagenet,
}


def prepared_directory(root: str, resize: int, prepared: str | None) -> Path:
    """Returns the directory of the resized copy of `root`, made or not."""
    if prepared is not None:
        return Path(prepared).expanduser().absolute()
    return Path(root).expanduser().absolute() / f"prepared-{resize}"


def _photos(
    name: str, root: str, resize: int, crop: int, flip: bool, prepared: str | None, loaders: int | None, ahead: int
) -> StoredImages:
    check(resize, crop, loaders, ahead)
    directory = prepared_directory(root, resize, prepared)
    if (directory / preparation.INDEX).exists():
        train, test, classes, times = _read(directory, resize)
        about = [f"training on the resized copy in {directory}.", *_outdated(root, times)]
    elif prepared is not None:
        raise UsageError(
            f"dataset.prepared={prepared}: holds no finished copy; easgd data prepare dataset={name} with the "
            "same settings makes it."
        )
    else:
        found = LISTED[name](root)
        remedy = f"easgd data prepare dataset={name} makes a resized copy without such files, and training uses it"
        train, test = (Files.of(found.root, part, remedy) for part in (found.train, found.test))
        classes = found.classes
        about = [
            f"training on the originals in {found.root}; easgd data prepare makes a resized copy that is several "
            "times faster to read."
        ]
        about += [
            f"{count:,} images lie in {found.root / split} itself, in no class, and are left out."
            for split, count in found.loose.items()
            if count
        ]
    about += _not_measured(test.labels, classes)
    said = f"dataset={name}: {' '.join(about)}"
    return StoredImages(train, test, len(classes), resize, (crop, crop), flip, loaders, ahead, said, classes=classes)


def _outdated(root: str, times: dict[str, int]) -> list[str]:
    """Returns a sentence if the originals of the copy have changed since, as far as times of directories tell; none if
    the originals are gone.

    A directory's time changes with the names in it. A file that was overwritten under its old name is noticed by easgd
    data verify and prepare only, which look at every file.
    """
    top = Path(root).expanduser().absolute()
    if not (top / "train").is_dir():
        return []
    since = changed(top, times)
    if not since:
        return []
    more = len(since) - 1
    others = f" and {more:,} other{'s' if more > 1 else ''}" if more else ""
    return [
        f"{since[0]}{others} in {top} changed after this copy was made, which is used as it is; easgd data "
        "prepare brings it up to date."
    ]


def _not_measured(labels: torch.Tensor, classes: tuple[str, ...]) -> list[str]:
    """Returns a sentence if some classes have no test image; `labels` [M]: of the test images."""
    without = (torch.bincount(labels, minlength=len(classes)) == 0).nonzero()[:, 0].tolist()
    if not without:
        return []
    named = ", ".join(classes[c] for c in without[:_NAMED]) + (" and others" if len(without) > _NAMED else "")
    return [
        f"{len(without):,} of the {len(classes):,} classes have no test image, so the errors say nothing of them: "
        f"{named}."
    ]


def check(resize: int, crop: int, loaders: int | None, ahead: int) -> None:
    """Raises UsageError naming the setting that is out of range."""
    if not 1 <= resize <= 4096:
        raise UsageError(
            f"dataset.resize={resize}: is what the smallest side of an image becomes, from 1 to 4096 pixels."
        )
    if not 1 <= crop <= resize:
        raise UsageError(
            f"dataset.crop={crop}: must be from 1 to dataset.resize={resize}, the smallest side that a patch is "
            "cut from."
        )
    if loaders is not None and not 0 <= loaders <= _LOADERS:
        raise UsageError(
            f"dataset.loaders={loaders}: threads that decode in each worker, from 0 to {_LOADERS}; 0 decodes "
            "between the steps."
        )
    if not 0 <= ahead <= 64:
        raise UsageError(f"dataset.ahead={ahead}: batches decoded before they are wanted, from 0 to 64.")


def _read(directory: Path, resize: int) -> tuple[Source, Source, tuple[str, ...], dict[str, int]]:
    """Returns what the index of a copy has: training images, test images, classes, and the originals' times of change.

    Raises UsageError.
    """
    again = "call easgd data prepare again"
    try:
        with np.load(directory / preparation.INDEX) as index:
            if int(index["side"]) != resize:
                raise UsageError(
                    f"dataset.resize={resize}: the copy in {directory} has smallest sides of "
                    f"{int(index['side'])}; write that, or another place."
                )
            parts: list[Source] = []
            classes = _array(index, "classes", "U", 1)
            for split in ("train", "test"):
                shards = tuple(map(str, _array(index, f"{split}_shards", "U", 1)))
                places, labels = _array(index, f"{split}_places", "i", 2), _array(index, f"{split}_labels", "i", 1)
                _check_images(shards, places, labels, len(classes))
                least = np.zeros(len(shards), np.int64)
                np.maximum.at(least, places[:, 0], places[:, 1] + places[:, 2])
                found = Shards.of(directory, shards, torch.from_numpy(labels), torch.from_numpy(places))
                for shard, (size, _), length in zip(shards, found.states, least.tolist(), strict=True):
                    if size < length:
                        raise UsageError(f"{directory / shard}: is shorter than its index says; remove it and {again}.")
                parts.append(found)
            looked_at, times = _array(index, "looked_at", "U", 1), _array(index, "times", "i", 1)
            named = dict(zip(map(str, looked_at), times.tolist(), strict=True))
            return parts[0], parts[1], tuple(map(str, classes)), named
    except UsageError:
        raise
    except Exception as e:  # numpy and zipfile may raise anything for a damaged file
        raise UsageError(f"{directory}: the prepared copy cannot be read ({' '.join(str(e).split())}); {again}.") from e


def _array(index: Mapping[str, NDArray[Any]], name: str, kind: str, sides: int) -> NDArray[Any]:
    """Returns the index's array `name`. Raises KeyError without it, ValueError for another type or number of axes."""
    found = index[name]
    if found.dtype.kind != kind or found.ndim != sides or (kind == "i" and found.dtype != np.int64):
        raise ValueError(f"its {name} is of another kind")
    return found


def _check_images(shards: tuple[str, ...], places: NDArray[Any], labels: NDArray[Any], classes: int) -> None:
    """Raises ValueError for an image without a place or a class, and for a shard outside the directory."""
    if any(Path(name).name != name or name in (".", "..") for name in shards):
        raise ValueError("its shards are no names of files")
    if places.shape != (len(labels), 3) or not len(labels):
        raise ValueError("its images have no places")
    # first byte + bytes, of larger numbers, could overflow int64
    if places.min() < 0 or places.max() >= 1 << 62 or places[:, 0].max() >= len(shards):
        raise ValueError("an image is in no shard")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError("an image is of no class")
