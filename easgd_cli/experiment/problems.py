"""From settings to data, a task, a net and the problem that they make. A problem is offered data and net by name; a
net, the shape of the data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from easgd_cli.errors import UsageError
from easgd_cli.experiment.initial_parameters import read_into
from easgd_cli.randomness import INIT, MADE_BY_USERS, seeded
from easgd_cli.settings import groups
from easgd_cli.settings.schema import BY_DATA, Settings
from easgd_cli.settings.targets import convert, locate, make, ours, signature, written

if TYPE_CHECKING:
    import torch
    from torch import nn

    from easgd_cli.data.dataset import Dataset
    from easgd_cli.problems.base import Problem
    from easgd_cli.problems.metric import Metrics
    from easgd_cli.problems.tasks.base import Task


def data(s: Settings) -> Dataset:
    """Returns the data set, images normalised as `dataset.mean` and `dataset.std` say, with `dataset.validation`
    samples held out of training. Raises UsageError.
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
    own = signature(locate("dataset", options["target"]))  # a user's data set may have such settings itself
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


# Settings that every user's data set has, unless its maker has parameters of these names itself.
_OF_ALL_DATA: dict[str, Any] = {
    "mean": list[float] | None, "std": list[float] | None, "test": float | None, "collate": str | None,
    "loaders": int | None,
}  # fmt: skip


def _made(s: Settings, options: dict[str, Any]) -> Any:
    """Returns what the maker makes; a Dataset with a parameter `train` or `split` is made once for each split."""
    key = split_parameter(locate("dataset", options["target"]))
    if key is not None:
        return tuple(make("dataset", options, {"seed": s.seed, key: value}) for value in _SPLITS[key])
    return make("dataset", options, {"seed": s.seed})


_SPLITS: dict[str, tuple[Any, Any]] = {"train": (True, False), "split": ("train", "test")}


def split_parameter(maker: Callable[..., Any]) -> str | None:
    """Returns which parameter tells a class of Datasets its split, as torchvision's have: `train`, `split` or None."""
    is_dataset = isinstance(maker, type) and hasattr(maker, "__getitem__")
    return next((key for key in _SPLITS if is_dataset and key in signature(maker)), None)


def task(s: Settings, data: Dataset) -> Task:
    """Returns the task for which a net is trained on these data. Raises UsageError."""
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
    """Returns the names under which a user's function takes outputs and targets, if it is itself a loss; none if it
    makes one.
    """
    if not inspect.isfunction(maker):
        return []
    first = list(signature(maker).values())[:2]
    wanted = [p.name for p in first if p.default is p.empty and p.name != "data"]
    return wanted if len(wanted) == 2 else []


def model(s: Settings, data: Dataset | None, checked: bool = True, trained_for: Task | None = None) -> nn.Module:
    """Returns a net for these data, initialised from the one seed, or as `init` says, and `checked` on two samples.
    `trained_for`: the task, made here unless given. Raises UsageError.

    Without data, or where the problem feeds the net with something else, the maker alone decides about the net.
    """
    from easgd_cli.models import check_model

    if s.model["target"] is None:
        raise UsageError(
            f"problem={s.problem['name']} model={s.model['name']}: this problem needs a net; choose one, such as "
            "model=small."
        )
    if trained_for is None and data is not None:
        trained_for = task(s, data)
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


# What a problem may ask for by name (see `problem`). Data, task and net are made only for a problem that asks
# for them; `images` is the older name of `data`.
OFFERED_TO_PROBLEMS = (
    "seed", "workers", "batch_size", "accumulate", "replicas", "dither", "l2", "groups", "device", "precision",
    "compile", "data", "images", "task", "model", "train_images",
)  # fmt: skip


def problem(s: Settings, data: Dataset | None, device: torch.device) -> Problem:
    """Returns the problem, on `device`; with a net of its own where it asks for one. Raises UsageError."""
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
        offered["model"] = model(s, data, trained_for is not None, trained_for)
    return make("problem", s.problem, offered)


def declared_metrics(s: Settings) -> Metrics:
    """Returns the metrics that the problem declares, known before it is made. The data are loaded if the metrics depend
    on them. Raises UsageError.
    """
    from easgd_cli.problems.classification import metrics_of

    if "task" not in asked_by_problem(s):
        return metrics_of(locate("problem", s.problem["target"]))
    if ours(s.task) and s.task["target"] != BY_DATA["target"]:
        return metrics_of(locate("task", s.task["target"]))
    return metrics_of(task(s, data(s)))


def asked_by_problem(s: Settings) -> set[str]:
    """Returns those of OFFERED_TO_PROBLEMS that the problem's maker has as parameters. Raises UsageError."""
    return set(OFFERED_TO_PROBLEMS) & set(signature(locate("problem", s.problem["target"])))


DATA = {"data", "images"}  # a problem that uses data asks for one of these


def asks_for_data(s: Settings, asked: set[str]) -> bool:
    """Whether the problem, which has `asked` for these names, is given a data set, or its net the shape of one. Raises
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
