"""What a run needs of memory: its processes' proportional set sizes, watched ten times a second while `easgd train`
runs.

memory.py VECTOR_BYTES [KEY=VALUE ...]: prints the peak of all processes together and of each, in MiB and in vectors of
VECTOR_BYTES. What the processes take by themselves is in it: take off the same run of a tiny net. Linux only.
docs/results.md has what came out.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path


def main(vector: int, overrides: list[str]) -> int:
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory, "run")
        command = [sys.executable, "-m", "easgd_cli", "train", *overrides, f"hydra.run.dir={run}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        peaks: dict[str, int] = defaultdict(int)
        names: dict[int, str] = {process.pid: "launcher"}
        while process.poll() is None:
            _learn(run / "logs", names)
            sizes = {pid: _proportional(pid) for pid in _tree(process.pid)}
            peaks["all"] = max(peaks["all"], sum(sizes.values()))
            for pid, size in sizes.items():
                name = names.get(pid, "server of processes")
                peaks[name] = max(peaks[name], size)
            time.sleep(0.1)
    for name, size in peaks.items():
        print(f"{name:<20} {size / 2**20:8.0f} MiB {size / vector:8.2f} vectors")
    return process.returncode


def _tree(root: int) -> set[int]:
    """This process and all that descend from it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    found, before = {root}, 0
    while len(found) > before:
        before = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return found


def _proportional(pid: int) -> int:
    """Bytes of a process, those that it shares with others counted in part."""
    try:
        return 1024 * int(re.search(r"^Pss: *(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[1])  # type: ignore[index]
    except (OSError, TypeError):
        return 0


def _learn(logs: Path, names: dict[int, str]) -> None:
    for log in logs.glob("*.log"):
        for line in log.read_text().splitlines()[:1]:
            if found := re.search(r": process (\d+)$", line):
                names[int(found[1])] = log.stem


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]) if len(sys.argv) > 1 else __doc__)
