"""Every setting of a run, as typed dataclasses: one comment a key.

Hydra composes YAML onto these and stops there: nothing below the command imports hydra or omegaconf.
The paper's symbols (tau, eta, alpha, beta, delta, gamma, l2) are the user's vocabulary and sit at the root.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional  # Optional: OmegaConf reads these annotations at run time

from easgd_cli.errors import UsageError

MISSING: Any = "???"  # OmegaConf's mark for a value that must be given
UNPROFILED_STEPS = 5  # at the start of a profiled worker: its first steps are not typical of the others

# A group (algo, problem, dataset, task, model, schedule, ...) is {"name": ..., "target": "module:callable",
# **options}; the options are checked against the callable's own signature (settings/targets.py), so an extension brings
# its settings with it.
Group = dict[str, Any]
ON_DATA: Group = {"name": "dataset", "target": "easgd_cli.problems.net:NetProblem"}
BY_DATA: Group = {"name": "auto", "target": "easgd_cli.problems.tasks:by_data"}
NO_AVERAGE: Group = {"name": "none", "target": "easgd_cli.algorithms.average:none"}
OWN_STEP: Group = {"name": "own", "target": None}

# in the order in which a newcomer meets them; "experiment" is Hydra's alone
GROUPS = ("algo", "local", "problem", "dataset", "task", "model", "schedule", "average", "launcher")


@dataclass
class Eval:
    # "200 steps" (mean local step) or "30 s"; none: newest snapshot when the evaluator is free
    every: Optional[str] = None
    when: str = "running"  # running | deferred (all at the end)
    device: str = "cpu"  # where the evaluator computes
    train_images: int = 5000  # size of the fixed training subset on which train_loss is measured


@dataclass
class Checkpoint:
    every: Optional[str] = None  # "1000 steps" or "60 s"; none: only at the end and on interruption
    keep: int = 1  # how many checkpoints stay on disk


@dataclass
class Auto:
    tau: bool = False  # tau=auto: short runs before it choose the communication period
    share: float = 0.02  # of a worker's time, at most, that it is to wait for exchanges
    seconds: float = 3.0  # of training in such a short run, where the clock is real
    probes: list[dict[str, Any]] = field(default_factory=list)  # what they measured; a run writes it here itself


@dataclass
class Settings:
    """A run. Symbols as in Zhang, Choromanska, LeCun (2015), pp. 2-4 and 20."""

    algo: Group = MISSING  # the method
    # how x moves by a gradient between exchanges, where the method leaves it open
    local: Group = field(default_factory=lambda: dict(OWN_STEP))
    # what is minimised: a net's loss on a data set, or a function
    problem: Group = field(default_factory=lambda: dict(ON_DATA))
    dataset: Group = MISSING  # what it learns from
    # what it is trained for: loss and metrics
    task: Group = field(default_factory=lambda: dict(BY_DATA))
    model: Group = MISSING  # the net
    schedule: Group = MISSING  # eta over the worker's clock
    # of the center over time, evaluated and saved beside it
    average: Group = field(default_factory=lambda: dict(NO_AVERAGE))
    launcher: Group = MISSING  # where the processes run

    tau: int = 10  # communication period: local steps between two exchanges; auto: by what exchanges cost (auto.share)
    # of the vector: one of them is exchanged every tau/fragments steps, in place of all of it every tau
    fragments: int = 1
    # of vectors on their way: fp32 (as they are) | bf16 | fp16 | int8, rounded at random; what is kept is fp32
    wire: str = "fp32"
    eta: float = MISSING  # learning rate
    alpha: Optional[float] = None  # moving rate; beta / workers unless given
    beta: Optional[float] = None  # p * alpha; 0.9 unless alpha is given. Only pull_then_step takes both
    delta: float = 0.99  # momentum; 0.9 on digits
    gamma: float = 0.0  # eta_t = eta / (1 + gamma t)^0.5 on each worker's clock t
    warmup: int = 0  # the first local steps, over which eta_t rises linearly from eta / (warmup + 1) to the schedule's
    l2: float = 0.0  # (l2 / 2) ||x||^2 is added to the loss where the gradient is taken

    # parameters by name with an l2, a factor for eta or a weight_decay of their own:
    # '[{match: "*.bias", l2: 0}, {match: "head.*", eta: 10}]'
    groups: list[dict[str, Any]] = field(default_factory=list)
    clip: Optional[float] = None  # greatest norm of a gradient, l2 term included; a larger one is scaled down to it

    workers: int = 4  # p
    masters: int = 1  # processes that own the center, a slice each; a worker exchanges with all of them at once
    batch_size: int = 128  # samples per worker and step, or per part of one with accumulate=
    # so many batches, one after another, make the gradient of a step, their mean: accumulate * batch_size samples
    accumulate: int = 1
    replicas: int = 1  # copies of each sample in a step, each with its own dither and dropout, their gradients averaged
    dither: float = 0.0  # standard deviation of noise that is added to what the net sees in training
    seed: int = 0  # decides start, batches, augmentation, dropout and noise

    steps: Optional[int] = None  # local steps of each worker; or ...
    epochs: Optional[float] = None  # ... passes over the training samples by each worker; or ...
    minutes: Optional[float] = None  # ... minutes of training
    default_steps: Optional[int] = None  # what configs/tuning.yaml gives where none of the three is set
    # of metrics, such as until.test_error=2: ends the run at the first evaluation of the center that is as good
    until: dict[str, Optional[float]] = field(default_factory=dict)

    device: str = "auto"  # auto | cpu | cuda | cuda:1 | a list "cuda:0,cuda:1" dealt round robin
    center_device: str = "cpu"  # where the center lies: cpu, or a GPU on which all workers compute
    threads: Optional[int] = None  # CPU threads of each worker; max(1, cores // workers) unless given
    # of a net's gradient: fp32 | bf16 (autocast) | tf32 (CUDA only); parameters, center and evaluation are fp32
    precision: str = "fp32"
    # the workers' nets by torch.compile: a minute before training; slower on the CPUs tried, where it takes a C++
    # compiler
    compile: bool = False
    deterministic: bool = False  # on CUDA: deterministic kernels, slower

    # how often in a row a worker or the master that dies is started again, without getting further in between; 0: never
    max_restarts: int = 3
    # faults on purpose: '[{worker: 1, step: 20, kind: kill}]'; kinds kill, stop, slow, exception, nan, link
    faults: list[dict[str, Any]] = field(default_factory=list)
    # a worker whose loss or gradient is not finite: ends the run (diverge), or goes back to the center (rejoin)
    on_nan: str = "diverge"

    # "10 steps": a torch.profiler trace of so many steps of worker 0, in logs/trace_worker_00.json
    profile: Optional[str] = None

    init: Optional[str] = None  # a state_dict file to start from
    # what the net's names begin with in that file, and not here, such as module.; names without it are left out
    init_prefix: Optional[str] = None
    # modules or parameters that begin as without init=, such as [fc]
    init_without: list[str] = field(default_factory=list)
    # a run directory to go on with, or auto: go on with what this command has begun, or begin it; imports the code of
    # your own that its config.yaml names, as replay= does
    resume: Optional[str] = None
    # of a run that goes on, where metrics.jsonl or exchanges.bin is damaged: begin that file anew
    new_record: bool = False
    replay: Optional[str] = None  # a run directory whose exchanges are made again in their recorded order, simulated

    sweep: Optional[str] = None  # name of a sweep, kept in runs/sweeps/NAME
    # of a sweep at a time, each on cores and CUDA devices of its own: a number, or auto, as many as the machine carries
    jobs: str = "1"
    # of a sweep given again: jobs that failed are tried again too; those killed or interrupted always go on
    retry: bool = False
    # of a sweep, made at its end: options of easgd report, such as '--rows tau', or '' for none of them
    report: Optional[str] = None
    # of a search, hydra/sweeper=optuna: best_error, final_error, seconds_to_error:5, test:best_error, train_loss
    objective: Optional[str] = None

    eval: Eval = field(default_factory=Eval)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    auto: Auto = field(default_factory=Auto)


# settings for running and reporting a sweep: no part of a job's settings
OF_SWEEPS = ("sweep", "jobs", "retry", "report", "objective")


@dataclass(frozen=True)
class Interval:
    """A period in local steps or in seconds; exactly one of the two is set."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, key: str, text: str | None) -> Interval | None:
        """Reads `200 steps`, `30 s` or `2 min`; None stays None. Raises UsageError for anything else, naming `key`."""
        if text is None:
            return None
        found = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(steps?|s|sec|seconds?|min|minutes?)\s*", str(text))
        number = _number(found[1]) if found else None
        if found is None or number is None or not (math.isfinite(number) and number > 0):
            raise UsageError(
                f"{key}={text}: an interval is a positive number with a unit, such as {key}='200 steps' or "
                f"{key}='30 s'."
            )
        if found[2].startswith("step"):
            if number != int(number):
                raise UsageError(
                    f"{key}={text}: a number of steps is whole; write {key}='{max(1, round(number))} steps'."
                )
            return cls(steps=int(number))
        return cls(seconds=number * (60 if found[2].startswith("min") else 1))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def check(s: Settings) -> None:
    """Checks everything that can be checked without loading torch, data or model.

    Raises UsageError naming the key, the value, the rule and the remedy.
    """
    _check_numbers(s)
    _check_length(s)
    _check_choices(s)
    _check_profile(s)
    Interval.parse("eval.every", s.eval.every)
    Interval.parse("checkpoint.every", s.checkpoint.every)


