"""The contract of a transport: it moves vectors between workers and the owner of a center, and knows no algorithm.

A *session* is one worker's connection to one master. It carries one request at a time and one reply to it.

The worker's end:

- `vectors`: the transport allocates all of the worker's vectors, so that any of them can be lent as a message. `reply`
  is the place of all replies, None where there is no center.
- `post(m, t, to)` lends m to the variable `to`, at the worker's clock t, and returns at once. Until `collect` returns,
  the worker leaves m alone; it may compute meanwhile. Without m it is a pull: the variable as it is. Of a `fragment`
  only its entries are moved, up and down; the reply's other entries stay as they were.
- `collect()` returns the `Reply`. Its vector is read-only and stays as it is until the next `post`. It raises
  `Withdrawn` when the message was given back: nothing has happened, and nothing will.
- `join(t)`, the first request in the session of a worker that was lost and is back, asks for the center as it is and
  for a clock to go on from: the worker's own or, for one that is NEW, the others'. `collect()` returns both.
- `post(m, t, to, Kind.CLOSING)`, the last message of a worker, is served after those of all others: when every worker
  that is there has sent its own.
- `checkpoint(t)` marks a moment in the order of requests; it has no reply.
- `close(t)` says that the worker has finished at its clock t. Ending without it means that the worker was lost.
- Once the master has ended, any of these raises `SessionEnded`, within a moment.

The master's end:

- `open`: the workers whose sessions are open.
- `requests(timeout)` returns what has arrived, in the order in which it is to be served.
- A request of kind EXCHANGE is answered by applying the rule to the two vectors of `lent(request)` and then
  `reply(request, ...)`: the exchange is whole or has not happened. The order in which a master serves the exchanges
  with a variable is its order of exchanges; a round's are in the order of the workers' numbers.
- A worker that ends without `close`, at any moment, killed or not, is seen as one request of kind LOST and disturbs no
  other session. If it comes back, it has a new session, whose first request is JOIN. The reply is the center as it is;
  no rule is applied and no exchange counted.

One writer: only the master writes the center and the replies; only a worker writes its own vectors. There is no lock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from torch import Tensor

from easgd_cli.algorithms.base import CENTER, WHOLE
from easgd_cli.order_entry import entry_of

PULL = -1  # in place of a vector that is lent
NEW = -1  # in place of the clock of a worker that joins for the first time


class SessionEnded(Exception):
    """The other party of a session has ended."""


class Withdrawn(Exception):
    """The message is given back: its round cannot be complete, since a worker has finished or all are told to."""


class Kind(IntEnum):
    """What a worker asks of its master."""

    EXCHANGE = 1  # here is a message: apply it and reply
    CHECKPOINT = 2  # a checkpoint is being taken: keep the center as it is at this place in the order
    CLOSE = 3  # finished
    LOST = 4  # never sent: what a master makes of a session that ended without CLOSE
    JOIN = 5  # a worker that was lost is back: the center as it is, please
    CLOSING = 6  # an exchange after the last step: to be served when all have ended
    SUMMED = 7  # of collective.py alone: the sum of a round's messages lies where the master reads it
    STATE = 8  # of collective.py alone: replica and reply as they are, please


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `t`: the worker's clock when it was made; `vector`: the place of the vector that the worker lends
    (PULL: none); `to`: the variable's place among the method's; `fragment`: the one exchanged, or WHOLE.
    """

    worker: int
    kind: Kind
    t: int
    vector: int
    to: int = 0
    fragment: int = WHOLE

    @property
    def entry(self) -> int:
        """The entry of this request in the order of exchanges."""
        return entry_of(self.worker, self.to)


class Mark(IntEnum):
    """What a reply says beside its vector."""

    NONE = 0
    # the center is kept as it is after this round, and the worker as it is after this step: one consistent cut
    CHECKPOINT = 1
    WITHDRAWN = 2  # there is no reply
    AWAY = 3  # the variable is away for a while: there is no reply, and the worker goes on alone


@dataclass(frozen=True, slots=True)
class Reply:
    """What an exchange brings back. `vector`: the reply [d], with anything in it where the variable is AWAY; `clock`:
    the variable's, after the update; `served`: exchanges so far, this one included. `t`: the worker's clock at its
    message; for a worker that joins, the clock to go on from.
    """

    vector: Tensor
    clock: int
    served: int = 0
    mark: Mark = Mark.NONE
    t: int = 0


class Session(Protocol):
    """What a step uses of a worker's end: one request, one reply."""

    def post(self, message: Tensor | None, t: int, to: str = CENTER, *, fragment: int = WHOLE) -> None:
        """Lends `message`, or that fragment of it, to the variable `to`, at the worker's clock t, and returns at once;
        None: a pull.
        """

    def collect(self) -> Reply:
        """Waits for the reply, valid until the next `post`. Raises Withdrawn and SessionEnded."""


class WorkerEnd(Session, Protocol):
    """A worker's end of its session."""

    @property
    def vectors(self) -> Mapping[str, Tensor]:
        """The worker's own vectors by name, each [d]."""

    @property
    def reply(self) -> Tensor | None:
        """Where replies are found [d]; None where there is no center."""

    def post(
        self, message: Tensor | None, t: int, to: str = CENTER, kind: Kind = Kind.EXCHANGE, *, fragment: int = WHOLE
    ) -> None:
        """Lends `message` for an exchange of this kind, and returns at once."""

    def join(self, t: int) -> None:
        """Asks for the center, and returns at once. This worker's own clock is `t` at least."""

    def checkpoint(self, t: int) -> None:
        """Asks the master to keep the center as it is between this worker's last exchange and its next. Raises
        SessionEnded.
        """

    def close(self, t: int) -> None:
        """Says that the worker has finished. Raises SessionEnded."""


class MasterEnd(Protocol):
    """A master's end of all its sessions. `sums`: whether the messages of a round come as their sum."""

    sums: bool

    @property
    def open(self) -> Collection[int]:
        """The workers whose sessions are open."""

    def requests(self, timeout: float | None) -> list[Request]:
        """Returns the requests that have arrived, in the order in which they are to be served. Waits at most `timeout`
        seconds for them; None: for ever.
        """

    def summed(self, members: Sequence[Request]) -> Sequence[Request]:
        """Returns those of a round's members, in their order, whose messages can be read now; none if the round is to
        be given back.
        """

    def lent(self, request: Request) -> tuple[Tensor | None, Tensor]:
        """Returns the message that this request lends [d], None for a pull, and the place of its reply [d]. Where the
        transport `sums`, the message is the sum of the round's.
        """

    def reply(self, request: Request, clock: int, served: int, mark: Mark = Mark.NONE, t: int | None = None) -> None:
        """Tells the worker that its reply has been written, or its message is given back; see `Reply`. `t`: that of the
        request unless given.
        """


def index_of(message: Tensor, index: Mapping[int, int]) -> int:
    """Returns the place among a worker's vectors of `message`, found by its address. Raises ValueError if none."""
    found = index.get(message.data_ptr())
    if found is None:
        raise ValueError(
            "an exchange lends one of the worker's own vectors, named in state or scratch; this message is another "
            "tensor."
        )
    return found
