"""What a host does for a run whose master is on another one: it offers places, and fills them with workers as it is
told. A worker is a process of this machine, as everywhere; what it says goes to its stand-in beside the master.
"""

from __future__ import annotations

import queue
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easgd_cli import __version__
from easgd_cli.algorithms.base import Seen
from easgd_cli.errors import RunError, UsageError, why
from easgd_cli.experiment.build import Experiment, Recipe
from easgd_cli.launcher import fork_server, probe
from easgd_cli.launcher.far_end import FarEnd
from easgd_cli.launcher.gate import AGENT, ROLE, WORKER
from easgd_cli.launcher.processes import Child
from easgd_cli.launcher.standstill import state_of
from easgd_cli.record.metrics import worker_name
from easgd_cli.settings.schema import Interval
from easgd_cli.system import interruption
from easgd_cli.system.channel import ChannelClosed
from easgd_cli.system.devices import deal_devices, worker_threads
from easgd_cli.system.terminal import printable, tell
from easgd_cli.training.worker import WorkerLoop, WorkerStart
from easgd_cli.transport.connection import Connection, ConnectionEnded, Refused, Sort, call
from easgd_cli.transport.relay import MasterStandIn
from easgd_cli.transport.shared import Link, SharedMasterEnd

if TYPE_CHECKING:
    from easgd_cli.launcher.gloo import FarGloo

CONNECT_SECONDS = 10.0  # for one attempt
_AGAIN_SECONDS = 0.5  # between two
_LEAVING_SECONDS = 10.0  # a signal goes to all hosts of a run: how long it may take to end for that reason
_LOOK_UP_SECONDS = 0.5
_STATE_SECONDS = 1.0  # between two words on what a worker's process does


class Over(RunError):
    """Nobody listens any more where a host has taken part: no further run follows."""


