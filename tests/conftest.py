"""What tests share: of the command line a directory of their own and a launcher that only notes what it was asked for;
of data a local server.
"""

from __future__ import annotations

import functools
import gc
import http.server
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import composed_once
import pytest
import torch
import warm
import yaml

from easgd_cli.__main__ import main
from easgd_cli.commands import hydra_job
from easgd_cli.experiment import build
from easgd_cli.launcher import kinds
from easgd_cli.launcher.job import Job, Outcome
from easgd_cli.launcher.processes import fork_server
from easgd_cli.record import checkpoint
from easgd_cli.record.checkpoint import OwnerState, WorkerState
from easgd_cli.settings.schema import Settings
from easgd_cli.sweeps import executor
from easgd_cli.sweeps.slots import Devices, Slot
from easgd_cli.training.snapshot import Moment

# What the workers of real runs have: sums round differently with more. Two that wait for each other also cost a busy
# machine most of its time.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # and commands in processes of their own
# What torch.optim imports at its first step, and torch's local SGD: a second in every process of a run, or once.
fork_server._PRELOAD += ["torch._dynamo", "torch.distributed.optim"]
# A shell that puts the tests in the background has them ignore these, and the processes that they interrupt inherit it.
for number, reaction in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, reaction)


def pytest_configure(config: pytest.Config) -> None:
    """Shows the tests no GPU, unless those that need one are asked for (-m device): the others hold runs against the
    CPU's bits.
    """
    if "device" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        warm.begin()
    composed_once.begin()


# Files of real runs that are killed, on several machines, or in many processes: a third of the suite's time.
SLOW = {
    f"test_{name}.py"
    for name in (
        "chaos", "collective", "distributed", "far_masters", "far_sums", "killed_at_any_write", "late_device", "limits",
        "masters", "peers", "recovery", "slurm",
    )
}  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of those files, which `scripts/test -m "not slow"` leaves out."""
    for item in items:
        if item.path.name in SLOW:
            item.add_marker("slow")


MACHINES = ("test_distributed.py", "test_far_masters.py", "test_slurm.py")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says whether the tests of several machines ran, which a machine that permits no namespaces skips."""
    ran = {
        outcome: [r for r in terminalreporter.stats.get(outcome, ()) if any(name in r.nodeid for name in MACHINES)]
        for outcome in ("passed", "failed", "skipped")
    }
    if any(ran.values()):
        counts = ", ".join(f"{len(reports)} {outcome}" for outcome, reports in ran.items() if reports)
        reasons = sorted({str(r.longrepr[2]).removeprefix("Skipped: ") for r in ran["skipped"]})
        terminalreporter.write_line(f"several machines (network namespaces): {'; '.join([counts, *reasons])}")


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Notes at a test whether it has failed, for the fixture below."""
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture(autouse=True)
def nothing_outlives_a_failing_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kills the processes that a failing test has started and left. Pytest's own end would wait for them, which may
    take minutes.
    """
    before = descendants()
    yield
    if request.node.stash.get(FAILED, False):
        kept = {
            fork_server._server._forkserver_pid,
            forkserver._forkserver._forkserver_pid,
            resource_tracker._resource_tracker._pid,
            warm.pid(),
        }  # later tests use them
        for pid in descendants() - before - kept:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for child in multiprocessing.active_children():
            child.join(10)


