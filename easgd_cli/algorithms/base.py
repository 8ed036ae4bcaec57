"""What a method is: two rules, one for a worker and one for the center, and the words in which rules are written.

The paper prints every method as two boxes, "processing by worker i" and "processing by the master". A method here is
the same two boxes, so that a file can be ticked off against the printed listing:

    step(w)                        the worker's rule for one local step, a generator
    receive(center, m, reply, n)   the center's rule for one update

A party has one state, one rule and one process that writes it. It is a *worker* or a *variable*, which workers share;
the center is a variable. Most methods have the center alone, and define it by `receive` and two class attributes.
A *courier* is a worker that computes no gradient: it carries between two variables.

Symbols (Zhang, Choromanska, LeCun 2015, pp. 2-4 and 20)

    x       a worker's variable (the paper's x^i), float vector of shape [d]
    x~      the center variable: `center.x`
    v       a velocity or accumulated update, [d]
    g       stochastic gradient of the loss, l2 term included, [d]
    eta     learning rate `w.eta`, the schedule at the worker's clock
    alpha   moving rate; beta = p alpha
    delta   momentum
    tau     communication period: `w.due` says whether tau divides the clock
    t       `w.t`, the worker's clock: its own local steps

The worker's rule *yields what it needs* and is sent the answer; nothing blocks inside it, so the same lines run in real
processes, step by step in a test and on a virtual clock:

    g = yield Gradient(x)                       the gradient at x, of this step's batch
    reply = yield Exchange(m)                   m goes to the center, its reply comes back
    g, reply = yield Gradient(x), Exchange(m)   both, and they may overlap; `None` in place of either asks for nothing
    reply = yield Exchange(None, to=name)       a pull: the x of the variable `name`, which stays as it is

An exchange is answered by `None` while its variable is lost: the rule then takes the step without a reply.

Three promises make this exact:

1. A rule changes its state only after its last yield; before that it writes only `scratch`. The message is lent, not
   copied: the center reads it while the worker differentiates.
2. Answers are read-only. A gradient is valid until the step ends, a reply until the next exchange is asked for. A
   step asks for at most one gradient, and for at most one exchange with each variable, one after another.
3. `receive` is elementwise and touches nothing but its arguments, so the center's owner may apply it in blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from easgd_cli.errors import UsageError

if TYPE_CHECKING:  # rules call tensors' own methods, so that settings can be checked before torch is imported (1 s)
    from torch import Tensor

    from easgd_cli.algorithms.local import LocalStep
    from easgd_cli.algorithms.schedule import Schedule


class Gradient:
    """Asks for the gradient of this step's batch at the vector `at` [d], which is only read."""

    __slots__ = ("at",)

    def __init__(self, at: Tensor):
        self.at: Final = at


CENTER: Final = "center"  # the variable that is evaluated and saved
WHOLE: Final = -1  # in place of a fragment's number: the whole vector


class Exchange:
    """Asks for an exchange: `message` [d], one of the worker's own vectors, goes to the variable `to`; the answer is
    the reply [d]. Without a message the exchange is a pull, which changes nothing: the answer is the variable's x, or
    the reply of a round in which the worker takes part.

    `fragment`: the number of the fragment that is exchanged (fragments.py), WHOLE for all entries.
    """

    __slots__ = ("fragment", "message", "to")

    def __init__(self, message: Tensor | None, to: str = CENTER, fragment: int = WHOLE):
        self.message: Final = message
        self.to: Final = to
        self.fragment: Final = fragment


Rule = Generator[Any, Any, None]


class Vectors:
    """A party's vectors as attributes, under the names that its method declares: `.x`, `.v` and so on. `t`: the party's
    clock; a variable's clock counts the updates before the current one.
    """

    __slots__ = ("__dict__", "t")  # so that vars() are the vectors

    if TYPE_CHECKING:
        x: Tensor

        def __getattr__(self, name: str) -> Tensor: ...

    def __init__(self, vectors: Mapping[str, Tensor]):
        self.__dict__.update(vectors)
        self.t = 0


@dataclass
class Seen:
    """What a worker knows from its replies: the center's `clock` at the last one (that of its `home`, in a method with
    other variables), the exchanges of all workers `served` by then, and the number of its own `exchanges`.
    """

    clock: int = 0
    served: int = 0
    exchanges: int = 0

    def note(self, clock: int, served: int) -> int:
        """Counts one more exchange. Returns its staleness: the updates by others since this worker's last exchange."""
        staleness = clock - 1 - self.clock
        self.clock, self.served = clock, served
        self.exchanges += 1
        return staleness


