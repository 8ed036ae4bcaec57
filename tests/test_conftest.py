"""What the tests' own machinery promises: nothing that a failing test has started outlives it."""

import os
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


SEVERAL_MACHINES = """
import pytest

def test_that_runs():
    pass

def test_that_may_not():
    pytest.skip("network namespaces: not permitted")
"""


def suite(directory: Path, *files: str) -> subprocess.CompletedProcess[str]:
    """Pytest on these files of the directory, with this directory's conftest."""
    options = ["-p", "conftest", "-p", "no:cacheprovider", "--rootdir", str(directory)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "pytest", *options, *files]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)


def test_the_output_says_whether_tests_of_several_machines_ran(tmp_path: Path) -> None:
    (tmp_path / "test_distributed.py").write_text(SEVERAL_MACHINES)
    (tmp_path / "test_other.py").write_text("def test_nothing(): pass")
    told = "several machines (network namespaces): 1 passed, 1 skipped; network namespaces: not permitted"
    assert told in suite(tmp_path, "test_distributed.py", "test_other.py").stdout


def test_what_a_failing_test_started_ends_with_it_and_pytest_does_not_wait(tmp_path: Path) -> None:
    """A child that ignores SIGTERM, as those of runs do, and one of a child; the server that forks them stays for the
    tests to come.
    """
    (tmp_path / "test_failing.py").write_text(FAILING)
    said = suite(tmp_path, "test_failing.py")
    assert "on purpose" in said.stdout and "1 failed, 1 passed" in said.stdout, said.stdout + said.stderr
    assert "several machines" not in said.stdout  # there were no tests of them
    for note in ("forked", "grandchild"):
        stat = Path("/proc", (tmp_path / note).read_text().strip(), "stat")
        # nobody has asked how it ended
        assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
