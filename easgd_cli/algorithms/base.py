"""What a method is: two rules, one for a worker and one for the center, and the words they are written in.

The paper prints every method as two boxes, "processing by worker i" and "processing by the master". A method here is
the same two boxes, so that a file can be ticked off against the printed listing:

    step(w)                        the worker's rule for one local step, a generator
    receive(center, m, reply, n)   the center's rule for one update

A party has one state, one rule and one process that writes it. It is a *worker* or a *variable*, which workers share;
the center is a variable. Most methods have the center alone, and say so by `receive` and the class attributes beside
it. A *courier* is a worker that computes no gradient: it carries between two variables.

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
    reply = yield Exchange(None, to=name)       a pull: the variable `name` as it is; nothing changes there

An exchange is answered by `None` where its variable is away for a while: then the rule goes on alone.

Three promises make this exact:

1. A rule changes its state only after its last yield; before it, it writes only `scratch`. The message is lent, not
   copied: the center reads it while the worker differentiates.
2. Answers are read-only. A gradient is valid until the step ends, a reply until the next exchange is asked for. A
   step asks for at most one gradient, and for at most one exchange with each variable, one after another.
3. `receive` is elementwise and touches nothing but its arguments, so whoever owns the center may apply it in blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from easgd_cli.errors import UsageError

if TYPE_CHECKING:  # rules call tensors' own methods, so that a setting can be checked without the second torch needs
    from torch import Tensor

    from easgd_cli.algorithms.local import LocalStep
    from easgd_cli.algorithms.schedule import Schedule


class Gradient:
    """Asks for the gradient of this step's batch at the vector `at` [d], which is only read."""

    __slots__ = ("at",)

    def __init__(self, at: Tensor):
        self.at: Final = at


CENTER: Final = "center"  # the variable that is evaluated and saved
WHOLE: Final = -1  # in place of a fragment's number


class Exchange:
    """Asks for an exchange: `message` [d], one of the worker's own vectors, goes to the variable `to`; the answer is
    the reply [d]. Without a message it is a pull: the answer is the variable's x, which stays as it is, or what a round
    that is waited for replies.

    `fragment`: of the vectors, by its number (fragments.py); nothing else of message, variable and reply is looked at.
    """

    __slots__ = ("fragment", "message", "to")

    def __init__(self, message: Tensor | None, to: str = CENTER, fragment: int = WHOLE):
        self.message: Final = message
        self.to: Final = to
        self.fragment: Final = fragment


Rule = Generator[Any, Any, None]


class Vectors:
    """A party's vectors by the names its method declares, as attributes: `.x`, `.v` and so on; `t`, its clock: of a
    variable the updates before this one.
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
    """What a worker knows of the center (of its `home`, in a method with other variables) from its last reply: the
    center's clock and the exchanges served in all, and how many replies it has had.
    """

    clock: int = 0
    served: int = 0
    exchanges: int = 0

    def note(self, clock: int, served: int) -> int:
        """The reply of one more exchange; returns its staleness, the updates by others since the one before."""
        staleness = clock - 1 - self.clock
        self.clock, self.served = clock, served
        self.exchanges += 1
        return staleness


class Worker(Vectors):
    """A worker as its rule sees it: its vectors, its `number`, its clock `t`, what follows from the clock, and what it
    has `seen` of the center.

    The driver advances `t` and `seen` when a step's rule has ended; no rule does. What a rule draws is to depend on
    seed, `number` and `t` alone. `phase`: the first clock at which it is due, of a fragment.
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
        """The same worker, if it stood at `x` [d]."""
        there = copy(self)
        there.x = x
        return there

    @property
    def due(self) -> bool:
        """Whether this step exchanges: tau divides t, so the first exchange is at t = 0."""
        return (self.t - self.phase) % self.tau == 0

    @property
    def since(self) -> int:
        """Steps since the last clock at which it was due."""
        return (self.t - self.phase) % self.tau

    @property
    def eta(self) -> float:
        """eta_t, on this worker's own clock."""
        return self.schedule(self.t)


Receive = Callable[[Vectors, "Tensor", "Tensor", int], None]
Part = tuple[int, Receive]  # the entry before which it ends, and the variable's rule there
Gathers = Literal["each", "round"]


@dataclass(frozen=True)
class Variable:
    """A vector that workers share: its rule, the vectors of its `state`, and how it takes messages.

    It gathers `each` as it comes (asynchronous), or those of its `members` together, a `round`; None: of all workers.
    `owner`: the worker or courier whose messages it takes by the rule `own`, each by itself; it lies beside that one,
    whose messages take no way. `answers`: whether others' messages get a vector back. `tail`: how many of its last
    entries are no parameters, and the rule of those (statistics.py). `origin`: the variable from which it begins again
    when it was lost; None: it cannot be. `fragments`: how many of its vectors are exchanged by themselves, each with a
    clock of its own.
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
        """Whether it takes the messages of all workers together."""
        return self.gathers == "round"

    def takes(self, worker: int) -> bool:
        """Whether it takes messages of that worker together with others' of its round."""
        return self.members is None or worker in self.members

    def synchronous(self) -> Variable:
        """The same variable, that takes rounds."""
        return replace(self, gathers="round")

    def parts(self, size: int, own: bool = False) -> Sequence[Part]:
        """The parts of its vectors [size] in their order, each with its rule; `own`: of its owner's messages."""
        receive = self.own if own and self.own is not None else self.receive
        if self.tail is None:
            return [(end, receive) for end in fragment_ends(size, self.fragments)]
        entries, rule = self.tail
        return [(size - entries, receive), (size, rule)]


