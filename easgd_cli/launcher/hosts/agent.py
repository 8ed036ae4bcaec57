"""The agent of a host that has joined a run: offers places to the run, and fills them with workers and masters as the
first host asks. Each of these is a process of this machine; what it says goes to its stand-in on the first host.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from easgd_cli import __version__
from easgd_cli.errors import RunError, UsageError, why
from easgd_cli.experiment.build import Experiment
from easgd_cli.launcher.hosts import probe
from easgd_cli.launcher.hosts.door import CONNECT_SECONDS, LIFE, Door, Role, connect
from easgd_cli.launcher.hosts.hosted_master import HostedMaster
from easgd_cli.launcher.hosts.hosted_worker import HostedWorker
from easgd_cli.launcher.hosts.measured_end import FarEnd, FarMaster, memory_of
from easgd_cli.launcher.hosts.party_thread import PartyThread
from easgd_cli.launcher.hosts.workplace import Workplace
from easgd_cli.launcher.processes import fork_server
from easgd_cli.launcher.supervisor.parties import ProcessName, master_at
from easgd_cli.system import interruption, network
from easgd_cli.system.shared_memory import SharedTensors
from easgd_cli.system.terminal import printable, tell
from easgd_cli.transport.connection import Connection, ConnectionEnded, FrameKind, Refused

if TYPE_CHECKING:
    from easgd_cli.launcher.hosts.measured_gloo import FarGloo

_AGAIN_SECONDS = 0.5  # between two attempts to connect
_PATIENCE_SECONDS = 86400.0  # for a run whose address was announced: it listens already, and answers when it is ready
_LEAVING_SECONDS = 10.0  # after a signal, for the run to end by itself: the signal may have gone to all of its hosts


class Over(RunError):
    """Nobody listens at the first host's address any more: no further run follows, or the announced run has ended."""


