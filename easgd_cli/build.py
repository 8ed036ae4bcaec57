"""From settings to objects: the method, the schedule, the problem, and the data and model it is made of.

A group names its maker as `module:callable`, the package's own and a user's alike. Its options, and what the runner
offers by name (the paper's symbols for a method, the data and the model for a problem, the shape of the data for a model),
are matched with the callable's signature; whatever does not fit is a UsageError.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import os
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from easgd_cli.config import Group, Settings, effective_alpha, effective_beta
from easgd_cli.errors import UsageError
from easgd_cli.randomness import INIT, MADE_BY_USERS, seeded

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from easgd_cli.algorithms.base import Method
    from easgd_cli.average import Average
    from easgd_cli.data.dataset import Dataset
    from easgd_cli.problem import Problem
    from easgd_cli.schedule import Schedule


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


def method_for(problem: Problem, s: Settings) -> Method:
    """The method on this problem's vectors, statistics among them averaged. Raises UsageError."""
    from easgd_cli.algorithms.statistics import WithStatistics
    from easgd_cli.problem import statistics_of

    statistics = statistics_of(problem)
    return WithStatistics(method(s), statistics, s.workers) if statistics else method(s)


# What a schedule may ask for by name beside the symbols.
OFFERED_TO_SCHEDULES = ("steps", "warmup")


def schedule(s: Settings, steps: int | None) -> Schedule:
    """eta as a function of the worker's clock in a run of `steps` local steps of each worker, None: of unknown length. Raises UsageError."""
    from easgd_cli.schedule import Warmup

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


def model(s: Settings, images: Dataset) -> nn.Module:
    """A net for these images, initialised from the one seed, or as `init` says. Raises UsageError."""
    from easgd_cli.flat import Flat
    from easgd_cli.models import check_model

    if s.model["target"] is None:
        raise UsageError(f"problem={s.problem['name']} model={s.model['name']}: this problem needs a net; choose one, such as model=small.")
    offered = {"num_classes": images.num_classes, "input_shape": images.input_shape}
    with seeded(s.seed, INIT):
        net = make("model", s.model, offered)
    check_model(net, written("model", s.model), images, s.batch_size)
    if s.init is not None:
        state = _state_dict(s.init)
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
            offered["model"] = model(s, images)
    return make("problem", s.problem, offered)


def asked_by_problem(s: Settings) -> set[str]:
    """The names among OFFERED_TO_PROBLEMS that its maker has as parameters. Raises UsageError."""
    return set(OFFERED_TO_PROBLEMS) & set(signature(locate("problem", s.problem["target"])))


@dataclass(frozen=True)
class Prepared:
    """A run that has been checked to the end: everything a launcher needs, made once.

    `images`: None where the problem asks for none. `start` [size]: where what is evaluated begins, the center or, in a method
    without one, the worker. `steps`: local steps of each worker, None when the clock on the wall ends the run. `memory`: bytes
    that the run needs at its peak, as far as they are known before.
    """

    method: Method
    average: Average | None
    images: Dataset | None
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
        from easgd_cli.problem import statistics_of

        return self.size - statistics_of(self.problem)

    @property
    def dtype(self) -> torch.dtype:
        return self.start.dtype


