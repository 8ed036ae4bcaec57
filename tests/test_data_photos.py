"""Images in files: batches against Pillow by hand, threads that change no bit, prepared copies, and every kind of
broken set.
"""

from __future__ import annotations

import io
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Launcher, Said
from PIL import Image
from scipy.io import savemat
from torch import Tensor, nn

from easgd_cli.__main__ import main
from easgd_cli.data import decoding, folders, listing, patience, preparation, shards
from easgd_cli.data.listing import Listed
from easgd_cli.data.photos import imagefolder, imagenet
from easgd_cli.data.sources import Shards
from easgd_cli.data.stored import StoredImages
from easgd_cli.data.vision import torchvision
from easgd_cli.errors import UsageError
from easgd_cli.problems.batches import Batches
from easgd_cli.problems.net import NetProblem
from easgd_cli.randomness import AUGMENTATION, key

CPU = torch.device("cpu")


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours, all of them different from place to place."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def make_folder(root: Path, classes: tuple[str, ...] = ("ant", "bee", "cat"), each: int = 4, test: str = "val") -> Path:
    """Photos of several sizes and both orientations in root/train and root/`test`."""
    for split, count in (("train", each), (test, 2)):
        for c, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                size = (40 + 7 * i, 30) if i % 2 else (32, 36 + 5 * c)
                photo(*size, seed=100 * c + i + len(split)).save(root / split / name / f"{i}.JPEG", quality=95)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "photos")


def small(root: Path, **settings: Any) -> StoredImages:
    return imagefolder(str(root), **{"resize": 24, "crop": 20, **settings})


def prepare(root: Path, side: int = 24, processes: int = 1, directory: Path | None = None) -> preparation.Finished:
    found = folders.listed("imagefolder", str(root))
    return preparation.prepare(found, directory or root / f"prepared-{side}", side, processes, lambda done, total: None)


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", [20, 21])  # margins of 4 and 3 pixels across the smaller side
def test_an_evaluation_batch_is_what_torchvisions_transforms_make(root: Path, crop: int) -> None:
    """Of the same files, in the order of classes and names; a photo that its camera held sideways among them."""
    turned = Image.Exif()
    turned[0x0112] = 6  # the orientation
    photo(33, 45).save(root / "val/cat/2.JPEG", exif=turned)
    photo(37, 41).convert("CMYK").save(root / "val/cat/3.JPEG")
    photo(43, 31).convert("P").save(root / "val/cat/4.png")
    tv: Any = torchvision()
    steps = tv.transforms.Compose([tv.transforms.Resize(24), tv.transforms.CenterCrop(crop), tv.transforms.ToTensor()])
    expected = tv.datasets.ImageFolder(str(root / "val"), steps)
    [(inputs, labels)] = small(root, crop=crop).evaluation_batches("test", 100, CPU, torch.float32)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 2]
    for one, (theirs, _) in zip(inputs, expected, strict=True):
        assert torch.allclose(one, theirs, atol=1e-6)


