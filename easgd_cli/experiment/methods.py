"""From settings to a method with its local step, a schedule and an average. Their makers are offered the paper's
symbols by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from easgd_cli.errors import UsageError
from easgd_cli.experiment.checks import of_copies
from easgd_cli.settings.schema import Settings, effective_alpha, effective_beta
from easgd_cli.settings.targets import locate, make, signature

if TYPE_CHECKING:
    from easgd_cli.algorithms.average import Average
    from easgd_cli.algorithms.base import Method
    from easgd_cli.algorithms.local import LocalStep
    from easgd_cli.algorithms.schedule import Schedule
    from easgd_cli.problems.base import Problem


def symbols(s: Settings) -> dict[str, Any]:
    """Returns the values that a method or schedule may ask for by the paper's names."""
    return {
        "tau": s.tau, "eta": s.eta, "alpha": effective_alpha(s), "beta": effective_beta(s), "delta": s.delta,
        "gamma": s.gamma, "l2": s.l2, "workers": s.workers,
    }  # fmt: skip


def symbols_used(s: Settings) -> set[str]:
    """Returns the paper's symbols that the method, local step and schedule ask for."""
    named = [(group, getattr(s, group)["target"]) for group in ("algo", "local", "schedule")]
    return {name for group, target in named if target for name in signature(locate(group, target))} & symbols(s).keys()


def local_step(s: Settings) -> LocalStep | None:
    """Returns how x moves by a gradient; None: as the method's own listing says. Raises UsageError."""
    from easgd_cli.algorithms.local import LocalStep

    if s.local["target"] is None:
        return None
    if "local" not in signature(locate("algo", s.algo["target"])):
        raise UsageError(
            f"algo={s.algo['name']} local={s.local['name']}: the local step of {s.algo['name']} is part of its rule; "
            "leave out local=, or use a method that leaves it open, such as algo=easgd."
        )
    made = make("local", s.local, symbols(s))
    if not isinstance(made, LocalStep):
        raise UsageError(
            f"local={s.local['name']}: makes a {type(made).__name__}; a local step is a subclass of "
            "easgd_cli.algorithms.local.LocalStep."
        )
    return made


def method(s: Settings) -> Method:
    """Returns the method: its two rules, with their constants and its local step. Raises UsageError."""
    from easgd_cli.algorithms import slices
    from easgd_cli.algorithms.base import Method, check_method

    parameters = signature(locate("algo", s.algo["target"]))
    required = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    if s.alpha is not None and s.beta is not None and not {"alpha", "beta"} <= required:
        raise UsageError(
            f"alpha={s.alpha} beta={s.beta}: give one of the two; beta is workers * alpha, so either follows from "
            "the other."
        )
    step = local_step(s)
    offered = symbols(s) | {"seed": s.seed} | ({} if step is None else {"local": step})
    if "alpha" in parameters and parameters["alpha"].default is None:  # the method has its own way from beta to alpha
        offered |= {"alpha": s.alpha, "beta": 0.9 if s.beta is None else s.beta}
    try:
        made = make("algo", s.algo, offered)
    except UsageError as e:
        if s.alpha is None and s.beta is not None and str(e).startswith("alpha="):  # the user has not written alpha
            raise UsageError(f"beta={s.beta:g} with workers={s.workers} makes {e}") from e
        raise
    # ask the launcher only where it matters: a run's processes would import it for that alone
    copies = s.workers > 1 and isinstance(made, Method) and not made.variables and of_copies(s)
    check_method(made, s.algo["name"], workers=1 if copies else s.workers)
    if s.fragments > 1 and made.couriers:
        raise UsageError(
            f"algo={s.algo['name']} fragments={s.fragments}: what is carried between its variables is whole vectors; "
            "leave out fragments=, or use a method with one center, such as algo=easgd."
        )
    if (why := slices.refusal(made, s.masters, s.fragments)) is not None:
        raise UsageError(f"algo={s.algo['name']} {why}")
    return made


def on_vectors_of(problem: Problem, rules: Method, s: Settings) -> Method:
    """Returns the method on this problem's vectors: parts with their own rates, averaged statistics, fragments, and
    rounding of what is sent. Raises UsageError.
    """
    from easgd_cli.algorithms.fragments import in_fragments
    from easgd_cli.algorithms.groups import in_parts
    from easgd_cli.algorithms.statistics import WithStatistics
    from easgd_cli.algorithms.wire import WIRES, OnTheWire
    from easgd_cli.problems.base import statistics_of

    parts, statistics = getattr(problem, "parts", ()), statistics_of(problem)
    try:
        made = in_parts(rules, parts, problem.loss) if parts else rules
        if s.fragments > 1 and not rules.alone:
            if statistics:
                raise ValueError(
                    f"fragments={s.fragments} problem.batch_norm=average: statistics are averaged with whole vectors; "
                    "use problem.batch_norm=estimate, or leave out fragments=."
                )
            x = problem.start(None)
            made = in_fragments(rules, s.fragments, x.numel(), parts, x)
    except ValueError as e:
        raise UsageError(str(e)) from e
    rules = made
    if statistics and len(rules.variables) > 1:
        raise UsageError(
            f"problem.batch_norm=average: averages over the exchanges with one center, and {type(rules).__name__} has "
            f"{len(rules.variables)} variables; use problem.batch_norm=estimate."
        )
    if statistics:
        rules = WithStatistics(rules, statistics, s.workers)
    wire = WIRES[s.wire]
    return rules if wire is None or rules.alone else OnTheWire(rules, wire, s.seed)


# What a schedule may ask for by name beside the symbols.
OFFERED_TO_SCHEDULES = ("steps", "warmup")


def schedule(s: Settings, steps: int | None) -> Schedule:
    """Returns eta as a function of the worker's clock, in a run of `steps` local steps of each worker; None: of unknown
    length. Raises UsageError.
    """
    from easgd_cli.algorithms.schedule import Warmup

    if steps is None and follows_the_length(s):
        raise UsageError(
            f"schedule={s.schedule['name']} minutes={s.minutes:g}: this schedule follows the run's local steps, and "
            "nobody knows how many minutes hold; give steps= or epochs=, or use schedule=decay."
        )
    if steps is not None and s.warmup >= steps:
        raise UsageError(f"warmup={s.warmup}: the run has {steps} local steps; a warm-up is shorter than the run.")
    made: Schedule = make("schedule", s.schedule, symbols(s) | {"steps": steps, "warmup": s.warmup})
    return Warmup(made, s.warmup) if s.warmup else made


def follows_the_length(s: Settings) -> bool:
    """Whether the schedule asks how many steps the run has. Then a run of another length differs from the first step
    on. Raises UsageError.
    """
    return "steps" in signature(locate("schedule", s.schedule["target"]))


def average(s: Settings, rules: Method) -> Average | None:
    """Returns the weights of the center in its average; None where none is kept. Raises UsageError."""
    from easgd_cli.algorithms.base import CENTER

    made: Average | None = make("average", s.average, {})
    if made is not None and not rules.alone and CENTER not in rules.variables:
        raise UsageError(
            f"algo={s.algo['name']} average={s.average['name']}: an average is of the center, and this method has "
            "none; leave out average=."
        )
    return made
