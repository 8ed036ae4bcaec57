"""How the pictures look and are saved: matplotlib's objects without pyplot, so no window system and no global state of
ours.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart by all eyes, and in this order also in grey.
BLUE, GREEN, ORANGE, PURPLE, SKY, BLACK = "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, BLACK)
DIVERGENT = "0.82"  # grey: nothing finite there
WIDTH = 7.0  # inches: across a page

# Of an SVG's coordinates, in points of 1/72 inch: two decimals are finer than any printer, six are half of the file.
_PATH = re.compile(r' d="[^"]*"')
_FINER = re.compile(r"(\.\d\d)\d+")


@contextmanager
def style() -> Iterator[None]:
    """Settings under which pictures are made and saved, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.size": 8,
                "axes.titlesize": 8,
                "axes.grid": False,
                "legend.frameon": False,
                "svg.fonttype": "none",
                "svg.hashsalt": "easgd",
            }
        )
        yield


def new(width: float, height: float) -> Figure:
    """An empty picture of so many inches."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """As PNG or SVG, by the ending; the same picture gives the same bytes. What no font has is drawn as a box, without
    a warning that would hold it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph ")
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    if path.suffix == ".svg":
        figure.savefig(path, metadata={"Date": None})
        path.write_text(
            _PATH.sub(lambda drawn: _FINER.sub(r"\1", drawn[0]), path.read_text(encoding="utf-8")), encoding="utf-8"
        )
    else:
        figure.savefig(path, dpi=200, metadata={"Software": None})


def paler(colour: str, by: float) -> tuple[float, float, float]:
    """`colour` mixed with white, of which it then holds the share `by`."""
    red, green, blue = to_rgb(colour)
    return red + by * (1 - red), green + by * (1 - green), blue + by * (1 - blue)


def letter(axes: Axes, text: str) -> None:
    """A title at the left, for panels that are spoken of."""
    axes.set_title(text, loc="left")
