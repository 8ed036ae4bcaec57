"""Kills and stops random processes of short runs, and looks at what becomes of them.

    python tests/chaos.py [--runs N | --minutes M] [--seed S] [--workers MOST] [--keep DIR]

Each run is of a method, a launcher and faults drawn from the seed and the run's number, which are printed, so that
`--first NUMBER --runs 1` with the same seed has the same faults. (At which step they come hangs on the machine.) A
victim is the launcher, the master, a worker, the evaluator or the server that processes are forked from; it is killed,
stopped for a moment, or sent a signal that ends a run. After every run:

- it has ended by itself, within a time, with a status that its faults allow;
- none of its processes is left, and nothing in TMPDIR or /dev/shm;
- its record is read by `easgd report` and by the reader;
- with `resume=auto` until it is complete, all workers have taken all their steps, and the center is finite;
- where nobody but master and workers was hurt, the record gives the center when it is replayed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

STEPS, PATIENCE = 400, 90.0
_PEERS = ("gossip_pull", "gossip_push")
METHODS = (
    "easgd", "eamsgd", "downpour", "mdownpour", "sync_easgd", "gauss_seidel_easgd", "sgd", *_PEERS, "easgd_tree",
    "grouped_easgd", "allreduce", "model_averaging", "diloco", "async_diloco", "streaming_diloco",
)  # fmt: skip
ENDING = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGUSR1: 138}
PARTIES = ("worker", "worker", "master", "master", "evaluator", "launcher", "server")


@dataclass(frozen=True)
class Fault:
    """After so many seconds since the last one `party` gets `number`; SIGSTOP is followed by SIGCONT."""

    after: float
    party: str
    number: signal.Signals

    def __str__(self) -> str:
        return f"{self.number.name} to the {self.party} after {self.after:.2f} s"


@dataclass
class Case:
    """One run and its faults."""

    number: int
    words: list[str]
    faults: list[Fault]
    log: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"run {self.number}: {' '.join(self.words)}; {'; '.join(map(str, self.faults)) or 'no faults'}"


def drawn(seed: int, number: int, most: int = 4) -> Case:
    """The run of that number, of at most so many workers where its method allows that."""
    chance = random.Random(f"{seed} {number}")
    algo, launcher = chance.choice(METHODS), chance.choice(("local", "local", "local", "local", "simulated"))
    counts = {"sgd": [1], "grouped_easgd": [2, 4], **{peer: [2, 3, 4] for peer in _PEERS}}.get(algo, [1, 2, 3, 4])
    workers = chance.choice([n for n in counts if n <= most] or counts[:1])
    taus = {"mdownpour": [1], "allreduce": [1], "streaming_diloco": [10]}.get(algo, [1, 3, 10])
    average = "none" if algo in _PEERS else chance.choice(("none", "polyak"))  # of a center, which peers have not
    words = [
        f"algo={algo}", f"launcher={launcher}", f"workers={workers}", f"steps={STEPS}", "batch_size=16", "threads=1",
        f"seed={number}", f"tau={chance.choice(taus)}", "eval.train_images=100",
        f"eval.every='{chance.choice((40, 100))} steps'", f"average={average}",
        f"checkpoint.every='{chance.choice((20, 60))} steps'", f"checkpoint.keep={chance.randint(1, 3)}",
        "model=nets:Unhurried", "model.seconds=0.004",  # steps that take time, and little of the processor's
        *(["eta=0.001"] if algo in ("downpour", "mdownpour") or "diloco" in algo else []),
        *(["algo.degree=2"] if algo == "easgd_tree" else []),
    ]  # fmt: skip
    faults = []
    for _ in range(chance.randint(1, 4)):
        party = "launcher" if launcher == "simulated" else chance.choice(PARTIES)
        kinds = [signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP]
        if party == "launcher":
            kinds = [signal.SIGKILL, *ENDING]
        faults.append(Fault(chance.uniform(0.0, 0.8), party, chance.choice(kinds)))
    return Case(number, words, faults)


class Wrong(Exception):
    """Something that must not be."""


class Site:
    """The directories of one run; `tree`: of the program."""

    def __init__(self, directory: Path):
        self.run, self.temporary = directory / "run", directory / "tmp"
        self.temporary.mkdir(parents=True)
        self.shared = set(os.listdir("/dev/shm"))
        self.sessions = set[int]()
        nets = {"PYTHONPATH": str(Path(__file__).parent)}
        self.environment = {**os.environ, **nets, "TMPDIR": str(self.temporary)}

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = subprocess.Popen(
            [sys.executable, "-m", "easgd_cli", *words], cwd=self.run.parent, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.sessions.add(command.pid)
        return command

    def processes(self) -> Iterator[tuple[int, str]]:
        """Those that descend from a command of ours, which all are of its session: number and name."""
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with suppress(OSError):
                    name, _, rest = Path("/proc", entry, "stat").read_text().partition("(")[2].rpartition(")")
                    state, _, _, session = rest.split()[:4]
                    if int(session) in self.sessions and state != "Z":
                        yield int(entry), name

    def pids(self) -> dict[str, int]:
        """The processes that the run's log names, the latest of each name."""
        log = self.run / "logs" / "launcher.log"
        text = log.read_text() if log.exists() else ""
        return {name: int(pid) for name, pid in re.findall(r"INFO (\w+): process (\d+)", text)}