class Worker(Vectors):
    """A worker as its rule sees it: its vectors, its `number`, its clock `t`, what follows from the clock, and what it
    has `seen` of the center.

    The driver advances `t` and `seen` when a step's rule has ended; no rule does. Random numbers in a rule must depend
    on seed, `number` and `t` alone. `phase`: the first clock at which a fragment is due, 0 for the whole vector.
    """

    def __init__(
        self,
        vectors: Mapping[str, Tensor],
        tau: int,
        schedule: Schedule,
        t: int = 0,
        number: int = 0,
        seen: Seen | None = None,
        phase: int = 0,
    ):
        super().__init__(vectors)
        self.tau: Final = tau
        self.schedule: Final = schedule
        self.t = t
        self.number: Final = number
        self.seen: Final = seen or Seen()
        self.phase: Final = phase

    def at(self, x: Tensor) -> Worker:
        """Returns a copy of this worker whose x is `x` [d]; all other vectors are shared."""
        there = copy(self)
        there.x = x
        return there

    @property
    def due(self) -> bool:
        """True if this step exchanges: tau divides t - phase, so the first exchange is at t = phase."""
        return (self.t - self.phase) % self.tau == 0

    @property
    def since(self) -> int:
        """Steps since the last clock at which the worker was due."""
        return (self.t - self.phase) % self.tau

    @property
    def eta(self) -> float:
        """The learning rate eta_t, at this worker's own clock."""
        return self.schedule(self.t)


Receive = Callable[[Vectors, "Tensor", "Tensor", int], None]
Part = tuple[int, Receive]  # the entry before which the part ends, and the variable's rule for the part
Gathers = Literal["each", "round"]


@dataclass(frozen=True)
class Variable:
    """A vector that workers share: its rule `receive`, the names of its vectors (`state`), and how it takes messages.

    `gathers`: "each", one update per message (asynchronous), or "round", one update by the messages of all `members`
    together (None: of all workers). `owner`: the worker or courier beside which the variable lies; messages between the
    two cross no network, and each is an update by itself, by the rule `own` if there is one. `answers`: whether other
    workers' messages get a vector back. `tail`: how many of the last entries are no parameters, and the rule for these
    entries (statistics.py). `origin`: the variable with whose x this one begins again after a loss; None: it cannot.
    `fragments`: into how many fragments the variable is cut, each with a clock of its own.
    """

    receive: Receive
    state: tuple[str, ...] = ("x",)
    gathers: Gathers = "each"
    tail: tuple[int, Receive] | None = None
    members: range | None = None
    owner: int | None = None
    own: Receive | None = None
    answers: bool = True
    origin: str | None = None
    fragments: int = 1

    @property
    def in_rounds(self) -> bool:
        """True if the variable takes messages in rounds."""
        return self.gathers == "round"

    def takes(self, worker: int) -> bool:
        """Returns whether `worker` is one of the `members`."""
        return self.members is None or worker in self.members

    def synchronous(self) -> Variable:
        """Returns this variable with rounds in place of single messages."""
        return replace(self, gathers="round")

    def parts(self, size: int, own: bool = False) -> Sequence[Part]:
        """Returns the parts of the vectors [size] in order, each with its rule; `own`: the rules for the owner's
        messages.
        """
        receive = self.own if own and self.own is not None else self.receive
        if self.tail is None:
            return [(end, receive) for end in fragment_ends(size, self.fragments)]
        entries, rule = self.tail
        return [(size - entries, receive), (size, rule)]