def _check_numbers(s: Settings) -> None:
    for key, least in (
        ("tau", 1), ("fragments", 1), ("workers", 1), ("masters", 1), ("batch_size", 1), ("accumulate", 1),
        ("replicas", 1),
        ("steps", 1), ("threads", 1), ("warmup", 0), ("max_restarts", 0), ("eval.train_images", 1),
        ("checkpoint.keep", 1),
    ):  # fmt: skip
        value = _get(s, key)
        if value is not None and value < least:
            raise UsageError(f"{key}={value}: must be a whole number of at least {least}.")
    if s.fragments > s.tau and not s.auto.tau:
        raise UsageError(
            f"fragments={s.fragments} tau={s.tau}: each fragment is exchanged at another of the tau steps, so there "
            "are at most tau of them; give fewer fragments or a longer period."
        )
    for key in ("eta", "alpha", "beta", "l2", "gamma", "epochs", "minutes", "delta", "clip", "dither"):
        value = _get(s, key)
        if value is not None and not math.isfinite(value):
            raise UsageError(f"{key}={value}: must be a finite number.")
    if s.eta < 0:
        raise UsageError(f"eta={s.eta:.15g}: a learning rate is not negative; eta=0 trains nothing but is allowed.")
    for key in ("l2", "gamma", "dither"):
        if _get(s, key) < 0:
            raise UsageError(f"{key}={_get(s, key):.15g}: must not be negative; {key}=0 switches it off.")
    if s.clip is not None and s.clip <= 0:
        raise UsageError(
            f"clip={s.clip:g}: a greatest norm is greater than 0; leave it out, or write clip=null, to clip nothing."
        )
    for key in ("epochs", "minutes"):
        value = _get(s, key)
        if value is not None and value <= 0:
            raise UsageError(f"{key}={value:.15g}: must be greater than 0.")
    if not 0 < s.auto.share < 1:
        raise UsageError(
            f"auto.share={s.auto.share:g}: the share of its time that a worker waits at most is more than 0 and less "
            "than 1, such as 0.02."
        )
    if not 0 < s.auto.seconds < math.inf:
        raise UsageError(f"auto.seconds={s.auto.seconds:g}: the length of a probe is more than 0 seconds.")
    if not 0 <= s.delta < 1:
        raise UsageError(f"delta={s.delta:.15g}: a momentum lies in [0, 1); the paper's is 0.99.")
    if not 0 <= s.seed < 2**63:
        raise UsageError(f"seed={s.seed}: must be a whole number from 0 to 2^63 - 1.")


