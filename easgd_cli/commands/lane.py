"""A process that runs jobs of a sweep, one after another as the sweep hands them to it (packing.py): `python -m easgd_cli.commands.lane FD`.

What every job needs is imported once in it, which takes longer than a short job. FD is a socket: each job comes on it as a line of
JSON, [words after `easgd train`, file for what it prints], and goes as a line with its exit status.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from collections.abc import Sequence

from easgd_cli import interruption
from easgd_cli.errors import RunError, UsageError


def main(descriptor: int) -> None:
    """Runs what comes until the sweep has ended."""
    from easgd_cli.commands import running  # here: until Ctrl-C is seen to, as little as possible is loaded

    with socket.socket(fileno=descriptor) as sock, sock.makefile("rw", encoding="utf-8") as sweep:
        sock.set_inheritable(False)  # no process that a job starts is to keep it open
        for line in sweep:
            words, log = json.loads(line)
            _print_to(log)
            with running.unchanged_process():
                status = _run(words)
            sys.stdout.flush()
            sys.stderr.flush()
            print(status, file=sweep, flush=True)


def _run(words: Sequence[str]) -> int:
    """One job, whatever becomes of it; returns its exit status."""
    from easgd_cli.commands import train

    try:
        return train.main(words)
    except (UsageError, RunError) as e:
        print(f"easgd: {e}", file=sys.stderr)
        return 2 if isinstance(e, UsageError) else 1
    except Exception:
        traceback.print_exc()
        return 1


def _print_to(log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


if __name__ == "__main__":
    with interruption.ending_the_process():
        main(int(sys.argv[1]))
