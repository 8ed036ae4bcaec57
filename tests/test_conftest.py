"""What the tests' own machinery promises: nothing that a failing test has started outlives it."""

import subprocess
import sys
from pathlib import Path

FAILING = """
import multiprocessing, os, signal, subprocess, time
from pathlib import Path

def stubborn(note):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(note).write_text(str(os.getpid()))
    time.sleep(1000)

def test_that_fails():
    context = multiprocessing.get_context("forkserver")
    context.Process(target=stubborn, args=("forked",), daemon=True).start()
    shell = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $! > grandchild; wait"])
    while not all(Path(note).exists() and Path(note).read_text() for note in ("forked", "grandchild")):
        time.sleep(0.01)
    assert False, "on purpose"

def test_that_comes_after():
    child = multiprocessing.get_context("forkserver").Process(target=print)
    child.start()
    child.join()
    assert child.exitcode == 0
"""


def test_what_a_failing_test_started_ends_with_it_and_pytest_does_not_wait(tmp_path: Path) -> None:
    """A child that ignores SIGTERM, as those of runs do, and one of a child; the server that forks them stays for the
    tests to come.
    """
    (tmp_path / "test_failing.py").write_text(FAILING)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "conftest",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        "test_failing.py",
    ]
    said = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(Path(__file__).parent)}, capture_output=True, text=True
    )
    assert "on purpose" in said.stdout and "1 failed, 1 passed" in said.stdout, said.stdout + said.stderr
    for note in ("forked", "grandchild"):
        stat = Path("/proc", (tmp_path / note).read_text().strip(), "stat")
        # nobody has asked how it ended
        assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