def test_a_training_batch_is_made_of_patches_of_its_images(root: Path) -> None:
    """Every patch is found in its resized image, as it is or mirrored; places and orientations vary."""
    images = small(root)
    inputs, labels = images.training_batch(torch.arange(12).repeat(20), torch.Generator().manual_seed(1))
    seen: set[tuple[int, int, bool]] = set()
    for j, one in enumerate(inputs):
        whole = decoding.resized(decoding.rgb(images.train.content(j % 12)), 24)  # type: ignore[arg-type]
        pixels = np.asarray(whole).transpose(2, 0, 1)
        patch = (one * 255).round().to(torch.uint8).numpy()
        places = [
            (top, left, mirrored)
            for top in range(pixels.shape[1] - 19)
            for left in range(pixels.shape[2] - 19)
            for mirrored in (False, True)
            if np.array_equal(pixels[:, top : top + 20, left : left + 20][:, :, :: -1 if mirrored else 1], patch)
        ]
        assert places, f"patch {j} is none of its image"
        seen.update(places)
    assert labels.tolist() == [i // 4 for i in range(12)] * 20
    assert (
        {m for _, _, m in seen} == {False, True}
        and {t for t, _, _ in seen} >= {0, 4}
        and len({left for _, left, _ in seen}) > 5
    )


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_the_whole_range_of_places_is_drawn_evenly(axis: int) -> None:
    """A gradient from top to bottom, or from left to right, tells where each patch began; across the other axis it is
    the middle one of 3.
    """
    # [10, 12]
    ramp = np.arange(12, dtype=np.uint8) + 100 * np.arange(3, dtype=np.uint8)[np.array([0, 1, 2] + 7 * [2])][:, None]
    image = Image.fromarray(np.stack([ramp if axis else ramp.T] * 3, axis=-1))
    out, counts = np.empty((3, 8, 8), np.uint8), np.zeros(5)
    for n in range(1000):
        decoding.patch(image, (0.5, n / 1000) if axis else (n / 1000, 0.5), False, out)
        assert out[0, 0, 0] // 100 == 1
        counts[out[0, 0, 0] % 100] += 1
    assert counts.tolist() == [200] * 5


class Mean(nn.Module):
    """One weight a class, so that a gradient tells which images it was taken of."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(1200, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.flatten(1))


def problem(images: StoredImages, batch_size: int = 5) -> NetProblem:
    torch.manual_seed(0)
    return NetProblem(Mean(), images, batch_size=batch_size, seed=3, l2=0.0, device=CPU, train_images=6)


@pytest.mark.parametrize(
    "order",
    [
        [(0, t) for t in range(8)],
        [(w, t) for t in range(5) for w in (2, 0, 1)],
        [(0, 0), (0, 1), (0, 6), (0, 7), (0, 2), (0, 3)],
    ],
)
def test_threads_and_batches_ahead_change_no_bit(root: Path, order: list[tuple[int, int]]) -> None:
    """One worker, several in turn, and one that goes forth and back, as when resuming: always the batch
    made by hand.
    """
    for loaders, ahead in ((0, 2), (1, 0), (1, 3), (4, 2)):
        made = problem(small(root, loaders=loaders, ahead=ahead))
        batches, plain = Batches(12, 5, 3), small(root, loaders=0)
        for worker, t in order:
            made.load(worker, t)
            generator = torch.Generator().manual_seed(key(3, AUGMENTATION, worker, t))
            inputs, labels = plain.training_batch(batches.indices(worker, t), generator)
            assert torch.equal(made._loaded[0][0], inputs) and torch.equal(made._loaded[0][1], labels)


def test_batches_are_decoded_ahead(root: Path) -> None:
    """After a step's batch, the next two are under way, and those of a virtual cluster do not pile up."""
    made = problem(small(root, loaders=2, ahead=2))
    made.load(0, 0)
    assert set(made._begun) == {(0, 1), (0, 2)}
    for worker in range(1, 40):
        made.load(worker, 0)
    assert len(made._begun) <= 17


def test_sent_to_another_process_it_carries_no_pixels_and_no_threads(root: Path) -> None:
    images = small(root).hold_out(3)
    images.training_batch(torch.arange(3), torch.Generator())  # threads run
    again = pickle.loads(pickle.dumps(images))
    assert again.classes == images.share().classes == ("ant", "bee", "cat")
    assert again._pool == [] and len(pickle.dumps(images)) < 4000
    for split in ("train", "test", "held_out"):
        for (a, la), (b, lb) in zip(
            images.evaluation_batches(split, 4, CPU, torch.float32),
            again.evaluation_batches(split, 4, CPU, torch.float32),
            strict=True,
        ):
            assert torch.equal(a, b) and torch.equal(la, lb)


def test_in_shared_memory_it_is_the_same(root: Path) -> None:
    images = small(root).hold_out(3).normalised([0.5, 0.4, 0.3], [0.2, 0.2, 0.1])
    shared = images.share()
    assert shared.memory is not None and shared.train.labels.data_ptr() == shared.memory["train.labels"].data_ptr()
    a, b = (x.training_batch(torch.arange(9), torch.Generator().manual_seed(2))[0] for x in (images, shared))
    assert torch.equal(a, b) and shared.count("held_out") == 3


def test_held_out_images_are_not_trained_on(root: Path) -> None:
    images = small(root).hold_out(3)
    assert images.kept is not None and images.taken is not None
    assert sorted(images.kept.tolist() + images.taken.tolist()) == list(range(12)) and (
        images.count("train"),
        images.count("held_out"),
    ) == (9, 3)
    assert sorted(images.train.labels[images.taken].tolist()) == [0, 1, 2]


def test_mean_and_std_are_of_pixels_from_0_to_1(root: Path) -> None:
    plain, mean, std = small(root), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    [(x, _)], [(y, _)] = (
        list(i.evaluation_batches("test", 9, CPU, torch.float32)) for i in (plain, plain.normalised(mean, std))
    )
    assert torch.allclose(y, (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])


# --- decoding --------------------------------------------------------------------------------------------------------


def test_every_kind_of_image_becomes_rgb(tmp_path: Path) -> None:
    base = photo(30, 20)
    sixteen = Image.fromarray((np.asarray(base.convert("L")).astype(np.uint16) << 8) + 17)
    for name, image, expected in (
        ("grey.png", base.convert("L"), base.convert("L").convert("RGB")),
        ("sixteen.png", sixteen, base.convert("L").convert("RGB")),
        ("palette.png", base.convert("P"), base.convert("P").convert("RGB")),
        ("cmyk.tif", base.convert("CMYK"), base.convert("CMYK").convert("RGB")),
        ("alpha.png", base.convert("RGBA"), base),
        ("one.png", base.convert("1"), base.convert("1").convert("RGB")),
        ("map.bmp", base, base),
    ):
        image.save(tmp_path / name)
        made = decoding.rgb(str(tmp_path / name))
        assert made.mode == "RGB" and np.array_equal(np.asarray(made), np.asarray(expected)), name


def test_a_png_named_jpeg_is_an_image(tmp_path: Path) -> None:
    photo(30, 20).save(tmp_path / "a.jpeg", "PNG")
    assert np.array_equal(np.asarray(decoding.rgb(str(tmp_path / "a.jpeg"))), np.asarray(photo(30, 20)))


def broken_contents() -> dict[str, bytes]:
    whole = io.BytesIO()
    photo(64, 64).save(whole, "JPEG")
    return {"is empty": b"", "is not an image": b"this is text", "truncated": whole.getvalue()[:-40]}


@pytest.mark.parametrize("loaders", [0, 2])
@pytest.mark.parametrize(("why", "content"), broken_contents().items())
def test_a_broken_image_ends_training_with_its_name(root: Path, loaders: int, why: str, content: bytes) -> None:
    (root / "train/bee/1.JPEG").write_bytes(content)
    images = small(root, loaders=loaders)
    with pytest.raises(
        UsageError, match=rf"train/bee/1.JPEG cannot be decoded: .*{why}.*; easgd data prepare " r"dataset=imagefolder"
    ):
        images.training_batch(torch.arange(12), torch.Generator())


# --- prepared copies -------------------------------------------------------------------------------------------------


def test_the_copy_has_the_images_resized(root: Path) -> None:
    """Within what JPEG changes; labels and order are the same."""
    originals = small(root)
    assert prepare(root).written == 18
    copy = small(root)
    assert "resized copy" in str(copy.about) and "originals" in str(originals.about)
    for split in ("train", "test"):
        [(a, la)], [(b, lb)] = (list(i.evaluation_batches(split, 99, CPU, torch.float32)) for i in (originals, copy))
        assert torch.equal(la, lb) and (a - b).abs().mean() < 0.02
    [(a, _)] = copy.evaluation_batches("test", 99, CPU, torch.float32)
    [(b, _)] = pickle.loads(pickle.dumps(copy)).evaluation_batches("test", 99, CPU, torch.float32)
    assert torch.equal(a, b)


def test_what_cannot_be_decoded_is_left_out_and_listed(root: Path) -> None:
    (root / "train/bee/1.JPEG").write_bytes(b"")
    (root / "train/bee/gone.JPEG").symlink_to(root / "nowhere")
    done = prepare(root)
    assert done.broken == [("train/bee/1.JPEG", "is empty"), ("train/bee/gone.JPEG", "No such file or directory")]
    assert small(root).count("train") == 11 and prepare(root).kept == 19
    small(root, loaders=1).training_batch(torch.arange(11), torch.Generator())


def test_what_was_left_out_is_done_when_it_can_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Giving oneself the right to read a file changes neither its size nor its time."""
    [shard] = shards.planned(folders.listed("imagefolder", str(root)), root, 24)["train"]
    rgb = decoding.rgb

    def refused(content: bytes | memoryview | str) -> Image.Image:
        if str(content).endswith("bee/1.JPEG"):
            raise decoding.BrokenImage("Permission denied")
        return rgb(content)

    with monkeypatch.context() as without_the_right:
        without_the_right.setattr(decoding, "rgb", refused)
        without_the_right.setattr(preparation, "_done", [0], raising=False)
        preparation.make(shard, 0)
        found = shard.described()
        assert found is not None and found["broken"] == [["train/bee/1.JPEG", "Permission denied"]]
    assert shard.described() is None


def test_only_what_changed_is_done_again(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos", classes=("ant", "bee"), each=200)
    prepare(root)
    assert prepare(root).written == 0
    photo(50, 50, seed=9).save(root / "train/bee/9.JPEG")
    parts = shards.planned(folders.listed("imagefolder", str(root)), root / "prepared-24", 24)["train"]
    [own] = [shard for shard in parts if "train/bee/9.JPEG" in list(shard.images.paths())]
    files = {shard.name: Path(shard.directory, f"{shard.name}.bin") for shard in parts}
    before = {name: file.stat().st_ino for name, file in files.items()}
    done = prepare(root)
    assert len(parts) > 3 and done.written == len(own.images) and done.kept == 404 - done.written
    assert {name for name, file in files.items() if file.stat().st_ino != before[name]} == {own.name}
    copy, place = small(root), list(folders.listed("imagefolder", str(root)).train.paths()).index("train/bee/9.JPEG")
    [(a, _)] = copy.evaluation_batches("train", 1, CPU, torch.float32, indices=torch.tensor([place]))
    [(b, _)] = copy.evaluation_batches("train", 1, CPU, torch.float32, indices=torch.tensor([0]))
    whole = (
        torch.from_numpy(np.asarray(photo(50, 50, seed=9).resize((24, 24), Image.Resampling.BILINEAR)).copy())[
            2:22, 2:22
        ].permute(2, 0, 1)
        / 255
    )
    assert (a[0] - whole).abs().mean() < 0.03 < (b[0] - whole).abs().mean()


def test_an_image_that_comes_or_goes_moves_no_cut_but_its_own(tmp_path: Path) -> None:
    """By names alone: without any one of 3,000 images it is the shard it was in that is another, and rarely a few
    beside it.
    """

    def cut(paths: list[str]) -> set[tuple[str, ...]]:
        of_split = Listed.of(paths, 0)
        planned = shards.planned(
            folders.Folders(tmp_path, ("a",), of_split, Listed.of(["val/a/0.png"], 0), {}), tmp_path, 24
        )["train"]
        parts = [tuple(shard.images.paths()) for shard in planned]
        assert [path for part in parts for path in part] == paths and len({shard.name for shard in planned}) == len(
            planned
        )
        assert all(len(part) <= 128 for part in parts)
        return set(parts)

    paths = [f"train/a/{n:04d}.png" for n in range(3000)]
    whole = cut(paths)
    assert 25 < len(whole) < 80
    others = [len(whole - cut(paths[:gone] + paths[gone + 1 :])) for gone in range(0, 3000, 31)]
    # cuts at the greatest length move up to the next by name
    assert min(others) >= 1 and sum(others) / len(others) < 1.5 and max(others) <= 5


def test_a_run_goes_on_with_the_copy_that_it_began_with(tmp_path: Path) -> None:
    """While a copy is brought up to date its files are replaced or removed; who has used one image of a split reads all
    others as they were.
    """
    root = make_folder(tmp_path / "photos", classes=("ant", "bee"), each=100)
    prepare(root)
    copy, same = small(root), small(root)
    [(before, _)] = same.evaluation_batches("train", 200, CPU, torch.float32)
    list(copy.evaluation_batches("train", 1, CPU, torch.float32, indices=torch.tensor([0])))
    for i in range(100):
        photo(50, 50, seed=i).save(root / f"train/ant/{i}.JPEG")
    for i in range(50):
        (root / f"train/bee/{i}.JPEG").unlink()
    assert prepare(root).written > 0
    [(after, _)] = copy.evaluation_batches("train", 200, CPU, torch.float32)
    assert torch.equal(before, after)


def test_a_smaller_set_leaves_no_shards_behind(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos", classes=("ant", "bee"), each=70)
    prepare(root)
    for i in range(10, 70):
        (root / f"train/ant/{i}.JPEG").unlink()
    prepare(root)
    parts = shards.planned(folders.listed("imagefolder", str(root)), root / "prepared-24", 24)["train"]
    assert {p.stem for p in (root / "prepared-24").glob("train-*.bin")} == {shard.name for shard in parts} and small(
        root
    ).count("train") == 80


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_it_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, number: signal.Signals) -> None:
    """In the middle, at whatever moment: no process stays, finished shards are kept, and the copy is that of a run left
    alone.
    """
    root = make_folder(tmp_path / "photos", classes=("ant", "bee"), each=200)
    prepare(root, directory=tmp_path / "alone")
    place = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "easgd_cli",
        "data",
        "prepare",
        "dataset=imagefolder",
        f"dataset.root={root}",
        "dataset.resize=24",
        f"dataset.prepared={place}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    while process.poll() is None and not list(place.glob("*.json")):
        time.sleep(0.002)
    process.send_signal(number)
    assert process.stderr is not None
    said = process.stderr.read().decode()  # ends when the last process that holds it has
    assert process.wait() == (143 if number == signal.SIGTERM else -9)
    if number == signal.SIGTERM:
        assert said.splitlines()[1:] == ["easgd: terminated; called again, easgd data prepare goes on where it was."]
    finished = {p.name for p in place.glob("*.json")}
    done = prepare(root, directory=place)
    assert finished and done.kept > 0
    for file in (tmp_path / "alone").iterdir():
        assert file.suffix == ".npz" or file.read_bytes() == (place / file.name).read_bytes()
    assert not list(place.glob("*.part"))


def test_a_shortened_shard_is_noticed(root: Path) -> None:
    prepare(root)
    [shard] = root.glob("prepared-24/train-*.bin")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(
        UsageError,
        match=r"train-[0-9a-f]{16}.bin: is shorter than its index says; remove it and "
        r"call easgd data prepare again",
    ):
        small(root)
    assert prepare(root).written == 12
    small(root)


def test_a_copy_of_another_size_is_refused(root: Path) -> None:
    prepare(root, side=32, directory=root / "copy")
    with pytest.raises(UsageError, match=r"dataset.resize=24: the copy in .*copy has smallest sides of 32"):
        small(root, prepared=str(root / "copy"))


def test_a_second_prepare_of_the_same_copy_is_refused(root: Path) -> None:
    """Two would write into each other's files; when the first has ended, however, the next goes on. Every image is
    counted as it is done.
    """
    told: list[tuple[int, int]] = []

    def meanwhile(done: int, total: int) -> None:
        told.append((done, total))
        with pytest.raises(
            UsageError, match=r"prepared-24: another easgd data prepare is making this copy; wait " r"for it to end"
        ):
            prepare(root)

    assert (
        preparation.prepare(folders.listed("imagefolder", str(root)), root / "prepared-24", 24, 1, meanwhile).written
        == 18
    )
    assert prepare(root).kept == 18 and told[0] == (0, 18) and told[-1] == (18, 18) and told == sorted(told)


def replace_file(root: Path) -> None:
    photo(50, 50, seed=9).save(root / "beside.JPEG")
    os.replace(root / "beside.JPEG", root / "train/bee/1.JPEG")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: (root / "train/bee/1.JPEG").unlink(), "train/bee in "),
        (lambda root: photo(30, 30).save(root / "val/cat/new.JPEG"), "val/cat in "),
        (lambda root: (root / "train/dog").mkdir(), "train in "),
        (replace_file, "train/bee in "),
        (
            lambda root: [(root / f"train/{c}/1.JPEG").unlink() for c in ("ant", "bee", "cat")],
            "train/ant and 2 others in ",
        ),
    ],
)
def test_a_run_says_that_the_originals_have_changed_since(
    root: Path, change: Callable[[Path], object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And looks at directories only: at 8 here, however many images are in them."""
    prepare(root)
    assert "changed" not in str(small(root).about)
    change(root)
    asked: list[str] = []
    stat = os.stat
    monkeypatch.setattr(listing.os, "stat", lambda path, **k: asked.append(str(path)) or stat(path, **k))
    about = str(small(root).about)
    assert (
        f"{said}{root} changed after this copy was made, which is used as it is; easgd data prepare brings it up "
        "to date." in about
    )
    looked_at = {
        path.removeprefix(f"{root}/") for path in asked if path.startswith(f"{root}/") and "prepared-24" not in path
    }
    assert looked_at == {"train", "val"} | {f"{split}/{c}" for split in ("train", "val") for c in ("ant", "bee", "cat")}
    if not (root / "train/dog").exists():
        prepare(root)
        assert "changed" not in str(small(root).about)


def test_without_its_originals_a_copy_is_used_without_a_word(root: Path) -> None:
    prepare(root, directory=root / "copy")
    for split in ("train", "val"):
        shutil.rmtree(root / split)
    assert "changed" not in str(small(root, prepared=str(root / "copy")).about)


# --- listing ---------------------------------------------------------------------------------------------------------


def test_images_and_their_order_are_those_of_torchvisions_imagefolder(root: Path) -> None:
    """With folders in folders, links to folders, upper-case endings, blanks, umlauts, line breaks and bytes that are no
    text.
    """
    for n, name in enumerate(
        (
            "b.JPG",
            "a b.png",
            "ä.Tiff",
            "line\nbreak.webp",
            "deep/z.png",
            "deep/a/1.bmp",
            "deep-er/1.png",
            "\udcff.png",
            "1.txt",
        )
    ):
        file = root / "train/bee" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        photo(30 + n, 30).save(file, "PNG")
    (root / "elsewhere").mkdir()
    photo(30, 30).save(root / "elsewhere/1.png")
    (root / "train/linked").symlink_to(root / "elsewhere")
    found = folders.listed("imagefolder", str(root))
    theirs = torchvision().datasets.ImageFolder(str(root / "train"))
    assert [
        (f"{root}/{path}", label) for path, label in zip(found.train.paths(), found.train.labels, strict=True)
    ] == theirs.samples
    assert found.classes == tuple(theirs.classes) == ("ant", "bee", "cat", "linked")
    files = small(root).train
    assert [files.name(i) for i in range(len(theirs.samples))] == [path for path, _ in theirs.samples]


def test_what_is_hidden_is_passed_over(root: Path) -> None:
    before = folders.listed("imagefolder", str(root))
    for name in (
        ".DS_Store",
        "train/.DS_Store",
        "train/bee/._1.JPEG",
        "train/bee/.thumbnails/1.JPEG",
        "train/.cache/1.JPEG",
        "val/.cache/1.JPEG",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"no image")
    after = folders.listed("imagefolder", str(root))
    assert (after.classes, after.train.text, after.test.text) == (before.classes, before.train.text, before.test.text)


def test_no_image_is_asked_for_one_by_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a million images that would be the whole start: one call for each directory, before it is read, and none for
    what is in it.
    """
    asked: list[str] = []
    stat = os.stat
    monkeypatch.setattr(listing.os, "stat", lambda path, **k: asked.append(str(path)) or stat(path, **k))
    found = folders.listed("imagefolder", str(root))
    images = small(root)
    assert images.count("train") == 12 and not [path for path in asked if path.endswith(".JPEG")]
    assert set(found.times) == {"train", "val"} | {
        f"{split}/{c}" for split in ("train", "val") for c in ("ant", "bee", "cat")
    }


def test_a_class_without_test_images_is_told_of(root: Path) -> None:
    assert "no test image" not in str(small(root).about)
    remove(root / "val/bee")
    said = "1 of the 3 classes have no test image, so the errors say nothing of them: bee."
    assert str(small(root).about).endswith(said)
    prepare(root)
    assert str(small(root).about).endswith(said)


def test_a_root_in_the_home_directory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    assert small(Path("~/photos")).count("train") == 12
    prepare(root)
    assert "resized copy" in str(small(Path("~/photos")).about)


def test_what_takes_long_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """After two seconds, then every five; a second for each item here, then a hundredth."""
    clock = [0.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: clock[0])
    for seconds, said in ((1.0, [2, 7, 12]), (0.01, [])):
        for _ in patience.told(range(13), "looking"):
            clock[0] += seconds
        assert capsys.readouterr().err == "".join(f"easgd: looking: {n} of 13\n" for n in said)


# --- what is wrong with a set ----------------------------------------------------------------------------------------


def remove(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: os.rename(root, root.with_name("elsewhere")), r"dataset.root=.*: there is no such directory"),
        (lambda root: os.rename(root / "train", root / "training"), r"has no folder train"),
        (lambda root: os.rename(root / "val", root / "valid"), r"has neither val nor test"),
        (lambda root: remove(root / "train/bee"), r"train/bee has no images .* fill or remove it"),
        (
            lambda root: [remove(root / "train" / c) for c in ("bee", "cat")],
            r"train/bee and 1 more have no images " r".* fill or remove them",
        ),
        (
            lambda root: (root / "train/bee/back").symlink_to(root / "train/bee"),
            r"a link in .*photos/train/bee leads back to where it lies, or to a folder above; remove it",
        ),
        (lambda root: (root / "val/dog").mkdir(), r"val/dog is no class; the 3 classes are the folders in train"),
        (lambda root: [remove(root / "val" / c) for c in ("ant", "bee", "cat")], r"there are no images in val/CLASS/"),
    ],
)
def test_a_folder_that_is_not_as_it_should_be(root: Path, spoil: Callable[[Path], object], said: str) -> None:
    spoil(root)
    with pytest.raises(UsageError, match=said):
        small(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(root: Path) -> None:
    (root / "train/bee").chmod(0)
    with pytest.raises(UsageError, match=r"train/bee cannot be read \(Permission denied\)"):
        small(root)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"crop": 25}, r"dataset.crop=25: must be from 1 to dataset.resize=24"),
        ({"resize": 0}, r"dataset.resize=0: is what the smallest side"),
        ({"loaders": -1}, r"dataset.loaders=-1: threads that decode"),
        ({"ahead": 65}, r"dataset.ahead=65: batches decoded before"),
        (
            {"prepared": "nowhere"},
            r"dataset.prepared=nowhere: holds no finished copy; easgd data prepare " r"dataset=imagefolder",
        ),
    ],
)
def test_settings_out_of_range(root: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        small(root, **settings)


def test_images_in_test_serve_where_there_is_no_val(tmp_path: Path) -> None:
    assert small(make_folder(tmp_path / "photos", test="test")).count("test") == 6


# --- ImageNet --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ilsvrc(tmp_path: Path) -> Path:
    """As published: training images by WordNet id, validation images in one folder."""
    root = make_folder(tmp_path / "ilsvrc", classes=("n01440764", "n01443537", "n01484850"))
    for n, file in enumerate(sorted((root / "val").glob("*/*")), 1):
        file.rename(root / f"val/ILSVRC2012_val_{n:08d}.JPEG")
    for folder in root.glob("val/n*"):
        folder.rmdir()
    return root


SHOWN = ["n01484850", "n01440764", "n01443537", "n01440764", "n01484850", "n01443537"]


def test_flat_validation_images_with_kaggles_solution(ilsvrc: Path) -> None:
    rows = [f"ILSVRC2012_val_{n:08d},{wnid} 1 2 3 4 {wnid} 5 6 7 8" for n, wnid in enumerate(SHOWN, 1)]
    (ilsvrc / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]))
    assert imagenet(str(ilsvrc)).test.labels.tolist() == [2, 0, 1, 0, 2, 1]


def test_a_copy_with_other_labels_than_its_originals_is_not_theirs(ilsvrc: Path) -> None:
    """The photos are the same, and only the file that says what they show has been corrected: nothing is decoded again,
    and labels are new.
    """
    solution = ilsvrc / "imagenet_2012_validation_synset_labels.txt"
    for shown, labels in ((SHOWN, [2, 0, 1, 0, 2, 1]), ([*SHOWN[1:], SHOWN[0]], [0, 1, 0, 2, 1, 2])):
        solution.write_text("\n".join(shown) + "\n")
        found = folders.listed_imagenet(str(ilsvrc))
        if labels[0] == 0:
            assert not preparation.current(found, ilsvrc / "prepared-256", 256)
            assert f"{solution.name} in {ilsvrc} changed after this copy was made" in str(imagenet(str(ilsvrc)).about)
        done = preparation.prepare(found, ilsvrc / "prepared-256", 256, 1, lambda done, total: None)
        assert (
            preparation.current(found, ilsvrc / "prepared-256", 256)
            and imagenet(str(ilsvrc)).test.labels.tolist() == labels
        )
    assert done.written == 0


def test_flat_validation_images_with_a_wordnet_id_a_line(ilsvrc: Path) -> None:
    (ilsvrc / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(SHOWN) + "\n")
    made = imagenet(str(ilsvrc))
    assert made.test.labels.tolist() == [2, 0, 1, 0, 2, 1] and made.input_shape == (3, 221, 221) and made.resize == 256


def test_flat_validation_images_with_the_development_kit_as_it_unpacks(ilsvrc: Path) -> None:
    """Its numbers are in an order of their own, and it has nodes above the classes."""
    kit = ilsvrc / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    ids = {wnid: n for n, wnid in zip((2, 3, 1), sorted(set(SHOWN)), strict=True)}
    numbers = "\n".join(str(ids[wnid]) for wnid in SHOWN) + "\n"
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text(numbers)
    with pytest.raises(UsageError, match="there is none beside it"):
        imagenet(str(ilsvrc))
    synsets = [(n, wnid, "words", "gloss", 0) for wnid, n in ids.items()] + [(4, "n00001740", "entity", "gloss", 3)]
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    savemat(str(kit / "meta.mat"), {"synsets": np.array(synsets, dtype=kinds)})
    assert imagenet(str(ilsvrc)).test.labels.tolist() == [2, 0, 1, 0, 2, 1]
    (kit / "meta.mat").write_bytes(b"not a MATLAB file")
    with pytest.raises(UsageError, match=r"meta\.mat beside it cannot be read"):
        imagenet(str(ilsvrc))


def test_flat_validation_images_need_a_file(ilsvrc: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"val is not sorted .* put LOC_val_solution.csv \(Kaggle's\), "
        r"imagenet_2012_validation_synset_labels.txt",
    ):
        imagenet(str(ilsvrc))


def test_classes_that_are_no_wordnet_ids_are_another_data_set(root: Path) -> None:
    with pytest.raises(UsageError, match=r"train/ant is not named by a WordNet id .* use dataset=imagefolder"):
        imagenet(str(root))


# --- the command -----------------------------------------------------------------------------------------------------


def test_prepare_and_verify(easgd: Callable[..., Said], root: Path) -> None:
    words = ("dataset=imagefolder", f"dataset.root={root}", "dataset.resize=24", "dataset.crop=20")
    (root / "train/bee/1.JPEG").write_bytes(b"text")
    found = easgd("data", "verify", *words)
    assert found.status == 1 and "train/bee/1.JPEG: is not an image" in found.out and "1 things are wrong" in found.out
    made = easgd("data", "prepare", *words)
    assert (
        made.status == 0
        and "left out: train/bee/1.JPEG: is not an image" in made.out
        and "17 images, 1 left out" in made.out
    )
    assert easgd("data", "verify", *words).status == 0
    photo(30, 30).save(root / "train/bee/1.JPEG")
    changed = easgd("data", "verify", *words)
    assert changed.status == 1 and "easgd data prepare brings it up to date" in changed.out


def test_verify_of_a_set_in_memory(easgd: Callable[..., Said]) -> None:
    assert (
        easgd("data", "verify").out == "dataset=digits: 1,347 training and 450 test images of 10 classes; "
        "nothing is wrong\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("prepaer",), "data prepaer: there is no such action; did you mean prepare?"),
        (
            ("prepare", "dataset=digits"),
            "data prepare dataset=digits: only data sets of photos are prepared (imagefolder, imagenet)",
        ),
        (
            ("prepare", "dataset=imagenet"),
            "dataset=imagenet needs dataset.root, and no value was given; write dataset.root=.",
        ),
        (("verify", "dataset=imagenet", "dataset.root=nowhere"), "dataset.root=nowhere: there is no such directory"),
    ],
)
def test_mistakes_have_their_sentence(easgd: Callable[..., Said], words: tuple[str, ...], said: str) -> None:
    answer = easgd("data", *words)
    assert answer.status == 2 and said in answer.err


def test_a_wrong_mean_is_refused_before_anything_starts(easgd: Callable[..., Said], launcher: Launcher) -> None:
    answer = easgd("train", "dataset.mean=[0.5,0.5]")
    assert (
        answer.status == 2
        and "dataset.mean=[0.5,0.5]: has 2 numbers and the images have 1 channels" in answer.err
        and not launcher.jobs
    )
    assert "dataset.std=[0]: must be finite numbers greater than 0" in easgd("train", "dataset.std=[0]").err


# --- runs of real processes ------------------------------------------------------------------------------------------


def train(root: Path, run_dir: Path, *words: str, workers: int = 1, steps: int = 12) -> int:
    settings = [
        "algo=easgd",
        "dataset=imagefolder",
        f"dataset.root={root}",
        "dataset.resize=24",
        "dataset.crop=20",
        "model=small",
        "eta=0.05",
    ]
    settings += [
        f"steps={steps}",
        "batch_size=4",
        f"workers={workers}",
        "eval.train_images=4",
        f"hydra.run.dir={run_dir}",
        *words,
    ]
    return main(["train", *settings])


def test_threads_change_no_bit_of_a_run_and_neither_does_resuming(root: Path, tmp_path: Path) -> None:
    """With threads, without, and stopped halfway: the same center."""
    prepare(root)
    assert train(root, tmp_path / "threads", "dataset.loaders=3") == 0
    assert train(root, tmp_path / "none", "dataset.loaders=0") == 0
    assert train(root, tmp_path / "halves", steps=6) == 0
    assert main(["train", f"resume={tmp_path / 'halves'}", "steps=12"]) == 0
    centers = [torch.load(tmp_path / name / "center.pt", weights_only=True) for name in ("threads", "none", "halves")]
    for center in centers[1:]:
        assert all(torch.equal(center[k], v) for k, v in centers[0].items())


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_run_that_comes_to_a_broken_image_fails_with_its_name(
    root: Path, tmp_path: Path, split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / split / "cat" / "1.JPEG").write_bytes(b"text")
    assert train(root, tmp_path / "run", workers=2, steps=100) == 1
    assert (
        f"{split}/cat/1.JPEG cannot be decoded: is not an image; easgd data prepare"
        in capsys.readouterr().err.splitlines()[-1]
    )


def test_more_files_are_mapped_than_some_shells_allow_to_be_open(tmp_path: Path) -> None:
    names = tuple(f"{n}.bin" for n in range(200))
    for n, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes([n] * 3))
    places = torch.tensor([[n, 1, 2] for n in range(200)])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, hard))
    try:
        source = Shards.of(tmp_path, names, torch.zeros(200, dtype=torch.int64), places)
        assert [bytes(source.content(n)) for n in range(200)] == [bytes([n] * 2) for n in range(200)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("removed", [False, True])
def test_a_copy_made_anew_is_never_read_by_the_index_of_the_old_one(begun: bool, removed: bool, tmp_path: Path) -> None:
    """As for the evaluator of a deferred evaluation, which begins when the run has ended."""
    (tmp_path / "a.bin").write_bytes(b"old")
    (tmp_path / "b.bin").write_bytes(b"kept")
    source = Shards.of(
        tmp_path, ["a.bin", "b.bin"], torch.zeros(2, dtype=torch.int64), torch.tensor([[0, 0, 3], [1, 0, 4]])
    )
    if begun:
        source.content(1)
    (tmp_path / "a.bin.part").write_bytes(b"new")
    os.utime(tmp_path / "a.bin.part", ns=(1, 1))
    os.replace(tmp_path / "a.bin.part", tmp_path / "a.bin")
    if removed:
        (tmp_path / "a.bin").unlink()
    if begun:
        assert (bytes(source.content(0)), bytes(source.content(1))) == (b"old", b"kept")
    else:
        with pytest.raises(
            UsageError,
            match=r"a\.bin: has been made anew since this began, as by easgd data " r"prepare; start it again",
        ):
            source.content(1)


def test_a_directory_with_an_images_name_is_looked_into_and_loose_images_are_told(root: Path) -> None:
    (root / "train/ant/more.jpg").mkdir()
    photo(30, 30).save(root / "train/ant/more.jpg/a.jpg")
    for i in range(3):
        photo(30, 30).save(root / f"train/{i}.png")
    images = small(root)
    assert images.count("train") == 13 and any("more.jpg/a.jpg" in images.train.name(i) for i in range(13))
    assert f"3 images lie in {root}/train itself, in no class, and are left out." in str(images.about)
    assert "lie in" not in str(small(make_folder(root / "other")).about)


def test_links_that_lead_back_are_named_and_removing_them_is_the_remedy(root: Path) -> None:
    for link, target in (("self", "self"), ("up", "..")):
        (root / "train/cat" / link).symlink_to(target)
        with pytest.raises(UsageError, match=r"a link in \S*photos/train/cat leads back .*; remove it"):
            small(root)
        (root / "train/cat" / link).unlink()
    assert small(root).count("train") == 12


def test_what_the_decoder_warns_of_is_said_with_the_images_name(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = root / "train/ant/0.JPEG"
    path.unlink()
    Image.fromarray(np.zeros((30, 30), np.uint8)).convert("P").save(path, "PNG", transparency=b"\0\1")
    images = small(root, loaders=2)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        images.training_batch(torch.arange(12), torch.Generator())
    assert f"easgd: {path}: Palette images with Transparency" in capfd.readouterr().err
