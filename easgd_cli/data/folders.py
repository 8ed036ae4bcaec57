"""Images sorted into folders, a class each: what is where, found by listing directories, and what is wrong with it. No torch."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from easgd_cli.data.decoding import SUFFIXES
from easgd_cli.errors import UsageError


@dataclass(frozen=True)
class Listed:
    """Images of a split: paths relative to the root, in order, and labels."""

    paths: list[str]
    labels: list[int]


@dataclass(frozen=True)
class Folders:
    """A data set as it lies on the disk."""

    root: Path
    classes: tuple[str, ...]  # in the order of their labels
    train: Listed
    test: Listed


def listed(name: str, root: str) -> Folders:
    """The images in root/train/CLASS/ and root/val/CLASS/ or root/test/CLASS/, classes in alphabetical order.

    Raises UsageError naming dataset.root, the folder that is wrong, and the remedy.
    """
    top = checked_root(name, root)
    classes = class_folders(name, root, top)
    train = in_classes(name, root, "train", classes, classes)
    for split in ("val", "test"):
        if (top / split).is_dir():
            return Folders(top, classes, train, in_classes(name, root, split, classes, _subfolders(root, top / split)))
    raise UsageError(f"dataset.root={root}: has neither val nor test; dataset={name} measures on the images in {top / 'val'}/CLASS/.")


def listed_imagenet(root: str) -> Folders:
    """ILSVRC2012 as it is published or sorted: val/ may be flat, with a file beside it that says what its images show.

    Raises UsageError naming dataset.root, what is missing, and where to put it.
    """
    top = checked_root("imagenet", root)
    classes = class_folders("imagenet", root, top)
    strange = next((c for c in classes if not re.fullmatch(r"n\d{8}", c)), None)
    if strange is not None:
        raise UsageError(f"dataset.root={root}: train/{strange} is not named by a WordNet id such as n01440764; for other classes use dataset=imagefolder.")
    train = in_classes("imagenet", root, "train", classes, classes)
    val = top / "val"
    if not val.is_dir():
        raise UsageError(f"dataset.root={root}: has no folder val; unpack ILSVRC2012_img_val.tar into {val}.")
    folders = _subfolders(root, val)
    if folders:
        return Folders(top, classes, train, in_classes("imagenet", root, "val", classes, folders))
    return Folders(top, classes, train, _flat(root, top, classes))


def checked_root(name: str, root: str) -> Path:
    """`root` as a path that has a folder train. Raises UsageError."""
    top = Path(root).absolute()
    if not top.is_dir():
        raise UsageError(f"dataset.root={root}: there is no such directory; dataset={name} needs one with train/CLASS/ and val/CLASS/ in it.")
    if not (top / "train").is_dir():
        raise UsageError(f"dataset.root={root}: has no folder train; the training images of dataset={name} lie in {top / 'train'}/CLASS/.")
    return top


def class_folders(name: str, root: str, top: Path) -> tuple[str, ...]:
    """The classes: names of the folders in train, in alphabetical order. Raises UsageError."""
    classes = _subfolders(root, top / "train")
    if len(classes) < 2:
        raise UsageError(
            f"dataset.root={root}: {top / 'train'} has {len(classes)} folders; dataset={name} needs one for each class, at least two, with images in it."
        )
    return tuple(classes)


def in_classes(name: str, root: str, split: str, classes: Sequence[str], folders: Sequence[str]) -> Listed:
    """The images in the `folders` of a split. Raises UsageError for one that is no class, for one without images, and for none at all."""
    labels = {c: i for i, c in enumerate(classes)}
    found = Listed([], [])
    for folder in folders:
        there = f"{Path(root).absolute()}/{split}/{folder}"
        if folder not in labels:
            raise UsageError(f"dataset.root={root}: {split}/{folder} is no class; the {len(classes)} classes are the folders in train. Rename or move it.")
        images = _images(root, there)
        if not images and split == "train":
            raise UsageError(
                f"dataset.root={root}: train/{folder} has no images ({', '.join(sorted(SUFFIXES))}), and every class needs some; fill or remove it."
            )
        found.paths.extend(f"{split}/{folder}/{image}" for image in images)
        found.labels.extend([labels[folder]] * len(images))
    if not found.paths:
        raise UsageError(f"dataset.root={root}: there are no images in {split}/CLASS/; dataset={name} needs at least one.")
    return found


def _flat(root: str, top: Path, classes: Sequence[str]) -> Listed:
    images = _images(root, str(top / "val"))
    if not images:
        raise UsageError(f"dataset.root={root}: there are no images in val; unpack ILSVRC2012_img_val.tar into {top / 'val'}.")
    shown = _ground_truth(root, top)
    labels, found = {c: i for i, c in enumerate(classes)}, Listed([], [])
    for image in images:
        wnid = shown.get(Path(image).stem)
        if wnid is None:
            raise UsageError(f"dataset.root={root}: the ground truth says nothing of val/{image}; remove the image, or complete the file.")
        if wnid not in labels:
            raise UsageError(f"dataset.root={root}: val/{image} shows {wnid}, and train has no such folder; classes are the folders in train.")
        found.paths.append(f"val/{image}")
        found.labels.append(labels[wnid])
    return found


_SOLUTION = "LOC_val_solution.csv"
_SYNSETS = "imagenet_2012_validation_synset_labels.txt"
_DEVKIT = "ILSVRC2012_validation_ground_truth.txt"  # of the development kit, with meta.mat beside it


def _ground_truth(root: str, top: Path) -> dict[str, str]:
    """The WordNet id of each validation image by its name without suffix. Raises UsageError."""
    places = (top, top / "val", top / "data", top / "ILSVRC2012_devkit_t12" / "data")
    file = next((p / name for name in (_SOLUTION, _SYNSETS, _DEVKIT) for p in places if (p / name).is_file()), None)
    if file is None:
        raise UsageError(
            f"dataset.root={root}: val is not sorted into classes, and there is no file that says what its images show; put {_SOLUTION} (Kaggle's), "
            f"{_SYNSETS} (a WordNet id a line), or the unpacked ILSVRC2012_devkit_t12 into {top}."
        )
    if file.name == _DEVKIT:
        return _devkits(root, file)
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            if file.name == _SYNSETS:
                return {f"ILSVRC2012_val_{n:08d}": line.strip() for n, line in enumerate(lines, 1)}
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(lines)}
    except (OSError, UnicodeDecodeError, KeyError, IndexError, AttributeError, csv.Error) as e:
        what = "lines of ImageId,PredictionString" if file.name == _SOLUTION else "a WordNet id a line"
        raise UsageError(f"dataset.root={root}: {file} cannot be read ({type(e).__name__}: {e}); it holds {what}.") from e


def _devkits(root: str, file: Path) -> dict[str, str]:
    """The same from the development kit, whose numbers meta.mat explains. Raises UsageError."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UsageError(f"dataset.root={root}: {file} goes with a MATLAB file, which takes the package scipy to read; pip install scipy.") from None
    meta = file.with_name("meta.mat")
    if not meta.is_file():
        raise UsageError(f"dataset.root={root}: {file} numbers the classes as meta.mat has them, and there is none beside it; put it there.")
    try:
        synsets = loadmat(str(meta), squeeze_me=True)["synsets"]
        wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if int(s["num_children"]) == 0}
        numbers = [int(line) for line in file.read_text(encoding="utf-8").split()]
        return {f"ILSVRC2012_val_{n:08d}": wnids[number] for n, number in enumerate(numbers, 1)}
    except Exception as e:  # whatever a damaged file makes the library raise
        raise UsageError(f"dataset.root={root}: {file} and meta.mat beside it cannot be read ({type(e).__name__}: {e}); unpack the kit again.") from e


def _subfolders(root: str, folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as e:
        raise UsageError(f"dataset.root={root}: {folder} cannot be read ({e.strerror}); give yourself the right to, or choose another root.") from e


def _images(root: str, folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if os.path.splitext(e.name)[1].lower() in SUFFIXES and not e.name.startswith("."))
    except OSError as e:
        raise UsageError(f"dataset.root={root}: {folder} cannot be read ({e.strerror}); give yourself the right to, or choose another root.") from e
