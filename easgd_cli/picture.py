"""How pictures look and are saved: with matplotlib's objects but without pyplot, so without a window system and without
global state of easgd's.
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

# Okabe and Ito's colours, which colour-blind readers can tell apart, and in this order also readers of a grey print.
BLUE, GREEN, ORANGE, PURPLE, SKY, BLACK = "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, BLACK)
DIVERGENT = "0.82"  # grey, where values are not finite
WIDTH = 7.0  # inches: across a page

# Coordinates in an SVG, in points of 1/72 inch: 2 decimals are finer than any printer, and matplotlib's 6 would make
# half of the file.
_PATH = re.compile(r' d="[^"]*"')
_FINER = re.compile(r"(\.\d\d)\d+")


@contextmanager
def style() -> Iterator[None]:
    """Sets how pictures are made and saved in the block, whatever the user's matplotlibrc says."""
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
    """Returns an empty picture; `width` and `height` in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """Saves a picture as PNG or SVG, by the ending of `path`; the same picture gives the same bytes. A character that
    no font has is drawn as a box, without matplotlib's warning.
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
    """Returns `colour` mixed with white; `by`: the share of white."""
    red, green, blue = to_rgb(colour)
    return red + by * (1 - red), green + by * (1 - green), blue + by * (1 - blue)


def letter(axes: Axes, text: str) -> None:
    """Sets a title at the left, for panels to which a text refers."""
    axes.set_title(text, loc="left")
