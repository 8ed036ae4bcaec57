"""From settings to objects: the method, the schedule, the problem, and the data and model it is made of.

Each comes from the maker that its group names (`settings/targets.py`), which is offered by name what the runner has: a method the paper's
symbols, a problem the data and the model, a model the shape of the data.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from easgd_cli.errors import UsageError
from easgd_cli.randomness import INIT, MADE_BY_USERS, seeded
from easgd_cli.settings.schema import Settings, effective_alpha, effective_beta, levels
from easgd_cli.settings.targets import convert, locate, make, ours, signature, written

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from easgd_cli.algorithms.average import Average
    from easgd_cli.algorithms.base import Method
    from easgd_cli.algorithms.schedule import Schedule
    from easgd_cli.data.dataset import Dataset
    from easgd_cli.problems.base import Problem
    from easgd_cli.problems.metric import Metrics


def symbols(s: Settings) -> dict[str, Any]:
    """What a method or schedule may ask for by the paper's names."""
    return {
        "tau": s.tau, "eta": s.eta, "alpha": effective_alpha(s), "beta": effective_beta(s), "delta": s.delta,
        "gamma": s.gamma, "l2": s.l2, "workers": s.workers,
    }  # fmt: skip


def method(s: Settings) -> Method:
    """The method's two rules, with their constants. Raises UsageError."""
    from easgd_cli.algorithms.base import check_method

    if s.alpha is not None and s.beta is not None and not {"alpha", "beta"} <= signature(locate("algo", s.algo["target"])).keys():
        raise UsageError(f"alpha={s.alpha} beta={s.beta}: give one of the two; beta is workers * alpha, so either follows from the other.")
    try:
        made = make("algo", s.algo, symbols(s))
    except UsageError as e:
        if s.alpha is None and s.beta is not None and str(e).startswith("alpha="):  # which the user has not written
            raise UsageError(f"beta={s.beta:g} with workers={s.workers} makes {e}") from e
        raise
    check_method(made, s.algo["name"], workers=s.workers)
    return made


def on_vectors_of(problem: Problem, rules: Method, workers: int) -> Method:
    """The method on this problem's vectors, statistics among them averaged."""
    from easgd_cli.algorithms.statistics import WithStatistics
    from easgd_cli.problems.base import statistics_of

    statistics = statistics_of(problem)
    return WithStatistics(rules, statistics, workers) if statistics else rules


# What a schedule may ask for by name beside the symbols.
OFFERED_TO_SCHEDULES = ("steps", "warmup")


def schedule(s: Settings, steps: int | None) -> Schedule:
    """eta as a function of the worker's clock in a run of `steps` local steps of each worker, None: of unknown length. Raises UsageError."""
    from easgd_cli.algorithms.schedule import Warmup

    if steps is None and follows_the_length(s):
        raise UsageError(
            f"schedule={s.schedule['name']} minutes={s.minutes:g}: this schedule follows the run's local steps, and nobody knows how many minutes hold; "
            "give steps= or epochs=, or use schedule=decay."
        )
    if steps is not None and s.warmup >= steps:
        raise UsageError(f"warmup={s.warmup}: the run has {steps} local steps; a warm-up is shorter than the run.")
    made: Schedule = make("schedule", s.schedule, symbols(s) | {"steps": steps, "warmup": s.warmup})
    return Warmup(made, s.warmup) if s.warmup else made


def follows_the_length(s: Settings) -> bool:
    """Whether the schedule asks how many steps the run has, so that another length is another run from its first step on. Raises UsageError."""
    return "steps" in signature(locate("schedule", s.schedule["target"]))


def average(s: Settings) -> Average | None:
    """The weights of the center in its average; None where none is kept. Raises UsageError."""
    return make("average", s.average, {})


def data(s: Settings) -> Dataset:
    """The data set, normalised as `dataset.mean` and `dataset.std` say, with `dataset.validation` images held out of training. Raises UsageError."""
    from easgd_cli.data.images import as_images
    from easgd_cli.data.stored import StoredImages

    if s.dataset["target"] is None:
        raise UsageError(f"problem={s.problem['name']} dataset={s.dataset['name']}: this problem needs images; choose a data set, such as dataset=digits.")
    options = dict(s.dataset)
    held_out = convert("dataset.validation", options.pop("validation", 0), int)
    own = signature(locate("dataset", options["target"]))  # a data set of the user's may have such settings itself
    mean, std = (None if name in own else convert(f"dataset.{name}", options.pop(name, None), list[float] | None) for name in ("mean", "std"))
    with seeded(s.seed, MADE_BY_USERS):
        made = make("dataset", options, {"seed": s.seed})
        images: Dataset = made if isinstance(made, StoredImages) else as_images(made, s.dataset["name"])
    images = images.normalised(mean, std) if mean is not None or std is not None else images
    return images.hold_out(held_out) if held_out else images