class Agent:
    """This machine's part of a run. `address`: where its master's is reached, within `wait` seconds; `prepare`: makes
    the experiment of settings, for so many workers. `again`: whether it has been in a run there which another follows;
    after this one it `stays` for one more, or not. Raises UsageError and RunError: Over where none has followed.
    """

    def __init__(
        self, address: tuple[str, int], secret: bytes, places: int, wait: float,
        prepare: Callable[[dict[str, Any], int], Experiment], again: bool = False,
    ):  # fmt: skip
        self._again, self.stays = again, False
        self._address, self._secret, self._places = address, secret, places
        self.where = f"{address[0]}:{address[1]}"
        self._prepare = prepare
        self._connection = Connection(self._called(wait), CONNECT_SECONDS * 2, probe.MOST)
        self._heard: queue.SimpleQueue[dict[str, Any] | ConnectionEnded] = queue.SimpleQueue()
        self._host: Workplace | None = None
        self._filled: dict[int, Place] = {}
        self._ends: list[FarEnd | FarGloo] = []

    def _called(self, wait: float) -> socket.socket:
        """A connection there; whoever listens may come a little later."""
        ends = time.monotonic() + wait
        while True:
            try:
                sock = call(self._address, self._secret, CONNECT_SECONDS)
                sock.sendall(ROLE.pack(AGENT, 0, 0))
                return sock
            except Refused as e:
                raise UsageError(f"{self.where}: {e}; EASGD_SECRET is to be the same on all hosts of a run.") from e
            except OSError as e:
                if self._again and isinstance(e, ConnectionRefusedError):
                    raise Over(f"{self.where}: no further run follows there.") from e
                if time.monotonic() > ends:
                    raise RunError(
                        f"{self.where}: no run is reached there ({why(e)}); is it under way, and is that its address?"
                    ) from e
                time.sleep(_AGAIN_SECONDS)

    def run(self) -> int:
        """Until the run has ended; its exit status. Raises UsageError and RunError."""
        self._connection.say(
            {"kind": "host", "name": socket.gethostname(), "places": self._places, "version": __version__}
        )
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            with interruption.noted() as came:
                return self._serve(came)
        finally:
            for place in self._filled.values():
                place.leave()
            for thread in (*self._filled.values(), *self._ends):
                thread.join(CONNECT_SECONDS)
            self._connection.close()

    def _serve(self, came: list[int]) -> int:
        leaves: float | None = None
        while True:
            if came and leaves is None:
                leaves = time.monotonic() + _LEAVING_SECONDS
                tell(f"leaving the run, unless it ends within {_LEAVING_SECONDS:g} s; once more to leave at once")
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
            worker = int(message["worker"])
            if (before := self._filled.get(worker)) is not None:
                before.leave()
            taken = {place.slot for place in self._filled.values() if place.is_alive()}
            slot = next((i for i in range(self._places) if i not in taken), 0)
            self._filled[worker] = Place(self._host, worker, int(message["ticket"]), slot)
        elif kind == "measure":
            for session in range(int(message["sessions"])):
                self._ends.append(FarEnd(self._address, self._secret, session, int(message["size"])))
        elif kind == "gloo":
            from easgd_cli.launcher.gloo import FarGloo  # here, since hosts of runs have no use for it

            store = (self._address[0], int(message["port"]))
            self._ends.append(FarGloo(self._connection.own_address, store, int(message["size"])))
        elif kind == "end":
            self._connection.close()  # which says there that it has been heard
            self.stays = bool(message.get("again"))
            tell(f"the run at {self.where} has ended: {printable(str(message['status']))}")
            return int(message["exit_code"])
        return None

    def _begin(self, message: Mapping[str, Any]) -> None:
        """Makes everything that its workers need, and says so."""
        self._connection.be_patient(float(message["silence"]))
        try:
            experiment = self._prepare(message["settings"], self._places)
            fork_server.begin()
            recipe = experiment.recipe.shared()
        except UsageError as e:
            self._connection.say({"kind": "failed", "text": str(e)})
            self._connection.finish(CONNECT_SECONDS)
            raise
        self._host = Workplace(self._address, self._secret, float(message["silence"]), experiment, recipe, self._places)
        dtype = str(experiment.dtype).removeprefix("torch.")
        self._connection.say({"kind": "ready", "size": experiment.size, "dtype": dtype})
        tell(f"this host offers {self._places} places to the run at {self.where}")

    def _listen(self) -> None:
        try:
            while True:
                sort, text, count = self._connection.next()
                if sort is Sort.PROBE:
                    probe.answer(self._connection, text, count)
                else:
                    self._heard.put(self._connection.message(text)[0])
        except ConnectionEnded as e:
            self._heard.put(e)


class Workplace:
    """What the workers of one host share."""

    def __init__(
        self, address: tuple[str, int], secret: bytes, silence: float,
        experiment: Experiment, recipe: Recipe, places: int,
    ):  # fmt: skip
        self.address, self.secret, self.silence, self.experiment, self.recipe = (
            address, secret, silence, experiment, recipe,
        )  # fmt: skip
        here = replace(experiment.settings, workers=places)
        self.threads, self._devices = worker_threads(here), deal_devices(here.device, places)
        self._forking = threading.Lock()

    def link(self, worker: int) -> Link:
        """Its session with its stand-in master, and its vectors. Raises MemoryError."""
        e = self.experiment
        return Link.new(worker, e.method, e.size, e.dtype, average=e.method.alone and e.average is not None)

    def start(self, link: Link, slot: int, begin: Mapping[str, Any], log: Path) -> Child:
        """A worker's process. Raises RunError and OSError."""
        steps = None if begin["interval"] is None else Interval(*begin["interval"])
        start = WorkerStart(self.recipe, link.for_worker(), self._devices[slot], self.threads, steps)
        start.t, start.seen, start.meter, start.pace = begin["t"], Seen(*begin["seen"]), begin["meter"], begin["pace"]
        start.returns, start.new, start.spared = begin["returns"], begin["new"], begin["spared"]
        with self._forking:
            return Child(worker_name(link.worker), WorkerLoop, start, log)


