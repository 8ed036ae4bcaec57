"""Data of a user's own: torch Datasets whose batches are a function of (seed, worker, t), runs that go on bit for bit,
arrays and tables, and what is refused.
"""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_runs import recorded_order, run
from test_simulated import same_files, virtual
from test_tasks import theirs
from theirs import Augmented, padded

from easgd_cli.data.mapped import Mapped
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.randomness import AUGMENTATION, SAMPLE, key

CPU = torch.device("cpu")


def mapped(name: str = "Augmented", **dataset: Any) -> Mapped:
    made = build.data(theirs(name, "Linear", dataset=dataset))
    assert isinstance(made, Mapped)
    return made


# --- a Dataset that draws --------------------------------------------------------------------------------------------


def test_a_sample_follows_from_seed_worker_step_and_index() -> None:
    """Against the Dataset read by hand after seeding the three global generators; which are left as they were."""
    data, dataset = mapped(), Augmented(train=True)
    before = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    generator = torch.Generator().manual_seed(key(3, AUGMENTATION, 1, 7))
    x, y = data.begin(torch.tensor([5, 69, 0]), generator, torch.float64)()
    assert torch.equal(before[0], torch.get_rng_state()) and before[2] == random.getstate()
    assert (before[1] == np.random.get_state()[1]).all()
    number = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(key(3, AUGMENTATION, 1, 7))))
    for row, label, i in zip(x, y, (5, 69, 0), strict=True):
        z = key(number, SAMPLE, n=i)
        torch.manual_seed(z), np.random.seed(z % 2**32), random.seed(z)
        expected = dataset[i]
        assert torch.equal(row, expected[0]) and int(label) == expected[1]
    torch.set_rng_state(before[0])
    np.random.set_state(("MT19937", before[1], 624, 0, 0.0))
    random.setstate(before[2])


def test_batches_differ_from_step_to_step_and_worker_to_worker_but_not_from_time_to_time() -> None:
    data = mapped()

    def batch(worker: int, t: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(key(0, AUGMENTATION, worker, t))
        return data.begin(torch.arange(8), generator, torch.float64)()[0]

    first = batch(0, 0)
    assert (
        torch.equal(first, batch(0, 0)) and not torch.equal(first, batch(0, 1)) and not torch.equal(first, batch(1, 0))
    )
    [one], [again] = (list(data.evaluation_batches("train", 100, CPU, torch.float64)) for _ in range(2))
    assert torch.equal(one[0], again[0])


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("algo", ["easgd", "eamsgd"])
def test_a_simulated_run_that_goes_on_is_one_that_never_stopped(algo: str, workers: int, tmp_path: Path) -> None:
    for name, lengths in (("whole", [30]), ("stopped", [13, 30])):
        for steps in lengths:
            s = theirs("Augmented", "Linear", algo, workers=workers, steps=steps)
            virtual(s, tmp_path / name, resume=steps != lengths[0], spread=0.3, latency=0.002)
    same_files(tmp_path / "whole", tmp_path / "stopped", "center.pt")
    assert recorded_order(tmp_path / "whole") == recorded_order(tmp_path / "stopped")


def test_processes_see_the_batches_of_the_simulator_and_go_on_bit_for_bit(tmp_path: Path) -> None:
    """One worker alone, stopped and not; and three in rounds, whose order is known."""
    virtual(theirs("Augmented", "Linear", "easgd", workers=1, steps=12), tmp_path / "virtual")
    for steps in (5, 12):
        run(theirs("Augmented", "Linear", "easgd", workers=1, steps=steps), tmp_path / "real", resume=steps == 12)
    same_files(tmp_path / "virtual", tmp_path / "real", "center.pt")
    s = theirs("Augmented", "Linear", "sync_easgd", workers=3, steps=7)
    run(s, tmp_path / "rounds")
    virtual(theirs("Augmented", "Linear", "sync_easgd", workers=3, steps=7), tmp_path / "virtual_rounds")
    same_files(tmp_path / "rounds", tmp_path / "virtual_rounds", "center.pt")


def test_large_arrays_are_sent_once(tmp_path: Path) -> None:
    """Packed for the workers a Dataset takes a few bytes beside its arrays, which are one memory for all."""
    data = Mapped(_Large(), _Large(), "x")
    shared = data.share()
    assert shared.sent is not None and len(shared.sent[0]) < 2000  # type: ignore[attr-defined]
    assert torch.equal(shared.train.x, data.train.x) and (shared.test.y == data.test.y).all()
    with pytest.raises(UsageError, match=r"dataset=x: cannot be sent to the workers .*top of a module"):
        Mapped(lambda: 0, _Large(), "x").share()


class _Large:
    def __init__(self) -> None:
        self.x, self.y = torch.arange(40_000.0), np.arange(20_000)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        return self.x[i], int(self.y[i])


def test_one_dataset_is_split_once_and_for_all_and_collated_by_the_users_function(tmp_path: Path) -> None:
    data = mapped("Named", test=0.2, collate="theirs:padded")
    assert (data.count("train"), data.count("test")) == (40, 10)
    again = mapped("Named", test=0.2, collate="theirs:padded")
    assert torch.equal(data.test.indices, again.test.indices)
    both = torch.cat([data.train.indices, data.test.indices])
    assert both.sort().values.tolist() == list(range(50))
    [(inputs, labels)] = data.evaluation_batches("test", 10, CPU)
    expected = padded([data.test.whole[int(i)] for i in data.test.indices])
    assert torch.equal(inputs["numbers"], expected["numbers"]) and torch.equal(labels, expected["label"])
    s = theirs("Named", "Masked", "easgd", dataset={"test": 0.2, "collate": "theirs:padded", "validation": 8}, steps=6)
    assert virtual(s, tmp_path).status == "completed"
    assert pickle.loads(pickle.dumps(data.share())).count("test") == 10


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("streams", {}, r"a Stream can only be read from its beginning: .*\(seed, worker, t\).*give it __len__"),
        ("Named", {}, r"returned no test set; return a pair \(train, test\), or .*dataset.test=0.2"),
        ("Named", {"test": 0.2}, r"samples cannot be made a batch: .*dataset.collate="),
        ("Named", {"test": 1.2, "collate": "theirs:padded"}, r"dataset.test=1.2: is the share of the 50 samples"),
        ("Broken", {}, r"sample 7 of train raised OSError: no such file: seven.png"),
        ("Augmented", {"mean": [0.5]}, r"dataset.mean and dataset.std are for images"),
        ("Augmented", {"validation": 70}, r"dataset.validation=70: must be from 0 to 69"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        data = build.data(theirs(name, "Linear", dataset=options))
        list(data.evaluation_batches("train", 100, CPU))