def model(s: Settings, images: Dataset | None, checked: bool = True) -> nn.Module:
    """A net for these images, `checked` on two of them, initialised from the one seed, or as `init` says. Raises UsageError.

    Without images, or where the problem feeds it with something else, it is what its maker makes of it.
    """
    from easgd_cli.models import check_model
    from easgd_cli.problems.flat import Flat

    if s.model["target"] is None:
        raise UsageError(f"problem={s.problem['name']} model={s.model['name']}: this problem needs a net; choose one, such as model=small.")
    offered = {} if images is None else {"num_classes": images.num_classes, "input_shape": images.input_shape}
    with seeded(s.seed, INIT):
        net = make("model", s.model, offered)
    check_model(net, written("model", s.model), images if checked else None, s.batch_size)
    if s.init_without and s.init is None:
        raise UsageError(f"init_without={_listed(s.init_without)}: there is no file to leave these out of; give init=, or leave it out.")
    if s.init is not None:
        state = _without(_state_dict(s.init), net, s)
        if images is not None and checked:
            _check_outputs(net, state, s, images.num_classes)
        Flat(net).load(state, f"init={s.init}")
        net.load_state_dict(dict(state))  # without the versions of layers that came with it: names and shapes have been checked
        net.zero_grad(set_to_none=True)
    return net


# What a problem may ask for by name (see `problem`). Data and net are made only for one that does.
OFFERED_TO_PROBLEMS = ("seed", "workers", "batch_size", "l2", "device", "precision", "compile", "images", "model", "train_images")


def problem(s: Settings, images: Dataset | None, device: torch.device) -> Problem:
    """What is minimised, on `device`; with a net of its own where it asks for one. Raises UsageError."""
    asked = asked_by_problem(s)
    offered: dict[str, Any] = {
        "seed": s.seed, "workers": s.workers, "batch_size": s.batch_size, "l2": s.l2, "device": device, "precision": s.precision, "compile": s.compile,
        "train_images": s.eval.train_images,
    }  # fmt: skip
    if images is not None:
        offered["images"] = images
    if "model" in asked:
        offered["model"] = model(s, images, checked="images" in asked)
    return make("problem", s.problem, offered)


def declared_metrics(s: Settings) -> Metrics:
    """What the problem declares that it measures, known before it is made. Raises UsageError."""
    from easgd_cli.problems.classification import metrics_of

    return metrics_of(locate("problem", s.problem["target"]))


def asked_by_problem(s: Settings) -> set[str]:
    """The names among OFFERED_TO_PROBLEMS that its maker has as parameters. Raises UsageError."""
    return set(OFFERED_TO_PROBLEMS) & set(signature(locate("problem", s.problem["target"])))


def asks_for_images(s: Settings, asked: set[str]) -> bool:
    """Whether the problem, which has `asked` for so much, is given a data set, or its net the shape of one. Raises UsageError."""
    shaped = "model" in asked and s.model["target"] and {"num_classes", "input_shape"} & set(signature(locate("model", s.model["target"])))
    if shaped and "images" not in asked and s.dataset["target"] is None:
        raise UsageError(
            f"problem={s.problem['name']} model={s.model['name']}: this net asks for the shape of images, and there are none; choose a net of your own "
            "with sizes of its own, or a data set whose shape it is to have, such as dataset=digits."
        )
    return "images" in asked or bool(shaped)


@dataclass(frozen=True)
class Prepared:
    """A run that has been checked to the end: everything a launcher needs, made once.

    `data`: None where the problem asks for none. `start` [size]: where what is evaluated begins, the center or, in a method
    without one, the worker. `steps`: local steps of each worker, None when the clock on the wall ends the run. `memory`: bytes
    that the run needs at its peak, as far as they are known before.
    """

    method: Method
    average: Average | None
    data: Dataset | None
    problem: Problem
    start: Tensor
    steps: int | None
    memory: int

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


