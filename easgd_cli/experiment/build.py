"""From settings to objects: the method, the schedule, the problem, and the data and model it is made of.

Each comes from the maker that its group names (`settings/targets.py`), which is offered by name what the runner has: a
method the paper's symbols, a problem the data and the model, a model the shape of the data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from easgd_cli.errors import UsageError
from easgd_cli.experiment.initial_parameters import listed, read_into
from easgd_cli.randomness import INIT, MADE_BY_USERS, seeded
from easgd_cli.settings import groups
from easgd_cli.settings.schema import BY_DATA, Settings, effective_alpha, effective_beta, levels
from easgd_cli.settings.targets import convert, locate, make, ours, signature, written

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from easgd_cli.algorithms.average import Average
    from easgd_cli.algorithms.base import Method
    from easgd_cli.algorithms.local import LocalStep
    from easgd_cli.algorithms.schedule import Schedule
    from easgd_cli.data.dataset import Dataset
    from easgd_cli.problems.base import Problem
    from easgd_cli.problems.metric import Metrics
    from easgd_cli.problems.tasks.base import Task


def symbols(s: Settings) -> dict[str, Any]:
    """What a method or schedule may ask for by the paper's names."""
    return {
        "tau": s.tau, "eta": s.eta, "alpha": effective_alpha(s), "beta": effective_beta(s), "delta": s.delta,
        "gamma": s.gamma, "l2": s.l2, "workers": s.workers,
    }  # fmt: skip


def symbols_used(s: Settings) -> set[str]:
    """Those of the paper's symbols that its method, local step and schedule ask for."""
    named = [(group, getattr(s, group)["target"]) for group in ("algo", "local", "schedule")]
    return {name for group, target in named if target for name in signature(locate(group, target))} & symbols(s).keys()


def local_step(s: Settings) -> LocalStep | None:
    """How x moves by a gradient; None: as the method's own listing says. Raises UsageError."""
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
    """The method's two rules, with their constants and its local step. Raises UsageError."""
    from easgd_cli.algorithms.base import CENTER, check_method

    if (
        s.alpha is not None
        and s.beta is not None
        and not {"alpha", "beta"} <= _required(signature(locate("algo", s.algo["target"])))
    ):
        raise UsageError(
            f"alpha={s.alpha} beta={s.beta}: give one of the two; beta is workers * alpha, so either follows from "
            "the other."
        )
    step = local_step(s)
    offered = symbols(s) | {"seed": s.seed} | ({} if step is None else {"local": step})
    parameters = signature(locate("algo", s.algo["target"]))
    if "alpha" in parameters and parameters["alpha"].default is None:  # it has its own way from beta to alpha
        offered |= {"alpha": s.alpha, "beta": 0.9 if s.beta is None else s.beta}
    try:
        made = make("algo", s.algo, offered)
    except UsageError as e:
        if s.alpha is None and s.beta is not None and str(e).startswith("alpha="):  # which the user has not written
            raise UsageError(f"beta={s.beta:g} with workers={s.workers} makes {e}") from e
        raise
    check_method(made, s.algo["name"], workers=s.workers)
    if s.fragments > 1 and made.couriers:
        raise UsageError(
            f"algo={s.algo['name']} fragments={s.fragments}: what is carried between its variables is whole vectors; "
            "leave out fragments=, or use a method with one center, such as algo=easgd."
        )
    if not made.alone and CENTER not in made.variables and average(s) is not None:
        raise UsageError(
            f"algo={s.algo['name']} average={s.average['name']}: an average is of the center, and this method has "
            "none; leave out average=."
        )
    return made


def _required(parameters: Mapping[str, inspect.Parameter]) -> set[str]:
    return {name for name, parameter in parameters.items() if parameter.default is parameter.empty}


