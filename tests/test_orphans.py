"""Whatever its processes do, none of them outlives its launcher, and they say nothing of its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process whose pipe ends")

WAYS = ("computes", "holds_the_lock", "sleeps", "is_stopped")
STUCK = f"""
import multiprocessing, os, signal, time
from pathlib import Path
from easgd_cli.models.convnet_digits import ConvNetDigits

def computes():
    while True:
        pass

def holds_the_lock():
    sum(range(10**15))

def sleeps():
    time.sleep(10_000)

def is_stopped():
    os.kill(os.getpid(), signal.SIGSTOP)

class Stuck(ConvNetDigits):
    def forward(self, x):
        if multiprocessing.parent_process() is not None:
            for way in {WAYS!r} if self.training else ("holds_the_lock",):
                path = Path("HERE") / (way if self.training else "evaluator")
                try:
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    continue
                globals()[way]()
        return super().forward(x)
"""


def gone(pid: int) -> bool:
    """Whether it has ended, though it may not have been waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(reached: object, seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not reached():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("server", ["lives", "is gone"])
def test_who_stands_still_in_code_of_a_users_ends_with_the_launcher(server: str, tmp_path: Path) -> None:
    """A loop, a call that holds the interpreter's lock, a sleep, a stopped process; an evaluator, and a master that is
    stopped; with the server that they were forked from, and without it.
    """
    (tmp_path / "stuck.py").write_text(STUCK.replace("HERE", str(tmp_path)))
    words = [
        "algo=easgd", f"workers={len(WAYS)}", "steps=50", "batch_size=16", "threads=1", "eval.train_images=100",
        "model=stuck:Stuck", f"hydra.run.dir={tmp_path}/run",
    ]  # fmt: skip
    log = tmp_path / "run" / "logs" / "launcher.log"
    with open(tmp_path / "said", "w") as said:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "easgd_cli", "train", *words], cwd=tmp_path, stdout=said, stderr=said
        )
    pids = dict[str, int]()
    try:
        there = [tmp_path / way for way in (*WAYS, "evaluator")]
        wait_for(lambda: all(path.exists() for path in there) or launcher.poll() is not None)
        assert launcher.poll() is None, (tmp_path / "said").read_text()
        pids = {name: int(pid) for name, pid in re.findall(r"INFO (\w+): process (\d+)", log.read_text())}
        pids["server"] = int(Path(f"/proc/{pids['master']}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(pids["master"], signal.SIGSTOP)
        if server == "is gone":
            os.kill(pids["server"], signal.SIGKILL)
            wait_for(lambda: gone(pids["server"]))
        launcher.kill()
        wait_for(lambda: all(map(gone, pids.values())), 20.0)
    finally:
        launcher.kill()
        launcher.wait()
        for pid in pids.values():
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


BEFORE = """
def sendfds(server, fds):
    server.shutdown(1)  # as if this process had ended
    server.recv(1)  # the server has noticed
    os.kill(os.getpid(), signal.SIGKILL)
reduction.sendfds = sendfds
"""
HALFWAY = """
class Half:
    def __init__(self, fd, mode): self.fd = fd
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def write(self, data):
        os.write(self.fd, data[:SENT])
        os.kill(os.getpid(), signal.SIGKILL)
fork_server.open = Half
"""


@pytest.mark.parametrize("killed", [BEFORE, HALFWAY.replace("SENT", "0"), HALFWAY.replace("SENT", "-1")])
@pytest.mark.parametrize("bound", [True, False])
def test_a_launcher_that_is_killed_while_it_asks_for_a_process_leaves_no_word(
    killed: str, bound: bool, tmp_path: Path
) -> None:
    """Also where the system does not end what was forked."""
    loose = "" if bound else "import fcntl; del fcntl.F_SETSIG\n"
    (tmp_path / "loose.py").write_text(loose)
    program = f"""
import os, signal
import loose
from multiprocessing import reduction
from easgd_cli.launcher.processes import fork_server
fork_server._PRELOAD = ["loose", "easgd_cli.launcher.processes.server_process", "at_once"]
{killed}
fork_server.Process("easgd-worker", print, ("well",))
"""
    (tmp_path / "at_once.py").write_text(
        "from easgd_cli.launcher.processes.server_process import make_ready\nmake_ready()"
    )  # without torch
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"},
    )  # fmt: skip
    assert (said.returncode, said.stdout, said.stderr) == (-signal.SIGKILL, "", "")  # read to the end: nobody is left
