"""Completes a command line when TAB is pressed: Hydra offers settings and their values, this file offers the rest.

Hydra's scripts (`easgd train -sc install=bash`), and the one for zsh below, call `easgd -sc query=bash` with the line
in COMP_LINE. Where this prints nothing, the scripts offer files.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from contextlib import suppress

from easgd_cli.commands import (
    arguments,
    compose,  # noqa: F401 - stores the schema, without which Hydra has no setting to offer
    configs,
    hydra_job,
)

# Hydra prints its bash script for zsh, too, which cannot run it: zsh has no `complete`.
ZSH = {
    "install=zsh": """_easgd() {
    local -a offered
    offered=(${(f)"$(COMP_LINE="${(j: :)words[1,CURRENT-1]} $PREFIX" $words[1] -sc query=bash)"})
    if (( $#offered )); then compadd -S '' -- $offered; else _files; fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _easgd easgd
""",
    "uninstall=zsh": "compdef -d easgd\nunfunction _easgd\n",
}


def main(words: Sequence[str], commands: Sequence[str]) -> int:
    """Prints the completions for the shell; `words` are those after `-sc`. Returns the exit status."""
    line = os.environ.get("COMP_LINE", "")
    found = offered(line, commands)
    if found is not None:
        print("\n".join(found))
        return 0
    said = io.StringIO()
    os.environ["COMP_LINE"] = line.replace(" train", "", 1)  # Hydra expects settings right after `easgd`
    asked = [*_own_configurations(line.split()), "-sc", *words]
    # errors are dropped here: a wrong line is refused when it is entered
    hydra_job.said_by_hydra(arguments.ROOT, asked, said, io.StringIO())
    print("\n".join(word for word in said.getvalue().split() if _is_for_users(word, line.split())))
    return 0


def _is_for_users(offered: str, words: Sequence[str]) -> bool:
    """Returns whether users write this setting: no `target`, and a `name` only where the chosen option has one."""
    group, _, key = offered.removesuffix("=").rpartition(".")
    if key in ("target", "_target_") or offered.startswith("tuning"):  # tuning follows from method and data set
        return False
    if key != "name" or group not in configs.GROUPS:
        return True
    chosen = next((word.partition("=")[2] for word in reversed(words) if word.startswith(f"{group}=")), "")
    return (configs.directory() / group / f"{chosen}.yaml").is_file() and "name" in configs.settings(group, chosen)


def offered(line: str, commands: Sequence[str]) -> list[str] | None:
    """Returns what the last word of `line` can be completed to; None where Hydra is to be asked."""
    words = line.split(" ")
    last = words[-1]
    if len(words) == 2:
        return [name for name in commands if name.startswith(last)]
    if words[1:2] != ["train"]:
        return []
    if last.startswith("-"):
        return [option for option in arguments.OPTIONS if option.startswith(last)]
    key, equals, value = last.partition("=")
    if equals and key in arguments.PATHS:
        return [f"{key}={path}" for path in _paths(value)]
    return None


def _paths(begun: str) -> list[str]:
    """Returns the paths that begin with `begun`, directories with a slash; only names that a shell takes unquoted."""
    directory, name = os.path.split(begun)
    with suppress(OSError), os.scandir(os.path.expanduser(directory) or ".") as entries:
        found = sorted(
            (e.name, e.is_dir()) for e in entries if e.name.startswith(name) and re.fullmatch(r"[\w.,=+@-]+", e.name)
        )
        return [
            os.path.join(directory, f"{own}/" if is_directory else own)
            for own, is_directory in found
            if name or not own.startswith(".")
        ]
    return []


def _own_configurations(words: Sequence[str]) -> list[str]:
    """Returns the --config-dir of a line as words for Hydra, so that Hydra finds the options in it; [] without one."""
    for option, value in zip(words, [*words[1:], ""], strict=True):
        if option in ("--config-dir", "-cd") and os.path.isdir(value):
            return ["--config-dir", os.path.abspath(value)]
    return []
