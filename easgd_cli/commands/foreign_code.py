"""Code of a user's own that a run's config.yaml names: it is announced before it is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from easgd_cli.settings import targets
from easgd_cli.settings.schema import Settings
from easgd_cli.system.terminal import tell


def announce(run: Path, s: Settings) -> None:
    """Prints a line for each module that the settings name and that is not easgd's. To be called before the import."""
    for group, value in vars(s).items():
        target: Any = value.get("target") if isinstance(value, dict) else None
        if isinstance(target, str) and not targets.own(target) and (where := targets.file_of(target)) is not None:
            tell(f"importing {target.partition(':')[0]} from {where}, which {run / 'config.yaml'} names as {group}.")
