"""Photos from bytes: decoded to RGB, resized, and cut to patches. No torch, so that processes which only do this start
fast.

Pillow lets go of the interpreter's lock while it decodes and resizes, so threads do these at the same time.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

# What is opened, whatever a file's name says. No formats that start other programs, as EPS does.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".webp"})


class BrokenImage(Exception):
    """An image that cannot be decoded; the text says why, without the image's name."""


_decoded = threading.local()  # the name of what this thread decodes


def load_formats() -> None:
    """To be called before several threads decode: Pillow loads its formats at first use, and not as a thing that
    threads may do at once. What it warns of from here on is said with the name of the image.
    """
    Image.init()
    if not isinstance(warnings.showwarning, partial):
        warnings.showwarning = partial(_show_warning, warnings.showwarning)


def _show_warning(otherwise: Callable[..., None], message: Warning | str, *of: Any, **said: Any) -> None:
    name = getattr(_decoded, "name", None)
    if name is None:
        otherwise(message, *of, **said)
    else:
        print(f"easgd: {name}: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


def rgb(content: bytes | memoryview | str, name: str | None = None) -> Image.Image:
    """The image in `content`, its bytes or a file's path, decoded and in RGB; `name`: for warnings, if not the path.
    Raises BrokenImage.

    Grey, palette, CMYK and 16-bit images are converted; of 16 bits the upper 8 stay; transparent parts keep the colour
    that lies under them. The orientation that a camera notes is not applied, as in the paper's time and in
    torchvision's ImageFolder.
    """
    source: str | IO[bytes] = content if isinstance(content, str) else io.BytesIO(content)
    _decoded.name = content if isinstance(content, str) else name
    try:
        if (os.path.getsize(source) if isinstance(source, str) else len(content)) == 0:
            raise BrokenImage("is empty")
        with Image.open(source, formats=_FORMATS) as image:
            image.load()
            return _in_rgb(image)
    except Image.UnidentifiedImageError as e:
        raise BrokenImage("is not an image") from e
    except OSError as e:
        raise BrokenImage(e.strerror or str(e)) from e
    except (ValueError, SyntaxError, EOFError, IndexError, TypeError, Image.DecompressionBombError) as e:
        # Pillow's plugins raise all of these
        raise BrokenImage(str(e)) from e
    finally:
        _decoded.name = None


def _in_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image.copy() if image.readonly else image
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
        upper = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(upper.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BrokenImage("has floating-point pixels, whose range is not known")
    return image.convert("RGB")


def resized(image: Image.Image, side: int) -> Image.Image:
    """With a smallest side of `side` pixels, the other in proportion, rounded down; bilinear with antialiasing."""
    width, height = image.size
    least = min(width, height)
    if least == side:
        return image
    size = (side, side * height // width) if width == least else (side * width // height, side)
    return image.resize(size, Image.Resampling.BILINEAR)


def patch(image: Image.Image, across: tuple[float, float], mirrored: bool, out: NDArray[np.uint8]) -> None:
    """Writes into `out` [3, rows, columns] the patch at the fractions `across` in [0, 1) of all rows and columns."""
    _, rows, columns = out.shape
    width, height = image.size
    top, left = int(across[0] * (height - rows + 1)), int(across[1] * (width - columns + 1))
    _write(image, top, left, mirrored, out)


def center(image: Image.Image, out: NDArray[np.uint8]) -> None:
    """Writes the center patch into `out` [3, rows, columns]; an odd margin as torchvision's CenterCrop has it."""
    _, rows, columns = out.shape
    width, height = image.size
    _write(image, round((height - rows) / 2), round((width - columns) / 2), False, out)


def _write(image: Image.Image, top: int, left: int, mirrored: bool, out: NDArray[np.uint8]) -> None:
    _, rows, columns = out.shape
    cut = image.crop((left, top, left + columns, top + rows))
    np.copyto(out, np.asarray(ImageOps.mirror(cut) if mirrored else cut).transpose(2, 0, 1))


def encoded(image: Image.Image, quality: int) -> bytes:
    """As JPEG, with all colours at the highest qualities; half of them across and down below 95."""
    written = io.BytesIO()
    image.save(written, "JPEG", quality=quality)
    return written.getvalue()
