"""What is minimised, as the rooms above see it: a flat vector in, a gradient or figures out.

The problems themselves are in problems/, a file each. A user's own problem is any object with the members of `Problem`;
`check_problem` tries it before a run starts.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from easgd_cli.errors import UsageError
from easgd_cli.problems.classification import metrics_of
from easgd_cli.problems.metric import SECONDS_TO_BEST, Metric, Metrics


class Problem(Protocol):
    """A function of a vector x [d] with stochastic gradients: a batch for each worker's local step t.

    One object serves any number of workers in turn and knows none of them: its random numbers are a function of (seed,
    worker, t). All vectors are of the type of `start()`, float32 or float64. Optional members:

    `metrics`: what `evaluate` measures (problems/metric.py), by default those of classification
    (problems/classification.py); `facts`: a dictionary of texts or numbers for summary.json; `statistics`: how many of
    the last entries of its vectors are gathered from batches and not minimised over (algorithms/statistics.py): there a
    gradient is minus the change that the batch makes; `parts`: the other entries, in parts with rates of their own
    (algorithms/groups.py).
    """

    batch_size: int  # samples of which a gradient is the mean; speeds in samples a second count them
    # 0-d: the loss of the last gradient's batch, without the l2 term; on the device, so that nobody waits for it now
    loss: Tensor

    def start(self, worker: int | None = None) -> Tensor:
        """Returns where that worker begins, None: where the center does; a new vector [d]."""

    def load(self, worker: int, t: int) -> None:
        """Makes the batch of that worker's local step `t`."""

    def gradient(self, x: Tensor) -> Tensor:
        """Returns the gradient [d] at `x` [d] of the loaded batch's loss + (l2/2)||x||^2, valid until the next call.
        `x` is only read.
        """

    def evaluate(self, x: Tensor) -> dict[str, float]:
        """Returns figures of merit of `x` [d] by name: train_loss, which is the objective without the l2 term, and any
        others.
        """

    def state_dict(self, x: Tensor) -> dict[str, Tensor]:
        """Returns what is saved of `x` [d]: plain CPU tensors by name."""


class OfNet(Problem, Protocol):
    """A problem whose gradients are those of a torch net, for a launcher that has torch move the net's parameters."""

    def wrapped(self, wrap: Callable[[nn.Module], nn.Module], x: Tensor) -> list[nn.Parameter]:
        """From here on has `backward` go through what `wrap` makes of the net, such as DistributedDataParallel. Returns
        the net's parameters for an optimizer, in their order in x [d], at which they begin.
        """

    def backward(self) -> None:
        """Adds the gradient of the loaded batch's loss, without the l2 term, to the `grad` of the net's parameters."""


def statistics_of(problem: Any) -> int:
    """Returns how many of the last entries of the problem's vectors are no parameters."""
    return getattr(problem, "statistics", 0)


_MEMBERS = ("batch_size", "start", "load", "gradient", "evaluate", "state_dict")
_TAKEN = ("seconds", "step", "exchanges", "party", SECONDS_TO_BEST.name)  # other names in a row of the record


def check_problem(problem: Any, name: str, workers: int) -> dict[str, float]:
    """Takes one gradient, evaluates once, and returns the figures. Raises UsageError where the problem is not as
    `Problem` says.
    """
    said = f"problem={name}"
    missing = [member for member in _MEMBERS if not hasattr(problem, member)]
    if missing:
        raise UsageError(
            f"{said}: made a {type(problem).__name__}, which lacks {', '.join(missing)}; a problem has "
            f"{', '.join(_MEMBERS)} (docs/algorithms.md)."
        )
    if not isinstance(problem.batch_size, int) or problem.batch_size < 1:
        raise UsageError(f"{said}: its batch_size is {problem.batch_size!r}; it must be a whole number of at least 1.")
    x = _check_starts(said, problem, workers)
    _check_gradient(said, problem, x)
    _check_metrics(said, problem)
    figures = _figures(said, _called(said, "evaluate(x)", problem.evaluate, x), metrics_of(problem))
    _check_state(said, _called(said, "state_dict(x)", problem.state_dict, x))
    _check_facts(said, problem)
    return figures


def _check_starts(said: str, problem: Any, workers: int) -> Tensor:
    """Checks all starts. Returns where the center begins [d], a vector that may be changed."""
    start = _vector(f"{said}: start()", _called(said, "start()", problem.start))
    statistics = statistics_of(problem)
    if not isinstance(statistics, int) or not 0 <= statistics < start.numel():
        raise UsageError(
            f"{said}: its statistics are {statistics!r}; they are a number of last entries of start(), 0 or more "
            f"and less than {start.numel()}."
        )
    for worker in range(workers):
        own = _vector(f"{said}: start({worker})", _called(said, f"start({worker})", problem.start, worker))
        _same_kind(f"{said}: start({worker})", own, start)
    return start.clone()