def on_vectors_of(problem: Problem, rules: Method, s: Settings) -> Method:
    """The method on this problem's vectors: parts of them with rates of their own, statistics among them averaged, in
    so many fragments, all of them rounded where they are sent. Raises UsageError.
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
    """eta as a function of the worker's clock in a run of `steps` local steps of each worker, None: of unknown length.
    Raises UsageError.
    """
    from easgd_cli.algorithms.schedule import Warmup

    if steps is None and follows_the_length(s):
        raise UsageError(
            f"schedule={s.schedule['name']} minutes={s.minutes:g}: this schedule follows the run's local "
            "steps, and nobody knows how many minutes hold; "
            "give steps= or epochs=, or use schedule=decay."
        )
    if steps is not None and s.warmup >= steps:
        raise UsageError(f"warmup={s.warmup}: the run has {steps} local steps; a warm-up is shorter than the run.")
    made: Schedule = make("schedule", s.schedule, symbols(s) | {"steps": steps, "warmup": s.warmup})
    return Warmup(made, s.warmup) if s.warmup else made


def follows_the_length(s: Settings) -> bool:
    """Whether the schedule asks how many steps the run has, so that another length is another run from its first step
    on. Raises UsageError.
    """
    return "steps" in signature(locate("schedule", s.schedule["target"]))


def average(s: Settings) -> Average | None:
    """The weights of the center in its average; None where none is kept. Raises UsageError."""
    return make("average", s.average, {})


def data(s: Settings) -> Dataset:
    """The data set, images normalised as `dataset.mean` and `dataset.std` say, with `dataset.validation` samples held
    out of training. Raises UsageError.
    """
    from easgd_cli.data.given import as_dataset
    from easgd_cli.data.images import Images
    from easgd_cli.data.mapped import Mapped
    from easgd_cli.data.stored import StoredImages

    if s.dataset["target"] is None:
        raise UsageError(
            f"problem={s.problem['name']} dataset={s.dataset['name']}: this problem needs data; choose a data "
            "set, such as dataset=digits."
        )
    options, name = dict(s.dataset), s.dataset["name"]
    held_out = convert("dataset.validation", options.pop("validation", 0), int)
    own = signature(locate("dataset", options["target"]))  # a data set of the user's may have such settings itself
    of_all = {
        key: None if key in own else convert(f"dataset.{key}", options.pop(key, None), kind)
        for key, kind in _OF_ALL_DATA.items()
    }
    if (of_all["loaders"] or 0) < 0:
        raise UsageError(f"dataset.loaders={of_all['loaders']}: must be a whole number of at least 0.")
    collate = None if of_all["collate"] is None else locate("dataset.collate", of_all["collate"])
    with seeded(s.seed, MADE_BY_USERS):
        found = as_dataset(_made(s, options), name, collate, of_all["test"])
    if of_all["mean"] is not None or of_all["std"] is not None:
        if not isinstance(found, Images | StoredImages):
            raise UsageError(f"dataset={name}: dataset.mean and dataset.std are for images; scale what it returns.")
        found = found.normalised(of_all["mean"], of_all["std"])
    if of_all["loaders"]:
        if not isinstance(found, Mapped):
            raise UsageError(
                f"dataset={name} dataset.loaders={of_all['loaders']}: are processes that read a torch Dataset sample "
                "by sample; this data set lies in memory, so leave them out."
            )
        found = replace(found, loaders=of_all["loaders"])
    return found.hold_out(held_out) if held_out else found


# Settings that every data set of a user's has, unless it has parameters of these names itself.
_OF_ALL_DATA: dict[str, Any] = {
    "mean": list[float] | None, "std": list[float] | None, "test": float | None, "collate": str | None,
    "loaders": int | None,
}  # fmt: skip


def _made(s: Settings, options: dict[str, Any]) -> Any:
    """What its maker returns; a Dataset with a parameter `train` or `split`, as torchvision's have, is made twice."""
    key = split_parameter(locate("dataset", options["target"]))
    if key is not None:
        return tuple(make("dataset", options, {"seed": s.seed, key: value}) for value in _SPLITS[key])
    return make("dataset", options, {"seed": s.seed})


_SPLITS: dict[str, tuple[Any, Any]] = {"train": (True, False), "split": ("train", "test")}


def split_parameter(maker: Callable[..., Any]) -> str | None:
    """How a class of Datasets is told which split to be, as torchvision's are: `train` or `split`; None: not at all."""
    is_dataset = isinstance(maker, type) and hasattr(maker, "__getitem__")
    return next((key for key in _SPLITS if is_dataset and key in signature(maker)), None)


