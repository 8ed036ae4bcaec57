"""What the processes of a run tell its launcher: all of it, by kind, each with its keys and their types.

Processes of other machines are held to this where their words come in (`launcher/hosts/words.py`): these keys and no
others, numbers finite and below 2**53 unless they are `Measured`, texts that can be written.
"""

from typing import Annotated, Literal, NotRequired, TypedDict

Count = Annotated[int, range(1 << 53)]
Measured = Annotated[float, "measured"]  # may be infinite or no number
Number = Annotated[int, "number"]  # of a worker of the run
Own = Annotated[str, "own"]  # how the worker that says it is called in the record
Clocks = Annotated[dict[str, Count], "clocks"]  # of all workers of the run, or of the one without exchange that says it
Pace = tuple[float, float]  # the next points of evaluation, in steps and seconds

# ---------------------------------------------------------------- everybody


class Ready(TypedDict):
    """It waits for training to begin."""

    kind: Literal["ready"]


class Done(TypedDict):
    """It ends, everything said."""

    kind: Literal["done"]


class Error(TypedDict):
    """It ends of this. `refused`: by the data's fault, so that the next would end in the same way."""

    kind: Literal["error"]
    text: str
    refused: bool


# ---------------------------------------------------------------- a worker


class WorkerRow(TypedDict):
    """Of the record: metrics by their names there (`record/metrics.py`)."""

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
    """Its clock and its rows since the last."""

    kind: Literal["news"]
    t: Count
    rows: list[WorkerRow]


class TallyState(TypedDict):
    """Of `Tally`."""

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
    """Of a worker, beside its vectors, what it goes on from."""

    t: Count
    center_clock: Count
    served: Count
    exchanges: Count
    tally: TallyState
    spared: NotRequired[Annotated[int, range(-1, 1 << 53)]]


class State(TypedDict):
    """What it goes on from; with its vectors."""

    kind: Literal["state"]
    purpose: Literal["checkpoint", "final"]
    state: Counted


class Joined(TypedDict):
    """It has the center, and trains from this clock on."""

    kind: Literal["joined"]
    t: Count


class Rejoins(TypedDict):
    """It goes back to the center from this clock."""

    kind: Literal["rejoins"]
    t: Count
    why: str


class Fault(TypedDict):
    """It is about to suffer a fault on purpose."""

    kind: Literal["fault"]
    what: Literal["kill", "stop", "exception"]
    seconds: float


# ---------------------------------------------------------------- the owner of what is evaluated


class MomentOf(TypedDict):
    """Of `Moment`."""

    seconds: float
    step: float
    exchanges: Count
    clocks: Clocks


class Snapshot(TypedDict):
    """What is measured; with those vectors."""

    kind: Literal["snapshot"]
    purpose: Literal["evaluate"]
    moment: MomentOf
    pace: Pace
    spread: NotRequired[Measured]
    number: NotRequired[Count]


class Kept(TypedDict):
    """What the owner goes on from; with all its vectors. `last`: before the closing exchange."""

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
    """The exchanges since the last word, by whose they were in their order; how many in all, and who waits."""

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
    """A worker that was lost has been given the center."""

    kind: Literal["returned"]
    worker: Number
    t: Count
    lost: Count
    missed: Count


# ---------------------------------------------------------------- the host of a process, of it


class Process(TypedDict):
    """What the system says of it, and how fast its connection sends."""

    kind: Literal["process"]
    letter: str
    ticks: Count
    rate: Measured | None


class Carried(TypedDict):
    """Of its session with each master, or worker, elsewhere: which, bytes that went and came, and the rate."""

    kind: Literal["carried"]
    links: list[tuple[Count, Count, Count, Measured | None]]


class Log(TypedDict):
    """What it has written."""

    kind: Literal["log"]
    text: str


class Ended(TypedDict):
    """It has ended; `done`: having said all it had to. `signal`: which has ended it."""

    kind: Literal["ended"]
    done: bool
    signal: Annotated[int, "ending"] | None
    how: str


class Cannot(TypedDict):
    """It cannot begin there."""

    kind: Literal["cannot"]
    text: str


# ---------------------------------------------------------------- who may say what

OF_HOST = (Process, Carried, Log, Ended, Cannot)
OF_ALL = (Ready, Done, Error)
OF_WORKER = (*OF_ALL, News, State, Joined, Rejoins, Fault)
OF_OWNER = (Snapshot, Kept)  # a master, or a worker without exchange
OF_MASTER = (*OF_ALL, *OF_OWNER, Served, Lost, Returned)