def descendants() -> set[int]:
    """The processes that this one has started, and those that they have; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found, new = set[int](), [os.getpid()]
    while new:
        new = [child for pid in new for child in children.get(pid, ())]
        found.update(new)
    return found


@dataclass(frozen=True)
class AskedJob(Job):
    """A job with the settings of its run."""

    settings: Settings = field(kw_only=True)


@dataclass
class Launcher:
    """Stands in for the real launcher: remembers its jobs and ends them as `behave` says."""

    jobs: list[AskedJob] = field(default_factory=list)
    behave: Callable[[AskedJob], Outcome] = lambda job: Outcome(
        "completed", 0, {"status": "completed", "center": {"test_error": 1.5}}
    )

    def of(self, settings: Settings) -> LauncherOf:
        """The launcher of a run with these settings."""
        return LauncherOf(self, settings)


@dataclass
class LauncherOf:
    """What is called with a job."""

    launcher: Launcher
    settings: Settings

    def begin(self) -> None:
        """Nothing to begin."""

    def __call__(self, job: Job, experiment: Any) -> Outcome:
        asked = AskedJob(**vars(job), settings=self.settings)
        self.launcher.jobs.append(asked)
        return self.launcher.behave(asked)


class JobServerHere:
    """Stands in for the process that the jobs of a sweep are forked from: each runs in this process, at once.

    A job that a signal has ended was ended by one that came to the sweep.
    """

    lives = True

    def __init__(self, slot: Slot, devices: Devices, program: str, log: Path, shared: Sequence[int]):
        self.devices, self._program = devices, importlib.import_module(program)

    def give(self, arguments: list[str], log: Path, in_processes: bool) -> None:
        with open(log, "w") as out, redirect_stdout(out), redirect_stderr(out):
            self._code = self._program.main(arguments)
        if self._code >= 128:
            signal.raise_signal(self._code - 128)

    def ended(self) -> tuple[int, int]:
        return os.getpid(), self._code

    def send_signal(self, number: int) -> None:
        pass

    def kill(self) -> None:
        pass


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Takes back what a command in this process has asked for."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def few_descriptors() -> Iterator[None]:
    """Takes back those that a test's objects keep in cycles: select() knows 1,024."""
    yield
    if len(os.listdir("/proc/self/fd")) > 500:
        gc.collect()


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for runs that several tests look at, and none changes."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; modules imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Launcher:
    """Every run goes here instead of to processes."""
    stand_in, launcher = Launcher(), kinds.launcher

    def checked(settings: Settings) -> LauncherOf:
        launcher(settings)  # what is asked of the real one
        return stand_in.of(settings)

    monkeypatch.setattr(kinds, "launcher", checked)
    monkeypatch.setattr(executor, "JobServer", JobServerHere)
    monkeypatch.setattr(executor, "_LOOK_SECONDS", 0)
    return stand_in


@pytest.fixture
def easgd(here: Path, launcher: Launcher, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The command, in this process and in `here`."""

    def run(*words: str) -> Said:
        status = main(list(words))
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return run


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are made and not drawn, for tests of what is beside them."""
    from easgd_cli import picture

    monkeypatch.setattr(picture, "_save", lambda figure, path: path.write_text(path.name))


@pytest.fixture
def straight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs without what Hydra does around each: for tests of what comes before and after."""
    monkeypatch.setattr(hydra_job, "run", lambda job, path, task: task())


@pytest.fixture
def unprepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data and model are not loaded, for tests of what comes before and after."""

    def experiment(outline: build.Outline) -> SimpleNamespace:
        settings = outline.settings
        return SimpleNamespace(
            settings=settings,
            steps=settings.steps if settings.steps is not None else settings.default_steps,
            memory=0,
            size=2,
            slices=[slice(0, 2)],
            method=outline.rules,
        )

    monkeypatch.setattr(build, "experiment", experiment)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], str]]:
    """A function that offers the files of a directory on this machine, for as long as the test lasts, and tells the
    address.
    """
    monkeypatch.setenv("no_proxy", "*")
    with ExitStack() as stack:

        def serve(folder: Path) -> str:
            server = stack.enter_context(
                http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
            )
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            return f"http://127.0.0.1:{server.server_port}/"

        yield serve


def leave_checkpoint(run_dir: Path, step: int, seconds: float = 1.5, exchanges: int = 3) -> Path:
    """What a run that was stopped leaves to go on from: a checkpoint, with the state of one worker, and its record.
    Returns the checkpoint.
    """
    config = run_dir / "config.yaml"
    workers = yaml.safe_load(config.read_text())["workers"] if config.exists() else 1
    moment = Moment(seconds, step, exchanges, dict.fromkeys(range(workers), step))
    x = {"x": torch.zeros(2)}
    (run_dir / "metrics.jsonl").write_text(
        '{"seconds": 0.0, "step": 0, "exchanges": 0, "party": "system", "workers_alive": 1}\n'
    )
    (run_dir / "exchanges.bin").write_bytes(bytes(2 * exchanges))
    return checkpoint.write(
        run_dir / "checkpoint",
        checkpoint.Checkpoint(OwnerState(moment, exchanges, x), {0: WorkerState(step, x)}),
        keep=1,
    )
