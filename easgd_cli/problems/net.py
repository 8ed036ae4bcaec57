"""A net on data, trained for a task: what is minimised is the task's loss of the net's outputs.

Everything random in a gradient (batch, augmentation, dropout) is a function of (seed, worker, t), so a step that is
taken again gives the same bits, whatever happened in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from easgd_cli.algorithms.groups import Part
from easgd_cli.data.dataset import Batch, Dataset, Split, fixed_subset
from easgd_cli.data.nest import called, mapped
from easgd_cli.problems.batch_norm import RunningStatistics
from easgd_cli.problems.batches import Batches
from easgd_cli.problems.flat import Flat
from easgd_cli.problems.groups import parts
from easgd_cli.problems.precision import autocast, compiled, use_tf32
from easgd_cli.problems.replicas import Replicas
from easgd_cli.problems.tasks import by_data
from easgd_cli.problems.tasks.base import Task
from easgd_cli.problems.tasks.classification import Classification
from easgd_cli.randomness import AUGMENTATION, DROPOUT, key
from easgd_cli.settings.groups import ParameterGroup

_EVALUATION_BATCH = 250  # samples; larger batches of images fall out of a CPU's cache
_BEGUN = 16  # batches that wait ahead at most, however many workers one problem serves


def outputs_as(dtype: torch.dtype, outputs: Any) -> Any:
    """Returns the outputs, with floating-point tensors as `dtype`, in which losses are computed."""
    return mapped(lambda t: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t, outputs)


class NetProblem:
    """The loss of `task` of what `model` makes of `data`, in the run with `seed` (see problems/base.py).

    `model` is taken over: moved to `device`, and its parameters bound to each vector that is asked about.
    `train_images`: size of the fixed training subset on which train_loss is measured. `batch_norm`: where batch norm's
    running statistics of a measured or saved vector come from: "estimate", from `batch_norm_images` fixed training
    samples (None: as many as `train_images`), or "average", from workers that have gathered and exchanged them; then
    they are the last `statistics` entries of every vector. `precision`: of the gradient's arithmetic: fp32, tf32 on
    CUDA, or bf16 by torch's autocast; vectors and evaluation have the parameters' type. `compile`: whether gradients
    are those of the net as torch.compile makes it, when the first one is taken. `task`: None for the one that goes with
    the data. `groups`: parameters with an l2 and rates of their own. `accumulate`: a gradient is the mean over so many
    batches of `batch_size`. `replicas`, `dither`: copies of each sample in a batch, and the noise of each copy
    (replicas.py). Raises ValueError for a setting out of its range, and UsageError for a group of no parameter.
    """

    def __init__(
        self, model: nn.Module, data: Dataset, task: Task | None = None, *, batch_size: int, seed: int, l2: float,
        device: torch.device, train_images: int, precision: str = "fp32", compile: bool = False,
        batch_norm: str = "estimate", batch_norm_images: int | None = None, groups: Sequence[ParameterGroup] = (),
        accumulate: int = 1, replicas: int = 1, dither: float = 0.0,
    ):  # fmt: skip
        _check(batch_norm, batch_norm_images, precision, model)
        self._running = RunningStatistics(model.to(device))
        self.statistics = self._running.size if batch_norm == "average" else 0
        _check_statistics(batch_norm, self._running, self.statistics)
        self.flat = Flat(model, behind=self.statistics)
        self.size = self.flat.size + self.statistics
        self.dtype, self.device = self.flat.dtype, self.flat.device
        self.batch_size = batch_size * accumulate
        self.task = (by_data(data) if task is None else task).on(device)
        self.metrics = self.task.metrics
        self.loss = torch.zeros((), dtype=self.dtype, device=self.device)
        self._model, self._seed = model, seed
        self._l2 = parts(self.flat, groups, {"l2": l2})
        rates = parts(self.flat, groups, {"eta": 1.0, "weight_decay": None})
        self.parts = [] if len(rates) == 1 and rates[0][2] == (1.0, None) else [Part(b, e, *v) for b, e, v in rates]
        # A net that is bound to one vector after another is compiled once: the graph does not depend on addresses.
        self._compiled = compiled if compile else lambda net: net
        self._differentiated = self._compiled(model)
        self._tf32 = precision == "tf32"
        self._autocast = autocast(device, precision)
        self._data = data.training_on(self.device)
        self._batches = Batches(data.count("train"), batch_size, seed)
        self._augmentation = torch.Generator()
        self._dropout = _default_generator(self.device)
        self._subset = fixed_subset(data.count("train"), train_images)
        self._start = torch.cat([self.flat.vector(), self._running.vector[: self.statistics]])
        normalising = train_images if batch_norm_images is None else batch_norm_images
        self._normalising = _whole_batches(fixed_subset(data.count("train"), normalising))
        if self._running.layers and not self.statistics and len(self._normalising) < 2:
            raise ValueError(
                f"eval.train_images={train_images}: of this net batch norm's variances are estimated over as "
                "many, which takes at least 2 images."
            )
        self._accumulate, self._replicas = accumulate, Replicas(replicas, dither)
        self._replicas.check(data)
        self._worker = self._t = 0  # worker and step of the loaded batches
        self._loaded: list[Batch] = []
        # batches being prepared, by worker and number: a worker's batches are counted from 0, `accumulate` a step
        self._begun: dict[tuple[int, int], Callable[[], Batch]] = {}
        self._snapshot: Tensor | None = None

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the figures that `evaluate` returns."""
        splits = ("test", "validation") if self._data.count("held_out") else ("test",)
        return ("train_loss", *(f"{split}_{name}" for split in splits for name in self.task.measures))

    @property
    def facts(self) -> dict[str, str]:
        """What summary.json says of how this problem is measured."""
        facts = {"task": self.task.name}
        if self.statistics:
            facts["batch_norm"] = "averaged with the parameters"
        elif self._running.layers:
            facts["batch_norm"] = f"estimated over {len(self._normalising)} training images"
        return facts

    def start(self, worker: int | None = None) -> Tensor:
        """Returns the given model's parameters [size]: every worker begins where the center does (paper p. 6, footnote
        7).
        """
        return self._start.clone()

    def load(self, worker: int, t: int) -> None:
        """Makes that worker's batches of step `t`."""
        self._worker, self._t = worker, t
        first, k = t * self._accumulate, self._accumulate
        for n in [n for w, n in self._begun if w == worker and not first <= n < first + k + self._data.ahead]:
            del self._begun[worker, n]  # the worker has gone back to a checkpoint, or was lost and came back
        self._loaded = []
        for n in range(first, first + k):
            if (worker, n) not in self._begun:
                self._begin(worker, n)
            for later in range(n + 1, n + 1 + self._data.ahead):
                if (worker, later) not in self._begun and len(self._begun) <= max(_BEGUN, self._data.ahead):
                    self._begin(worker, later)
            self._loaded.append(self._replicas.of(*self.task.parted(*self._begun.pop((worker, n))())))

    def _begin(self, worker: int, n: int) -> None:
        self._augmentation.manual_seed(key(self._seed, AUGMENTATION, worker, n))
        self._begun[worker, n] = self._data.begin(self._batches.indices(worker, n), self._augmentation, self.dtype)

    def gradient(self, x: Tensor) -> Tensor:
        """Returns the gradient [size] of the loaded batches' mean loss + (l2/2)||x||^2 at `x` [size], with dropout,
        valid until the next call.

        Entries of exchanged statistics are minus the change that these batches, one after another, make of them.
        """
        self.flat.bind(x)
        if self.statistics:
            self._running.vector.copy_(x[self.flat.size :])
        g = self.flat.gradient
        # Backward adds to what is in g, so the l2 term goes there first: one pass over g instead of two.
        for begin, end, (l2,) in self._l2:
            if l2:
                torch.mul(x[begin:end], l2, out=g[begin:end])
            else:
                g[begin:end].zero_()
        self.backward()
        if self.statistics:
            torch.sub(x[self.flat.size :], self._running.vector, out=self.flat.gradient_and_behind[self.flat.size :])
        return self.flat.gradient_and_behind

    def wrapped(self, wrap: Callable[[nn.Module], nn.Module], x: Tensor) -> list[nn.Parameter]:
        """From here on has `backward` go through what `wrap` makes of the net, such as DistributedDataParallel. Returns
        the net's parameters for an optimizer, in their order in x [size], at which they begin.
        """
        begins = x.clone()
        self.flat.bind(begins)
        self._model.zero_grad(set_to_none=True)
        self._differentiated = self._compiled(wrap(self._model))
        begins.copy_(x)  # DistributedDataParallel has given all processes the first one's parameters
        return [p for p in self._model.parameters() if p.requires_grad]

    def backward(self) -> None:
        """Adds the gradient of the loaded batches' mean loss, with dropout and without the l2 term, to the `grad` of
        the net's parameters.
        """
        if not self._model.training:
            self._model.train()
        use_tf32(self.device, self._tf32)
        losses = [self._differentiate(i, *batch) for i, batch in enumerate(self._loaded)]
        self.loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _differentiate(self, i: int, inputs: Any, targets: Any) -> Tensor:
        """Adds the i-th loaded batch's share of the gradient to the flat one. Returns its share of the loss []."""
        self._dropout.manual_seed(key(self._seed, DROPOUT, self._worker, self._t * self._accumulate + i))
        with self._autocast:
            outputs = called(self._differentiated, self._replicas.dithered(inputs))
        loss = self.task.loss(outputs_as(self.dtype, outputs), targets)
        if self._accumulate > 1:
            loss = loss / self._accumulate
        loss.backward()
        return loss.detach()

    def evaluate(self, x: Tensor) -> dict[str, float]:
        """Returns the task's figures at `x` [size]: train_loss on the fixed subset of the training samples, test_loss
        and whatever else the task measures, and the same as validation_... where samples are held out.

        Images are center patches; there is no dropout and no l2 term. Batch norms' running statistics are those in `x`
        where they are exchanged. Otherwise nobody maintains the center's, so they are estimated first: as plain
        averages over one pass of a fixed training subset.
        """
        self._prepare(x)
        figures = {"train_loss": self._measure("train", self._subset)["loss"]}
        figures |= {f"test_{name}": value for name, value in self._measure("test").items()}
        if self._data.count("held_out"):
            figures |= {f"validation_{name}": value for name, value in self._measure("held_out").items()}
        return figures

    @torch.no_grad()
    def confusion(self, x: Tensor) -> Tensor | None:
        """Returns how many test labels of each class (row) are taken for each class (column) at `x` [size]:
        [num_classes, num_classes] int64, on the CPU. None where the task knows no classes.
        """
        if not isinstance(self.task, Classification):
            return None
        self._prepare(x)
        counts = [self.task.confusion(outputs, targets) for outputs, targets in self._judged("test")]
        return torch.stack(counts).sum(0)

    def state_dict(self, x: Tensor) -> dict[str, Tensor]:
        """Returns a dictionary for `model.load_state_dict`: `x` [size] and the buffers, batch norm's as in `evaluate`,
        as plain CPU tensors.
        """
        if self._running.layers:
            self._prepare(x)
        return self.flat.state_dict(self._parameters(x))

    def _parameters(self, x: Tensor) -> Tensor:
        """Returns the parameters in `x` [size], which statistics may follow."""
        return x[: self.flat.size] if self.statistics else x

    def _prepare(self, x: Tensor) -> None:
        """Puts a copy of `x` into the model, ready to be measured.

        A copy, because a snapshot that is bound could not be freed before the next one is.
        """
        if self._snapshot is None:
            self._snapshot = torch.empty_like(x)
        self._snapshot.copy_(x)
        self.flat.bind(self._snapshot)
        use_tf32(self.device, False)
        self._model.eval()
        if self.statistics:
            self._running.take(self._snapshot[self.flat.size :])
        elif self._running.layers:
            self._running.estimate(self._pass)

    def _pass(self) -> None:
        for _ in self._judged("train", self._normalising):
            pass

    def _judged(self, split: Split, indices: Tensor | None = None) -> Iterator[tuple[Any, Any]]:
        """Yields outputs and targets of a split, or of its samples `indices`, a batch at a time."""
        for batch in self._data.evaluation_batches(split, _EVALUATION_BATCH, self.device, self.dtype, indices):
            inputs, targets = self.task.parted(*batch)
            yield called(self._model, inputs), targets

    @torch.no_grad()
    def _measure(self, split: Split, indices: Tensor | None = None) -> dict[str, float]:
        """Returns the task's figures of a split, or of its samples `indices`."""
        totals: dict[str, Tensor] = {}
        for outputs, targets in self._judged(split, indices):
            for name, value in self.task.totals(outputs, targets).items():
                if name not in totals:
                    totals[name] = torch.zeros((), dtype=torch.float64, device=self.device)
                totals[name] += value
        return self.task.figures({name: float(value) for name, value in totals.items()})


