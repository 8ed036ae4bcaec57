"""Methods with more variables than a center: trees, groups and gossip against transcriptions of their equations, and
their runs, resumed and replayed, bit for bit.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_algorithms import ALPHA, START, FunctionOf, falling, noisy
from test_runs import rows, run, settings
from test_simulated import UNEVEN, center_of, on_a_function, same_files, stopped_after, virtual
from torch import Tensor

from easgd_cli.algorithms import EASGD, EASGDTree, Gossip, GossipPull, GossipPush, GroupedEASGD
from easgd_cli.algorithms.base import CENTER, Method, Worker
from easgd_cli.algorithms.local.nesterov import Nesterov
from easgd_cli.algorithms.schedule import Constant
from easgd_cli.commands.single_run import checked
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.launcher.job import Outcome
from easgd_cli.randomness import RULE, uniform
from easgd_cli.record.reader import Entries, by_variable, read_order, summary_of
from easgd_cli.settings.schema import Eval, Settings
from easgd_cli.training.drive import ByHand
from easgd_cli.training.gathering import Recorded, Round


def by_hand(method: Method, p: int, tau: int = 1, steps: int | None = None, **values: Any) -> ByHand:
    problem = values.pop("problem", FunctionOf())
    return ByHand(
        method, problem, workers=p, tau=tau, schedule=falling, start=values.pop("start", START), steps=steps, **values
    )


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def turns(p: int, steps: int, seed: int = 0) -> list[int]:
    """Whose turn it is: each has so many steps, in any order."""
    order = [i for i in range(p) for _ in range(steps)]
    random.Random(seed).shuffle(order)
    return order


# --- the tree --------------------------------------------------------------------------------------------------------


class Tree:
    """A tree in plain tensors: x of leaves 0 .. p - 1 and of inner nodes by name, `parent` of each but the root."""

    def __init__(self, parent: dict[Any, str], p: int, alpha: float, up: int, down: int, above: dict[str, Any]):
        self.x = {node: START.clone() for node in [*parent, CENTER]}
        self.t = dict.fromkeys(range(p), 0)
        self.updates = dict.fromkeys(above, 0)
        self.parent, self.alpha, self.up, self.down, self.above = parent, alpha, up, down, above

    def arrives(self, node: str, received: Tensor) -> None:
        self.x[node] = self.x[node] + self.alpha * (received - self.x[node])

    def child_sends(self, node: str, sent: Tensor) -> None:
        self.arrives(node, sent)
        if node in self.above:
            self.updates[node] += 1
            up, down = (self.updates[node] % period == 0 for period in self.above[node])
            old, parent = self.x[node].clone(), self.parent[node]
            theirs = self.x[parent].clone()
            if up:
                self.child_sends(parent, old)
            if down:
                self.arrives(node, theirs)

    def step(self, i: int) -> None:
        t, x, node = self.t[i], self.x[i].clone(), self.parent[i]
        theirs = self.x[node].clone()
        if t % self.up == 0:
            self.child_sends(node, x)
        if t % self.down == 0:
            self.x[i] = self.x[i] + self.alpha * (theirs - self.x[i])
        self.x[i] = self.x[i] - falling(t) * noisy(i, t, x)
        self.t[i] += 1


# Seven leaves, two children a node: the links by hand.
PARENTS: dict[Any, str] = {
    **{0: "node_3", 1: "node_3", 2: "node_4", 3: "node_4", 4: "node_5", 5: "node_5", 6: "node_6"},
    **{"node_3": "node_1", "node_4": "node_1", "node_5": "node_2", "node_6": "node_2"},
    **{"node_1": CENTER, "node_2": CENTER},
}


@pytest.mark.parametrize(
    ("periods", "tau", "up", "down", "above"),
    [
        # tau1 = 2, tau2 = 6: two leaves make 6 updates of a node in 6 steps, the only leaf of node_6 makes 3
        ({"tau2": 6}, 2, 2, 2, {"node_6": (3, 3), **dict.fromkeys(("node_3", "node_4", "node_5"), (6, 6))}),
        # up every 2, down every 6
        (
            {"tau_up": 2, "tau_down": 6},
            1,
            2,
            6,
            {"node_6": (1, 3), **dict.fromkeys(("node_3", "node_4", "node_5"), (2, 6))},
        ),
    ],
)
def test_a_tree_is_its_equations_in_any_order(
    periods: dict[str, int], tau: int, up: int, down: int, above: dict[str, Any]
) -> None:
    upper = (2, 2) if up == down else (2, 6)
    tree = Tree(PARENTS, 7, 0.15, up, down, {**above, "node_1": upper, "node_2": upper})
    driver = by_hand(EASGDTree(workers=7, tau=tau, alpha=0.15, degree=2, **periods), 7, tau)
    for i in turns(7, 40):
        driver.step(i)
        tree.step(i)
        for node, center in driver.centers.items():
            close(center.vectors["x"], tree.x[node])
        close(driver.workers[i].x, tree.x[i])


def test_the_tree_has_the_shape_that_degree_and_depth_say() -> None:
    big = EASGDTree(workers=256, tau=10)
    assert len(big.variables) == 17 and {big.home(i) for i in range(16)} == {"node_1"} and big.home(255) == "node_16"
    assert {courier.step.args for courier in big.couriers.values()} == {  # type: ignore[attr-defined]
        (f"node_{k + 1}", 160, 160) for k in range(16)
    }
    deep = EASGDTree(workers=4, tau=1, degree=4, depth=3)
    assert list(deep.variables) == [CENTER, "node_1", "node_2"] and deep.home(3) == "node_2"


@pytest.mark.parametrize("options", [{"degree": 16}, {"degree": 3, "depth": 1}])
def test_a_tree_of_depth_1_is_easgd_with_its_alpha_bit_for_bit(options: dict[str, int]) -> None:
    tree = by_hand(EASGDTree(workers=3, tau=3, beta=0.9, **options), 3, 3)
    star = by_hand(EASGD(0.9 / (options["degree"] + 1)), 3, 3)
    for i in turns(3, 30):
        tree.step(i)
        star.step(i)
    assert torch.equal(tree.vectors()["x"], star.vectors()["x"]) and tree.order == star.order
    assert all(torch.equal(a.x, b.x) for a, b in zip(tree.workers, star.workers, strict=True))


# --- groups ----------------------------------------------------------------------------------------------------------


def test_groups_of_one_are_easgd_bit_for_bit() -> None:
    groups, star = (by_hand(m, 4, 3) for m in (GroupedEASGD(workers=4, groups=4), EASGD(0.9 / 4)))
    for i in turns(4, 30):
        groups.step(i)
        star.step(i)
    assert torch.equal(groups.vectors()["x"], star.vectors()["x"]) and groups.order == star.order


@pytest.mark.parametrize("steps", [30, 31])
def test_one_group_is_easgd_with_one_worker_of_all_their_batches(steps: int) -> None:
    """Also where tau divides the length: after the last step there is no exchange."""

    def together(i: int, t: int, x: Tensor) -> Tensor:
        return torch.stack([noisy(j, t, x) for j in range(4)]).mean(0)

    group = by_hand(GroupedEASGD(workers=4, groups=1, alpha=ALPHA), 4, 3, steps)
    one = by_hand(EASGD(ALPHA), 1, 3, problem=FunctionOf(together))
    for t in range(steps):
        group.round()
        one.step(0)
        if t + 1 < steps and (t + 1) % 3:  # where it exchanges next, the group already has
            close(group.vectors()["x"], one.vectors()["x"])
            close(group.centers["group_0"].vectors["x"], one.workers[0].x)
    close(group.vectors()["x"], one.vectors()["x"])


def test_groups_are_their_equations_in_any_order() -> None:
    driver = by_hand(GroupedEASGD(workers=6, groups=3, alpha=0.2), 6, 2)
    x, center, t = [START.clone() for _ in range(3)], START.clone(), [0, 0, 0]
    for k in turns(3, 40):
        seen = driver.workers[2 * k].x.clone()  # where the gradients are taken: the group's old x
        driver.round((2 * k, 2 * k + 1))
        mean = (noisy(2 * k, t[k], seen) + noisy(2 * k + 1, t[k], seen)) / 2
        x[k] = x[k] - falling(t[k]) * mean
        close(driver.workers[2 * k].x, x[k])
        assert torch.equal(driver.workers[2 * k].x, driver.workers[2 * k + 1].x)
        t[k] += 1
        if t[k] % 2 == 0:
            difference = 0.2 * (x[k] - center)
            x[k], center = x[k] - difference, center + difference
        close(driver.centers[f"group_{k}"].vectors["x"], x[k])
        close(driver.vectors()["x"], center)


# --- gossip ----------------------------------------------------------------------------------------------------------


def partner(i: int, t: int, p: int) -> int:
    """The draw: the interval (0, 1) in p - 1 equal parts, for the others in their order."""
    return [j for j in range(p) if j != i][int(uniform(5, RULE, i, t) * (p - 1))]


def test_everybody_meets_all_others_equally_often() -> None:
    method = GossipPull(workers=5, seed=5)
    met = Counter(method.other(Worker({}, 1, Constant(0.1), t, 2)) for t in range(8000))
    assert met.keys() == {0, 1, 3, 4} and all(abs(n - 2000) < 5 * 39 for n in met.values())  # five deviations


@pytest.mark.parametrize("tau", [1, 3])
def test_pull_is_its_equations_in_any_order(tau: int) -> None:
    p = 4
    driver = by_hand(GossipPull(workers=p, seed=5), p, tau)
    x, published, t = [START.clone() for _ in range(p)], [START.clone() for _ in range(p)], [0] * p
    for i in turns(p, 40):
        driver.step(i)
        old = x[i]
        if t[i] % tau == 0:
            published[i] = x[i]
            x[i] = (x[i] + published[partner(i, t[i], p)]) / 2
        x[i] = x[i] - falling(t[i]) * noisy(i, t[i], old)
        t[i] += 1
        close(driver.workers[i].x, x[i])
        close(driver.vectors()["x"], torch.stack(published).mean(0))
    driver.close()
    close(driver.vectors()["x"], torch.stack(x).mean(0))


@pytest.mark.parametrize("tau", [1, 3])
def test_push_is_its_equations_in_any_order(tau: int) -> None:
    p = 4
    driver = by_hand(GossipPush(workers=p, seed=5), p, tau)
    x, inbox, t = [START.clone() for _ in range(p)], [list[Tensor]() for _ in range(p)], [0] * p
    for i in turns(p, 40):
        driver.step(i)
        old = x[i]
        if t[i] % tau == 0:
            inbox[partner(i, t[i], p)].append(x[i])
            x[i] = torch.stack([x[i], *inbox[i]]).mean(0)
            inbox[i] = []
        x[i] = x[i] - falling(t[i]) * noisy(i, t[i], old)
        t[i] += 1
        close(driver.workers[i].x, x[i])


def test_the_spread_is_the_root_mean_square_distance_from_the_mean() -> None:
    driver = by_hand(GossipPull(workers=3, seed=5), 3)
    for i in turns(3, 5):
        driver.step(i)
    xs = torch.stack([center.vectors["x"] for center in driver.centers.values()])
    found = driver._variables.spread()
    assert found == pytest.approx(float((xs - xs.mean(0)).norm(dim=1).square().mean().sqrt())) and found > 0


@pytest.mark.parametrize("kind", [GossipPull, GossipPush])
def test_gossip_keeps_the_mean_in_expectation(kind: type[Gossip]) -> None:
    """Without gradients, over many seeds; a single exchange moves it."""

    def still(i: int, t: int, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    means = []
    for seed in range(400):
        starts = [START + i for i in range(3)]
        driver = by_hand(kind(workers=3, seed=seed), 3, problem=FunctionOf(still), starts=starts)
        for i, begin in enumerate(starts):
            driver.centers[f"peer_{i}"].vectors["x"].copy_(begin)
        for i in turns(3, 2, seed):
            driver.step(i)
        means.append(torch.stack([w.x for w in driver.workers]).mean(0))
    off = torch.stack(means) - (START + 1)
    deviation = off.std(0)
    assert deviation.min() > 0.05
    assert (off.mean(0).abs() < 5 * deviation / 20).all()  # five deviations of a mean of 400


# --- a local step ----------------------------------------------------------------------------------------------------


def test_a_local_step_of_another_kind_is_taken_between_their_exchanges() -> None:
    """One worker that never exchanges but at its first step, when nothing differs, is the local step alone."""
    for method in (EASGDTree(workers=1, tau=99, local=Nesterov(0.8)), EASGD(0.3, Nesterov(0.8))):
        driver = by_hand(method, 1, 99)
        x, v = START.clone(), torch.zeros_like(START)
        for t in range(20):
            driver.step(0)
            v = 0.8 * v - falling(t) * noisy(0, t, x + 0.8 * v)
            x = x + v
        close(driver.workers[0].x, x)


# --- gathering -------------------------------------------------------------------------------------------------------


def test_the_owner_of_a_variable_in_rounds_is_served_by_itself() -> None:
    gathering = Round([0, 1], owner=7)
    gathering.arrive(0)
    gathering.arrive(7)
    assert [gathering.next(), gathering.next()] == [[7], []]
    gathering.arrive(1)
    assert gathering.next() == [0, 1]
    recorded = Recorded([0, 1, 7, 0, 1, 7], in_rounds=True, owner=7)
    for worker in (7, 1, 0):
        recorded.arrive(worker)
    assert [recorded.next(), recorded.next(), recorded.next()] == [[0, 1], [7], []]


def test_entries_name_worker_and_variable(tmp_path: Path) -> None:
    path, several = tmp_path / "exchanges.bin", Entries(5, 3)
    order = [4, 1 + (2 << 16), 0 + (1 << 16)]
    path.write_bytes(several.pack(order) + b"\x01")
    assert read_order(path, several) == order and by_variable(order, 3) == [[4], [0], [1]]
    assert Entries(5).pack([3]) == b"\x03\x00" and several.stranger([5]) == (1, 5)
    assert several.stranger([1, 2 + (3 << 16)]) == (2, 2)


# --- runs ------------------------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "EASGDTree": {"degree": 2},
    "GroupedEASGD": {"groups": 2},
    "GossipPull": {},
    "GossipPush": {},
}


def of(kind: str, **values: Any) -> Settings:
    s = settings("easgd", workers=4, eval=Eval(every="10 steps", train_images=50), **values)
    s.algo = {"name": kind.lower(), "target": f"easgd_cli.algorithms:{kind}", **KINDS[kind]}
    return s


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_anywhere_on_the_virtual_clock_it_goes_on_bit_for_bit(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = of(kind, steps=30)
    virtual(s, tmp_path / "whole", **UNEVEN)
    for events in (1, 7, 38, 39, 40, 41, 77):
        stopped_after(events, monkeypatch)
        assert virtual(s, tmp_path / "parts", resume=events > 1, **UNEVEN).status == "interrupted"
    monkeypatch.undo()
    assert virtual(s, tmp_path / "parts", resume=True, **UNEVEN).status == "completed"
    same_files(tmp_path / "whole", tmp_path / "parts", "center.pt")
    assert (tmp_path / "whole/exchanges.bin").read_bytes() == (tmp_path / "parts/exchanges.bin").read_bytes()
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


@pytest.mark.parametrize("kind", KINDS)
def test_real_processes_are_replayed_bit_for_bit_and_go_on(kind: str, tmp_path: Path) -> None:
    s = of(kind, steps=20)
    assert run(s, tmp_path / "real").status == "completed"
    assert virtual(replace(s, replay=str(tmp_path / "real")), tmp_path / "again", spread=0.5).status == "completed"
    same_files(tmp_path / "real", tmp_path / "again", "center.pt")
    longer = run(of(kind, steps=40), tmp_path / "real", resume=True)
    assert longer.status == "completed" and {r["step"] for r in rows(tmp_path / "real", "worker_03")} >= {20, 40}
    entries = Entries.of(build.method(s), 4)
    orders = by_variable(read_order(tmp_path / "real" / "exchanges.bin", entries), entries.variables)
    assert summary_of(tmp_path / "real")["variables"] == list(build.method(s).variables)
    assert all(orders) and sum(map(len, orders)) == summary_of(tmp_path / "real")["exchanges"]


@pytest.mark.parametrize("launch", [run, virtual])
def test_the_spread_of_gossip_is_recorded(launch: Callable[..., Outcome], tmp_path: Path) -> None:
    launch(of("GossipPull", steps=20), tmp_path)
    spreads = [row["spread"] for row in rows(tmp_path, "system") if "spread" in row]
    assert len(spreads) >= 2 and spreads[-1] > 0


def test_a_message_to_oneself_takes_no_way(tmp_path: Path) -> None:
    """Gossip by pull, every step: a second up, none for the vector that comes down, and nothing to publish."""
    s = on_a_function("easgd", problem={"start": 1.0}, workers=3, steps=10, tau=1)
    s.algo = {"name": "gossip_pull", "target": "easgd_cli.algorithms:GossipPull"}
    virtual(s, tmp_path, compute=0.5, latency=[1.0, 0.0])
    assert summary_of(tmp_path)["wall_seconds"] == pytest.approx(10 * 1.0)


def test_a_tree_of_256_leaves_descends(tmp_path: Path) -> None:
    s = on_a_function("easgd", problem={"start": 4.0, "noise": 0.5}, workers=256, steps=30, tau=2, eta=0.1)
    s.algo = {"name": "easgd_tree", "target": "easgd_cli.algorithms:EASGDTree", "tau2": 4, "degree": 16}
    s.eval = Eval(every="15 steps")
    virtual(s, tmp_path, spread=0.2, latency=0.01)
    assert abs(float(center_of(tmp_path)["x"])) < 2
    assert summary_of(tmp_path)["exchanges"] > 256 * 15


def test_children_of_a_lost_node_go_on_alone_and_rejoin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """g(x) = x, no noise, tau = 1: while node_1 is away its leaf descends by eta alone."""
    s = on_a_function("easgd", problem={"start": 1.0}, workers=4, steps=60, tau=1, eta=0.1, alpha=0.2)
    s.algo = {"name": "easgd_tree", "target": "easgd_cli.algorithms:EASGDTree", "degree": 2, "tau2": 2}
    s.faults = [{"variable": "node_1", "exchange": 41, "kind": "kill"}]
    cluster = {"compute": 1.0, "restart_seconds": 20.5}
    seen: list[tuple[int, float]] = []
    step = EASGDTree.step

    def told(method: EASGDTree, w: Worker) -> Any:
        if w.number == 0:
            seen.append((w.t, float(w.x)))
        return step(method, w)

    monkeypatch.setattr(EASGDTree, "step", told)
    virtual(s, tmp_path / "whole", **cluster)
    x = dict(seen)
    alone = [t for t in range(1, 59) if x[t + 1] == pytest.approx(0.9 * x[t], rel=1e-12)]
    assert len(alone) in (20, 21) and alone == list(range(alone[0], alone[0] + len(alone)))
    assert summary_of(tmp_path / "whole")["exchanges"] < 4 * 60 + 4 * 20 * 3
    log = (tmp_path / "whole" / "logs" / "launcher.log").read_text()
    assert log.index("node_1 died; its children go on alone") < log.index("node_1 is back")
    for events in (1, 60, 130, 200):  # before, while it is away, and after
        stopped_after(events, monkeypatch)
        virtual(s, tmp_path / "parts", resume=events > 1, **cluster)
        monkeypatch.undo()
    virtual(s, tmp_path / "parts", resume=True, **cluster)
    same_files(tmp_path / "whole", tmp_path / "parts", "center.pt")


def test_only_nodes_of_a_tree_can_be_lost() -> None:
    for kind, variable, said in (
        ("EASGDTree", CENTER, "node_1, node_2 can be lost"),
        ("GroupedEASGD", "group_0", "no variable can be lost"),
    ):
        s = replace(of(kind), launcher={"name": "simulated", "target": "easgd_cli.launcher.kinds:Simulated"})
        s.faults = [{"variable": variable, "exchange": 3, "kind": "kill"}]
        with pytest.raises(UsageError, match=said):
            checked(s)
    s = replace(of("EASGDTree"), launcher={"name": "local", "target": "easgd_cli.launcher.kinds:Local"})
    s.faults = [{"variable": "node_1", "exchange": 3, "kind": "kill"}]
    with pytest.raises(UsageError, match=r"one process owns all variables.*party: master"):
        checked(s)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("EASGDTree", {"degree": 1}, "2 children or more"),
        ("EASGDTree", {"degree": 2, "depth": 1}, "at most 2 leaves"),
        ("EASGDTree", {"tau_up": 3}, "belong together"),
        ("EASGDTree", {"tau2": 3, "tau_up": 3, "tau_down": 1}, "two schemes"),
        ("GroupedEASGD", {"groups": 3}, "use 1, 2, 4"),
    ],
)
def test_shapes_that_cannot_be_are_refused(kind: str, options: dict[str, int], said: str) -> None:
    s = of(kind)
    s.algo = {**s.algo, **options}
    with pytest.raises(UsageError, match=said):
        build.method(s)


def test_an_average_of_no_center_is_refused() -> None:
    s = of("GossipPull", average={"name": "polyak", "target": "easgd_cli.algorithms.average:Polyak"})
    with pytest.raises(UsageError, match=r"average=polyak.*leave out average="):
        build.outline(s)


def test_gossip_of_one_is_refused() -> None:
    s = of("GossipPull")
    s.workers = 1
    with pytest.raises(UsageError, match=r"workers=1.*algo=sgd"):
        build.method(s)
