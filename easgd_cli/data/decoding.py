"""Decodes photos from bytes to RGB, resizes them and cuts patches. Imports no torch, so that processes that only do
this start fast.

Pillow releases the interpreter's lock while it decodes and resizes, so threads can work on several photos at once.
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

# Formats that are opened, whatever a file's name says. None of them starts another program, as EPS does.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".webp"})


class BrokenImage(Exception):
    """An image that cannot be decoded; the text says why, without the image's name."""


_decoded = threading.local()  # `name`: of the image that this thread decodes


def load_formats() -> None:
    """Loads Pillow's formats; to be called before several threads decode, since Pillow loads them at first use and not
    safely in several threads at once. From then on Pillow's warnings are printed with the name of the image.
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
    """Returns an image decoded to RGB. `content`: its bytes, or the path of its file; `name`: its name in warnings,
    where `content` is bytes. Raises BrokenImage.

    Grey, palette, CMYK and 16-bit images are converted; 16-bit pixels keep their upper 8 bits; transparent parts keep
    the colour that is stored for them. The orientation that a camera notes is not applied, as in the paper's time and
    in torchvision's ImageFolder.
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
        # Pillow's plugins raise all of these for damaged files
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
    """Returns the image with `side` as smallest side, the other in proportion, rounded down; bilinear, antialiased."""
    width, height = image.size
    least = min(width, height)
    if least == side:
        return image
    size = (side, side * height // width) if width == least else (side * width // height, side)
    return image.resize(size, Image.Resampling.BILINEAR)


def patch(image: Image.Image, across: tuple[float, float], mirrored: bool, out: NDArray[np.uint8]) -> None:
    """Writes a patch into `out` [3, rows, columns]. `across`: the row and the column of its corner, as fractions in
    [0, 1) of the rows and columns where a patch can begin.
    """
    _, rows, columns = out.shape
    width, height = image.size
    top, left = int(across[0] * (height - rows + 1)), int(across[1] * (width - columns + 1))
    _write(image, top, left, mirrored, out)


def center(image: Image.Image, out: NDArray[np.uint8]) -> None:
    """Writes the center patch into `out` [3, rows, columns]; an odd margin is split as by torchvision's CenterCrop."""
    _, rows, columns = out.shape
    width, height = image.size
    _write(image, round((height - rows) / 2), round((width - columns) / 2), False, out)


def _write(image: Image.Image, top: int, left: int, mirrored: bool, out: NDArray[np.uint8]) -> None:
    _, rows, columns = out.shape
    cut = image.crop((left, top, left + columns, top + rows))
    np.copyto(out, np.asarray(ImageOps.mirror(cut) if mirrored else cut).transpose(2, 0, 1))


def encoded(image: Image.Image, quality: int) -> bytes:
    """Returns the image as JPEG of this `quality`, with Pillow's default resolution of the colours."""
    written = io.BytesIO()
    image.save(written, "JPEG", quality=quality)
    return written.getvalue()