def prepare(s: Settings) -> Prepared:
    """Loads the data, builds the problem and checks all that could fail later. Raises UsageError."""
    import torch

    from easgd_cli.config import total_steps
    from easgd_cli.devices import check_compiler, check_threads, deal_devices
    from easgd_cli.problem import check_problem

    rules, kept = method(s), average(s)
    check_threads(s)
    devices = deal_devices(s.device, s.workers)
    deal_devices(s.eval.device, 1, "eval.device")
    [owner] = deal_devices(s.center_device, 1, "center_device")
    if owner != "cpu" and rules.center and launched_in_processes(s) and set(devices) != {owner}:
        raise UsageError(f"center_device={s.center_device} device={s.device}: a center on a GPU is for workers that all compute there; write device={owner}.")
    if s.precision == "tf32" and any(not d.startswith("cuda") for d in devices):
        raise UsageError(f"precision=tf32 device={s.device}: tf32 is how CUDA devices multiply, and a worker would be on a CPU; use fp32, or bf16.")
    if s.compile and any(not d.startswith("cuda") for d in devices):
        check_compiler()
    asked = asked_by_problem(s)
    _refuse_unused(s, asked)
    images = data(s) if asked & {"images", "model"} else None
    steps = total_steps(s, None if images is None else images.count("train"))
    schedule(s, steps)
    minimised = problem(s, images, torch.device("cpu"))
    if images is None or not _own(s.problem):  # measuring our own on a whole data set would take seconds
        figures = check_problem(minimised, s.problem["name"], s.workers)
        if s.until.test_error is not None and "test_error" not in figures:
            raise UsageError(f"until.test_error={s.until.test_error:g}: problem={s.problem['name']} has no test_error, so the run would not end by it.")
    start = minimised.start(None if rules.center else 0)
    memory = _check_memory(s, rules, kept, start, images, devices.count("cpu"))
    return Prepared(method_for(minimised, s), kept, images, minimised, start, steps, memory)


def _refuse_unused(s: Settings, asked: set[str]) -> None:
    """Refuses what a problem does not ask for, instead of warning: a data set would bring its learning rate and length with it."""
    name = s.problem["name"]
    for group, wanted in (("dataset", {"images", "model"}), ("model", {"model"})):
        spec = getattr(s, group)
        if spec["target"] is not None and not asked & wanted:
            raise UsageError(f"problem={name} {group}={spec['name']}: this problem uses no {group}; leave out {group}=, or use problem=dataset.")
    if s.init is not None and "model" not in asked:
        raise UsageError(f"problem={name} init={s.init}: this problem has no model whose parameters could be read; leave out init=.")


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


def _check_outputs(net: nn.Module, state: Mapping[str, Any], s: Settings, num_classes: int) -> None:
    """Refuses a file of parameters of the same net with another number of classes."""
    others = {name: (getattr(state[name], "shape", own.shape), own.shape) for name, own in net.state_dict().items() if name in state}
    others = {name: shapes for name, shapes in others.items() if shapes[0] != shapes[1]}
    if others and all(len(theirs) and theirs[1:] == own[1:] and own[:1] == (num_classes,) for theirs, own in others.values()):
        name, (theirs, own) = next(iter(others.items()))
        raise UsageError(
            f"init={s.init}: {name} is {list(theirs)} in the file and {list(own)} in the net: the file is of a net for {theirs[0]} classes, and "
            f"dataset={s.dataset['name']} has {num_classes}; put a last layer of that size into the file, or use a data set with {theirs[0]} classes."
        )


def _check_memory(s: Settings, rules: Method, kept: Average | None, start: Tensor, images: Dataset | None, on_cpu: int) -> int:
    """Refuses a run that cannot fit: its vectors, batches of the workers `on_cpu`, and the copy of the data set that they share. Returns the bytes of all.

    What a net keeps for its backward pass is not known here and comes on top, and so do the processes themselves.
    """
    from easgd_cli.devices import cores
    from easgd_cli.memory import available_memory

    vectors = start.numel() * start.element_size() * vectors_needed(s, rules, kept, on_cpu)
    # As many as can be computed at once; of each image what the net takes, and 8 bytes each for its number, its draw and its label.
    batches = min(on_cpu, cores()) * s.batch_size * (math.prod(images.input_shape) * start.element_size() + 24) if images is not None else 0
    # In every worker the pixels of the batches that are decoded ahead, and of the one that becomes numbers.
    batches += s.workers * s.batch_size * math.prod(images.input_shape) * (images.ahead + 1) if images is not None and images.ahead else 0
    copied = images.nbytes if images is not None else 0
    available = available_memory()
    if available is None or vectors + batches + copied <= available:
        return vectors + batches + copied
    said = {
        f"workers={s.workers}": (vectors, "vectors", "use fewer workers or a smaller model"),
        f"batch_size={s.batch_size}": (batches, "batches", "use smaller batches or fewer workers"),
        f"dataset={s.dataset['name']}": (copied, "the copy of the data set that workers share", "use fewer or smaller images"),
    }
    written, (most, what, remedy) = max(said.items(), key=lambda item: item[1][0])
    raise UsageError(
        f"{written}: this run needs {_gib(vectors + batches + copied)}, {_gib(most)} of them for {what}, and {_gib(available)} are free; {remedy}."
    )


