"""Commands in processes of their own, forked from one that has imported torch, Hydra and the program.

An interpreter of its own costs a command 2 to 4 s of a processor: it imports torch, and so does the server that its
workers are forked from. A fork costs 0.4 s. `subprocess.Popen` is replaced by `Popen`, which forks what would be
`python -m easgd_cli` in an ordinary environment; everything else, scripts and `python -c` among it, is started as ever.
A command has its own number, session, directory, environment, descriptors, main module and end as any process. It
differs in what it has imported, in its `ps` line, and in its parent.

So are the processes of a sweep's jobs (`CHILDREN`), which end with their parent: they are children of whoever asked,
also of a command that has itself been forked. And so is the server that the processes of a run in the tests' own
process are forked from (`SERVER`): it costs 3 s of a processor, and every test that ends it has the next start another.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import io
import json
import os
import pkgutil
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import util
from multiprocessing.connection import wait
from typing import Any

import composed_once

Cold = subprocess.Popen
_cold_server = util.spawnv_passfds  # type: ignore[attr-defined]
PYTHON = sys.executable  # which a test may replace
LONGEST = 1 << 20  # bytes of a request
MODULES = (
    "torch", "torch._dynamo", "torch.distributed.optim", "hydra", "tensorboard.summary.writer.event_file_writer",
    "easgd_cli.commands.train", "easgd_cli.commands.join", "easgd_cli.commands.report",
    "easgd_cli.launcher.processes.local", "easgd_cli.launcher.virtual.simulated",
    "easgd_cli.launcher.processes.child", "easgd_cli.launcher.hosts.stand_in", "easgd_cli.training.evaluator",
    "easgd_cli.training.master", "easgd_cli.training.worker", "rich._emoji_codes", "torch.utils.serialization.config",
)  # fmt: skip
ROOMS = ("easgd_cli.algorithms", "easgd_cli.data", "easgd_cli.models", "easgd_cli.problems")
COMPOSED: tuple[list[str], ...] = ([], ["problem=quadratic", "eta=0.1"], ["launcher=simulated", "hydra.run.dir=run"])
COMMAND = "easgd_cli"
TASK = "submitit.core._submit"  # a job of a sweep on SLURM
# `script`: a test's own, in its working directory
LIKE_IT = (COMMAND, "script", "torch.distributed.run", TASK, "pytest")
CHILDREN = ("easgd_cli.sweeps.job_server", "easgd_cli.commands.sweep_job")
SERVER = "from multiprocessing.forkserver import main; main("
TRACKER = "from multiprocessing.resource_tracker import main;main("

READ_AT_START = ("LC_", "LANG", "PYTHON", "OMP_", "MKL_", "ATEN_", "ONEDNN_", "CUDA_")

_asks: socket.socket | None = None  # to the process that forks them
_pid: int | None = None
_at_start = dict[str, str]()
_begins: dict[str, Any] | None = None  # how that process is started when the first is asked for
_one_at_a_time = threading.Lock()


def begin() -> None:
    """From here on they are forked, in the place of `subprocess.Popen`'s own way. Only once."""
    global _begins
    _at_start.update(_read(os.environ))
    _begins = {"env": dict(os.environ), "cwd": os.getcwd(), "stdin": subprocess.DEVNULL, "start_new_session": True}
    subprocess.Popen = Popen  # type: ignore[misc]
    util.spawnv_passfds = _server  # type: ignore[attr-defined]


def _server(path: Any, args: Any, passed: Any) -> int:
    """In the place of multiprocessing's own, which starts its server and its tracker: only the server is forked."""
    words = [PYTHON, "-c", os.fsdecode(args[-1])]  # not its flags, which are those of whoever forks it
    forked = subprocess.Popen is Popen and words[2].startswith(SERVER)
    if not forked or _read(os.environ) != _at_start or not os.path.isdir(os.getcwd()):
        return _cold_server(path, args, passed)  # type: ignore[no-any-return]
    passed = sorted(map(int, passed))
    request = _request(words, dict(os.environ), child=True, passed=passed)
    return _ask(request, [0, 1, 2, *passed])[0]


