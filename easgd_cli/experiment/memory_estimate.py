"""What a run needs in memory at its peak, counted before it starts; what does not fit is refused (docs/design.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from easgd_cli.algorithms.base import EXCHANGES
from easgd_cli.errors import UsageError
from easgd_cli.experiment.checks import launched_in_processes, of_copies, periodic
from easgd_cli.settings.schema import samples_a_step
from easgd_cli.system import shared_memory
from easgd_cli.system.devices import cores

if TYPE_CHECKING:
    from torch import Tensor

    from easgd_cli.algorithms.average import Average
    from easgd_cli.algorithms.base import Method
    from easgd_cli.data.dataset import Dataset
    from easgd_cli.settings.schema import Settings


SNAPSHOTS_IN_MEMORY = 8  # snapshots that wait in memory to be measured; more wait on disk


@dataclass(frozen=True)
class Part:
    """The part of a run on one machine. `computing`: how many workers compute there; `on_cpu`: how many of them on the
    CPU. `serves`: whether the owners, the evaluator, the launcher, and a copy of the vectors of every worker elsewhere
    are there. If not, `masters`: how many masters of a slice, each with that slice of every worker's vectors.
    """

    computing: int
    on_cpu: int
    serves: bool = True
    masters: int = 0


def check_memory(
    s: Settings, rules: Method, kept: Average | None, start: Tensor, data: Dataset | None, *, here: Part
) -> int:
    """Returns the bytes of a run's vectors, of the batches of the workers on the CPU, and of the copy of the data set
    that they share, as far as they are on this machine.

    `start` [size]: one vector. What a net keeps for its backward pass is not known here and comes on top, and so do the
    processes themselves. Raises UsageError where less is free.
    """
    vectors = start.numel() * start.element_size() * _vectors(s, rules, kept, here)
    # As many batches as can be computed at once; for each sample the net's input, and 8 bytes each for its number, its
    # draw and its label.
    batches = 0 if data is None else samples_a_step(s) * s.replicas * (data.sample_size * start.element_size() + 24)
    batches *= min(here.on_cpu, cores())
    # In every worker, the pixels of the batches that are decoded ahead and of the one that becomes numbers.
    if data is not None and data.ahead:
        batches += here.computing * s.batch_size * data.sample_size * (data.ahead + 1)
    copied = data.nbytes if data is not None else 0
    owned = here.masters * start.element_size() * -(-start.numel() * _owned(s, rules, kept) // s.masters)
    needed, available = vectors + batches + copied + owned, shared_memory.available_memory()
    if available is None or needed <= available:
        return needed
    workers, copy = s.workers if here.serves else here.computing, "the copy of the data set that workers share"
    slices, fewer = "slices of the center and of all workers' vectors", "use fewer workers or a smaller model"
    said = {
        f"workers={workers}": (vectors, "vectors", fewer),
        f"batch_size={s.batch_size}": (batches, "batches", "use smaller batches or fewer workers"),
        f"dataset={s.dataset['name']}": (copied, copy, "use fewer or smaller images"),
        f"masters={here.masters}": (owned, slices, f"offer fewer masters, or {fewer}"),
    }
    written, (most, what, remedy) = max(said.items(), key=lambda item: item[1][0])
    raise UsageError(
        f"{written}: this run needs {_gib(needed)}, {_gib(most)} of them for {what}, and "
        f"{_gib(available)} are free; {remedy}."
    )


def _vectors(s: Settings, rules: Method, kept: Average | None, here: Part) -> int:
    """Returns how many vectors of the size of x there are, beside those of the prepared problem."""
    average = kept is not None
    evaluated = 1 + average  # the vectors of a snapshot
    # couriers share the replies of a step
    owner = sum(len(of.state) for of in rules.variables.values()) + (average and not rules.alone)
    owner += sum(len(of.vectors) for of in rules.couriers.values()) + (EXCHANGES if rules.couriers else 0)
    lasting = len(rules.state) + (average if rules.alone else 1)  # a worker's vectors, its reply among them
    # gradient, start, and what backward adds to the gradient; a worker on a GPU has its start on the CPU
    problems = 3 * here.on_cpu + (here.computing - here.on_cpu)
    if of_copies(s):  # torch's: parameters and velocity, the gradients' buckets, and a buffer for means
        problems += here.on_cpu * (len(rules.state) + 1 + periodic(s))
    # replicas of the center, and messages that become sums
    summed, replica = s.launcher.get("transport") == "collective", owner - average
    if not here.serves:  # each worker may become the lead, so it has the places of three sums
        return here.computing * (lasting + len(rules.scratch) + (replica + 4 if summed else 0)) + problems
    lasting, scratch = s.workers * lasting, s.workers * len(rules.scratch)
    # the last checkpoint, whole, and the state_dict that is saved
    closing = lasting + max(owner, evaluated) + 1
    if not launched_in_processes(s):
        return owner + lasting + scratch + closing + 2  # what backward adds to the gradient, and the evaluator's copy
    evaluator = 3  # gradient, start, and its copy of a snapshot
    waiting = (2 if s.eval.every is None else SNAPSHOTS_IN_MEMORY + 1) * evaluated
    before = owner if rules.closes else 0  # the owner's vectors before the closing exchange
    if summed:  # all replicas, three sums, and a reply
        lasting += s.workers * replica + here.computing + 4
    slices = owner if s.masters > 1 else 0  # a snapshot's slices, beside the whole vectors made of them
    return owner + lasting + scratch + problems + evaluator + waiting + closing + before + slices


def _owned(s: Settings, rules: Method, kept: Average | None) -> int:
    """Returns how many slices a master on a joined host has: of the center, of all workers' vectors, and of snapshots,
    two on their way and all vectors of the center.
    """
    average = kept is not None
    center = sum(len(of.state) for of in rules.variables.values()) + average
    return 2 * center + 2 * (1 + average) + s.workers * (len(rules.state) + 1 + len(rules.scratch))


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
