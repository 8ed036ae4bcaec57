"""Lines on a narrow terminal end between words; elsewhere they stay whole."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import pytest
from test_record import ENDED, FACTS
from test_record_progress import Terminal

from easgd_cli.__main__ import COMMANDS, main
from easgd_cli.record.display import Display, Screen
from easgd_cli.record.table import show_run
from easgd_cli.system import terminal

SENTENCE = (
    "worker 2 died (killed by SIGKILL) after a while of uneventful training; the run goes on with 3 of 4, as runs do"
)


@contextmanager
def narrow(columns: int = 40) -> Iterator[Terminal]:
    """Standard output and errors as a terminal."""
    found = Terminal()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(found), redirect_stderr(found):
        patch.setenv("COLUMNS", str(columns))
        yield found


def words(text: str) -> list[str]:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split()


def test_an_error_is_broken_between_words() -> None:
    with narrow() as shown:
        assert main(["train", "algo=mdownpour", "tau=4"]) == 2
    lines = shown.getvalue().splitlines()
    assert len(lines) > 2 and max(map(len, lines)) <= 40
    assert words(shown.getvalue())[:3] == ["easgd:", "tau=4:", "MDOWNPOUR"]


def test_a_word_longer_than_a_line_stays_whole_and_so_does_a_command() -> None:
    path, command = (
        "/a/path/that/is/longer/than/any/line/of/this/terminal",
        "tensorboard --logdir runs/algo=easgd,tau=10",
    )
    with narrow() as shown:
        assert terminal.for_terminal(f"The run is in {path}", shown).splitlines() == ["The run is in", path]
        assert terminal.with_command("To look at it:", command) == f"To look at it:\n  {command}"
        assert terminal.with_command("Do:", "easgd") == "Do: easgd"


def test_elsewhere_a_line_stays_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert terminal.for_terminal(SENTENCE, io.StringIO()) == SENTENCE


@pytest.mark.parametrize("command", [*COMMANDS, None])
def test_help_keeps_its_words_and_breaks_none(command: str | None) -> None:
    asked, whole = ["--help"] if command is None else [command, "--help"], io.StringIO()
    with narrow(80) as shown:
        assert main(asked) == 0
    with redirect_stdout(whole):
        assert main(asked) == 0
    assert [word for word in words(shown.getvalue()) if word != "\\"] == words(whole.getvalue())
    assert all(len(line) <= 80 or len(line.split()) == 1 for line in shown.getvalue().splitlines())


def test_an_example_in_help_can_be_copied() -> None:
    example = "  easgd train algo=eamsgd dataset=cifar10 workers=2 'eta=interval(0.05, 0.5)'"
    with narrow():
        filled = terminal.help_text(f"Examples\n\n{example}\n")
    assert "\\\n" in filled and shlex.split(filled.partition("\n\n")[2].replace("\\\n", "")) == shlex.split(example)


def test_notes_above_the_view_and_the_closing_table_are_broken_between_words() -> None:
    shown = Terminal()
    display = Display(Screen(file=shown, force_terminal=True, width=40, highlight=False))
    display.line(SENTENCE)
    summary: dict[str, Any] = {**FACTS, **ENDED, "status": "interrupted", "reason": SENTENCE, "bytes_exchanged": 10**6}
    summary |= {
        "center": {"train_loss": 0.5, "test_error": 4.0},
        "seconds": {"compute": 7.7, "data": 0.4, "communication": 0.8},
    }
    display.show(lambda console: show_run(summary, console))
    display.close()
    lines = [line.rstrip() for line in shown.lines()]
    assert max(map(len, lines)) <= 40
    for line in lines:
        assert set(line.split()) <= {*SENTENCE.split(), *words(shown.getvalue())}
    together = " ".join(words("\n".join(lines)))
    assert SENTENCE in together and f"interrupted: {SENTENCE}" in together
