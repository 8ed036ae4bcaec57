"""`easgd data`: makes the resized copy of a data set of photos, or decodes all of a data set and says what is wrong."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from easgd_cli.commands import arguments, compose
from easgd_cli.commands.words import meant
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.record.display import clock
from easgd_cli.settings import targets
from easgd_cli.settings.schema import Settings
from easgd_cli.system import interruption
from easgd_cli.system.terminal import help_text, printable

if TYPE_CHECKING:
    from easgd_cli.data.preparation import Finished

_HELP = """usage: easgd data prepare dataset=imagenet dataset.root=DIR [KEY=VALUE ...]
       easgd data verify [dataset=NAME] [KEY=VALUE ...]

  prepare   writes a copy of a data set of photos (imagenet, imagefolder) with smallest sides of dataset.resize into
            DIR/prepared-256, or dataset.prepared=DIR, in as many processes as there are cores. Stopped at any moment,
            it goes on where it was when called again; images that are new or have changed are done again. Images that
            cannot be decoded are listed and left out. Training uses the copy when it is there, instead of the
            originals.
  verify    decodes everything in a data set and lists what cannot be decoded, and whether a prepared copy is still that
            of its originals

  easgd data prepare dataset=imagenet dataset.root=/data/imagenet
  easgd data verify dataset=cifar10

Settings are those of easgd train. Exit status: 0 all is well, images left out by prepare included; 1 verify has found
something; 2 the data set cannot be used at all, or a setting is wrong.
"""

_WHAT = ("prepare", "verify")
_SHOWN = 20  # images listed one by one
_SECONDS = 5.0  # between two lines of progress


def main(argv: Sequence[str]) -> int:
    """Prepares or verifies; returns the exit status. Raises UsageError and RunError."""
    if not argv or "-h" in argv or "--help" in argv:
        print(help_text(_HELP), end="")
        return 0
    what, *rest = argv
    if what not in _WHAT:
        raise UsageError(f"data {what}: there is no such action; {meant(what, _WHAT)}")
    settings = _settings(what, rest)
    return _prepare(settings) if what == "prepare" else _verify(settings)


def _prepare(s: Settings) -> int:
    from easgd_cli.data import photos, preparation
    from easgd_cli.system.devices import cores

    name = s.dataset["name"]
    if name not in photos.LISTED:
        raise UsageError(
            f"data prepare dataset={name}: only data sets of photos are prepared ({', '.join(photos.LISTED)}); "
            "this one needs no preparation."
        )
    root, side, directory = _place(s)
    photos.check(side, min(side, 1), None, 0)
    found = photos.LISTED[name](root)
    try:
        # signals become exceptions: killed at once, the pool of processes would leave semaphores and print a warning
        with interruption.raised() as came:
            done = preparation.prepare(found, directory, side, cores(), _Progress())
    except KeyboardInterrupt:
        interruption.tell(f"{interruption.said(came[0])}; called again, easgd data prepare goes on where it was.")
        return 128 + came[0]
    _tell(done, directory)
    return 0


def _tell(done: Finished, directory: Path) -> None:
    for path, why in done.broken[:_SHOWN]:
        print(printable(f"left out: {path}: {why}"))
    if len(done.broken) > _SHOWN:
        print(printable(f"left out: {len(done.broken) - _SHOWN:,} more; the .json files in {directory} list them"))
    was = f", {done.kept:,} of them from before" if done.kept else ""
    print(f"{done.kept + done.written - len(done.broken):,} images{was}, {len(done.broken):,} left out: {directory}")


class _Progress:
    """Says at the start, and then every few seconds, how many images are done, and how long the rest will take."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._first, self._said = 0, 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._began is None:
            self._began, self._first, self._said = now, done, now
            if done < total:
                print(f"{done:,} of {total:,} images", file=sys.stderr, flush=True)
            return
        if now - self._said < _SECONDS and done < total:
            return
        self._said = now
        rate = (done - self._first) / max(now - self._began, 1e-9)
        left = clock(int((total - done) / rate) if rate else 0)
        print(f"{done:,} of {total:,} images, {rate:,.0f} a second, {left} left", file=sys.stderr, flush=True)


def _verify(s: Settings) -> int:
    from easgd_cli.data import photos, preparation
    from easgd_cli.data.images import Images
    from easgd_cli.data.stored import StoredImages
    from easgd_cli.system.devices import cores

    images, name, wrong = build.data(s), s.dataset["name"], 0
    if isinstance(images, StoredImages):
        progress, total, before = _Progress(), sum(images.count(split) for split in ("train", "held_out", "test")), 0
        progress(0, total)
        for split in ("train", "test"):
            for done, broken in images.broken(split, cores()):
                for image, why in broken:
                    wrong += 1
                    print(printable(f"{image}: {why}"))
                progress(before + done, total)
            before += done
        root, side, directory = _place(s)
        both = (directory / preparation.INDEX).exists() and (Path(root).expanduser() / "train").is_dir()
        if name in photos.LISTED and both and not preparation.current(photos.LISTED[name](root), directory, side):
            wrong += 1
            print(f"{directory}: is not the copy of what lies in {root} now; easgd data prepare brings it up to date")
    of_what = "" if images.num_classes is None else f" of {images.num_classes:,} classes"
    counts = (
        f"{images.count('train') + images.count('held_out'):,} training and {images.count('test'):,} test "
        f"{'images' if isinstance(images, Images | StoredImages) else 'samples'}{of_what}"
    )
    print(f"dataset={name}: {counts}; " + (f"{wrong:,} things are wrong" if wrong else "nothing is wrong"))
    return 1 if wrong else 0


def _place(s: Settings) -> tuple[str, int, Path]:
    """Returns the root of the originals, and smallest side and directory of the prepared copy. Raises UsageError."""
    from easgd_cli.data import photos

    root = targets.convert("dataset.root", s.dataset.get("root"), str)
    side = targets.convert("dataset.resize", s.dataset.get("resize"), int)
    prepared = targets.convert("dataset.prepared", s.dataset.get("prepared"), str | None)
    return root, side, photos.prepared_directory(root, side, prepared)


def _settings(what: str, words: Sequence[str]) -> Settings:
    asked = arguments.of_one_run(words, f"data {what}")
    given = {o.key_or_group for o in arguments.parse_overrides(asked.overrides)}
    # composing needs both, and a user's own data set may have no defaults for them
    without = [o for o in ("eta=0", "steps=1") if o.partition("=")[0] not in given]
    with compose.composing(asked.config_name) as composed:
        return composed([*without, *asked.overrides]).settings
