"""A net on labelled images: the mean cross-entropy of its outputs, with smoothed labels where asked for.

Everything random in a gradient (batch, augmentation, dropout) is a function of (seed, worker, t), so a step taken again
gives the same bits, whatever happened in between.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from easgd_cli.data.dataset import Batch, Dataset, Split
from easgd_cli.problems.batch_norm import RunningStatistics
from easgd_cli.problems.classification import METRICS
from easgd_cli.problems.flat import Flat
from easgd_cli.problems.precision import autocast, compiled, use_tf32
from easgd_cli.randomness import AUGMENTATION, DROPOUT, PERMUTATION, key

_EVALUATION_BATCH = 250  # images; larger ones fall out of a CPU's cache
_MANY_CLASSES = 100  # from which on top-5 errors are of interest
_BEGUN = 16  # batches that wait ahead at most, however many workers one problem serves


class Batches:
    """Which training images make up the batch of a worker's step: a function of (seed, worker, t).

    Each pass over the `images` indices is a fresh permutation of all of them; a batch that a pass cannot fill runs on
    into the next, so batches may even be larger than the set.
    """

    def __init__(self, images: int, batch_size: int, seed: int):
        self._images, self._batch_size, self._seed = images, batch_size, seed
        self._generator = torch.Generator()
        # by worker, the last pass it has reached and its order: all that its next batch may need
        self._orders: dict[int, tuple[int, Tensor]] = {}

    def indices(self, worker: int, t: int) -> Tensor:
        """Image numbers [batch_size] int64 of that worker's step `t`."""
        begin, end = t * self._batch_size, (t + 1) * self._batch_size
        parts = []
        for n in range(begin // self._images, (end - 1) // self._images + 1):
            order = self._order(worker, n)
            parts.append(order[max(begin - n * self._images, 0) : end - n * self._images])
            self._orders[worker] = n, order
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _order(self, worker: int, n: int) -> Tensor:
        remembered = self._orders.get(worker)
        if remembered is not None and remembered[0] == n:
            return remembered[1]
        return torch.randperm(
            self._images, generator=self._generator.manual_seed(key(self._seed, PERMUTATION, worker, n))
        )


class ImageProblem:
    """Cross-entropy of `model` on `images`, in the run with `seed` (see problems/base.py).

    `model` is taken over: moved to `device`, its parameters bound to whatever vector is asked about. `train_images` is
    the size of the fixed training subset on which train_loss is measured. `batch_norm` says what batch norm's running
    statistics are of a vector that is measured or saved: "estimate", over `batch_norm_images` fixed training images
    (None: as many as `train_images`), or "average", those that workers have gathered and exchanged: then they are the
    last `statistics` entries of every vector. `label_smoothing` e trains against 1 - e of the label and e of all
    classes alike (Szegedy et al. 2016, section 7). `precision` is that of the gradient's arithmetic: fp32, tf32 on
    CUDA, or bf16, which is torch's autocast; vectors and evaluation stay as the parameters are. With `compile`
    gradients are those of the net as torch.compile makes it, when the first is taken. `top5` measures top-5 errors;
    None: with a hundred classes or more. Raises ValueError for a setting out of its range.
    """

    metrics = METRICS.declared

    def __init__(
        self, model: nn.Module, images: Dataset, *, batch_size: int, seed: int, l2: float, device: torch.device,
        train_images: int,
        precision: str = "fp32", compile: bool = False, label_smoothing: float = 0.0,
        batch_norm: str = "estimate", batch_norm_images: int | None = None, top5: bool | None = None,
    ):  # fmt: skip
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
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"problem.label_smoothing={label_smoothing:g}: the share of a label that all classes get alike; "
                "it lies in [0, 1), such as 0.1."
            )
        if top5 and images.num_classes <= 5:
            raise ValueError(
                f"problem.top5=true: there are {images.num_classes} classes, so the right one is always among "
                "five; it takes at least 6."
            )
        if precision != "fp32" and any(p.dtype == torch.float64 for p in model.parameters()):
            raise ValueError(
                f"precision={precision}: the net's parameters are float64, which stays as it is; use "
                "precision=fp32, or a net of float32."
            )
        self._running = RunningStatistics(model.to(device))
        self.statistics = self._running.size if batch_norm == "average" else 0
        if batch_norm == "average" and not self._running.layers:
            raise ValueError(
                "problem.batch_norm=average: this net has no batch norm with running statistics; use "
                "problem.batch_norm=estimate."
            )
        if self.statistics and any(layer.momentum is None for layer in self._running.layers):
            raise ValueError(
                "problem.batch_norm=average: a batch norm of this net has momentum=None, so its statistics "
                "depend on how many batches it has seen; "
                "give it a number, such as 0.1, or use problem.batch_norm=estimate."
            )
        self.flat = Flat(model, behind=self.statistics)
        self.size = self.flat.size + self.statistics
        self.dtype, self.device = self.flat.dtype, self.flat.device
        self.batch_size = batch_size
        self.loss = torch.zeros((), dtype=self.dtype, device=self.device)
        self._model, self._l2, self._seed, self._label_smoothing = model, l2, seed, label_smoothing
        # Bound to one vector after another it stays one graph: a parameter's address is no part of what is compiled.
        self._differentiated = compiled(model) if compile else model
        self._tf32 = precision == "tf32"
        self._autocast = autocast(device, precision)
        self._top5 = images.num_classes >= _MANY_CLASSES if top5 is None else top5
        self._images = images.training_on(self.device)
        self._batches = Batches(images.count("train"), batch_size, seed)
        self._augmentation = torch.Generator()
        self._dropout = _default_generator(self.device)
        self._subset = images.training_subset(train_images)
        self._start = torch.cat([self.flat.vector(), self._running.vector[: self.statistics]])
        self._normalising = _whole_batches(
            images.training_subset(train_images if batch_norm_images is None else batch_norm_images)
        )
        if self._running.layers and not self.statistics and len(self._normalising) < 2:
            raise ValueError(
                f"eval.train_images={train_images}: of this net batch norm's variances are estimated over as "
                "many, which takes at least 2 images."
            )
        self._worker = self._t = 0  # of the loaded batch
        self._inputs = self._labels = torch.empty(0)
        self._begun: dict[tuple[int, int], Callable[[], Batch]] = {}  # batches ahead, by worker and step
        self._snapshot: Tensor | None = None

    @property
    def facts(self) -> dict[str, str]:
        """What summary.json says of how this problem is measured."""
        if self.statistics:
            return {"batch_norm": "averaged with the parameters"}
        return (
            {"batch_norm": f"estimated over {len(self._normalising)} training images"} if self._running.layers else {}
        )

    def start(self, worker: int | None = None) -> Tensor:
        """The model as it was given [size]: every worker begins where the center does (paper p. 6, footnote 7)."""
        return self._start.clone()

    def load(self, worker: int, t: int) -> None:
        """Makes that worker's batch of step `t`."""
        self._worker, self._t = worker, t
        for step in [s for w, s in self._begun if w == worker and not t <= s <= t + self._images.ahead]:
            del self._begun[worker, step]  # the worker has gone back to a checkpoint, or was lost and came back
        if (worker, t) not in self._begun:
            self._begin(worker, t)
        for later in range(t + 1, t + 1 + self._images.ahead):
            if (worker, later) not in self._begun and len(self._begun) <= _BEGUN:
                self._begin(worker, later)
        self._inputs, self._labels = self._begun.pop((worker, t))()

    def _begin(self, worker: int, t: int) -> None:
        self._augmentation.manual_seed(key(self._seed, AUGMENTATION, worker, t))
        self._begun[worker, t] = self._images.begin(self._batches.indices(worker, t), self._augmentation, self.dtype)

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient [size] of the loaded batch's mean loss + (l2/2)||x||^2 at `x` [size], dropout on; valid until the
        next call.

        Of statistics that are exchanged, minus the change that this batch makes of them.
        """
        self.flat.bind(x)
        if self.statistics:
            self._running.vector.copy_(x[self.flat.size :])
        g = self.flat.gradient
        # Backward adds to what is in g, so the l2 term goes there first: one pass over g instead of two.
        if self._l2:
            torch.mul(self._parameters(x), self._l2, out=g)
        else:
            g.zero_()
        self._dropout.manual_seed(key(self._seed, DROPOUT, self._worker, self._t))
        if not self._model.training:
            self._model.train()
        use_tf32(self.device, self._tf32)
        with self._autocast:
            outputs = self._differentiated(self._inputs)
        loss = F.cross_entropy(outputs.to(self.dtype), self._labels, label_smoothing=self._label_smoothing)
        loss.backward()
        self.loss = loss.detach()
        if self.statistics:
            torch.sub(x[self.flat.size :], self._running.vector, out=self.flat.gradient_and_behind[self.flat.size :])
        return self.flat.gradient_and_behind

    def evaluate(self, x: Tensor) -> dict[str, float]:
        """Mean losses, and errors in percent, at `x` [size]: train_loss on the fixed subset of the training images,
        test_loss and test_error, and validation_loss and validation_error where images are held out. With top-5 errors
        also test_error_top5 and validation_error_top5, the images whose label is not among the five largest outputs.

        Center patches, dropout off, labels as they are, no l2 term. The running statistics of batch norms are those in
        `x`, where they are exchanged. Otherwise nobody maintains the center's, so they are estimated first: plain
        averages over one pass of a fixed training subset.
        """
        self._prepare(x)
        figures = {"train_loss": self._measure("train", self._subset)["loss"]}
        figures |= {f"test_{name}": value for name, value in self._measure("test").items()}
        if self._images.count("held_out"):
            figures |= {f"validation_{name}": value for name, value in self._measure("held_out").items()}
        return figures

    @torch.no_grad()
    def confusion(self, x: Tensor) -> Tensor:
        """How many test images of each class (row) are taken for each class (column) at `x` [size]: [num_classes,
        num_classes] int64, on the CPU.
        """
        self._prepare(x)
        n = self._images.num_classes
        counts = torch.zeros(n * n, dtype=torch.int64)
        for inputs, labels in self._images.evaluation_batches("test", _EVALUATION_BATCH, self.device, self.dtype):
            counts += torch.bincount((labels * n + self._model(inputs).argmax(1)).cpu(), minlength=n * n)
        return counts.view(n, n)

    def state_dict(self, x: Tensor) -> dict[str, Tensor]:
        """What `model.load_state_dict` takes: `x` [size] and the buffers, batch norm's as in `evaluate`; plain CPU
        tensors.
        """
        if self._running.layers:
            self._prepare(x)
        return self.flat.state_dict(self._parameters(x))

    def _parameters(self, x: Tensor) -> Tensor:
        """Those in `x` [size], which statistics may follow."""
        return x[: self.flat.size] if self.statistics else x

    def _prepare(self, x: Tensor) -> None:
        """Puts a copy of `x` into the model, ready to be measured.

        A copy, because a snapshot that is bound would be kept from being freed until the next.
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
        for inputs, _ in self._images.evaluation_batches(
            "train", _EVALUATION_BATCH, self.device, self.dtype, self._normalising
        ):
            self._model(inputs)

    @torch.no_grad()
    def _measure(self, split: Split, indices: Tensor | None = None) -> dict[str, float]:
        """Mean `loss`; `error`, and where asked for `error_top5`, in percent."""
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        wrong = torch.zeros((), dtype=torch.int64, device=self.device)
        missed = torch.zeros_like(wrong)
        count = 0
        for inputs, labels in self._images.evaluation_batches(
            split, _EVALUATION_BATCH, self.device, self.dtype, indices
        ):
            logits = self._model(inputs)
            loss += F.cross_entropy(logits, labels, reduction="sum")
            wrong += (logits.argmax(1) != labels).sum()
            if self._top5:
                missed += (logits.topk(5).indices != labels[:, None]).all(1).sum()
            count += len(labels)
        figures = {"loss": float(loss) / count, "error": 100 * float(wrong) / count}
        return figures | ({"error_top5": 100 * float(missed) / count} if self._top5 else {})


def _whole_batches(indices: Tensor) -> Tensor:
    """`indices` without a last batch that is smaller than the others: its statistics would count as much as theirs."""
    return indices[: max(len(indices) - len(indices) % _EVALUATION_BATCH, min(len(indices), _EVALUATION_BATCH))]


def _default_generator(device: torch.device) -> torch.Generator:
    """The generator that layers such as dropout draw from on `device`. Seeding it directly costs a microsecond,
    torch.manual_seed 70.
    """
    if device.type == "cpu":
        return torch.default_generator
    there = torch.get_device_module(device)
    there.init()  # makes the generators
    generator: torch.Generator = there.default_generators[
        there.current_device() if device.index is None else device.index
    ]
    return generator
