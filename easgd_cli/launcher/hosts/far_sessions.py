"""Sessions of workers with a master on another host: straight from the one host to the other.

    worker's host                                                   master's host
    worker  <- shared memory ->  OutgoingSession  <====== network ======>  IncomingSession  <- shared memory ->  master

Each of the two is a thread with a connection and one half of `transport/relay.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from easgd_cli.launcher.hosts.door import CONNECT_SECONDS, LIFE, Role, connect_patiently
from easgd_cli.transport.base import Kind
from easgd_cli.transport.connection import Connection, ConnectionEnded, FrameKind, RulesBroken
from easgd_cli.transport.relay import MasterRelay, WorkerRelay
from easgd_cli.transport.shared import Link, SharedMasterEnd, SharedWorkerEnd
from easgd_cli.transport.turn import SendTurn

_SERVING_SECONDS = 1.0  # for a master to serve what a lost worker has asked for; what takes longer waits for a round


class OutgoingSession(threading.Thread):
    """A session of one worker of this host with the master at `place`, which is reached at `address`. `link`: the
    master's side of the session; `life`: the worker's, counted from 1. `lost` is called, from this thread, with the
    reason where the session is lost before its end. Raises Refused and OSError.
    """

    def __init__(
        self, address: tuple[str, int], secret: bytes, silence: float, place: int, link: Link,
        lost: Callable[[str], None], life: int = 1,
    ):  # fmt: skip
        super().__init__(daemon=True)
        self._end, self._silence, self._lost = SharedMasterEnd([link]), silence, lost
        never = threading.Event()
        of = place | life << LIFE
        sock = connect_patiently(address, secret, CONNECT_SECONDS, silence, never, Role.SESSION, link.worker, of)
        self.connection = Connection(sock, silence, link.memory.nbytes())
        self._says = MasterRelay(self._end, link.packing, self.connection)
        self.start()

    def run(self) -> None:
        try:
            while True:
                kind, text, count = self.connection.next()
                if kind is not FrameKind.REPLY:
                    raise RulesBroken
                self._says.reply(text, count)
        except ConnectionEnded as e:
            if self._end.open:
                self._lost(str(e))

    def end(self) -> None:
        """Waits until all requests of the worker, which has ended, are sent and the other side has read them."""
        self._says.join()
        self.connection.finish(self._silence)
        self.join()


class IncomingSession(threading.Thread):
    """A session of one worker, of another host or this, with a master of this host. `link`: the worker's side of the
    session, with a copy of its vectors that has the master's slice alone; `turn`: taken for large replies.
    """

    def __init__(self, connection: Connection, turn: SendTurn, link: Link):
        super().__init__(daemon=True)
        self._end, self._turn, self.connection = SharedWorkerEnd(link), turn, connection
        connection.most = link.memory.nbytes()
        self._asks = WorkerRelay(self._end, link.memory.tensors, link.variables, link.packing, connection)
        self.start()

    def run(self) -> None:
        with suppress(ConnectionEnded):
            while True:
                kind, text, count = self.connection.next()
                if kind is not FrameKind.REQUEST or self._asks.request(text, count) is Kind.LOST:
                    break
        self._asks.lost()  # without effect where the worker has ended its session itself
        self._asks.join(_SERVING_SECONDS)
        self._end.lose()
        self.connection.close()
        self._asks.join()
        self._turn.close()

    def end(self, seconds: float) -> None:
        """Ends the session of a worker that has ended: what it has said has so many seconds to arrive."""
        self.join(seconds)
        self.connection.close()
        self.join()
