"""launcher=distributed: many machines. The run's supervisor, evaluator and record are on this one, the first host;
masters and workers are here and on hosts that have joined (`easgd join`, or the processes of torchrun or SLURM).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from easgd_cli.algorithms.base import CENTER
from easgd_cli.algorithms.wire import SHARING
from easgd_cli.errors import UsageError
from easgd_cli.launcher import kinds
from easgd_cli.launcher.hosts.first_host import FirstHost, entries_here, masters_elsewhere, workers_here
from easgd_cli.launcher.hosts.world import world as started_together
from easgd_cli.settings import targets
from easgd_cli.settings.schema import Settings
from easgd_cli.system import network
from easgd_cli.system.terminal import tell

if TYPE_CHECKING:
    from easgd_cli.algorithms.base import Method
    from easgd_cli.experiment.build import Experiment
    from easgd_cli.launcher.hosts.world import World
    from easgd_cli.launcher.job import Job, Outcome

_LOOPBACK = "127.0.0.1"
_LONGEST_SILENCE = 86400.0
LISTENER = "EASGD_LISTENER"  # the descriptor of the socket that other hosts call, for a job of a sweep
# True while runs are checked that will begin on other machines, whose addresses this one does not have
made_elsewhere = ContextVar("made_elsewhere", default=False)


@dataclass
class Distributed:
    """Many machines. Raises ValueError for values that no run can have, and UsageError.

    `transport`: how messages travel (kinds.Local). `here`: workers on this machine; `masters_here`: masters on it, all
    unless given; `least`: workers with which training begins, while the others have no host yet, None for all;
    `address`: HOST:PORT or HOST, where other machines reach this one, or the `interface` whose address that is; `wait`:
    seconds that a worker may be without a host; `silence`: seconds after which a host that says nothing is gone.
    """

    workers: int
    masters: int = 1
    transport: str = "sessions"
    here: int | None = None
    masters_here: int | None = None
    least: int | None = None
    address: str | None = None
    interface: str | None = None
    wait: float = 300.0
    silence: float = 10.0
    forks: ClassVar[bool] = True
    _listener: socket.socket | None = field(default=None, init=False, repr=False)
    _of_sweep: bool = field(default=False, init=False, repr=False)  # whose jobs are all reached at one address
    _where: str = field(default="", init=False, repr=False)
    _told: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        kinds.Local(self.workers, self.masters, self.transport)  # its limits: each worker has a process here
        world = started_together()
        if world is not None and self.workers != world.size:
            raise ValueError(
                f"workers={self.workers}: {world.starter} has started {world.size} processes, each the place of a "
                "worker; leave out workers=."
            )
        if self.here is not None and not 0 <= self.here <= self.workers:
            raise ValueError(f"launcher.here={self.here}: is a number of workers from 0 to workers={self.workers}.")
        if self.masters_here is not None and not 1 <= self.masters_here <= self.masters:
            raise ValueError(
                f"launcher.masters_here={self.masters_here}: is a number of masters from 1 to masters={self.masters}."
            )
        if self.least is not None and not 1 <= self.least <= self.workers:
            raise ValueError(f"launcher.least={self.least}: is a number of workers from 1 to workers={self.workers}.")
        for key, value in (("wait", self.wait), ("silence", self.silence)):
            if not value >= 2:
                raise ValueError(f"launcher.{key}={value:g}: is a number of seconds, at least 2.")
        if self.silence > _LONGEST_SILENCE:
            raise ValueError(
                f"launcher.silence={self.silence:g}: is at most {_LONGEST_SILENCE:g} seconds, a day; a host that is "
                "gone would not be missed."
            )
        if self.address is not None and self.interface is not None:
            raise ValueError(
                f"launcher.address={self.address} launcher.interface={self.interface}: give one of the two."
            )
        if (world is None or world.rank == 0) and not made_elsewhere.get():
            self._address()

    @property
    def places_here(self) -> int:
        """The number of workers on this machine."""
        return workers_here(self.here)

    @staticmethod
    def check(s: Settings, method: Method) -> None:
        """Raises UsageError where workers are to come later and cannot, or messages are to go into a sum and cannot."""
        kinds.check_transport(s, method)
        least = s.launcher.get("least")
        if least is None or least == s.workers:
            return
        if CENTER not in method.variables:
            raise UsageError(
                f"launcher.least={least} algo={s.algo['name']}: there is no center to begin with for who comes later; "
                "leave out launcher.least=, or use a method with a center such as algo=easgd."
            )
        if kinds.summed(s):
            raise UsageError(
                f"launcher.least={least} launcher.transport=collective: the first sum is of all workers; leave out one "
                "of the two."
            )
        if s.max_restarts == 0:
            raise UsageError(
                f"launcher.least={least} max_restarts=0: who comes later comes as one that was lost and is back; leave "
                "out one of the two."
            )

    @staticmethod
    def workers_here(s: Settings) -> int:
        """Returns the number of workers on this machine by the settings."""
        return workers_here(s.launcher.get("here"))

    def begin(self) -> None:
        from easgd_cli.launcher.processes import fork_server

        self.listen()
        fork_server.begin()

    def listen(self) -> tuple[socket.socket, str]:
        """Returns the socket that other hosts call, and its address as HOST:PORT. Raises UsageError."""
        if self._listener is None:
            inherited = os.environ.pop(LISTENER, None)
            self._of_sweep = inherited is not None
            if inherited is None:
                self._listener = network.listener(*self._address())
            else:
                self._listener = socket.socket(fileno=int(inherited))
                self._listener.set_inheritable(False)
            self._where = "{}:{}".format(*self._listener.getsockname())
        return self._listener, self._where

    def _address(self) -> tuple[str, str, int]:
        """Returns where to listen: the setting that says so, for messages, then address and port. Raises UsageError."""
        asked, host, port = self._asked()
        address, world = network.resolved(asked, host), started_together()
        if world is not None and world.size > world.local_size and network.is_loopback(address):
            raise UsageError(
                f"{asked}: is {address} on this host, which other hosts do not reach; write launcher.interface=NAME, "
                f"one of {', '.join(network.interfaces())}."
            )
        network.check_own(asked, address)
        network.secret(asked, address)
        return asked, address, port

    def _asked(self) -> tuple[str, str, int]:
        """Returns where to listen: the setting that says so, for messages, then host and port."""
        world = started_together()
        if self.interface is not None:
            return f"launcher.interface={self.interface}", network.of_interface(self.interface), 0
        if self.address is not None:
            return f"launcher.address={self.address}", *network.split("launcher.address=", self.address, 0)
        if world is not None:
            return *world.address(), 0
        return "launcher.address=127.0.0.1", _LOOPBACK, 0

    def __call__(self, job: Job, experiment: Experiment) -> Outcome:
        from easgd_cli.launcher import driver
        from easgd_cli.launcher.hosts.far_children import FarChildren, Timeouts
        from easgd_cli.launcher.hosts.gate import Gate
        from easgd_cli.launcher.processes.local import Processes
        from easgd_cli.system.devices import worker_threads

        s = experiment.settings
        _refuse(s, self.places_here)
        _check_slices(experiment)
        # the workers here share all of this machine's cores
        threads = worker_threads(replace(s, workers=max(1, self.places_here)))
        experiment = replace(experiment, recipe=replace(experiment.recipe, settings=replace(s, threads=threads)))
        listener, where = self.listen()
        secret = network.secret("launcher.address", listener.getsockname()[0])
        vectors = (experiment.size, str(experiment.dtype).removeprefix("torch."))
        gate = Gate(network.Lent(listener), secret, asdict(s), vectors, self.silence, kinds.summed(s))
        far, masters_far = self.workers - self.places_here, masters_elsewhere(s)
        join = f"on another host: easgd join {where}"
        if not self._told:  # a short run of tau=auto may have told it, at the same address
            host, self._told = socket.gethostname(), True
            masters = f"; masters here {self.masters - masters_far}, elsewhere {masters_far}" if masters_far else ""
            tell(f"master on {host}, reached at {where}; workers here {self.places_here}, elsewhere {far}{masters}")
            if (far or masters_far) and started_together() is None:
                tell(join)
        here = FirstHost(self.places_here, self.masters - masters_far, entries_here(experiment), masters_far)

        def children(logs: Path) -> FarChildren:
            first = f" ({masters_far} for a master each come before those for workers)" if masters_far else ""
            waits = Timeouts(self.wait, self.silence, join + first, self.least is None)
            return FarChildren(logs, gate, here, secret, waits)

        outcome: Outcome | None = None
        meeting = gate.meeting if kinds.summed(s) else None
        try:
            outcome = driver.run(job, experiment, lambda of: Processes(job, experiment, of, children, meeting))
        finally:
            said = ("failed", 1) if outcome is None else (outcome.status, outcome.exit_code)
            again = job.another or self._of_sweep
            gate.close({"status": said[0], "exit_code": said[1], "again": again})
            if not again:
                listener.close()
                self._listener = None
        return outcome


def _refuse(s: Settings, here: int) -> None:
    """Raises UsageError for what does not work on many machines yet."""
    if s.center_device != "cpu":
        raise UsageError(
            f"launcher=distributed center_device={s.center_device}: the center of many machines lies in the memory of "
            "its master's; leave out center_device=."
        )
    if s.profile is not None and here == 0:
        raise UsageError(
            f"launcher=distributed profile={s.profile} launcher.here=0: a profile is of worker 0, and written on the "
            "master's host; give launcher.here=1."
        )
    for group, value in vars(s).items():
        target: Any = value.get("target") if isinstance(value, dict) else None
        if isinstance(target, str) and target.startswith(targets.HANDED):
            raise UsageError(
                f"launcher=distributed {group}={target.removeprefix(targets.HANDED)}: what is handed over in Python "
                "does not reach other hosts; put it into a module, and name it as module:callable."
            )


def _check_slices(experiment: Experiment) -> None:
    """Raises UsageError where a master elsewhere cannot round its slice as the whole vector is rounded."""
    s = experiment.settings
    if masters_elsewhere(s) and s.wire == "int8" and any(part.start % SHARING for part in experiment.slices):
        raise UsageError(
            f"launcher.masters_here={s.launcher['masters_here']} wire=int8: {SHARING} numbers share a power of two, "
            f"and x, of {experiment.size} numbers, is too short for slices of as many; use fewer masters or wire=bf16."
        )


@contextmanager
def announced(launcher: object) -> Iterator[None]:
    """While it lasts, the processes that torchrun or SLURM has started with this one, which makes the run, find the
    run's address. It is entered before data are loaded: the others call, and wait as long as somebody listens. Raises
    UsageError and RunError.
    """
    world = started_together()
    if world is None or not isinstance(launcher, Distributed):
        yield
        return
    with world.announce(launcher.listen()[1]):
        yield


def is_distributed(s: Settings) -> bool:
    """Returns whether the run is on many machines."""
    return bool(s.launcher["target"] == f"{__name__}:Distributed")


def followed(s: Settings) -> World | None:
    """Returns this process's place where rank 0 of those started together makes the run; None where this one does."""
    world = started_together() if is_distributed(s) else None
    return None if world is None or world.rank == 0 else world