def hurt(case: Case, site: Site, command: subprocess.Popen[str], chance: random.Random) -> None:
    """Lets the faults happen, those of parties that are there."""
    log = site.run / "logs" / "launcher.log"
    deadline = time.monotonic() + PATIENCE
    while not (log.exists() and "training begins" in log.read_text()) and command.poll() is None:
        if time.monotonic() > deadline:
            raise Wrong("training has not begun")
        time.sleep(0.02)
    for fault in case.faults:
        time.sleep(fault.after)
        if command.poll() is not None:
            return
        found = site.pids()
        if fault.party == "launcher":
            victim: int | None = command.pid
        elif fault.party == "server":
            victim = next((pid for pid, name in site.processes() if name == "easgd-server"), None)
        else:
            victim = found.get(chance.choice([name for name in found if name.startswith(fault.party)] or [""]))
        if victim is None:
            continue
        with suppress(ProcessLookupError):
            os.kill(victim, fault.number)
            case.log.append(f"{fault.number.name} to the {fault.party}")
            if fault.number == signal.SIGSTOP:
                time.sleep(chance.uniform(0.1, 1.0))
                os.kill(victim, signal.SIGCONT)


def ended(command: subprocess.Popen[str]) -> tuple[int, str]:
    """Status and output of a command, which is to end by itself."""
    try:
        said, _ = command.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired as e:
        os.killpg(command.pid, signal.SIGKILL)
        raise Wrong("the command has not ended") from e
    if "Traceback" in said:
        raise Wrong(f"a traceback:\n{said[-3000:]}")
    return command.returncode, said


def look(site: Site) -> None:
    """Nothing is left, and what is recorded is whole."""
    deadline = time.monotonic() + 20
    while left := list(site.processes()):
        if time.monotonic() > deadline:
            raise Wrong(f"processes are left: {left}")
        time.sleep(0.05)
    if there := [p.name for p in site.temporary.iterdir()]:
        raise Wrong(f"left in TMPDIR: {there}")
    if more := {name for name in set(os.listdir("/dev/shm")) - site.shared if "easgd" in name or "torch" in name}:
        raise Wrong(f"left in /dev/shm: {more}")
    from easgd_cli.record import reader

    rows = list(reader.read_rows(site.run / "metrics.jsonl"))
    for party in {row["party"] for row in rows if row["party"].startswith("worker")}:
        seconds = [row["seconds"] for row in rows if row["party"] == party]
        if seconds != sorted(seconds):
            raise Wrong(f"the rows of {party} are out of order")