def task(s: Settings, data: Dataset) -> Task:
    """What a net is trained for on these data. Raises UsageError."""
    from easgd_cli.problems.tasks.own import OwnLoss, as_task

    maker = locate("task", s.task["target"])
    if taken := loss_arguments(maker):
        options = {key: value for key, value in s.task.items() if key not in ("name", "target")}
        made: Task = OwnLoss(
            lambda outputs, targets: maker(**dict(zip(taken, (outputs, targets), strict=True)), **options)
        )
    else:
        made = as_task(make("task", s.task, {"data": data}), s.task["name"])
    if s.task["target"] != BY_DATA["target"]:
        made.name = s.task["name"]
    if data.targets not in made.takes:
        raise UsageError(
            f"task={made.name} dataset={s.dataset['name']}: this data set has {data.targets} to learn, and the "
            f"task takes {' or '.join(made.takes)}; task=auto is the one that goes with the data."
        )
    return made


def loss_arguments(maker: Callable[..., Any]) -> list[str]:
    """The names under which a function of the user's takes outputs and targets, where it is a loss itself; none where
    it makes one.
    """
    if not inspect.isfunction(maker):
        return []
    first = list(signature(maker).values())[:2]
    wanted = [p.name for p in first if p.default is p.empty and p.name != "data"]
    return wanted if len(wanted) == 2 else []


def model(s: Settings, data: Dataset | None, checked: bool = True) -> nn.Module:
    """A net for these data, `checked` on two samples of them, initialised from the one seed, or as `init` says. Raises
    UsageError.

    Without data, or where the problem feeds it with something else, it is what its maker makes of it.
    """
    from easgd_cli.models import check_model

    if s.model["target"] is None:
        raise UsageError(
            f"problem={s.problem['name']} model={s.model['name']}: this problem needs a net; choose one, such as "
            "model=small."
        )
    trained_for = None if data is None else task(s, data)
    outputs = None if data is None or trained_for is None else trained_for.outputs(data)
    offered = {"input_shape": data.input_shape} if data is not None else {}
    if data is not None and outputs is None and ours(s.model):
        raise UsageError(
            f"dataset={s.dataset['name']} {written('model', s.model)}: nobody says how many outputs the net is to "
            "have; give the data set a num_classes, or use a net of your own with sizes of its own."
        )
    with seeded(s.seed, INIT):
        net = make("model", s.model, offered | ({"num_classes": outputs} if outputs is not None else {}))
    check_model(net, written("model", s.model), data, trained_for if checked else None, s.batch_size)
    read_into(net, s, outputs if checked else None)
    return net


# What a problem may ask for by name (see `problem`). Data, task and net are made only for one that does; `images` is
# the older name of `data`.
OFFERED_TO_PROBLEMS = (
    "seed",
    "workers",
    "batch_size",
    "accumulate",
    "replicas",
    "dither",
    "l2",
    "groups",
    "device",
    "precision",
    "compile",
    "data",
    "images",
    "task",
    "model",
    "train_images",
)


def problem(s: Settings, data: Dataset | None, device: torch.device) -> Problem:
    """What is minimised, on `device`; with a net of its own where it asks for one. Raises UsageError."""
    asked = asked_by_problem(s)
    offered: dict[str, Any] = {
        "seed": s.seed, "workers": s.workers, "batch_size": s.batch_size, "l2": s.l2,
        "accumulate": s.accumulate, "replicas": s.replicas, "dither": s.dither, "groups": groups.read(s),
        "device": device,
        "precision": s.precision, "compile": s.compile,
        "train_images": s.eval.train_images,
    }  # fmt: skip
    trained_for = task(s, data) if data is not None and asked & DATA else None
    if data is not None:
        offered |= {"data": data, "images": data, "task": trained_for}
    if "model" in asked:
        offered["model"] = model(s, data, checked=trained_for is not None)
    return make("problem", s.problem, offered)


def declared_metrics(s: Settings) -> Metrics:
    """What the problem declares that it measures, known before it is made; the data are loaded where they say it.
    Raises UsageError.
    """
    from easgd_cli.problems.classification import metrics_of

    if "task" not in asked_by_problem(s):
        return metrics_of(locate("problem", s.problem["target"]))
    if ours(s.task) and s.task["target"] != BY_DATA["target"]:
        return metrics_of(locate("task", s.task["target"]))
    return metrics_of(task(s, data(s)))


def asked_by_problem(s: Settings) -> set[str]:
    """The names among OFFERED_TO_PROBLEMS that its maker has as parameters. Raises UsageError."""
    return set(OFFERED_TO_PROBLEMS) & set(signature(locate("problem", s.problem["target"])))


DATA = {"data", "images"}  # of which a problem that uses data asks for one