class Agent:
    """This machine's part in a run: so many `places` for workers and so many for `masters`. `address`: the first
    host's, which is to be reached within `wait` seconds; `prepare`: makes the experiment of the run's settings, for so
    many workers and masters. `again`: True if this host has been in a run at that address before; `stays`: True if
    another run follows this one there. `led`: True if the process that makes the run has announced the address. Raises
    UsageError, and RunError: Over where no run comes.
    """

    def __init__(
        self, address: tuple[str, int], secret: bytes, places: int, masters: int, wait: float,
        prepare: Callable[[dict[str, Any], int, int], Experiment], again: bool = False,
        led: bool = False,
    ):  # fmt: skip
        self._again, self._led, self.stays = again, led, False
        self._address, self._secret, self._places, self._masters = address, secret, places, masters
        self.where = f"{address[0]}:{address[1]}"
        self._prepare = prepare
        self._connection = Connection(self._connect(wait), CONNECT_SECONDS * 2, probe.MOST)
        self._heard: queue.SimpleQueue[dict[str, Any] | ConnectionEnded] = queue.SimpleQueue()
        self._host: Workplace | None = None
        self._filled: dict[ProcessName, PartyThread] = {}
        self._door: Door | None = None  # where workers' sessions with masters of this host come in
        self._ends: list[FarEnd | FarMaster | FarGloo] = []  # this host's ends of measured links
        self._vectors: dict[int, SharedTensors] = {}  # of measured sessions, by their numbers

    def _connect(self, wait: float) -> socket.socket:
        """Returns a connection to the first host, which may begin to listen later. Raises UsageError and RunError."""
        ends = time.monotonic() + wait
        while True:
            try:
                return connect(
                    self._address, self._secret, _PATIENCE_SECONDS if self._led else CONNECT_SECONDS, Role.AGENT
                )
            except Refused as e:
                raise UsageError(f"{self.where}: {e}; EASGD_SECRET is to be the same on all hosts of a run.") from e
            except OSError as e:
                if isinstance(e, ConnectionRefusedError) and (self._again or self._led):
                    over = "no further run follows there" if self._again else "the run ended before it began"
                    raise Over(f"{self.where}: {over}.") from e
                if time.monotonic() > ends:
                    raise RunError(
                        f"{self.where}: no run is reached there ({why(e)}); is it under way, and is that its address?"
                    ) from e
                time.sleep(_AGAIN_SECONDS)

    def run(self) -> int:
        """Takes part until the run has ended; returns its exit status. Raises UsageError and RunError."""
        offers = {"places": self._places, "masters": self._masters}
        self._connection.say({"kind": "host", "name": socket.gethostname(), **offers, "version": __version__})
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            with interruption.noted() as came:
                return self._serve(came)
        finally:
            if self._door is not None:
                self._door.close()
            for thread in self._filled.values():
                thread.leave()
            for thread in self._filled.values():
                thread.join(CONNECT_SECONDS)
            for end in self._ends:
                end.end()
            self._connection.close()

    def _serve(self, came: list[int]) -> int:
        leaves: float | None = None
        while True:
            if came and leaves is None:
                leaves = time.monotonic() + _LEAVING_SECONDS
                tell(f"leaving the run, unless it ends within {_LEAVING_SECONDS:g} s; once more to leave at once")
            # drops threads that have ended, with their memory
            self._filled = {party: thread for party, thread in self._filled.items() if thread.is_alive()}
            if len(came) > 1 or (leaves is not None and time.monotonic() > leaves):
                return 128 + came[0]
            with suppress(queue.Empty):
                heard = self._heard.get(timeout=0.2)
                if isinstance(heard, ConnectionEnded):
                    raise RunError(f"the run at {self.where} is lost: {heard}.")
                if (status := self._hear(heard)) is not None:
                    return status

    def _hear(self, message: dict[str, Any]) -> int | None:
        kind = message["kind"]
        if kind == "run":
            self._begin(message)
        elif kind == "refused":
            raise UsageError(f"{self.where}: {message['why']}.")
        elif kind == "start" and self._host is not None:
            self._fill(self._host, message)
        elif kind == "measure":
            number = int(message["number"])  # sessions of one number follow one another and share vectors
            if number not in self._vectors:
                self._vectors[number] = memory_of(int(message["size"]))
            self._ends.append(FarEnd(self._address, self._secret, self._vectors[number], message))
        elif kind == "serve":
            size, workers = int(message["size"]), int(message["workers"])
            own, algo = self._connection.own_address, message["algo"]
            self._ends.append(master := FarMaster(own, self._secret, size, workers, algo))
            self._connection.say({"kind": "serves", "port": master.port})
        elif kind == "gloo":
            from easgd_cli.launcher.hosts.measured_gloo import FarGloo  # here, since only measurements need it

            store = (self._address[0], int(message["port"]))
            which = int(message["rank"]), int(message["ranks"])
            self._ends.append(FarGloo(self._connection.own_address, store, int(message["size"]), *which))
        elif kind == "end":
            self.stays = bool(message.get("again"))
            tell(f"the run at {self.where} has ended: {printable(str(message['status']))}")
            return int(message["exit_code"])
        return None

    def _fill(self, host: Workplace, message: Mapping[str, Any]) -> None:
        """Starts the worker or master that the first host asks for."""
        hosted: HostedWorker | HostedMaster
        if "worker" in message:
            worker = int(message["worker"])
            others = {t.of.slot for party, t in self._filled.items() if party != worker and t.is_alive()}
            slot = next((i for i in range(self._places) if i not in others), 0)
            hosted = HostedWorker(host, worker, slot)
        else:
            hosted = HostedMaster(host, int(message["master"]))
        if (before := self._filled.get(hosted.party)) is not None:
            before.leave()
        self._filled[hosted.party] = PartyThread(host, hosted, int(message["ticket"]))

    def _cannot(self, ticket: int, text: str) -> None:
        self._connection.say({"kind": "cannot", "ticket": ticket, "text": text})

    def _enters(self, sock: socket.socket, address: str, role: int, worker: int, of: int) -> None:
        """Takes in a worker's session with a master of this host. `of`: the master's place and the worker's life."""
        life, place = divmod(of, 1 << LIFE)
        filled = self._filled.get(master_at(place))
        if role == Role.SESSION and filled is not None and isinstance(filled.of, HostedMaster):
            filled.of.admit(worker, life, sock)
        else:
            sock.close()

    def _begin(self, message: Mapping[str, Any]) -> None:
        """Makes everything that workers and masters of this host need, and tells the first host. Raises UsageError."""
        self._connection.be_patient(float(message["silence"]))
        try:
            experiment = self._prepare(message["settings"], self._places, self._masters)
            fork_server.begin()
            recipe = experiment.recipe.shared()
        except UsageError as e:
            self._connection.say({"kind": "failed", "text": str(e)})
            self._connection.finish(CONNECT_SECONDS)
            raise
        self._host = Workplace(
            self._address, self._secret, float(message["silence"]), experiment, recipe, self._places, self._cannot
        )
        dtype, port = str(experiment.dtype).removeprefix("torch."), None
        if self._host.masters_elsewhere:
            listener = network.listener("join", self._connection.own_address, 0)
            self._door, port = Door(listener, self._secret, self._enters), listener.getsockname()[1]
        self._connection.say({"kind": "ready", "size": experiment.size, "dtype": dtype, "port": port})
        tell(f"this host offers {self._places} place{'' if self._places == 1 else 's'} to the run at {self.where}")

    def _listen(self) -> None:
        try:
            while True:
                kind, text, count = self._connection.next()
                if kind is FrameKind.PROBE:
                    probe.respond(self._connection, text, count)
                else:
                    message, _ = self._connection.message(text)
                    if message["kind"] == "end":
                        self._connection.close()  # which tells the first host that its message was heard
                    self._heard.put(message)
        except ConnectionEnded as e:
            self._heard.put(e)
        except Exception as e:
            self._heard.put(ConnectionEnded(f"it said what cannot be ({type(e).__name__})"))


def usual_places() -> int:
    """Returns the workers of a host whose user gives no number: one for each CUDA device, or one."""
    import torch

    return max(1, torch.cuda.device_count())