def _check_length(s: Settings) -> None:
    given = [k for k in ("steps", "epochs", "minutes") if _get(s, k) is not None]
    if len(given) > 1:
        raise UsageError(
            f"{' '.join(f'{k}={_get(s, k):g}' for k in given)}: give one of steps, epochs and minutes; it says "
            "when the run ends."
        )
    if not given and s.default_steps is None:
        raise UsageError("There is no default length for this method and problem: write steps=, epochs= or minutes=.")


def _check_choices(s: Settings) -> None:
    if s.precision not in ("fp32", "tf32", "bf16"):
        raise UsageError(f"precision={s.precision}: is fp32, tf32 or bf16.")
    if s.wire not in ("fp32", "bf16", "fp16", "int8"):
        raise UsageError(f"wire={s.wire}: is fp32, bf16, fp16 or int8.")
    for name, level in levels(s).items():
        if not math.isfinite(level):
            raise UsageError(f"until.{name}={level}: must be a finite number.")
    if s.eval.when not in ("running", "deferred"):
        raise UsageError(f"eval.when={s.eval.when}: is running or deferred.")
    if s.eval.when == "deferred" and levels(s):
        raise UsageError(
            f"eval.when=deferred until.{next(iter(levels(s)))}: a run cannot stop at a level that is measured after "
            "its end; use eval.when=running."
        )
    if s.on_nan not in ("diverge", "rejoin"):
        raise UsageError(f"on_nan={s.on_nan}: is diverge or rejoin.")
    if s.on_nan == "rejoin" and not s.max_restarts:
        raise UsageError("on_nan=rejoin max_restarts=0: max_restarts is how often it may go back; give at least 1.")