def _request(words: list[str], environment: dict[str, str], cwd: Any = None, **more: Any) -> bytes:
    mask = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
    usual = {"new_session": False, "inside": [], "child": False, "passed": [], "limited": None, "mask": mask}
    where = os.fspath(cwd) if cwd else os.getcwd()
    return json.dumps(usual | {"words": words, "cwd": where, "environment": environment} | more).encode()


def _there() -> bool:
    """Whether there is a process that forks them, now if not before."""
    global _asks, _pid
    if _asks is None and _begins is not None:
        _asks, its = _pair()
        with its:
            words = [PYTHON, __file__, str(its.fileno())]
            _pid = Cold(words, pass_fds=[its.fileno()], **_begins).pid
    return _asks is not None


def _pair() -> tuple[socket.socket, socket.socket]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONGEST)
    return ends


def pid() -> int | None:
    """The process that forks them."""
    return _pid


@contextmanager
def cold() -> Iterator[None]:
    """Meanwhile every process is an interpreter of its own."""
    subprocess.Popen = Cold  # type: ignore[misc]
    try:
        yield
    finally:
        subprocess.Popen = Popen  # type: ignore[misc]


@dataclass(frozen=True)
class Limited:
    """A `preexec_fn` that leaves the process at most so much of something, `resource.RLIMIT_...`; it may be forked."""

    what: int
    most: int

    def __call__(self) -> None:
        resource.setrlimit(self.what, (self.most, self.most))


