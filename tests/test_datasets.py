"""Data of a user's own: torch Datasets whose batches are a function of (seed, worker, t), runs that go on bit for bit,
arrays and tables, and what is refused.
"""

from __future__ import annotations

import pickle
import random
import re
import shlex
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_runs import recorded_order, run
from test_simulated import same_files, virtual
from test_tasks import theirs
from theirs import Augmented, padded

from easgd_cli.data.arrays import arrays
from easgd_cli.data.mapped import Mapped
from easgd_cli.data.table import table
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.launcher import kinds
from easgd_cli.launcher.job import Job
from easgd_cli.randomness import AUGMENTATION, SAMPLE, key
from easgd_cli.record import reader
from easgd_cli.settings.schema import Eval

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


def test_arrays_in_shared_memory_are_the_same_with_all_that_is_known_of_them() -> None:
    x, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    data = replace(arrays(x, y, x[:2], y[:2], "x", classes=("a", "b", "c")), about="Of somewhere.")
    again = pickle.loads(pickle.dumps(data.share()))
    assert (again.about, again.classes, again.targets) == ("Of somewhere.", ("a", "b", "c"), "labels")
    assert torch.equal(again.inputs["train"], x) and torch.equal(again.labels["train"], y) and again.memory is not None


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
    [(inputs, labels)] = data.evaluation_batches("test", 10, CPU, torch.float32)
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
        list(data.evaluation_batches("train", 100, CPU, torch.float32))


# --- tables ----------------------------------------------------------------------------------------------------------


def rows(n: int = 50) -> dict[str, Any]:
    drawn = np.random.default_rng(0)
    columns = {"area": drawn.normal(80, 20, n), "rooms": drawn.integers(1, 6, n), "constant": np.full(n, 3)}
    return columns | {"price": 1000.0 * columns["area"] + 500 * columns["rooms"]}


def written(directory: Path, kind: str) -> Path:
    file, columns = directory / f"houses.{kind}", rows()
    if kind == "csv":
        lines = zip(*columns.values(), strict=True)
        file.write_text("\n".join([",".join(columns), *(",".join(map(repr, map(float, line))) for line in lines)]))
    elif kind == "npy":
        np.save(file, np.rec.fromarrays(list(columns.values()), names=",".join(columns)))
    elif kind == "npz":
        np.savez(file, **columns)
    elif kind == "parquet":
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(pytest.importorskip("pyarrow").table(columns), file)
    else:
        from safetensors.numpy import save_file

        save_file(columns, file)
    return file