def vectors_needed(s: Settings, rules: Method, kept: Average | None, on_cpu: int) -> int:
    """How many vectors of the size of x a run has in memory at its peak, beside those of the prepared problem (docs/design.md, Memory).

    `on_cpu`: of the workers, how many compute there.
    """
    from easgd_cli.snapshot import IN_MEMORY

    average = kept is not None
    evaluated = 1 + average  # of a snapshot
    owner = len(rules.center) + average if rules.center else 0
    lasting = s.workers * (len(rules.state) + bool(rules.center) + (average and not rules.center))  # of the workers, replies among them
    scratch = s.workers * len(rules.scratch)
    closing = lasting + max(owner, evaluated) + 1  # the last checkpoint, all of it at once, and the state_dict that is saved
    if not launched_in_processes(s):
        return owner + lasting + scratch + closing + 2  # what backward adds to the gradient, and the evaluator's copy
    problems = 3 * on_cpu + (s.workers - on_cpu)  # gradient, start, and what backward adds to the gradient; a GPU's begins on the CPU
    evaluator = 3  # gradient, start, and its copy of a snapshot
    waiting = (2 if s.eval.every is None else IN_MEMORY + 1) * evaluated
    return owner + lasting + scratch + problems + evaluator + waiting + closing


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"


def launched_in_processes(s: Settings) -> bool:
    """Whether the launcher makes a process of every worker, with a problem and threads of its own."""
    return bool(getattr(locate("launcher", s.launcher["target"]), "forks", False))


def make(group: str, spec: Group, offered: Mapping[str, Any]) -> Any:
    """Calls the maker named by `spec["target"]` with the options of `spec` and what it asks for of `offered`.

    The name of the option itself is one of its options if the maker has a parameter `name`, as torchvision's nets do.

    Raises UsageError when the maker cannot be found, an option is unknown or of the wrong type, one is missing, or
    the maker itself raises ValueError.
    """
    maker = locate(group, spec["target"])
    given: dict[str, Any] = {}
    parameters = signature(maker)
    options = {k: v for k, v in spec.items() if k != "target" and (k != "name" or k in parameters)}
    for key, value in options.items():
        if key not in parameters:
            near = difflib.get_close_matches(key, parameters, 1)
            raise UsageError(f"{group}.{key}={value}: {spec['name']} has no such setting" + (f"; did you mean {group}.{near[0]}?" if near else "."))
        given[key] = convert(f"{group}.{key}", value, parameters[key].annotation)
    for key, parameter in parameters.items():
        if key in given:
            continue
        if key in offered:
            given[key] = offered[key]
        elif parameter.default is inspect.Parameter.empty:
            raise UsageError(f"{written(group, spec)} needs {group}.{key}, and no value was given.")
    try:
        return maker(**given)
    except ValueError as e:
        raise UsageError(str(e)) from e
    except UsageError:
        raise
    except (Exception, SystemExit) as e:
        if _own(spec):
            raise
        raise UsageError(f"{written(group, spec)}: calling it raised {_raised(e)}.") from e


def _own(spec: Group) -> bool:
    """Whether the maker is the package's, so that what it raises is a defect of ours."""
    return bool(spec["target"].startswith("easgd_cli."))