def prepare(s: Settings) -> Prepared:
    """Loads the data, builds the problem and checks all that could fail later. Raises UsageError."""
    import torch

    from easgd_cli.experiment.memory_estimate import check_memory
    from easgd_cli.problems.base import check_problem
    from easgd_cli.settings.schema import total_steps
    from easgd_cli.system.devices import check_compiler, check_threads, deal_devices

    rules, kept = method(s), average(s)
    check_threads(s)
    devices = deal_devices(s.device, s.workers)
    deal_devices(s.eval.device, 1, "eval.device")
    [owner] = deal_devices(s.center_device, 1, "center_device")
    if owner != "cpu" and rules.shared is not None and launched_in_processes(s) and set(devices) != {owner}:
        raise UsageError(f"center_device={s.center_device} device={s.device}: a center on a GPU is for workers that all compute there; write device={owner}.")
    if s.precision == "tf32" and any(not d.startswith("cuda") for d in devices):
        raise UsageError(f"precision=tf32 device={s.device}: tf32 is how CUDA devices multiply, and a worker would be on a CPU; use fp32, or bf16.")
    if s.compile and any(not d.startswith("cuda") for d in devices):
        check_compiler()
    asked = asked_by_problem(s)
    _refuse_unused(s, asked)
    images = data(s) if asks_for_images(s, asked) else None
    steps = total_steps(s, None if images is None else images.count("train"))
    schedule(s, steps)
    minimised = problem(s, images, torch.device("cpu"))
    if images is None or not ours(s.problem):  # measuring our own on a whole data set would take seconds
        figures = check_problem(minimised, s.problem["name"], s.workers)
        for name, level in levels(s).items():
            if name not in figures:
                raise UsageError(f"until.{name}={level:g}: problem={s.problem['name']} has no {name}, so the run would not end by it.")
    start = minimised.start(None if rules.shared is not None else 0)
    memory = check_memory(s, rules, kept, start, images, on_cpu=devices.count("cpu"), in_processes=launched_in_processes(s))
    return Prepared(on_vectors_of(minimised, rules, s.workers), kept, images, minimised, start, steps, memory)


def _refuse_unused(s: Settings, asked: set[str]) -> None:
    """Refuses what a problem does not ask for, instead of warning: a data set would bring its learning rate and length with it."""
    name = s.problem["name"]
    for group, wanted in (("dataset", {"images", "model"}), ("model", {"model"})):
        spec = getattr(s, group)
        if spec["target"] is not None and not asked & wanted:
            raise UsageError(f"problem={name} {group}={spec['name']}: this problem uses no {group}; leave out {group}=, or use problem=dataset.")
    for key, given in (("init", s.init), ("init_without", _listed(s.init_without) if s.init_without else None)):
        if given is not None and "model" not in asked:
            raise UsageError(f"problem={name} {key}={given}: this problem has no model whose parameters could be read; leave out {key}=.")


def _state_dict(path: str) -> dict[str, Any]:
    """A saved state_dict. Raises UsageError."""
    import torch

    if not os.path.isfile(path):
        raise UsageError(f"init={path}: there is no such file; give a state_dict saved with torch.save, such as a run's center.pt.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        raise UsageError(f"init={path}: cannot be read as a file of parameters ({type(e).__name__}); it must be a state_dict saved with torch.save.") from e
    if not isinstance(content, dict):
        raise UsageError(f"init={path}: holds a {type(content).__name__}; it must be a state_dict saved with torch.save.")
    return content


def _without(state: Mapping[Any, Any], net: nn.Module, s: Settings) -> dict[Any, Any]:
    """What is in the file, but of the modules and parameters in `init_without` what is in the net."""
    own = net.state_dict()
    for name in s.init_without:
        if not any(_within(key, name) for key in (*state, *own)):
            raise UsageError(
                f"init_without={_listed(s.init_without)}: neither init={s.init} nor the net has a module or parameter {name}; the net's are "
                f"{', '.join(dict.fromkeys(key.split('.')[0] for key in own))}."
            )
    left_out = {key for key in (*state, *own) if any(_within(key, name) for name in s.init_without)}
    return {key: value for key, value in state.items() if key not in left_out} | {key: value for key, value in own.items() if key in left_out}


def _listed(names: Sequence[str]) -> str:
    """As they are written on the command line."""
    return f"[{','.join(names)}]"


def _within(key: Any, name: str) -> bool:
    """Whether that entry of a state_dict is the parameter `name`, or one of the module `name`."""
    return key == name or str(key).startswith(f"{name}.")


def _check_outputs(net: nn.Module, state: Mapping[str, Any], s: Settings, num_classes: int) -> None:
    """Refuses a file of parameters of the same net with another number of classes."""
    others = {name: (getattr(state[name], "shape", own.shape), own.shape) for name, own in net.state_dict().items() if name in state}
    others = {name: shapes for name, shapes in others.items() if shapes[0] != shapes[1]}
    if others and all(len(theirs) and theirs[1:] == own[1:] and own[:1] == (num_classes,) for theirs, own in others.values()):
        name, (theirs, own) = next(iter(others.items()))
        raise UsageError(
            f"init={s.init}: {name} is {list(theirs)} in the file and {list(own)} in the net: the file is of a net for {theirs[0]} classes, and "
            f"dataset={s.dataset['name']} has {num_classes}; "
            f"give init_without=[{name.rpartition('.')[0] or name}] to begin with a new last layer, or use a data set with {theirs[0]} classes."
        )


def launched_in_processes(s: Settings) -> bool:
    """Whether the launcher makes a process of every worker, with a problem and threads of its own."""
    return bool(getattr(locate("launcher", s.launcher["target"]), "forks", False))
