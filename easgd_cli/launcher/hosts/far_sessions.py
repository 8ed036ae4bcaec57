"""Sessions of workers with a master on another host: straight from the one host to the other.

    worker's host                                                   master's host
    worker  <- shared memory ->  OutgoingSession  <====== network ======>  IncomingSession  <- shared memory ->  master

Each is a thread, a connection and one half of `transport/relay.py`.
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

_SERVING_SECONDS = 1.0  # for a master to take what a worker had said that is gone; what it then still keeps, waits


class OutgoingSession(threading.Thread):
    """Of one worker of this host with the master of the `place` that is reached at `address`; `link`: the master's side
    of it; `life`: which of the worker's it is, from 1 on. `lost` is called, from this thread, with how it was lost,
    where that was before its end. Raises Refused and OSError.
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
        """The worker has ended: all it has asked for is sent, and the other side has heard it."""
        self._says.join()
        self.connection.finish(self._silence)
        self.join()


class IncomingSession(threading.Thread):
    """Of one worker, of another host or this, with a master of this host. `link`: the worker's side of it, with its
    vectors here, of the master's slice; `turn`: what large replies of the connection take.
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
        self._asks.lost()  # unless it has said its end
        self._asks.join(_SERVING_SECONDS)
        self._end.lose()
        self.connection.close()
        self._asks.join()
        self._turn.close()

    def end(self, seconds: float) -> None:
        """The worker is known to have ended: what it has said arrives within so many seconds, or not any more."""
        self.join(seconds)
        self.connection.close()
        self.join()
