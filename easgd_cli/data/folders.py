"""Finds images in folders, one for each class, by listing directories, and refuses what is wrong. Imports no torch."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from easgd_cli.data.decoding import SUFFIXES
from easgd_cli.data.listing import Directories, Listed
from easgd_cli.data.patience import told
from easgd_cli.errors import UsageError


@dataclass(frozen=True)
class Folders:
    """A data set as it lies on the disk."""

    root: Path
    classes: tuple[str, ...]  # in the order of their labels
    train: Listed
    test: Listed
    times: Mapping[str, int]  # of each directory and file that was read, relative to the root: its last change, in ns
    loose: Mapping[str, int] = field(default_factory=dict)  # number of images beside the class folders, by split


def listed(name: str, root: str) -> Folders:
    """Returns the images in root/train/CLASS/ and root/val/CLASS/ or root/test/CLASS/, classes in alphabetical order.

    Raises UsageError naming dataset.root, the folder that is wrong, and the remedy.
    """
    found = checked_root(name, root)
    classes = class_folders(name, found)
    train = in_classes(name, found, "train", classes, classes)
    for split in ("val", "test"):
        if (found.top / split).is_dir():
            test = in_classes(name, found, split, classes, found.subfolders(split))
            return Folders(found.top, classes, train, test, found.times, found.loose)
    raise UsageError(
        f"dataset.root={root}: has neither val nor test; dataset={name} measures on the images in "
        f"{found.top / 'val'}/CLASS/."
    )


def listed_imagenet(root: str) -> Folders:
    """Returns the images of ILSVRC2012, as published or sorted: val/ may be flat, with a file of its images' classes.

    Raises UsageError naming dataset.root, what is missing, and where to put it.
    """
    found = checked_root("imagenet", root)
    classes = class_folders("imagenet", found)
    strange = next((c for c in classes if not re.fullmatch(r"n\d{8}", c)), None)
    if strange is not None:
        raise UsageError(
            f"dataset.root={root}: train/{strange} is not named by a WordNet id such as n01440764; for other "
            "classes use dataset=imagefolder."
        )
    train = in_classes("imagenet", found, "train", classes, classes)
    val = found.top / "val"
    if not val.is_dir():
        raise UsageError(f"dataset.root={root}: has no folder val; unpack ILSVRC2012_img_val.tar into {val}.")
    folders = found.subfolders("val")
    test = in_classes("imagenet", found, "val", classes, folders) if folders else _flat(found, classes)
    loose = {split: count for split, count in found.loose.items() if split == "train" or folders}
    return Folders(found.top, classes, train, test, found.times, loose)


def checked_root(name: str, root: str) -> Directories:
    """Returns the directories below `root`, ready to be listed. Raises UsageError if there is no folder train."""
    found = Directories(root)
    if not found.top.is_dir():
        raise UsageError(
            f"dataset.root={root}: there is no such directory as {found.top}; dataset={name} needs one with "
            "train/CLASS/ and val/CLASS/ in it."
        )
    if not (found.top / "train").is_dir():
        raise UsageError(
            f"dataset.root={root}: has no folder train; the training images of dataset={name} lie in "
            f"{found.top / 'train'}/CLASS/."
        )
    return found


def class_folders(name: str, found: Directories) -> tuple[str, ...]:
    """Returns the classes: the names of the folders in train, in alphabetical order. Raises UsageError."""
    classes = found.subfolders("train")
    if len(classes) < 2:
        raise UsageError(
            f"dataset.root={found.root}: {found.top / 'train'} has {len(classes)} folders; "
            f"dataset={name} needs one for each class, at least two, with images in it."
        )
    return tuple(classes)


def in_classes(name: str, found: Directories, split: str, classes: Sequence[str], folders: Sequence[str]) -> Listed:
    """Returns the images in the `folders` of a split. Raises UsageError for a folder that is no class, a class
    without training images, and a split without images.
    """
    labels = {c: i for i, c in enumerate(classes)}
    parts, empty = [], []
    for folder in told(folders, f"listing the folders in {found.top / split}"):
        if folder not in labels:
            raise UsageError(
                f"dataset.root={found.root}: {split}/{folder} is no class; the {len(classes)} classes are the "
                "folders in train. Rename or move it."
            )
        images = found.images(f"{split}/{folder}")
        if not images:
            empty.append(folder)
        parts.append(Listed.of(images, labels[folder]))
    if empty and split == "train":
        these, them = (
            (f"train/{empty[0]} and {len(empty) - 1:,} more have", "them")
            if len(empty) > 1
            else (f"train/{empty[0]} has", "it")
        )
        raise UsageError(
            f"dataset.root={found.root}: {these} no images ({', '.join(sorted(SUFFIXES))}), and every class needs "
            f"some; fill or remove {them}."
        )
    all_of_them = Listed.joined(parts)
    if not len(all_of_them):
        raise UsageError(
            f"dataset.root={found.root}: there are no images in {split}/CLASS/; dataset={name} needs at least one."
        )
    return all_of_them


def _flat(found: Directories, classes: Sequence[str]) -> Listed:
    root = found.root
    images = found.images("val", nested=False)
    if not images:
        raise UsageError(
            f"dataset.root={root}: there are no images in val; unpack ILSVRC2012_img_val.tar into {found.top / 'val'}."
        )
    shown = _ground_truth(found)
    labels = {c: i for i, c in enumerate(classes)}
    of_each = []
    for image in images:
        wnid = shown.get(Path(image).stem)
        if wnid is None:
            raise UsageError(
                f"dataset.root={root}: the ground truth says nothing of {image}; remove the image, or complete "
                "the file."
            )
        if wnid not in labels:
            raise UsageError(
                f"dataset.root={root}: {image} shows {wnid}, and train has no such folder; classes are the "
                "folders in train."
            )
        of_each.append(labels[wnid])
    return Listed.of(images, np.array(of_each, dtype=np.int64))


_SOLUTION = "LOC_val_solution.csv"
_SYNSETS = "imagenet_2012_validation_synset_labels.txt"
_DEVKIT = "ILSVRC2012_validation_ground_truth.txt"  # of the development kit, with meta.mat beside it


def _ground_truth(found: Directories) -> dict[str, str]:
    """Returns the WordNet id of each validation image, by the image's name without suffix. Raises UsageError."""
    root, top = found.root, found.top
    places = (top, top / "val", top / "data", top / "ILSVRC2012_devkit_t12" / "data")
    file = next((p / name for name in (_SOLUTION, _SYNSETS, _DEVKIT) for p in places if (p / name).is_file()), None)
    if file is None:
        raise UsageError(
            f"dataset.root={root}: val is not sorted into classes, and there is no file that says what its "
            f"images show; put {_SOLUTION} (Kaggle's), "
            f"{_SYNSETS} (a WordNet id a line), or the unpacked ILSVRC2012_devkit_t12 into {top}."
        )
    found.note(str(file.relative_to(top)))
    if file.name == _DEVKIT:
        return _devkits(root, file)
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            if file.name == _SYNSETS:
                return {f"ILSVRC2012_val_{n:08d}": line.strip() for n, line in enumerate(lines, 1)}
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(lines)}
    except (OSError, UnicodeDecodeError, KeyError, IndexError, AttributeError, csv.Error) as e:
        what = "lines of ImageId,PredictionString" if file.name == _SOLUTION else "a WordNet id a line"
        raise UsageError(
            f"dataset.root={root}: {file} cannot be read ({type(e).__name__}: {e}); it holds {what}."
        ) from e


def _devkits(root: str, file: Path) -> dict[str, str]:
    """Returns the same ids from the development kit: class numbers in `file`, the ids of these numbers in meta.mat.

    Raises UsageError.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UsageError(
            f"dataset.root={root}: {file} goes with a MATLAB file, which takes the package scipy to read; pip "
            "install scipy."
        ) from None
    meta = file.with_name("meta.mat")
    if not meta.is_file():
        raise UsageError(
            f"dataset.root={root}: {file} numbers the classes as meta.mat has them, and there is none beside it; "
            "put it there."
        )
    try:
        synsets = loadmat(str(meta), squeeze_me=True)["synsets"]
        wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if int(s["num_children"]) == 0}
        numbers = [int(line) for line in file.read_text(encoding="utf-8").split()]
        return {f"ILSVRC2012_val_{n:08d}": wnids[number] for n, number in enumerate(numbers, 1)}
    except Exception as e:  # scipy may raise anything for a damaged file
        raise UsageError(
            f"dataset.root={root}: {file} and meta.mat beside it cannot be read ({type(e).__name__}: {e}); unpack "
            "the kit again."
        ) from e
