"""A stand-in for SLURM: srun, sbatch, sacct, scontrol and scancel as small programs, and hosts as nodes.

What a task finds in its environment is written as the manual pages of srun and sbatch have it. Of all that SLURM does
there is what a run and a sweep of submitit's ask for: steps of several tasks, arrays of jobs, requeueing, signals.
Tasks are started by the tests' own process, as by slurmd, which forks those that it may (warm.py).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

NAMES = ("srun", "sbatch", "sacct", "scontrol", "scancel")
KILL_WAIT = 30.0  # seconds from SIGTERM to SIGKILL
LONGEST = 1 << 20  # bytes of what srun asks slurmd for
SHORT = {"-N": "--nodes", "-n": "--ntasks", "-s": "--signal", "-j": "--jobs", "-o": "--format"}


class Slurm:
    """SLURM with these hosts as its nodes, each (address, words that run a program there); `path` goes before PATH."""

    def __init__(self, directory: Path, hosts: Sequence[tuple[str, Sequence[str]]]):
        self.path = directory / "bin"
        self._state = directory / "state"
        self.path.mkdir(parents=True)
        self._state.mkdir()
        nodes = [{"name": f"n{i}", "address": at, "enter": list(enter)} for i, (at, enter) in enumerate(hosts)]
        (self._state / "nodes.json").write_text(json.dumps(nodes))
        self._tasks = list[subprocess.Popen[bytes]]()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind("")  # a name of no file, which a deep directory would make too long
        self._listener.listen()
        (self._state / "slurmd").write_bytes(self._listener.getsockname())
        threading.Thread(target=self._slurmd, daemon=True).start()
        for name in NAMES:
            words = shlex.join([sys.executable, "-S", __file__, str(self._state), name])
            (self.path / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            (self.path / name).chmod(0o755)

    def preempt(self, job: str) -> None:
        """What SLURM sends where --signal=USR2 has been asked for."""
        subprocess.run([self.path / "scancel", "--signal=USR2", job], check=True)

    def _slurmd(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                threading.Thread(target=self._task, args=self._listener.accept()[:1], daemon=True).start()

    def _task(self, srun: socket.socket) -> None:
        """Starts a task, and tells its number and its status."""
        with srun, suppress(BrokenPipeError):
            message, (out, err), _, _ = socket.recv_fds(srun, LONGEST, 2)
            task = subprocess.Popen(
                **json.loads(message), stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
            self._tasks.append(task)
            os.close(out)
            os.close(err)
            srun.send(b"%d" % task.pid)
            srun.send(b"%d" % task.wait())

    def close(self) -> None:
        """Nothing of any job goes on."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        daemons = [int(file.read_text()) for file in self._state.glob("*/daemon")]
        for top in [*daemons, *(task.pid for task in self._tasks if task.returncode is None)]:
            for pid in [*descendants(top), top]:
                send(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


class Task:
    """One that slurmd has started."""

    def __init__(self, state: Path, streams: Sequence[int], **asked: Any):
        self._slurmd = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._slurmd.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONGEST)
        self._slurmd.connect((state / "slurmd").read_bytes())
        socket.send_fds(self._slurmd, [json.dumps(asked).encode()], streams)
        self.pid = int(self._slurmd.recv(8))

    def wait(self) -> int:
        return int(self._slurmd.recv(8))