def fragment_ends(size: int, fragments: int) -> list[int]:
    """Returns the entry before which each fragment of a vector [size] ends. Their lengths differ by 1 at most."""
    return [size * (f + 1) // fragments for f in range(fragments)]


def entries_of(size: int, fragments: int, fragment: int) -> slice:
    """Returns the entries of a vector [size] that belong to the `fragment` of this number, or all for WHOLE."""
    if fragment == WHOLE:
        return slice(None)
    return slice(size * fragment // fragments, size * (fragment + 1) // fragments)


EXCHANGES: Final = 4  # the most exchanges that a courier's step makes


@dataclass(frozen=True)
class Courier:
    """A worker without gradients that lies beside a variable and keeps time with it: the courier's step t follows the
    variable's update t by workers and other couriers. Where the variable takes rounds, no step follows the last round.

    `step`: the courier's rule. It makes at most EXCHANGES exchanges and fills a vector before it lends it, so that a
    step can be repeated with the same answers. `vectors`: the names of the vectors that it lends.
    """

    step: Callable[[Worker], Rule]
    vectors: tuple[str, ...] = ("x",)


class Method(ABC):
    """Base of every method. A subclass is a frozen dataclass whose fields are the constants it uses.

    A field with the name of a root setting (alpha, delta, tau, workers, ...) gets the value of that setting; any other
    field is an option of the method's own, `algo.<field>`. A constant that breaks the method's rule raises ValueError
    in `__post_init__`, with a sentence that names the constant.
    """

    # the center's vectors; empty for a method of one worker without exchange
    center: ClassVar[tuple[str, ...]] = ("x",)
    gathers: ClassVar[Gathers] = "each"  # how the center takes messages

    @property
    def state(self) -> tuple[str, ...]:
        """Names of a worker's vectors that outlive a step: x, which begins at the common start; others begin at 0."""
        return ("x",)

    @property
    def scratch(self) -> tuple[str, ...]:
        """Names of a worker's vectors that need not outlive a step."""
        return ()

    @abstractmethod
    def step(self, w: Worker) -> Rule:
        """One local step of a worker."""

    def closing(self, w: Worker) -> Exchange | None:
        """Returns the closing exchange, after a worker's last step, in a method whose center would lack the last steps
        without it; None: the method has none.

        Only a run that takes all its steps makes this exchange, when every worker has ended and after the checkpoint,
        so a resumed run begins before it. The message is one of the worker's own vectors; the reply is not used.
        """
        return None

    @property
    def closes(self) -> bool:
        """True if the method has a closing exchange."""
        return type(self).closing is not Method.closing

    def receive(self, center: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
        """Updates the center once, by the message `m`, and fills `reply`. `m` is the mean of `n` messages; `n` is 1
        where `gathers` is "each". All vectors are slices of the whole ones, with the same entries.
        """
        raise TypeError(f"{type(self).__name__} has no center")

    @property
    def variables(self) -> Mapping[str, Variable]:
        """The variables that the workers share, by name: the center, made of `receive`, `center` and `gathers`, unless
        a method overrides this. Where there is no center, the mean of all variables is evaluated and saved.

        Empty in a method of one worker, whose own x is evaluated and saved.
        """
        return {CENTER: Variable(self.receive, self.center, self.gathers)} if self.center else {}

    @property
    def couriers(self) -> Mapping[str, Courier]:
        """The couriers, each by the name of the variable with which it keeps time."""
        return {}

    def home(self, worker: int) -> str:
        """Returns the name of the variable with whose x a lost worker begins again."""
        return CENTER

    @property
    def alone(self) -> bool:
        """True for a method of one worker without exchange."""
        return not self.variables

    @property
    def torch_sgd(self) -> Mapping[str, Any] | None:
        """Arguments, beside the rate, with which torch.optim.SGD takes the steps of a method of one worker; None: it
        cannot, or the method exchanges.
        """
        return None

    @property
    def in_rounds(self) -> bool:
        """True if workers wait for one another in rounds."""
        return any(variable.in_rounds for variable in self.variables.values())


class WithLocalStep(Method):
    """Base of a method whose local step is separate from its exchange: the field `local`, chosen with `local=`. The
    worker has the local step's vectors beside x.
    """

    local: LocalStep

    @property
    def state(self) -> tuple[str, ...]:
        return ("x", *self.local.state)

    @property
    def scratch(self) -> tuple[str, ...]:
        return self.local.scratch

    def local_step(self, w: Worker, x: Tensor | None) -> Rule:
        """Takes the local step. `x` [d]: the point from which the worker continues; None: its own x."""
        g = yield Gradient(self.local.at(w if x is None else w.at(x)))
        if x is not None:
            w.x.copy_(x)
        self.local.move(w, g)


def check_method(method: Any, name: str, workers: int) -> None:
    """Raises UsageError unless `method` is a method and can run with that many workers."""
    if not isinstance(method, Method):
        raise UsageError(
            f"algo={name}: makes a {type(method).__name__}; a method is a subclass of easgd_cli.algorithms.base.Method."
        )
    variables = method.variables
    center = variables.get(CENTER)
    if "x" not in method.state or any("x" not in variable.state for variable in variables.values()):
        raise UsageError(
            f"algo={name}: state and center must each name the vector x, which is what starts, is evaluated and "
            "is saved."
        )
    if center is not None and next(iter(variables)) != CENTER:
        raise UsageError(f"algo={name}: names the variable {CENTER} after {next(iter(variables))}; it comes first.")
    homes = {courier for courier in method.couriers} | ({method.home(0)} if variables else set())
    if strangers := sorted(homes - variables.keys()):
        raise UsageError(f"algo={name}: has no variable {strangers[0]}; it has {', '.join(variables)}.")
    both = set(method.state) & set(method.scratch)
    if both or "reply" in (*method.state, *method.scratch):
        raise UsageError(
            f"algo={name}: {', '.join(sorted(both)) or 'reply'} is named twice; every vector of a worker has "
            "a name of its own, and reply is taken."
        )
    if center is not None and getattr(center.receive, "__func__", None) is Method.receive:
        raise UsageError(f"algo={name}: has a center but no rule for it; write receive(self, center, m, reply, n).")
    if not variables and workers != 1:
        raise UsageError(
            f"algo={name} workers={workers}: {name} is one worker without exchange; use workers=1, or a method "
            "with a center such as algo=easgd."
        )


def check_outer_step(nu: float, mu: float) -> None:
    """Raises ValueError unless 0 < nu and 0 <= mu < 1, as in any step with momentum."""
    if not 0 < nu < float("inf"):
        raise ValueError(f"algo.nu={nu:g}: the outer learning rate is a positive number; 1 takes the workers' mean.")
    if not 0 <= mu < 1:
        raise ValueError(f"algo.mu={mu:g}: the outer momentum lies in [0, 1).")


def check_moving_rate(alpha: float) -> None:
    """Raises ValueError unless 0 <= alpha <= 1. An exchange multiplies the difference x - x~ by 1 - 2 alpha, so with
    alpha > 1 the difference would grow.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"alpha={alpha:g}: the moving rate alpha = beta / workers lies in [0, 1]; the paper's is 0.9 / workers."
        )
