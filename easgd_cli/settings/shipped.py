"""Where the shipped configurations are."""

from __future__ import annotations

from pathlib import Path


def directory() -> Path:
    """Returns configs/: inside the package when installed from a wheel, beside it in a source tree."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"