class Popen(Cold):  # type: ignore[type-arg]
    """As subprocess has it."""

    _answer: int | None = None

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any,
                       env: Any, *more: Any) -> None:  # fmt: skip
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = more[3:9]
        new_session = more[14]
        environment = dict(os.environ if env is None else env)
        inside, words = _namespaces(args)
        if words[:2] == [PYTHON, "-u"]:
            words, environment = [PYTHON, *words[2:]], environment | {"PYTHONUNBUFFERED": "1"}
        child = words[2:3] not in [[name] for name in LIKE_IT]
        limited = preexec_fn if isinstance(preexec_fn, Limited) else None
        if (
            executable
            or preexec_fn is not limited
            or (pass_fds and not child)
            or not _may_be_forked(words, environment)
        ):
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *more)  # type: ignore[misc]
            return
        request = _request(
            words, environment, cwd, new_session=bool(new_session), inside=inside, child=child, passed=list(pass_fds),
            limited=limited and (limited.what, limited.most),
        )  # fmt: skip
        given = [end if end != -1 else own for own, end in enumerate((p2cread, c2pwrite, errwrite))]
        self.pid, self._answer = _ask(request, [*given, *pass_fds])
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]
        if self.pid < 0:
            raise OSError("the process could not be forked")

    def _ended(self, seconds: float | None) -> bool:
        """Whether its status has come, within so many seconds."""
        if self.returncode is None and self._answer is not None:
            if not wait([self._answer], seconds):
                return False
            said = os.read(self._answer, 8)
            os.close(self._answer)
            self._answer = None
            self.returncode = int(said or b"-9")
        return True

    def _internal_poll(self, *args: Any, **kwargs: Any) -> int | None:
        if self._answer is None:
            return super()._internal_poll(*args, **kwargs)  # type: ignore[misc, no-any-return]
        self._ended(0)
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self._answer is None:
            return super()._wait(timeout)  # type: ignore[misc, no-any-return]
        if not self._ended(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode


def _ask(request: bytes, descriptors: list[int]) -> tuple[int, int | None]:
    """Has it forked; returns its number, and a descriptor by which the end of one is told that is not a child of
    this.
    """
    answer, told = os.pipe()
    child = json.loads(request)["child"]
    with _one_at_a_time:
        if not _there():
            raise OSError("nobody forks")
        assert _asks is not None
        _adopts(child)
        try:
            try:
                socket.send_fds(_asks, [request], [told, *descriptors])
            finally:
                os.close(told)
            pid = int(os.read(answer, 8).decode() or "-1")
        finally:
            _adopts(False)
    if child:
        os.close(answer)
    return pid, None if child else answer


def _adopts(yes: bool) -> None:
    """Whether a process below this one whose own parent ends becomes a child of this one."""
    ctypes.CDLL(None).prctl(36, int(yes), 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _namespaces(args: Any) -> tuple[list[str], list[str]]:
    """Of `nsenter -t PID [-U --preserve-credentials] [-n] [-m] WORDS` the namespaces, and the words."""
    words = [os.fspath(word) for word in args] if isinstance(args, (list, tuple)) else [os.fspath(args)]
    if words[:2] != ["nsenter", "-t"]:
        return [], words
    at, kinds = 3, []
    while words[at].startswith("-"):
        kinds += [kind for option, kind in (("-U", "user"), ("-n", "net"), ("-m", "mnt")) if words[at] == option]
        at += 1
    return [f"/proc/{words[2]}/ns/{kind}" for kind in kinds], words[at:]


def _may_be_forked(words: list[str], environment: dict[str, str]) -> bool:
    """Whether a copy of the process with everything imported is what an interpreter would be."""
    if (_asks or _begins) is None or words[:2] != [PYTHON, "-m"] or _read(environment) != _at_start:
        return False
    return words[2] in (*LIKE_IT, *CHILDREN)


def _read(values: Any) -> dict[str, str]:
    """What of the environment an interpreter reads as it begins."""
    own = ("PYTHONPATH", "PYTHONUNBUFFERED")  # of which a fork sees to itself
    return {k: v for k, v in values.items() if k.startswith(READ_AT_START) and k not in own}


# --- within the process that forks them ---


def _serve(asks: socket.socket) -> dict[str, Any]:
    """Forks whatever is asked for, until nobody can ask any more; returns in a fork, with what it is to be."""
    running: dict[int, tuple[int, int]] = {}  # by descriptor of the process: its number, and who waits for its status
    while True:
        for ready in select.select([asks, *running], [], [])[0]:
            if ready in running:
                pid, told = running.pop(ready)
                with suppress(OSError):
                    os.write(told, b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                os.close(told)
                os.close(ready)
                continue
            message, descriptors, _, _ = socket.recv_fds(asks, LONGEST, 16)
            if not message:
                os._exit(0)
            request = json.loads(message)
            told, *given = descriptors
            if request["child"]:
                forked = _adopted(told)
            elif forked := not (pid := os.fork()):
                os.close(told)
            else:
                running[os.pidfd_open(pid)] = pid, told
                os.write(told, b"%-8d" % pid)
            if forked:
                for descriptor, (_, other) in running.items():
                    os.close(descriptor)
                    os.close(other)
                asks.close()
                above = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 500) for descriptor in given]  # nobody's place
                for descriptor in given:
                    os.close(descriptor)
                for own, descriptor in zip([0, 1, 2, *request["passed"]], above, strict=True):
                    os.dup2(descriptor, own)
                    os.close(descriptor)
                return request  # type: ignore[no-any-return]
            for descriptor in given:
                os.close(descriptor)


def _adopted(told: int) -> bool:
    """Forks a process that becomes a child of whoever asked: its own parent ends at once. Returns whether this is
    it.
    """
    waits, ended = os.pipe()
    if between := os.fork():
        os.close(waits)
        os.close(told)
        os.waitpid(between, 0)
        os.close(ended)
        return False
    if os.fork():
        os._exit(0)
    os.close(ended)
    os.read(waits, 1)  # nothing is written
    os.close(waits)
    os.write(told, b"%-8d" % os.getpid())
    os.close(told)
    return True


def _become(request: dict[str, Any]) -> None:
    """What an interpreter has done before the first line of its main module."""
    if request["new_session"]:
        os.setsid()
    for namespace in request["inside"]:
        with open(namespace) as f:
            if ctypes.CDLL(None, use_errno=True).setns(f.fileno(), 0):
                raise OSError(ctypes.get_errno(), f"setns {namespace}")
    os.chdir(request["cwd"])
    before = os.environ.get("PYTHONPATH")
    os.environ.clear()
    os.environ.update(request["environment"])
    for name, number, mode, errors in (("stdin", 0, "r", "strict"), ("stdout", 1, "w", "strict"),
                                       ("stderr", 2, "w", "backslashreplace")):  # fmt: skip
        if os.environ.get("PYTHONUNBUFFERED") and number:
            raw = open(number, "wb", buffering=0, closefd=False)  # noqa: SIM115
            stream = io.TextIOWrapper(raw, encoding="utf-8", errors=errors, write_through=True)  # type: ignore[arg-type]
        else:
            lines = os.isatty(number) or number == 2
            buffering = 1 if lines else -1
            stream = open(number, mode, buffering, "utf-8", errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    words = request["words"]
    own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    old = [path for path in (before or "").split(os.pathsep) if path]
    sys.path[:] = [os.getcwd(), *own, *(path for path in sys.path[1:] if path not in old)]
    tempfile.tempdir = None  # as the environment has it now
    sys.orig_argv = words
    importlib.invalidate_caches()
    signal.pthread_sigmask(signal.SIG_SETMASK, request["mask"])
    if request["limited"]:
        Limited(*request["limited"])()


def _run(words: list[str]) -> int:
    """The main module, and the end of an interpreter except that memory is not given back one object after another,
    which takes longer than most commands. Returns the exit status.
    """
    status, interrupted = 0, False
    try:
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as e:
        if not isinstance(e.code, int | None):
            print(e.code, file=sys.stderr)
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        interrupted = True
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = 120
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return status


def _tracker(path: Any, args: Any, passed: Any) -> int:
    """In the place of multiprocessing's own in a command: its tracker is a copy of it, with these descriptors."""
    code = os.fsdecode(args[-1])
    if not code.startswith(TRACKER):
        return _cold_server(path, args, passed)  # type: ignore[no-any-return]
    if pid := os.fork():
        return pid
    for descriptor in set(map(int, os.listdir("/proc/self/fd"))) - {0, 1, 2, *passed}:
        with suppress(OSError):  # by which they were listed
            os.close(descriptor)
    exec(code)
    os._exit(0)


def _main() -> None:
    global _asks, _pid
    asks = socket.socket(fileno=int(sys.argv[1]))
    asks.set_inheritable(False)
    for module in MODULES:
        importlib.import_module(module)
    for room in ROOMS:
        for found in pkgutil.walk_packages(importlib.import_module(room).__path__, f"{room}."):
            importlib.import_module(found.name)
    composed_once.begin()
    from easgd_cli.commands.compose import composing
    from easgd_cli.record import summary

    with composing("config") as composed:
        for words in COMPOSED:
            composed(words)
    summary.surroundings()  # asks git and uname once
    gc.collect()
    gc.freeze()  # what a collector looks at, it copies
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"{len(threads)} threads, which a fork would not have"
    request = _serve(asks)
    _become(request)
    sys.modules["warm"] = sys.modules["__main__"]
    words = request["words"][2:]
    if words[0] in (TASK, "pytest") or (words[0] in LIKE_IT and {"-m", "--multirun"} & set(words)):
        # it will start others
        _asks, its = _pair()
        _at_start.update(_read(os.environ))
        if not (_pid := os.fork()):
            words = _for_jobs(_asks, its)
        else:
            its.close()
    if words[0].startswith(SERVER):
        exec(words[0], {"__name__": "__main__"})
        os._exit(0)
    util.spawnv_passfds = _tracker  # type: ignore[attr-defined]
    if words[0] not in CHILDREN[:1]:
        # the processes of a run are forked from a copy of this one as it is now
        from easgd_cli.launcher.processes import fork_server

        fork_server.begin_here()
    subprocess.Popen = Popen  # type: ignore[misc]
    os._exit(_run(words) & 0xFF)


def _for_jobs(asks: socket.socket, its: socket.socket) -> list[str]:
    """In a copy of a command that is about to run a sweep: forks the processes of its jobs until it ends. Returns in
    each, with its words.
    """
    global _asks
    asks.close()
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # none is for it
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    nowhere = os.open(os.devnull, os.O_RDWR)
    for own in range(3):
        os.dup2(nowhere, own)
    os.close(nowhere)
    request = _serve(its)
    _become(request)
    _asks = None
    return request["words"][2:]  # type: ignore[no-any-return]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _main()