class Place(threading.Thread):
    """One worker, from the call for it to its end, in a thread of its own."""

    def __init__(self, host: Workplace, worker: int, ticket: int, slot: int):
        super().__init__(daemon=True)
        self._host, self._worker, self._ticket, self.slot = host, worker, ticket, slot
        self._leaves = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._posting = threading.Lock()
        self.start()

    def leave(self) -> None:
        """Its worker is to be gone, and nothing more said of it."""
        self._leaves.set()
        with suppress(OSError):
            self._wake.send(b"x")

    def run(self) -> None:
        try:
            sock = call(self._host.address, self._host.secret, CONNECT_SECONDS)
            sock.sendall(ROLE.pack(WORKER, self._worker, self._ticket))
            link = self._host.link(self._worker)
        except (Refused, OSError, MemoryError) as e:
            tell(f"worker {self._worker} cannot begin here: {e}")
            return
        connection = Connection(sock, self._host.silence, link.memory.nbytes())
        with tempfile.TemporaryDirectory(prefix="easgd-") as directory:
            try:
                self._work(connection, link, Path(directory) / "log")
            except (ConnectionEnded, RunError, OSError, MemoryError) as e:
                if not self._leaves.is_set():
                    tell(f"worker {self._worker}: {e}")
            finally:
                connection.close()
        for end in (self._wake, self._woken):
            end.close()

    def _work(self, connection: Connection, link: Link, log: Path) -> None:
        _, text, _ = connection.next()
        begin, enclosed = connection.message(text)
        if enclosed is not None:
            for name, v in enclosed.tensors.items():
                link.memory[name].copy_(v)
        child = self._host.start(link, self.slot, begin, log)
        assert link.worker_socket is not None
        link.worker_socket.close()
        tell(f"worker {self._worker} runs here, process {child.process.pid}")
        says = MasterStandIn(SharedMasterEnd([link.for_master()]), link.packing, connection)
        threading.Thread(target=self._listen, args=(connection, child, says), daemon=True).start()
        try:
            done = self._pass_on(connection, child, log)
            if not self._leaves.is_set():
                says.join()  # what it asked for comes before the news of its end
                number = child.process.killed_by
                connection.say({"kind": "ended", "done": done, "signal": number, "how": child.process.how})
                connection.finish(self._host.silence)
        finally:
            child.kill()
            child.close()

    def _pass_on(self, connection: Connection, child: Child, log: Path) -> bool:
        """Says what the worker says, until it has ended; whether it has said all it had to."""
        done, read, looked = False, 0, 0.0
        while not self._leaves.is_set():
            ended = child.process.ended
            try:
                while messages := child.channel.receive():
                    for message, enclosed in messages:
                        done = done or message["kind"] == "done"
                        connection.say(message, enclosed)
            except ChannelClosed:
                pass
            read = _say_log(connection, log, read)
            if ended:
                break
            if time.monotonic() - looked >= _STATE_SECONDS and (state := state_of(child.process.pid)) is not None:
                looked = time.monotonic()
                connection.say({"kind": "process", "rate": connection.rate(), **state._asdict()})
            with self._posting, suppress(ChannelClosed):
                child.channel.flush()
            watched: list[Any] = [child.process.sentinel, self._woken, *([] if done else [child.channel])]
            select.select(watched, [], [], _LOOK_UP_SECONDS)
        return done

    def _listen(self, connection: Connection, child: Child, says: MasterStandIn) -> None:
        """Does what is said on the other side."""
        try:
            while True:
                sort, text, count = connection.next()
                if sort is Sort.REPLY:
                    says.reply(text, count)
                    continue
                message, _ = connection.message(text)
                if message["kind"] == "signal":
                    child.process.send_signal(int(message["number"]))
                    continue
                if message["kind"] == "start":
                    message = {"kind": "start", "began": time.monotonic() - float(message["elapsed"])}
                with self._posting, suppress(ChannelClosed):
                    child.channel.post(message)
        except (ConnectionEnded, KeyError, ValueError, TypeError):
            self.leave()


def _say_log(connection: Connection, log: Path, read: int) -> int:
    """Says what the log has from there on; returns up to where."""
    with suppress(OSError), open(log, "rb") as f:
        f.seek(read)
        if data := f.read(1 << 20):
            connection.say({"kind": "log", "text": data.decode("utf-8", "replace")})
            return read + len(data)
    return read


def usual_places() -> int:
    """How many workers a host has that does not say: one for each CUDA device, or one."""
    import torch

    return max(1, torch.cuda.device_count())