def asks_for_data(s: Settings, asked: set[str]) -> bool:
    """Whether the problem, which has `asked` for so much, is given a data set, or its net the shape of one. Raises
    UsageError.
    """
    shaped = (
        "model" in asked
        and s.model["target"]
        and {"num_classes", "input_shape"} & set(signature(locate("model", s.model["target"])))
    )
    if shaped and not asked & DATA and s.dataset["target"] is None:
        raise UsageError(
            f"problem={s.problem['name']} model={s.model['name']}: this net asks for the shape of data, and "
            "there are none; choose a net of your own "
            "with sizes of its own, or a data set whose shape it is to have, such as dataset=digits."
        )
    return bool(asked & DATA or shaped)


@dataclass(frozen=True)
class Parts:
    """What one process of a run works with: the problem on its device, the method on that problem's vectors, and what
    follows from the settings.
    """

    problem: Problem
    method: Method
    schedule: Schedule
    average: Average | None


@dataclass(frozen=True)
class Recipe:
    """From which every process of a run makes its own parts: the settings, the data they share, and how many local
    steps each worker takes.

    `data`: None where the problem asks for none. `steps`: None when the clock on the wall ends the run.
    """

    settings: Settings
    data: Dataset | None
    steps: int | None

    def problem(self, device: torch.device) -> Problem:
        """What is minimised, on `device`. Raises UsageError."""
        return problem(self.settings, self.data, device)

    def parts(self, device: torch.device) -> Parts:
        """All of it, on `device`. Raises UsageError."""
        s, minimised = self.settings, self.problem(device)
        return Parts(minimised, on_vectors_of(minimised, method(s), s), schedule(s, self.steps), average(s))

    def shared(self) -> Recipe:
        """The same, its data where all processes of this machine find them."""
        return self if self.data is None else replace(self, data=self.data.share())


@dataclass(frozen=True)
class Experiment:
    """A run that has been checked to the end: everything a launcher needs, made once.

    `parts`: on the CPU. `start` [size]: where what is evaluated begins, the center or, in a method without one, the
    worker.
    `memory`: bytes that the run needs at its peak, as far as they are known before. `doubts`: what of its data may not
    be what was meant, in a sentence each.
    """

    recipe: Recipe
    parts: Parts
    start: Tensor
    memory: int
    doubts: tuple[str, ...] = ()

    @property
    def settings(self) -> Settings:
        return self.recipe.settings

    @property
    def data(self) -> Dataset | None:
        return self.recipe.data

    @property
    def steps(self) -> int | None:
        return self.recipe.steps

    @property
    def problem(self) -> Problem:
        return self.parts.problem

    @property
    def method(self) -> Method:
        return self.parts.method

    @property
    def average(self) -> Average | None:
        return self.parts.average

    @property
    def size(self) -> int:
        return self.start.numel()

    @property
    def parameters(self) -> int:
        """Those in x: all of it but a problem's statistics."""
        from easgd_cli.problems.base import statistics_of

        return self.size - statistics_of(self.problem)

    @property
    def dtype(self) -> torch.dtype:
        return self.start.dtype

    @property
    def vector_bytes(self) -> int:
        """Of one vector on its way."""
        from easgd_cli.algorithms.wire import WIRES

        wire = WIRES[self.settings.wire]
        return self.size * self.dtype.itemsize if wire is None else wire.nbytes(self.size)

    def parts_on(self, device: torch.device) -> Parts:
        """The parts of the one process of a simulated run, which are these where it computes on the CPU. Raises
        UsageError.
        """
        return self.parts if device.type == "cpu" else self.recipe.parts(device)


def prepare(s: Settings) -> Experiment:
    """Loads the data, builds the problem and checks all that could fail later. Raises UsageError."""
    import torch

    from easgd_cli.experiment.memory_estimate import check_memory
    from easgd_cli.problems.base import check_problem
    from easgd_cli.problems.classification import metrics_of
    from easgd_cli.settings.schema import total_steps

    rules = method(s)
    devices = _check_devices(s, rules)
    asked = asked_by_problem(s)
    _refuse_unused(s, asked)
    given = data(s) if asks_for_data(s, asked) else None
    steps = total_steps(s, None if given is None else given.count("train"))
    schedule(s, steps)  # said before the data set is measured
    recipe = Recipe(s, given, steps)
    parts = recipe.parts(torch.device("cpu"))
    if given is None or not ours(s.problem):  # measuring our own on a whole data set would take seconds
        measured = tuple(check_problem(parts.problem, s.problem["name"], s.workers))
    else:
        measured = getattr(parts.problem, "measures", ())
    check_levels(s, metrics_of(parts.problem), measured)
    start = parts.problem.start(None if not rules.alone else 0)
    memory = check_memory(
        s, parts.method, parts.average, start, given, on_cpu=devices.count("cpu"), in_processes=launched_in_processes(s)
    )
    return Experiment(recipe, parts, start, memory, () if given is None else _doubts(s, given))