def _check_gradient(said: str, problem: Any, x: Tensor) -> None:
    start = x.clone()
    _called(said, "load(0, 0)", problem.load, 0, 0)
    g = _vector(f"{said}: gradient(x)", _called(said, "gradient(x)", problem.gradient, x))
    _same_kind(f"{said}: gradient(x)", g, start)
    if g.data_ptr() == x.data_ptr() or not torch.equal(x, start):
        raise UsageError(
            f"{said}: gradient(x) returned or changed the x it was given; x is only read, and the gradient is a "
            "tensor of its own."
        )
    loss = getattr(problem, "loss", None)
    if not isinstance(loss, Tensor) or loss.dim() != 0 or loss.requires_grad:
        raise UsageError(
            f"{said}: after gradient(x), its loss is {_kind(loss)}; it must be a tensor without dimensions, "
            "detached from any graph."
        )


def _check_metrics(said: str, problem: Any) -> None:
    metrics = getattr(problem, "metrics", ())
    are_metrics = isinstance(metrics, list | tuple) and all(isinstance(m, Metric) for m in metrics)
    if not are_metrics or sum(m.primary for m in metrics) > 1:
        raise UsageError(
            f"{said}: its metrics are {_kind(metrics)}; they must be a list of easgd_cli.problems.metric.Metric, "
            "at most one of them primary."
        )


def _check_state(said: str, state: Any) -> None:
    if not isinstance(state, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise UsageError(
            f"{said}: state_dict(x) must return a dictionary of tensors by name, such as {{'x': x.clone()}}."
        )


def _check_facts(said: str, problem: Any) -> None:
    facts = getattr(problem, "facts", {})
    if not isinstance(facts, Mapping) or not all(
        isinstance(k, str) and isinstance(v, str | int | float) for k, v in facts.items()
    ):
        raise UsageError(
            f"{said}: its facts are {_kind(facts)}; they must be a dictionary of texts or numbers by name, as "
            "summary.json is to say them."
        )


def _called(said: str, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (Exception, SystemExit) as e:
        # without the frame of this function; none is left where the call itself does not fit the user's function
        frames = traceback.extract_tb(e.__traceback__)[1:]
        where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        raise UsageError(f"{said}: {what} raised {type(e).__name__}: {' '.join(str(e).split())}{where}.") from e


def _vector(what: str, v: Any) -> Tensor:
    if not isinstance(v, Tensor) or v.dim() != 1 or v.numel() == 0 or v.dtype not in (torch.float32, torch.float64):
        raise UsageError(
            f"{what} returned {_kind(v)}; it must be a vector [d], of type torch.float32 or torch.float64."
        )
    if not bool(torch.isfinite(v).all()):
        raise UsageError(f"{what} returned numbers that are not finite.")
    return v.detach()


def _same_kind(what: str, v: Tensor, start: Tensor) -> None:
    if v.shape != start.shape or v.dtype != start.dtype:
        raise UsageError(f"{what} returned {_kind(v)}, where start() returned {_kind(start)}; the two must agree.")


def _figures(said: str, figures: Any, metrics: Metrics) -> dict[str, float]:
    if not isinstance(figures, dict) or not all(isinstance(k, str) for k in figures):
        raise UsageError(
            f"{said}: evaluate(x) returned {_kind(figures)}; it must be a dictionary of numbers by name, "
            "train_loss among them."
        )
    if "train_loss" not in figures:
        raise UsageError(
            f"{said}: evaluate(x) returned no train_loss, which is the objective at x without the l2 term, and is "
            "required."
        )
    for key, value in figures.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(
                f"{said}: evaluate(x) returned {_kind(value)} as {key}; it must be a number, such as float(value)."
            )
        if key in _TAKEN or (metrics.primary is not None and key == metrics.primary.best.name):
            raise UsageError(f"{said}: evaluate(x) returned {key}, which the record says itself; give it another name.")
    if not math.isfinite(figures["train_loss"]):
        raise UsageError(f"{said}: its train_loss at the start is {figures['train_loss']}; it must be a finite number.")
    return figures


def _kind(v: Any) -> str:
    return f"a tensor {list(v.shape)} of type {v.dtype}" if isinstance(v, Tensor) else f"a {type(v).__name__}"
