"""What a launcher is given and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from easgd_cli.record.display import Screen


@dataclass(frozen=True)
class Job:
    """A run to be made. `run_dir`: the directory made for it, and locked; `overrides`, `command`: what it was asked for
    by; `resume`: True if it goes on from a checkpoint there; `screen`: where it is shown (record/display.py), None:
    standard output; `another`: True if one more run of the same launcher follows, for which hosts that have joined this
    one stay.
    """

    run_dir: Path
    overrides: list[str] = field(default_factory=list)
    command: str = ""
    resume: bool = False
    screen: Screen | None = None
    another: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `status`: completed, diverged, interrupted or failed; `reason` where there is one to tell."""

    status: str
    exit_code: int
    summary: dict[str, Any]
    reason: str | None = None