def _check(batch_norm: str, batch_norm_images: int | None, precision: str, model: nn.Module) -> None:
    if batch_norm not in ("estimate", "average"):
        raise ValueError(
            f"problem.batch_norm={batch_norm}: is estimate, over training images, or average, with the "
            "workers' parameters."
        )
    if batch_norm == "average" and batch_norm_images is not None:
        raise ValueError(
            f"problem.batch_norm=average problem.batch_norm_images={batch_norm_images}: nothing is estimated; "
            "leave out one of the two."
        )
    if batch_norm_images is not None and batch_norm_images < 2:
        raise ValueError(
            f"problem.batch_norm_images={batch_norm_images}: a variance takes at least 2 images; null takes "
            "eval.train_images."
        )
    if precision != "fp32" and any(p.dtype == torch.float64 for p in model.parameters()):
        raise ValueError(
            f"precision={precision}: the net's parameters are float64, which stays as it is; use "
            "precision=fp32, or a net of float32."
        )


def _check_statistics(batch_norm: str, running: RunningStatistics, statistics: int) -> None:
    if batch_norm == "average" and not running.layers:
        raise ValueError(
            "problem.batch_norm=average: this net has no batch norm with running statistics; use "
            "problem.batch_norm=estimate."
        )
    if statistics and any(layer.momentum is None for layer in running.layers):
        raise ValueError(
            "problem.batch_norm=average: a batch norm of this net has momentum=None, so its statistics depend on how "
            "many batches it has seen; give it a number, such as 0.1, or use problem.batch_norm=estimate."
        )


def _whole_batches(indices: Tensor) -> Tensor:
    """Returns `indices` without a last batch that is smaller than the others, whose statistics would count as much."""
    return indices[: max(len(indices) - len(indices) % _EVALUATION_BATCH, min(len(indices), _EVALUATION_BATCH))]


def _default_generator(device: torch.device) -> torch.Generator:
    """Returns the generator from which layers such as dropout draw on `device`. Seeding it costs a microsecond,
    torch.manual_seed costs 70.
    """
    if device.type == "cpu":
        return torch.default_generator
    there = torch.get_device_module(device)
    there.init()  # makes the generators
    generator: torch.Generator = there.default_generators[
        there.current_device() if device.index is None else device.index
    ]
    return generator
