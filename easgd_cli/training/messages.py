"""All messages from the processes of a run to its launcher, by kind, each with its keys and their types.

Messages from other machines are checked against these types where they come in (`launcher/hosts/words.py`): these keys
and no others, numbers finite and below 2**53 unless they are `Measured`, texts that can be written.
"""

from typing import Annotated, Literal, NotRequired, TypedDict

Count = Annotated[int, range(1 << 53)]
Measured = Annotated[float, "measured"]  # may be infinite or no number
Number = Annotated[int, "number"]  # a worker's number
Own = Annotated[str, "own"]  # the name in the record of the worker that sends the message
Clocks = Annotated[dict[str, Count], "clocks"]  # of all workers, or of the one worker of a method without exchange
Pace = tuple[float, float]  # the next points of evaluation, in steps and seconds

# ---------------------------------------------------------------- everybody


class Ready(TypedDict):
    """The process waits for training to begin."""

    kind: Literal["ready"]


class Done(TypedDict):
    """The process ends, and has said everything."""

    kind: Literal["done"]


class Error(TypedDict):
    """The process ends of this error. `refused`: the data are at fault; the next process would end in the same way."""

    kind: Literal["error"]
    text: str
    refused: bool


# ---------------------------------------------------------------- a worker


class WorkerRow(TypedDict):
    """A row of the record: metrics by their names there (`record/metrics.py`)."""

    party: Own
    step: Count
    seconds: float
    exchanges: Count
    train_loss: Measured
    eta: Measured
    samples_per_second: float
    seconds_compute: float
    seconds_data: float
    seconds_communication: float
    seconds_other: float
    distance_to_center: NotRequired[Measured]
    staleness: NotRequired[float]


class News(TypedDict):
    """The worker's clock, and its rows since the last news."""

    kind: Literal["news"]
    t: Count
    rows: list[WorkerRow]


class TallyState(TypedDict):
    """The fields of `Tally` (meter.py)."""

    seconds_compute: float
    seconds_data: float
    seconds_communication: float
    seconds_loop: float
    loss: Measured
    steps: Count
    staleness: Count
    exchanges: Count
    last_loop: float
    every: Annotated[int, range(1, 1 << 53)]
    rows: Count


class Counted(TypedDict):
    """The numbers from which a worker goes on, beside its vectors."""

    t: Count
    center_clock: Count
    served: Count
    exchanges: Count
    tally: TallyState
    spared: NotRequired[Annotated[int, range(-1, 1 << 53)]]


class State(TypedDict):
    """What a worker goes on from; its vectors come with the message."""

    kind: Literal["state"]
    purpose: Literal["checkpoint", "final"]
    state: Counted


class Joined(TypedDict):
    """The worker has the center, and trains from this clock on."""

    kind: Literal["joined"]
    t: Count


class Rejoins(TypedDict):
    """The worker goes back to the center from this clock."""

    kind: Literal["rejoins"]
    t: Count
    why: str


class Fault(TypedDict):
    """The worker is about to suffer a fault on purpose."""

    kind: Literal["fault"]
    what: Literal["kill", "stop", "exception"]
    seconds: float


# ---------------------------------------------------------------- the owner of what is evaluated


class MomentOf(TypedDict):
    """The fields of `Moment` (snapshot.py)."""

    seconds: float
    step: float
    exchanges: Count
    clocks: Clocks


class Snapshot(TypedDict):
    """A snapshot to be measured; its vectors come with the message."""

    kind: Literal["snapshot"]
    purpose: Literal["evaluate"]
    moment: MomentOf
    pace: Pace
    spread: NotRequired[Measured]
    number: NotRequired[Count]


class Kept(TypedDict):
    """What the owner goes on from; all its vectors come with the message. `last`: taken before the closing exchange."""

    kind: Literal["snapshot"]
    purpose: Literal["checkpoint", "last", "final"]
    moment: MomentOf
    pace: Pace
    clock: Count
    cpu: float
    spread: NotRequired[Measured]
    variables: NotRequired[dict[str, Count]]
    couriers: NotRequired[dict[str, Count]]
    mark: NotRequired[Count]


# ---------------------------------------------------------------- a master


class Served(TypedDict):
    """The exchanges since the last report, as entries (order_entry.py); how many in all; which workers wait."""

    kind: Literal["served"]
    workers: list[Number]
    seconds: float
    step: float
    exchanges: Count
    cpu: float
    waiting: list[Number]
    vectors: float


class Lost(TypedDict):
    """The worker's session has ended."""

    kind: Literal["lost"]
    worker: Number


class Returned(TypedDict):
    """A lost worker goes on at the clock `t`. `lost`: its steps that reached no variable; `missed`: those it skips."""

    kind: Literal["returned"]
    worker: Number
    t: Count
    lost: Count
    missed: Count


# ---------------------------------------------------------------- the host of a process, about that process


class Process(TypedDict):
    """What the system says of the process, and how fast its connection sends."""

    kind: Literal["process"]
    letter: str
    ticks: Count
    rate: Measured | None


class Carried(TypedDict):
    """For each session with a master, or worker, elsewhere: its number, bytes sent, bytes received, the rate."""

    kind: Literal["carried"]
    links: list[tuple[Count, Count, Count, Measured | None]]


class Log(TypedDict):
    """What the process has written."""

    kind: Literal["log"]
    text: str


class Ended(TypedDict):
    """The process has ended; `done`: after it had said everything. `signal`: the one that ended it, if any."""

    kind: Literal["ended"]
    done: bool
    signal: Annotated[int, "ending"] | None
    how: str


class Cannot(TypedDict):
    """The process cannot begin on that host."""

    kind: Literal["cannot"]
    text: str


# ---------------------------------------------------------------- who may say what

OF_HOST = (Process, Carried, Log, Ended, Cannot)
OF_ALL = (Ready, Done, Error)
OF_WORKER = (*OF_ALL, News, State, Joined, Rejoins, Fault)
OF_OWNER = (Snapshot, Kept)  # a master, or a worker without exchange
OF_MASTER = (*OF_ALL, *OF_OWNER, Served, Lost, Returned)
