"""launcher=ddp and launcher=post_local_sgd: what a user of torch.distributed would pick, as runs like any other.

Every worker takes the steps of torch.optim.SGD; DistributedDataParallel averages their gradients in every step, or
PostLocalSGDOptimizer their parameters every so often. There is no master: the first worker's parameters are the center.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from easgd_cli.errors import UsageError
from easgd_cli.launcher.hosts.world import Torchrun, world
from easgd_cli.launcher.kinds import Local

if TYPE_CHECKING:
    from easgd_cli.algorithms.base import Method
    from easgd_cli.experiment.build import Experiment
    from easgd_cli.launcher.job import Job, Outcome
    from easgd_cli.settings.schema import Settings
    from easgd_cli.training.data_parallel import Averaging


@dataclass(frozen=True)
class DataParallel:
    """DistributedDataParallel: gradients are averaged in every step. Raises ValueError for more workers than the
    machine carries.
    """

    workers: int
    forks: ClassVar[bool] = True
    copies: ClassVar[bool] = True  # the workers are those of one sequential method
    periodic: ClassVar[bool] = False  # True if tau is used
    torch_name: ClassVar[str] = "DistributedDataParallel"

    def __post_init__(self) -> None:
        Local(self.workers)  # its limits: each worker has a process here
        if (started := world()) is not None:  # each of these would make a run of its own
            instead = "without torchrun" if isinstance(started, Torchrun) else "in a step of one task"
            raise ValueError(
                f"{started.starter} has started {started.size} processes, and easgd starts those of {self.torch_name} "
                f"itself, on this machine; call easgd train {instead}."
            )

    def begin(self) -> None:
        from easgd_cli.launcher.processes import fork_server

        fork_server.begin()

    def averaging(self) -> Averaging:
        """Returns when the workers wait for one another, and what they average then."""
        from easgd_cli.training.data_parallel import EveryStep

        return EveryStep()

    @staticmethod
    def check(s: Settings, method: Method) -> None:
        """Raises UsageError for settings that torch's loop does not have."""
        here, algo = f"launcher={s.launcher['name']}", s.algo["name"]
        if not method.alone or method.torch_sgd is None:
            local = f" local={s.local['name']}" if s.local["target"] is not None else ""
            raise UsageError(
                f"{here} algo={algo}{local}: its workers take the steps of torch.optim.SGD; use algo=sgd, with "
                "local=momentum or local=nesterov where you want momentum, or algo=msgd."
            )
        for key, given, usual, why in _refused(s):
            if given != usual:
                raise UsageError(f"{here} {key}={given}: {why}; leave out {key}=.")

    def __call__(self, job: Job, experiment: Experiment) -> Outcome:
        from easgd_cli.launcher.processes.peer_processes import launch

        if not hasattr(experiment.problem, "wrapped"):
            s = experiment.settings
            raise UsageError(
                f"launcher={s.launcher['name']} problem={s.problem['name']}: DistributedDataParallel wraps a net, and "
                "this problem has none; use problem=dataset."
            )
        return launch(job, experiment, self.averaging(), self.torch_name)


@dataclass(frozen=True)
class PostLocalSGD(DataParallel):
    """PostLocalSGDOptimizer with post_localSGD_hook: gradients are averaged in the first `ddp_steps` steps, parameters
    every `tau` steps from there on. Raises ValueError.
    """

    tau: int = 1
    ddp_steps: int = 0
    periodic: ClassVar[bool] = True
    torch_name: ClassVar[str] = "PostLocalSGDOptimizer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ddp_steps < 0:
            raise ValueError(f"launcher.ddp_steps={self.ddp_steps}: is a number of steps, 0 or more.")

    def averaging(self) -> Averaging:
        from easgd_cli.training.data_parallel import Periodically

        return Periodically(self.tau, self.ddp_steps)


def _refused(s: Settings) -> list[tuple[str, Any, Any, str]]:
    """Returns settings with the value given, the usual value, and why no other value is taken."""
    return [
        ("average", s.average["name"], "none", "no average of the center is kept beside torch's loop"),
        ("fragments", s.fragments, 1, "torch averages whole vectors"),
        ("masters", s.masters, 1, "there is no master"),
        ("wire", s.wire, "fp32", "torch sends vectors as they are"),
        ("center_device", s.center_device, "cpu", "there is no center beside the workers"),
        ("faults", s.faults, [], "there is no recovery, so no faults on purpose"),
        ("on_nan", s.on_nan, "diverge", "there is no center to go back to"),
        ("groups", s.groups, [], "the optimizer has one group of parameters"),
        ("accumulate", s.accumulate, 1, "gradients of several batches are not gathered before they are averaged"),
        ("profile", s.profile, None, "its workers write no traces"),
        ("problem.batch_norm", s.problem.get("batch_norm", "estimate"), "estimate", "torch averages parameters only"),
        ("tau", "auto" if s.auto.tau else s.tau, s.tau, "there are no exchanges with a center to be measured"),
    ]
