"""easgd: a table of commands. Nothing heavy is imported before a command has been chosen."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from easgd_cli import __version__
from easgd_cli.errors import RunError, UsageError, why
from easgd_cli.system import interruption, streams
from easgd_cli.system.terminal import help_text, tell

COMMANDS = {
    "train": "train a model with many workers; -m sweeps",
    "join": "take part in a run on many machines",
    "eval": "measure what a run has saved: center, average or a worker",
    "data": "prepare a data set of photos for training, or check any data set",
    "bench": "what computing, loading data and communicating cost on this hardware",
    "report": "tables and figures of what runs have shown, side by side",
    "theory": "the paper's analysis: moments, stability maps, ADMM, as numbers and figures",
}

_NO_PLACE = (errno.ENAMETOOLONG, errno.EACCES, errno.ELOOP)
_SHOWN = 100  # most characters of a name in a message

_HELP = """easgd {version}: train one model with many workers around a center variable.

usage: easgd COMMAND ...

{commands}

  easgd train algo=eamsgd tau=10       a first run: handwritten digits, 4 workers, a few seconds
  easgd train --help                   every setting
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 1 failed while running, 2 bad usage, 128 + the number of
    the signal that ended the command. `argv`: the words after `easgd`, None for those of this process.
    """
    if argv is None:
        streams.prepare()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with interruption.ending_the_process(), interruption.stacks_shown():
            status = _dispatch(words)
            sys.stdout.flush()
            return status
    except (UsageError, RunError) as e:
        if os.environ.get("HYDRA_FULL_ERROR", "0") != "0":  # Hydra's variable that asks for tracebacks
            traceback.print_exc()
        tell(str(e))
        return 2 if isinstance(e, UsageError) else 1
    except KeyboardInterrupt:
        tell("interrupted.")
        return 130
    except (streams.OutputFailed, BrokenPipeError) as e:
        streams.unseen(sys.stdout)
        if not isinstance(e, BrokenPipeError):  # a reader that ended, as in `easgd train --help | head`, is fine
            tell(f"standard output cannot be written: {why(e)}.")
        return 1
    except OSError as e:  # for a word that names a file that may not be read, or that no file can have as its name
        if e.errno not in _NO_PLACE or e.filename is None:
            raise
        name = os.fsdecode(e.filename)
        tell(f"{name if len(name) <= _SHOWN else f'{name[:_SHOWN]}...'}: {e.strerror}; name another place.")
        return 2


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS)) + 2
        commands = "\n".join(f"  {name:<{width}}{what}" for name, what in COMMANDS.items())
        print(help_text(_HELP.format(version=__version__, commands=commands)), end="")
        return 0
    if words[0] in ("-V", "--version"):
        print(f"easgd {__version__}")
        return 0
    # the shell's callback for completion, which has the program's name but no command
    if words[0] in ("-sc", "--shell-completion"):
        return importlib.import_module("easgd_cli.commands.completion").main(words[1:], list(COMMANDS))
    name, *rest = words
    if name not in COMMANDS:
        import difflib  # here: little is to be loaded before Ctrl-C is handled

        near = difflib.get_close_matches(name, COMMANDS, 1, cutoff=0.5)
        if "=" in name:
            raise UsageError(f"{name}: is a setting, not a command; write easgd train {name}.")
        raise UsageError(
            f"{name}: there is no such command; "
            + (f"did you mean easgd {near[0]}?" if near else f"there are: {', '.join(COMMANDS)}.")
        )
    if name == "train" and {"-h", "--help"} & set(rest):  # answered before Hydra is loaded
        print(help_text(importlib.import_module("easgd_cli.commands.help").train()), end="")
        return 0
    _refuse_what_is_no_text(rest)
    return importlib.import_module(f"easgd_cli.commands.{name}").main(rest)


def _refuse_what_is_no_text(words: Sequence[str]) -> None:
    """Raises UsageError for words that are not UTF-8, and if the working directory has been removed."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as e:
            raise UsageError(f"{word!a}: is not UTF-8 text; rename what it names, or go there and use `.`.") from e
    try:
        os.getcwd()
    except FileNotFoundError as e:
        raise UsageError("the working directory has been removed; go to another with cd.") from e


if __name__ == "__main__":
    sys.exit(main())