def one(case: Case, directory: Path) -> Counter[str]:
    """A run, its faults, and its end. Returns what has been seen, for the count. Raises Wrong."""
    site, seen = Site(directory), Counter[str]()
    chance = random.Random(str(case))
    words = ["train", "resume=auto", f"hydra.run.dir='{site.run}'", *case.words]
    command = site.start(*words)
    try:
        hurt(case, site, command, chance)
        status, said = ended(command)
        allowed = {0}
        for fault in case.faults:
            if fault.party == "launcher":
                allowed.add(-fault.number if fault.number == signal.SIGKILL else ENDING[fault.number])
        lone = "algo=sgd" in case.words  # a worker without a center does not come back
        if lone or any(f.party in ("server", "evaluator") for f in case.faults):
            allowed.add(1)
        if status < 0 and "The run is in" in said:  # a signal to a program that has ended, but for Python's own end
            status = 0
        if status not in allowed:
            raise Wrong(f"status {status}, where {sorted(allowed)} is allowed:\n{said[-2000:]}")
        seen[f"status {status}"] += 1
        look(site)
        times = 0
        while not complete(site.run):
            times += 1
            if times > 3:
                raise Wrong("resumed three times, it is not complete")
            status, said = ended(site.start(*words))
            if status != 0:
                raise Wrong(f"resumed, it ends with status {status}:\n{said[-2000:]}")
            look(site)
        seen["resumed"] += bool(times)
        check_end(case, site)
        seen += lost(site)
        if not times and any(word == "launcher=local" for word in case.words) and "algo=sgd" not in case.words:
            status, said = ended(site.start("train", f"replay={site.run}", "hydra.run.dir=again"))
            if "bit for bit" not in said:
                raise Wrong(f"replayed, it has another center:\n{said[-1500:]}")
            seen["replayed"] += 1
    finally:
        for pid, _ in list(site.processes()):  # of a run that has failed here
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return seen


def complete(run: Path) -> bool:
    with suppress(OSError, ValueError):
        return json.loads((run / "summary.json").read_text())["status"] in ("completed", "diverged")
    return False


def lost(site: Site) -> Counter[str]:
    """What the faults have cost, by the record: returns of workers, and steps of theirs that reached no center."""
    from easgd_cli.record import reader

    returns = [row for row in reader.read_rows(site.run / "metrics.jsonl") if "returned" in row]
    steps = sum(row.get("steps_lost", 0) for row in returns)
    return Counter({"returns of workers": len(returns), "steps lost": steps})


def check_end(case: Case, site: Site) -> None:
    import torch

    summary = json.loads((site.run / "summary.json").read_text())
    if summary["status"] != "completed":
        raise Wrong(f"it has {summary['status']}: {summary['reason']}")
    lost = summary.get("lost", {})
    short = {w: t for w, t in summary["steps"].items() if t != STEPS and w not in lost}
    if short:
        raise Wrong(f"not all steps were taken: {short}")
    center = torch.load(site.run / "center.pt", weights_only=True)
    if not all(math.isfinite(float(v.double().sum())) for v in center.values()):
        raise Wrong("the center is not finite")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=4, help="at most so many")
    parser.add_argument("--keep", type=Path, default=None, help="where the directory of a run that went wrong is put")
    asked = parser.parse_args()
    runs = asked.runs if asked.runs is not None else (20 if asked.minutes is None else sys.maxsize)
    until = math.inf if asked.minutes is None else time.monotonic() + 60 * asked.minutes
    seen, wrong, faults = Counter[str](), 0, 0
    for number in range(asked.first, asked.first + runs):
        if time.monotonic() > until:
            break
        case = drawn(asked.seed, number, asked.workers)
        directory = Path(tempfile.mkdtemp(prefix=f"chaos-{number}-"))
        try:
            seen += one(case, directory)
            print(f"{case}: well", flush=True)
        except Wrong as e:
            wrong += 1
            print(f"{case}: WRONG: {e}", flush=True)
            if asked.keep is not None:
                asked.keep.mkdir(parents=True, exist_ok=True)
                shutil.move(directory, asked.keep / directory.name)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        seen["runs"] += 1
        faults += len(case.log)
    counts = ", ".join(f"{what} {n}" for what, n in sorted(seen.items()))
    print(f"seed {asked.seed}: {counts}; {faults} faults; {wrong} went wrong", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