def options(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """--key=value, -k value, -kvalue and flags; what comes after them."""
    given, rest = {}, list(words)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if word[:2] in SHORT:
            key, value = SHORT[word[:2]], word[2:]
        if not value and not equals and key not in ("--unbuffered", "--parsable2", "--label"):
            value = rest.pop(0)
        given[key.removeprefix("--")] = value
    return given, rest


def listed(counts: Sequence[int]) -> str:
    """2, 2, 2, 1 as SLURM writes it: 2(x3),1."""
    runs: list[list[int]] = []
    for count in counts:
        if runs and runs[-1][0] == count:
            runs[-1][1] += 1
        else:
            runs.append([count, 1])
    return ",".join(f"{count}(x{times})" if times > 1 else f"{count}" for count, times in runs)


def node_list(count: int) -> str:
    return "n0" if count == 1 else f"n[0-{count - 1}]"


def layout(nodes: int, tasks: int) -> list[int]:
    """How many tasks each node has, the first ones one more where they do not go even."""
    return [tasks // nodes + (i < tasks % nodes) for i in range(nodes)]


def named(pattern: str, job: str, rank: int) -> str:
    """What a file is called whose name has %j, %A, %a and %t."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID", job), os.environ.get("SLURM_ARRAY_TASK_ID", "")
    for key, value in zip(("%j", "%A", "%a", "%t"), (job, *array, str(rank)), strict=True):
        pattern = pattern.replace(key, value)
    return pattern


def next_job(state: Path, count: int = 1) -> int:
    file = state / "last"
    last = int(file.read_text()) if file.exists() else 100
    file.write_text(str(last + count))
    return last + 1


def srun(state: Path, words: Sequence[str]) -> int:
    given, command = options(words)
    mine = dict(os.environ)
    job = mine.get("SLURM_JOB_ID") or str(next_job(state))
    per_node = given.get("ntasks-per-node") or mine.get("SLURM_NTASKS_PER_NODE")
    nodes = int(given.get("nodes") or mine.get("SLURM_NNODES", 1))
    tasks = int(given.get("ntasks") or (nodes * int(per_node) if per_node else mine.get("SLURM_NTASKS", nodes)))
    counts, known = layout(nodes, tasks), json.loads((state / "nodes.json").read_text())
    restarts = mine.get("SLURM_RESTART_COUNT", "0")
    steps = state / job / f"steps-{restarts}"
    steps.mkdir(parents=True, exist_ok=True)
    step = str(len(list(steps.iterdir())))
    of_step = {
        "SLURM_JOB_ID": job, "SLURM_JOBID": job, "SLURM_STEP_ID": step, "SLURM_STEPID": step,
        "SLURM_NTASKS": str(tasks), "SLURM_NPROCS": str(tasks), "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_NNODES": str(nodes), "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_STEP_NODELIST": node_list(nodes), "SLURM_JOB_NODELIST": node_list(nodes),
        "SLURM_TASKS_PER_NODE": listed(counts), "SLURM_STEP_TASKS_PER_NODE": listed(counts),
        "SLURM_LAUNCH_NODE_IPADDR": known[0]["address"], "SLURM_SRUN_COMM_HOST": known[0]["address"],
        "SLURM_CPUS_ON_NODE": str(len(os.sched_getaffinity(0))),
    }  # fmt: skip
    started, procid = [], 0
    for number, count in enumerate(counts):
        globally = range(procid, procid + count)
        for local, rank in enumerate(globally):
            of_task = {
                "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local), "SLURM_NODEID": str(number),
                "SLURMD_NODENAME": known[number]["name"], "SLURM_GTIDS": ",".join(map(str, globally)),
            }  # fmt: skip
            outputs = [named(given[key], job, rank) for key in ("output", "error") if key in given]
            with ExitStack() as opened:
                files = [opened.enter_context(open(name, "a")).fileno() for name in outputs]
                asked = {"args": [*known[number]["enter"], *command], "env": mine | of_step | of_task}
                started.append(Task(state, (files[0], files[-1]) if files else (1, 2), **asked, cwd=os.getcwd()))
            (steps / step).mkdir(exist_ok=True)
            (steps / step / str(started[-1].pid)).touch()
        procid += count
    signal.signal(signal.SIGTERM, lambda number, _: [send(task.pid, number) for task in started])
    codes = [task.wait() for task in started]
    return max(code if code >= 0 else 128 - code for code in codes)


def sbatch(state: Path, words: Sequence[str]) -> int:
    """The file's own options are all there are."""
    _, (script,) = options(words)
    given = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", Path(script).read_text(), re.MULTILINE))
    nodes, per_node = int(given.get("nodes", 1)), given.get("ntasks-per-node")
    tasks = nodes * int(per_node or 1)
    elements = [int(a) for a in re.findall(r"\d+", given["array"].partition("%")[0])] if "array" in given else [0, 0]
    count = elements[-1] - elements[0] + 1
    first = next_job(state, count)
    for i in range(count):
        job = str(first + i)
        batch = {
            "SLURM_JOB_ID": job, "SLURM_JOBID": job, "SLURM_NTASKS": str(tasks), "SLURM_NNODES": str(nodes),
            "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_JOB_NODELIST": node_list(nodes), "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_GTIDS": "0", "SLURMD_NODENAME": "n0",
            "SLURM_TASKS_PER_NODE": listed(layout(nodes, tasks)),
        }  # fmt: skip
        batch |= {"SLURM_NTASKS_PER_NODE": per_node} if per_node else {}
        if "array" in given:
            batch |= {"SLURM_ARRAY_JOB_ID": str(first), "SLURM_ARRAY_TASK_ID": str(elements[0] + i)}
        (state / job).mkdir()
        name = f"{first}_{elements[0] + i}" if "array" in given else job
        (state / job / "name").write_text(name)
        (state / job / "state").write_text("PENDING")
        with open(state / job / "out", "w") as out:
            daemon = subprocess.Popen(
                [sys.executable, "-S", __file__, str(state), "daemon", job, script], env=dict(os.environ) | batch,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        (state / job / "daemon").write_text(str(daemon.pid))
    print(f"Submitted batch job {first}")
    return 0


def daemon(state: Path, words: Sequence[str]) -> int:
    """Runs a job's script, and again whenever that is asked for."""
    job, script = words
    own, restarts = state / job, 0
    while True:
        (own / "state").write_text("RUNNING")
        again = {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
        batch = subprocess.Popen(["bash", script], env=dict(os.environ) | again, start_new_session=True)
        ends = None
        while batch.poll() is None:
            time.sleep(0.1)
            if ends is None and (own / "requeue").exists() and ended(int((own / "requeue").read_text())):
                ends = time.monotonic() + KILL_WAIT
                of_tasks(own, signal.SIGTERM)
            elif ends is not None and time.monotonic() > ends:
                of_tasks(own, signal.SIGKILL)
        if not (own / "requeue").exists():
            (own / "state").write_text("FAILED" if batch.returncode else "COMPLETED")
            return 0
        (own / "requeue").unlink()
        restarts += 1


def ended(pid: int) -> bool:
    """Whether that process is gone: scontrol, which a task may have called, ends before the job's processes do."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def of_tasks(own: Path, number: int) -> None:
    """Every process of a job's tasks gets the signal, their own and those that they have started."""
    for file in own.glob("steps-*/*/*"):
        for pid in [int(file.name), *descendants(int(file.name))]:
            send(pid, number)


def job_of(state: Path, name: str) -> Path:
    """The job with this number, or this place in an array."""
    return next(p.parent for p in state.glob("*/name") if name in (p.read_text(), p.parent.name))


def sacct(state: Path, words: Sequence[str]) -> int:
    print("JobID|State|NodeList")
    for file in sorted(state.glob("*/name")):
        print(f"{file.read_text()}|{(file.parent / 'state').read_text()}|n0")
    return 0


def scontrol(state: Path, words: Sequence[str]) -> int:
    what, job = words
    assert what == "requeue"
    own = job_of(state, job)
    (own / "asks").write_text(str(os.getpid()))
    (own / "asks").rename(own / "requeue")
    return 0


def scancel(state: Path, words: Sequence[str]) -> int:
    given, (job,) = options(words)
    of_tasks(job_of(state, job), signal.Signals[f"SIG{given['signal']}"])
    return 0


if __name__ == "__main__":
    program: Any = globals()[sys.argv[2]]
    sys.exit(program(Path(sys.argv[1]), sys.argv[3:]))
