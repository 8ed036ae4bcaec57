"""Checks of an experiment before it runs: what is refused, and what is doubtful about its data."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from easgd_cli.errors import UsageError
from easgd_cli.experiment.initial_parameters import listed
from easgd_cli.experiment.problems import DATA
from easgd_cli.settings.schema import Settings, levels
from easgd_cli.settings.targets import locate

if TYPE_CHECKING:
    from easgd_cli.algorithms.base import Method
    from easgd_cli.data.dataset import Dataset
    from easgd_cli.problems.metric import Metrics


def doubts_of(s: Settings, given: Dataset) -> tuple[str, ...]:
    """Returns the doubts about the data, in a sentence each. Raises UsageError."""
    from easgd_cli.data.doubts import doubts

    ignored = s.task.get("ignore_index", -100)  # the default of torch's losses
    return tuple(doubts(given, s.dataset["name"], ignored if isinstance(ignored, int) else None))


def check_levels(s: Settings, metrics: Metrics, measured: Collection[str]) -> None:
    """Raises UsageError for a level of `until` that no evaluation, which has the metrics `measured`, can reach."""
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


def check_devices(s: Settings, rules: Method) -> list[str]:
    """Returns the workers' devices. Raises UsageError for devices that this machine lacks, or work they cannot do."""
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
    if owner != "cpu" and not rules.alone and s.masters > 1:
        raise UsageError(
            f"masters={s.masters} center_device={s.center_device}: slices of a center lie in the host's memory, where "
            "several processes take them; leave out one of the two."
        )
    if s.precision == "tf32" and any(not d.startswith("cuda") for d in devices):
        raise UsageError(
            f"precision=tf32 device={s.device}: tf32 is how CUDA devices multiply, and a worker would be on a "
            "CPU; use fp32, or bf16."
        )
    if s.compile and any(not d.startswith("cuda") for d in devices):
        check_compiler()
    return devices


def check_slices(s: Settings, rules: Method, size: int) -> None:
    """Raises UsageError if vectors [size] are too short for the run's masters."""
    from easgd_cli.algorithms.slices import slices

    try:
        slices(size, 1 if rules.alone else s.masters)
    except ValueError as e:
        raise UsageError(str(e)) from e


def refuse_unused(s: Settings, asked: set[str]) -> None:
    """Refuses settings that a problem does not ask for. A warning would not do: a data set would bring its learning
    rate and length with it.
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
    without = listed(s.init_without) if s.init_without else None
    for key, given in (("init", s.init), ("init_prefix", s.init_prefix), ("init_without", without)):
        if given is not None and "model" not in asked:
            raise UsageError(
                f"problem={name} {key}={given}: this problem has no model whose parameters could be read; leave "
                f"out {key}=."
            )


def check_launcher(s: Settings, rules: Method) -> None:
    """Raises UsageError for what the launcher cannot run."""
    check = getattr(locate("launcher", s.launcher["target"]), "check", None)
    if check is not None:
        check(s, rules)


def of_copies(s: Settings) -> bool:
    """Whether the launcher's workers are copies of one sequential method, which torch.distributed keeps together."""
    return bool(getattr(locate("launcher", s.launcher["target"]), "copies", False))


def periodic(s: Settings) -> bool:
    """Whether workers that are such copies are averaged every tau steps, and not in every step."""
    return bool(getattr(locate("launcher", s.launcher["target"]), "periodic", False))


def launched_in_processes(s: Settings) -> bool:
    """Whether the launcher makes a process of every worker, with a problem and threads of its own."""
    return bool(getattr(locate("launcher", s.launcher["target"]), "forks", False))


def workers_here(s: Settings) -> int:
    """How many workers compute on the machine that the launcher is on."""
    count = getattr(locate("launcher", s.launcher["target"]), "workers_here", None)
    return s.workers if count is None else int(count(s))