def written(group: str, spec: Group) -> str:
    """What a user writes to choose it: `model=small`, or `model.name=resnet18` where the maker takes the name."""
    return f"{group}{'.name' if 'name' in signature(locate(group, spec['target'])) else ''}={spec['name']}"


def example(group: str) -> str:
    """How something of a user's own is named in this group."""
    return f"{group}=my_module:{ {'algo': 'MyMethod', 'problem': 'MyProblem'}.get(group, f'my_{group}') }"


def locate(group: str, target: str) -> Callable[..., Any]:
    """The callable `module:name`, from the working directory or an installed package. Raises UsageError."""
    module, _, name = target.partition(":")
    if not module or not name:
        raise UsageError(f"{group}={target}: write it as module:name, such as {example(group)}.")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as e:
        missing = e.name or module
        if module == missing or module.startswith(missing + "."):
            raise UsageError(
                f"{group}={target}: there is no module {missing} in {here} or among the installed packages; go to the directory that holds it."
            ) from e
        raise UsageError(f"{group}={target}: importing {module} failed: it needs the module {missing}, which is not installed.") from e
    except (Exception, SystemExit) as e:
        raise UsageError(f"{group}={target}: importing {module} raised {_raised(e)}.") from e
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            near = difflib.get_close_matches(part, [n for n in vars(found) if not n.startswith("_")], 1)
            raise UsageError(f"{group}={target}: {module} has no {name}" + (f"; did you mean {module}:{near[0]}?" if near else ".")) from None
    if not callable(found):
        raise UsageError(f"{group}={target}: is a {type(found).__name__}, not something that can be called.")
    return found


def signature(maker: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The named parameters of `maker`, with annotations resolved where they can be."""
    try:
        parameters = inspect.signature(maker, eval_str=True).parameters
    except (NameError, TypeError):
        parameters = inspect.signature(maker).parameters
    return {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def convert(key: str, value: Any, annotation: Any) -> Any:
    """`value` as `annotation` asks (int, float, str, bool, list of these, or one of them with None).

    A whole number passes for a float; nothing else is bent. Raises UsageError.
    """
    if annotation in (inspect.Parameter.empty, Any) or isinstance(annotation, str):
        return value
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        kinds = typing.get_args(annotation)
        if value is None and type(None) in kinds:
            return None
        for kind in kinds:
            if kind is not type(None) and _fits(value, kind):
                return convert(key, value, kind)
        kinds = tuple(k for k in kinds if k is not type(None))
        if len(kinds) > 1:
            raise UsageError(f"{key}={value}: must be {' or '.join(_word(k) for k in kinds)}.")
        [annotation] = kinds
    if typing.get_origin(annotation) in (list, tuple):
        if not isinstance(value, list | tuple):
            raise UsageError(f"{key}={value}: must be a list, such as {key}=[1,2].")
        kind = typing.get_args(annotation)[0]
        items = [convert(key, v, kind) for v in value]
        return tuple(items) if typing.get_origin(annotation) is tuple else items
    if annotation in (int, float, str, bool) and not _fits(value, annotation):
        raise UsageError(f"{key}={value}: must be {_WORDS[annotation]}.")
    return float(value) if annotation is float else value


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", list: "a list", tuple: "a list"}


def _word(kind: Any) -> str:
    return _WORDS.get(typing.get_origin(kind) or kind, str(kind))


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) in (list, tuple):
        return isinstance(value, list | tuple)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind) if isinstance(kind, type) else True


def _raised(e: BaseException) -> str:
    """What a user's own code raised, and where: the last line that was run, or of a syntax error the line that cannot be read."""
    if isinstance(e, SyntaxError) and e.filename is not None:
        return f"{type(e).__name__}: {e.msg} ({e.filename}, line {e.lineno})"
    frame = traceback.extract_tb(e.__traceback__)[-1]
    return f"{type(e).__name__}: {' '.join(str(e).split())} ({frame.filename}, line {frame.lineno})"
