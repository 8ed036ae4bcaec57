"""easgd: train one model with many workers around a center variable.

From Python: `import easgd_cli as easgd`, then `easgd.train(...)`; see docs/python.md. A name of this package is loaded
when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from easgd_cli.errors import RunError as RunError
    from easgd_cli.errors import UsageError as UsageError
    from easgd_cli.python.api import load as load
    from easgd_cli.python.api import report as report
    from easgd_cli.python.api import stop as stop
    from easgd_cli.python.api import train as train
    from easgd_cli.python.run import Failed as Failed
    from easgd_cli.python.run import Interrupted as Interrupted
    from easgd_cli.python.run import Run as Run

_WHERE = {
    **dict.fromkeys(("train", "load", "report", "stop"), "easgd_cli.python.api"),
    **dict.fromkeys(("Run", "Interrupted", "Failed"), "easgd_cli.python.run"),
    **dict.fromkeys(("UsageError", "RunError"), "easgd_cli.errors"),
}
__all__ = ["Failed", "Interrupted", "Run", "RunError", "UsageError", "load", "report", "stop", "train"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