def _check_profile(s: Settings) -> None:
    recorded = profiled_steps(s)
    if (
        recorded is not None
        and s.epochs is None
        and s.minutes is None
        and recorded + UNPROFILED_STEPS > (many := s.steps or s.default_steps or 0)
    ):
        raise UsageError(
            f"profile={s.profile}: the first {UNPROFILED_STEPS} steps are not recorded, and the run has {many}; "
            "give fewer, or a longer run."
        )


def effective_alpha(s: Settings) -> float:
    """Returns the moving rate alpha, for every tau: as given, or beta / p (paper p. 6)."""
    if s.alpha is not None:
        return s.alpha
    return (0.9 if s.beta is None else s.beta) / s.workers


def effective_beta(s: Settings) -> float:
    """Returns beta = p alpha, unless both are given, as a method with two rates allows."""
    return s.beta if s.beta is not None else effective_alpha(s) * s.workers


def asked_for(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run's configuration without what the run has found itself: the period that tau=auto has chosen."""
    if not (auto := config.get("auto") or {}).get("tau"):
        return dict(config)
    return {**config, "tau": "auto", "auto": {**auto, "probes": []}}


def length(s: Settings) -> dict[str, float | None]:
    """Returns the unit in which a run's length is given (steps, epochs or minutes) and how many of it."""
    unit = next((key for key in ("steps", "epochs", "minutes") if _get(s, key) is not None), None)
    return {unit: _get(s, unit)} if unit else {"steps": s.default_steps}


def levels(s: Settings) -> dict[str, float]:
    """Returns the metrics that end the run, each with the level that it is to reach."""
    return {name: level for name, level in s.until.items() if level is not None}


def total_steps(s: Settings, train_images: int | None) -> int | None:
    """Returns the local steps of each worker, or None when minutes end the run. Raises UsageError for passes over
    images where there are none.
    """
    if s.minutes is not None:
        return None
    if s.epochs is not None:
        if train_images is None:
            raise UsageError(
                f"epochs={s.epochs:g}: are passes over a data set, and problem={s.problem['name']} has none; use "
                "steps= or minutes=."
            )
        return max(1, math.ceil(s.epochs * train_images / samples_a_step(s)))
    return s.steps if s.steps is not None else s.default_steps


def samples_a_step(s: Settings) -> int:
    """Returns the samples of one worker's step."""
    return s.batch_size * s.accumulate


def profiled_steps(s: Settings) -> int | None:
    """Returns how many steps of worker 0 are to be profiled; None: no profile. Raises UsageError."""
    if s.profile is None:
        return None
    found = re.fullmatch(r"\s*([1-9][0-9]*)\s*steps?\s*", s.profile)
    if found is None:
        raise UsageError(f"profile={s.profile}: a trace is as long as a number of steps, such as profile='10 steps'.")
    return int(found[1])


def _get(s: Settings, key: str) -> Any:
    node: Any = s
    for part in key.split("."):
        node = getattr(node, part)
    return node