def _doubts(s: Settings, given: Dataset) -> tuple[str, ...]:
    """Raises UsageError."""
    from easgd_cli.data.doubts import doubts

    ignored = s.task.get("ignore_index", -100)  # torch's own
    return tuple(doubts(given, s.dataset["name"], ignored if isinstance(ignored, int) else None))


def check_levels(s: Settings, metrics: Metrics, measured: Collection[str]) -> None:
    """Raises UsageError for a level of `until` that no evaluation can reach, which has the metrics `measured`."""
    for name, level in levels(s).items():
        written_so, full = f"until.{name}={level:g}", metrics.named(name)
        if full not in measured and (full.startswith("validation_") and full in metrics.declared_names):
            raise UsageError(
                f"{written_so}: no training samples are held out; hold some out, such as dataset.validation=200."
            )
        if full not in measured:
            raise UsageError(
                f"{written_so}: problem={s.problem['name']} has no {name}, so the run would not end by it; it has "
                f"{', '.join(measured)}."
            )
        if metrics[full].unit == "%" and not 0 <= level <= 100:
            raise UsageError(f"{written_so}: is a percentage, from 0 to 100.")


def _check_devices(s: Settings, rules: Method) -> list[str]:
    """The devices of the workers. Raises UsageError for what this machine has not, or cannot do."""
    from easgd_cli.system.devices import check_compiler, check_threads, deal_devices

    check_threads(s)
    devices = deal_devices(s.device, s.workers)
    deal_devices(s.eval.device, 1, "eval.device")
    [owner] = deal_devices(s.center_device, 1, "center_device")
    if owner != "cpu" and not rules.alone and launched_in_processes(s) and set(devices) != {owner}:
        raise UsageError(
            f"center_device={s.center_device} device={s.device}: a center on a GPU is for workers that all "
            f"compute there; write device={owner}."
        )
    if s.precision == "tf32" and any(not d.startswith("cuda") for d in devices):
        raise UsageError(
            f"precision=tf32 device={s.device}: tf32 is how CUDA devices multiply, and a worker would be on a "
            "CPU; use fp32, or bf16."
        )
    if s.compile and any(not d.startswith("cuda") for d in devices):
        check_compiler()
    return devices


def _refuse_unused(s: Settings, asked: set[str]) -> None:
    """Refuses what a problem does not ask for, instead of warning: a data set would bring its learning rate and length
    with it.
    """
    name = s.problem["name"]
    for group, wanted in (("dataset", {*DATA, "model"}), ("model", {"model"})):
        spec = getattr(s, group)
        if spec["target"] is not None and not asked & wanted:
            raise UsageError(
                f"problem={name} {group}={spec['name']}: this problem uses no {group}; leave out {group}=, or use "
                "problem=dataset."
            )
    if s.groups and "groups" not in asked:
        raise UsageError(f"problem={name} groups={s.groups}: this problem has no named parameters; leave out groups=.")
    for key, value in (("accumulate", s.accumulate - 1), ("replicas", s.replicas - 1), ("dither", s.dither)):
        if value and key not in asked:
            raise UsageError(
                f"problem={name} {key}={getattr(s, key)}: this problem makes its gradients itself; leave out {key}=."
            )
    for key, given in (
        ("init", s.init),
        ("init_prefix", s.init_prefix),
        ("init_without", listed(s.init_without) if s.init_without else None),
    ):
        if given is not None and "model" not in asked:
            raise UsageError(
                f"problem={name} {key}={given}: this problem has no model whose parameters could be read; leave "
                f"out {key}=."
            )


def launched_in_processes(s: Settings) -> bool:
    """Whether the launcher makes a process of every worker, with a problem and threads of its own."""
    return bool(getattr(locate("launcher", s.launcher["target"]), "forks", False))