def fragment_ends(size: int, fragments: int) -> list[int]:
    """The entries before which the fragments of a vector [size] end; they are equally long, up to an entry."""
    return [size * (f + 1) // fragments for f in range(fragments)]


def entries_of(size: int, fragments: int, fragment: int) -> slice:
    """Those of a vector [size] that are exchanged; `fragment`: its number, or WHOLE."""
    if fragment == WHOLE:
        return slice(None)
    return slice(size * fragment // fragments, size * (fragment + 1) // fragments)


EXCHANGES: Final = 4  # that a courier's step makes at most


@dataclass(frozen=True)
class Courier:
    """A worker without gradients that lives beside a variable and keeps time with it: its step t follows the variable's
    update t by others. Where that variable takes rounds, no step follows the last.

    `step`: its rule, which makes at most EXCHANGES exchanges and writes whatever it lends before it lends it, so that
    a step may be gone through once more with the same answers; `vectors`: those that it lends.
    """

    step: Callable[[Worker], Rule]
    vectors: tuple[str, ...] = ("x",)


class Method(ABC):
    """Base of every method. A subclass is a frozen dataclass whose fields are the constants it uses.

    A field named as a root setting (alpha, delta, tau, workers, ...) is given that setting; any other field is an
    option of the method's own, `algo.<field>`. A constant that breaks the method's rule raises ValueError in
    `__post_init__`, in a sentence that names it.
    """

    # the center's vectors; empty for a method of one worker without exchange
    center: ClassVar[tuple[str, ...]] = ("x",)
    gathers: ClassVar[Gathers] = "each"  # how the center takes messages

    @property
    def state(self) -> tuple[str, ...]:
        """A worker's vectors that last: x, which begins at the common start, and others, which begin at 0."""
        return ("x",)

    @property
    def scratch(self) -> tuple[str, ...]:
        """A worker's vectors that need not outlive a step."""
        return ()

    @abstractmethod
    def step(self, w: Worker) -> Rule:
        """One local step of a worker."""

    def closing(self, w: Worker) -> Exchange | None:
        """The exchange after a worker's last step, where the center would else lack its last steps; None: it has none.

        Only a run that takes all its steps makes it, when every worker has ended, and after its checkpoint: a run that
        goes on for longer has not made it. Its message is one of the worker's own vectors; nobody uses the reply.
        """
        return None

    @property
    def closes(self) -> bool:
        """Whether it has a closing exchange."""
        return type(self).closing is not Method.closing

    def receive(self, center: Vectors, m: Tensor, reply: Tensor, n: int) -> None:
        """One update of the center by the message `m`, the mean of `n` (one where `gathers` is "each"); fills `reply`.

        All vectors are equal slices of the whole ones.
        """
        raise TypeError(f"{type(self).__name__} has no center")

    @property
    def variables(self) -> Mapping[str, Variable]:
        """What the workers share, by name; nothing in a method of one worker, whose own x is then evaluated and saved.

        The center alone, of `receive`, `center` and `gathers`, unless a method says otherwise. Where there is no
        center, the mean of all is evaluated and saved.
        """
        return {CENTER: Variable(self.receive, self.center, self.gathers)} if self.center else {}

    @property
    def couriers(self) -> Mapping[str, Courier]:
        """Those who carry between variables, by the name of the variable with which they keep time."""
        return {}

    def home(self, worker: int) -> str:
        """The variable from which a worker begins again that was lost."""
        return CENTER

    @property
    def alone(self) -> bool:
        """Whether it is of one worker without exchange."""
        return not self.variables

    @property
    def torch_sgd(self) -> Mapping[str, Any] | None:
        """The momentum with which torch.optim.SGD takes its steps, where it is one worker without exchange; None where
        torch.optim.SGD does not.
        """
        return None

    @property
    def in_rounds(self) -> bool:
        """Whether workers wait for one another."""
        return any(variable.in_rounds for variable in self.variables.values())


class WithLocalStep(Method):
    """Base of a method whose local step can be told apart from its exchange, and is chosen with `local=`: its field
    `local`. The vectors of that step are the worker's, beside x.
    """

    local: LocalStep

    @property
    def state(self) -> tuple[str, ...]:
        return ("x", *self.local.state)

    @property
    def scratch(self) -> tuple[str, ...]:
        return self.local.scratch

    def local_step(self, w: Worker, x: Tensor | None) -> Rule:
        """The local step from `x` [d], which the worker continues from; None: from where it is."""
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
    """0 < nu and 0 <= mu < 1, as of any step with momentum."""
    if not 0 < nu < float("inf"):
        raise ValueError(f"algo.nu={nu:g}: the outer learning rate is a positive number; 1 takes the workers' mean.")
    if not 0 <= mu < 1:
        raise ValueError(f"algo.mu={mu:g}: the outer momentum lies in [0, 1).")


def check_moving_rate(alpha: float) -> None:
    """0 <= alpha <= 1: an exchange maps the difference x - x~ to (1 - 2 alpha) times itself, so beyond 1 it grows."""
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"alpha={alpha:g}: the moving rate alpha = beta / workers lies in [0, 1]; the paper's is 0.9 / workers."
        )
