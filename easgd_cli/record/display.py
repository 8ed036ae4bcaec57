"""Shows progress: a view that is redrawn in its place in a terminal, plain lines everywhere else.

There is no thread: callers redraw often. When the terminal is gone, the program goes on without it.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from easgd_cli.system.streams import unseen
from easgd_cli.system.terminal import for_terminal, printable

_REDRAW_SECONDS = 0.2
_BAR = dict.fromkeys(map(ord, "━╸╺"), " ")  # the characters of which Rich draws a bar


class Screen(Console):
    """The console on which a run, or texts from its files, are shown. Texts are printed as they are, but without
    characters that would command the terminal. When the reader of a pipe is gone, Rich would end the program; this
    console raises an error, so that a run can go on.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Renders as Rich does, then makes every text printable."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                lines = "\n".join(map(printable, segment.text.split("\n")))
                yield Segment(lines, segment.style, segment.control)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class LineScreen(Screen):
    """A console on which only the last line can be overwritten, as in a notebook: a view is one line of text there."""


def screen() -> Screen:
    """Returns standard output as a Screen: on a terminal lines are broken between words, elsewhere they stay whole."""
    made = Screen(highlight=False)
    made.soft_wrap = not made.is_terminal
    return made


class _Nowhere(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


def nowhere() -> Screen:
    """Returns the Screen of a run that is not shown: it discards everything."""
    return Screen(file=_Nowhere(), force_jupyter=False)  # type: ignore[arg-type]


def say(what: str | Text | Callable[[], object]) -> None:
    """Prints a line, or calls what prints, on standard output; does nothing once standard output is gone."""
    try:
        if isinstance(what, str):
            print(for_terminal(what, sys.stdout), flush=True)
        elif isinstance(what, Text):
            screen().print(what)
        else:
            what()
    except (OSError, ValueError):
        unseen(sys.stdout)


class Display:
    """A view with lines above it; without a terminal only the lines."""

    def __init__(self, console: Screen | None = None):
        self._console: Screen | None = console or screen()
        self._live: Live | None = None
        self._redrawn = 0.0
        self._line: str | None = "" if isinstance(self._console, LineScreen) else None  # a LineScreen's line
        redrawn = self._console.is_terminal and not self._console.is_dumb_terminal and self._console.file.isatty()
        if self._line is None and redrawn:
            # Redrawn by `redraw` alone; what other code prints meanwhile appears above the view.
            self._live = Live(console=self._console, auto_refresh=False)
            self._safely(self._live.start)

    @property
    def redraws(self) -> bool:
        """True if there is a view."""
        return self._live is not None or self._line is not None

    def redraw(self, view: Callable[[], RenderableType], now: bool = False) -> None:
        """Shows what `view` returns: a few times a second at most, unless `now`."""
        live, clock = self._live, time.monotonic()
        if not self.redraws or (not now and clock - self._redrawn < _REDRAW_SECONDS):
            return
        self._redrawn = clock
        if live is not None:
            self._safely(lambda: live.update(view(), refresh=True))
        else:
            self._safely(lambda: self._write_over(_in_a_line(view())))

    def _write_over(self, text: str) -> None:
        """Replaces the LineScreen's line by `text`."""
        if (console := self._console) is not None and self._line is not None:
            console.file.write(f"\r{text.ljust(len(self._line))}" + ("" if text else "\r"))
            console.file.flush()
            self._line = text

    def line(self, text: str | Text) -> None:
        """Prints a line above the view. A `str` is Rich's markup."""
        self.show(lambda console: console.print(text))

    def show(self, what: Callable[[Screen], object]) -> None:
        """Calls `what` to print something above the view."""
        console = self._console
        if console is not None:
            if self._line:
                self._safely(lambda: self._write_over(""))
            self._safely(lambda: what(console))

    def close(self, keep: bool = True) -> None:
        """Ends the view, so that others may print; `keep`: leaves it there as it last was. Harmless when repeated."""
        live, self._live = self._live, None
        if live is not None:
            live.transient = not keep
            self._safely(live.stop)
        if self._line and self._console is not None:
            file = self._console.file
            self._safely(lambda: print(file=file) if keep else self._write_over(""))
            self._line = ""

    def _safely(self, show: Callable[[], object]) -> None:
        """Calls `show`; if terminal or pipe are gone, nothing is shown from then on, and no error is raised."""
        console = self._console
        if console is None:
            return
        try:
            show()
        except (OSError, ValueError):  # the terminal or pipe is gone, or closed
            self._console = self._live = None
            unseen(console.file)


def _in_a_line(view: RenderableType) -> str:
    """Returns the text of a view in one line, without colours and bars."""
    console = Screen(file=io.StringIO(), width=500, force_jupyter=False, color_system=None)
    console.print(view)
    text = str(console.file.getvalue())  # type: ignore[attr-defined]
    return "  ".join(" ".join(line.translate(_BAR).split()) for line in text.splitlines())


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