@pytest.mark.parametrize("kind", ["csv", "npy", "npz", "safetensors", "parquet"])
def test_a_table_is_the_same_in_every_format(kind: str, tmp_path: Path) -> None:
    data, columns = table(str(written(tmp_path, kind)), "price", ("area", "rooms", "constant")), rows()
    assert (data.count("train"), data.count("test"), data.targets, data.input_shape) == (40, 10, "numbers", (3,))
    inputs = torch.cat([data.inputs["train"], data.inputs["test"]])
    prices = torch.cat([data.labels["train"], data.labels["test"]])  # type: ignore[list-item]
    learnt = re.fullmatch(r"the net learns \(price - (\S+)\) / (\S+), and errors are in units of .*", data.about or "")
    assert learnt is not None
    prices = float(learnt[1]) + float(learnt[2]) * prices.double()
    order = [int(np.argmin(abs(columns["price"] - float(price)))) for price in prices]
    assert sorted(order) == list(range(50))
    train = np.stack([columns["area"][order], columns["rooms"][order]], 1)[:40]
    expected = (train - train.mean(0)) / train.std(0)
    torch.testing.assert_close(inputs[:40, :2].double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    assert (inputs[:, 2] == 0).all()  # a constant has no deviation to divide by


def test_the_kinds_of_columns_that_parquet_has(tmp_path: Path) -> None:
    """One that cannot be used disturbs nobody who uses another."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    n = 30
    words = pa.array(["xyz"[i % 3] for i in range(n)])
    columns = {
        "whole": pa.array(range(n), pa.int8()), "truth": pa.array([i % 2 == 0 for i in range(n)]),
        "money": pa.array([Decimal(i) / 4 for i in range(n)]), "list": pa.array([[float(i)] * 4 for i in range(n)]),
        "ragged": pa.array([[1.0] * (i % 3) for i in range(n)]), "day": pa.array([date(2020, 1, 1)] * n),
        "word": words, "coded": words.dictionary_encode(), "lacking": pa.array([None, *range(1, n)]),
        "unsaid": pa.array([None, *"ab" * (n // 2)][:n]), "y": pa.array(np.arange(n) / 2),
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=7)

    def made(targets: str, *inputs: str) -> Any:
        return table(str(tmp_path / "t.parquet"), targets, inputs, standardise=False)

    data = made("y", "whole", "truth", "money")
    x = torch.cat([data.inputs["train"], data.inputs["test"]])
    expected = torch.stack([torch.arange(30.0), (torch.arange(30) % 2 == 0).float(), torch.arange(30) / 4], 1)
    assert torch.equal(x[x[:, 0].argsort()], expected)
    assert made("y", "list").input_shape == (4,)
    assert made("word", "y").classes == made("coded", "y").classes == ("x", "y", "z")
    for names, sentence in (
        (("y", "lacking"), "1 values of the column lacking are missing"),
        (("unsaid", "y"), "1 values of the column unsaid are missing"),
        (("y", "day"), "the column day holds dates such as '2020-01-01'"),
        (("y", "ragged"), "the column ragged holds texts such as"),
    ):
        with pytest.raises(UsageError, match=sentence):
            made(*names)


def test_a_table_trains_and_its_texts_are_classes(tmp_path: Path) -> None:
    file, test = tmp_path / "irises.csv", tmp_path / "test.csv"
    file.write_text("width,height,name\n" + "".join(f"{i % 7},{i % 5},{'ab'[i % 7 > 3]}\n" for i in range(60)))
    test.write_text("width,height,name\n1,2,a\n6,2,b\n")
    options = {"target": "easgd_cli.data.table:table", "root": str(file), "targets": "name", "test": str(test)}
    s = theirs("table", "Linear", "easgd", steps=30, dataset=options | {"name": "table"})
    data: Any = build.data(s)
    assert data.classes == ("a", "b") and data.labels["test"].tolist() == [0, 1] and data.targets == "labels"
    assert virtual(s, tmp_path / "run").status == "completed"


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        ("a,b\n1,2\n3,4\n", {"targets": "c"}, r"dataset.targets=c: .* has no such column. It has a, b"),
        ("area,b\n1,2\n3,4\n", {"targets": "aera"}, r"did you mean area\?"),
        ("a,b\n1,2\n,4\n", {"targets": "b"}, r"1 values of the column a are missing or not finite"),
        ("a,b\nx,2\ny,4\n", {"targets": "b"}, r"the column a holds texts such as 'x'.*dataset.columns="),
        ("a,b\n1,2\n3\n", {"targets": "b"}, r"line 3 has other than the header's 2 values"),
        ("a,b\n1,2\n3,4\n", {"targets": "b", "test": 2.0}, r"dataset.test=2: is the share of the 2 samples"),
        (
            "a,b\n1,x\n2,\n3,y\n",
            {"targets": "b"},
            r"1 values of the column b are missing; fill them, or remove their rows",
        ),
        ("b\n1\n2\n", {"targets": "b"}, r"holds nothing but b"),
        ("", {"targets": "b"}, r"its columns differ in length, or there are no rows"),
    ],
)
def test_a_faulty_table_is_told(content: str, options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UsageError, match=sentence):
        table(str(tmp_path / "t.csv"), **options)


def test_files_that_are_no_tables_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"t.xls: is a file that ends in .csv, .parquet, .npy"):
        table(str(tmp_path / "t.xls"), "a")
    with pytest.raises(UsageError, match=r"t.csv: there is no such file"):
        table(str(tmp_path / "t.csv"), "a")
    (tmp_path / "t.npz").write_bytes(b"no archive")
    with pytest.raises(UsageError, match=r"t.npz: cannot be read"):
        table(str(tmp_path / "t.npz"), "a")


# --- docs/yours.md ----------------------------------------------------------------------------------------------------


def test_every_line_of_docs_yours_runs(here: Path, easgd: Any, launcher: Any) -> None:
    """Its module is written as it stands there and its commands are given: composed, checked and prepared; with fewer
    steps one of them also runs.
    """
    text = (Path(__file__).parent.parent / "docs" / "yours.md").read_text()
    [module] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (here / "mine.py").write_text(module)
    commands = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    trained = [shlex.split(c)[1:] for c in commands if " train " in c and "resume=" not in c and "optuna" not in c]
    assert len(commands) == 7 and len(trained) == 3
    for words in trained:
        said = easgd(*words)
        assert said.status == 0, said.err
        assert "untuned on dataset=mine:Waves" in said.err
    assert {job.settings.algo["name"] for job in launcher.jobs} == {"easgd", "eamsgd", "downpour", "msgd"}
    s = replace(launcher.jobs[0].settings, steps=15, eval=Eval(every="15 steps", train_images=20))
    (here / "short").mkdir()
    s.launcher = {"name": "simulated", "target": "easgd_cli.launcher.kinds:Simulated"}
    assert kinds.Simulated()(Job(here / "short"), build.prepare(s)).status == "completed"
    assert reader.summary_of(here / "short")["task"] == "regression"
