"""Data that are not what they seem are told of before training, with their numbers, and every remedy that a sentence
proposes is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from test_runs import settings
from test_tasks import task, theirs
from torch import Tensor, nn

from easgd_cli.data.doubts import doubts
from easgd_cli.data.given import as_dataset
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build, checks
from easgd_cli.launcher.job import Job
from easgd_cli.launcher.processes.local import launch
from easgd_cli.problems.flat import Flat
from easgd_cli.settings.targets import convert

Arrays = tuple[Any, Any, Any, Any]


def drawn(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(len(shape)))
    return (256 * x).to(kind) if kind == torch.uint8 else x.to(kind)


def labelled(y: Any, tested: Any = None) -> Arrays:
    tested = y if tested is None else tested
    return drawn(len(y), 5), torch.as_tensor(y), drawn(len(tested), 5), torch.as_tensor(tested)


def said(given: Any, ignored: int | None = None) -> list[str]:
    return doubts(as_dataset(given, "mine", None, None), "mine", ignored)


ONE_UP, GAPS = [1, 2, 3, 1, 2, 3], [0, 2, 9, 9, 2, 0, 2]
# what is given, what is said of it, and what becomes of it by the remedy: then nothing is said
DOUBTS: dict[str, tuple[Arrays, str, Callable[..., Any]]] = {
    "labels from 1": (
        labelled(ONE_UP), r"dataset=mine: labels run from 1 to 3, so that class 0 of 4 has no sample; y - 1 begins",
        lambda x, y, u, v: (x, y - 1, u, v - 1),
    ),
    "labels with gaps": (
        labelled(GAPS),
        r"labels name 10 classes, and 7 of them have no sample: 1, 3, 4, 5 and 3 more; numpy.unique\(y, return_inv",
        lambda x, y, u, v: (x, np.unique(y, return_inverse=True)[1], u, np.unique(v, return_inverse=True)[1]),
    ),
    "a label of the test": (
        labelled([0, 1, 0, 1], [0, 1, 2, 2, 2]),
        r"3 test samples are of 1 classes without a training sample: 2; nobody can learn these",
        lambda x, y, u, v: (x, y, u[v < 2], v[v < 2]),
    ),
    "scales": (
        (drawn(50, 5), drawn(50), 255 * drawn(20, 5), drawn(20)),
        r"training inputs have the mean 0.\d+ and the standard deviation 0.\d+, test inputs \d+.* and \d+.*; scale",
        lambda x, y, u, v: (x, y, u / 255, v),
    ),
    "scales of images": (
        (255 * drawn(50, 1, 6, 6), np.arange(50) % 2, drawn(20, 1, 6, 6), np.arange(20) % 2),
        r"training inputs have the mean 1\d\d.* scale both in the same way",
        lambda x, y, u, v: (x / 255, y, u, v),
    ),
    "types": (
        (drawn(50, 5, kind=torch.uint8), drawn(50), drawn(20, 5), drawn(20)),
        r"training inputs are uint8 and test inputs float32; uint8 is handed to the net as numbers from 0 to 1",
        lambda x, y, u, v: (x / 255, y, u, v),
    ),
    "channels last": (
        (drawn(20, 8, 7, 3, kind=torch.uint8), [0, 1] * 10, drawn(8, 8, 7, 3, kind=torch.uint8), [0, 1] * 4),
        r"inputs are \[8, 7, 3\], taken for 8 channels of 7x3 pixels; if .* last, x.permute\(0, 3, 1, 2\) puts",
        lambda x, y, u, v: (x.permute(0, 3, 1, 2), y, u.permute(0, 3, 1, 2), v),
    ),
    "channels last, numbers": (
        (drawn(20, 8, 8, 1), drawn(20), drawn(10, 8, 8, 1), drawn(10)), r"taken for 8 channels of 8x1 pixels",
        lambda x, y, u, v: (x.permute(0, 3, 1, 2), y, u.permute(0, 3, 1, 2), v),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DOUBTS)
def test_a_doubt_names_its_numbers_and_its_remedy_ends_it(case: str) -> None:
    given, sentence, remedy = DOUBTS[case]
    [found] = said(given)
    assert re.search(sentence, found), found
    assert said(remedy(*given)) == []


class Photos(torch.utils.data.Dataset[Any]):
    def __init__(self, put_first: bool = False, labels: Any = (0, 2)):
        self.put_first, self.targets = put_first, labels

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> Any:
        x = torch.full((9, 8, 3), float(i))
        return x.permute(2, 0, 1) if self.put_first else x, self.targets[i]


def test_a_dataset_of_torch_is_looked_at_as_far_as_it_tells() -> None:
    """One sample, and the labels that it lists, as torchvision's do."""
    labels, channels = sorted(said((Photos(), Photos(labels=[1, 2]))))
    assert "inputs are [9, 8, 3]" in channels and "x.permute(2, 0, 1) puts them first" in channels
    assert "1 test samples are of 1 classes without a training sample: 1;" in labels
    assert said((Photos(True), Photos(True, labels=[2, 0]))) == [
        "dataset=mine: labels name 3 classes, and 1 of them have no sample: 1; numpy.unique(y, return_inverse=True)[1] "
        "numbers those that have some."
    ]


def test_what_does_not_count_is_not_doubted_and_a_label_below_0_is_refused() -> None:
    x = drawn(20, 1, 6, 6)
    y = torch.arange(20 * 36).reshape(20, 6, 6) % 3
    y[:, 0] = 255
    assert said((x, y, x, y), ignored=255) == [] and len(said((x, y, x, y))) == 1
    y[:, 0] = -1
    with pytest.raises(UsageError, match=r"dataset=mine: 240 labels are -1; .*task.ignore_index=-1 leaves these out"):
        said((x, y, x, y))
    assert said((x, y, x, y), ignored=-1) == []


@pytest.mark.parametrize("name", ["table", "two_inputs", "tokens", "tags", "Augmented"])
def test_nothing_is_said_of_what_is_as_it_should_be(name: str) -> None:
    s = theirs(name, "Linear")
    assert checks.doubts_of(s, build.data(s)) == ()
    assert checks.doubts_of(settings("easgd"), build.data(settings("easgd"))) == ()


def test_it_is_said_before_training(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    s = theirs("segments", "Convolution", steps=2, task=task("classification", ignore_index=255))
    launch(Job(tmp_path), replace(build.prepare(s), doubts=("dataset=mine: is odd.",)))
    told = capfd.readouterr()
    assert "dataset=mine: is odd." in told.err + told.out
    assert "is odd" in (tmp_path / "logs" / "launcher.log").read_text().partition("training begins")[0]


@pytest.mark.parametrize("pictures", [True, False])
def test_labels_in_a_column_are_told_to_be_taken_out_of_it(pictures: bool) -> None:
    """argmax(1), as of one-hot rows, would make them all 0."""
    x = drawn(6, 1, 5, 5) if pictures else drawn(6, 5)
    y = torch.tensor([[0], [1], [2], [0], [1], [2]])
    with pytest.raises(UsageError, match=r"y_train.* has shape .*6, 1.*; y_train\[:, 0\] makes them so"):
        as_dataset((x, y, x, y), "mine", None, None)
    assert as_dataset((x, y[:, 0], x, y[:, 0]), "mine", None, None).num_classes == 3
    hot = torch.eye(3, dtype=torch.int64)[y[:, 0]]
    with pytest.raises(UsageError, match=r"y_train.argmax\(1\) turns one-hot rows into numbers"):
        as_dataset((x, hot, x, hot), "mine", None, None)
    assert torch.equal(hot.argmax(1), y[:, 0])


def test_inputs_of_two_kinds_are_refused() -> None:
    names, numbers = torch.arange(20).reshape(4, 5), drawn(4, 5)
    with pytest.raises(UsageError, match=r"inputs are of type torch.int64 in training and torch.float32 in the test"):
        as_dataset((names, drawn(4), numbers, drawn(4)), "mine", None, None)
    as_dataset((names.float(), drawn(4), numbers, drawn(4)), "mine", None, None)


# --- settings and files of parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["[8,4]", " [8, 4] ", [[8, 4]], "8,4", "'[8,4]'"])
def test_a_list_that_is_none_gets_a_remedy_that_is_one(given: Any) -> None:
    with pytest.raises(UsageError) as refused:
        convert("model.hidden", given, list[int])
    proposed = re.search(r"'model.hidden=([^']*)'\.$", str(refused.value))
    assert proposed is not None, refused.value
    assert convert("model.hidden", yaml.safe_load(proposed[1]), list[int]) == [8, 4]
    assert convert("problem.starts", [[8, 4]], list[float | list[float]]) == [[8.0, 4.0]]  # where one may stand


def begun(file: Path, **values: Any) -> nn.Module:
    s = theirs("two_inputs", "Siamese", init=str(file), **values)
    return build.model(s, build.data(s))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_names_of_a_net_inside_another_are_told_with_the_setting_that_takes_the_outer_one_off(
    prefix: str, tmp_path: Path
) -> None:
    s = theirs("two_inputs", "Siamese", seed=3)
    own = build.model(s, build.data(s))
    inside = {f"{prefix}{name}": value for name, value in own.state_dict().items()}
    torch.save(inside | {"criterion.weight": torch.ones(2)}, tmp_path / "net.pt")
    with pytest.raises(UsageError, match=rf"its names begin with {prefix}, .*; init_prefix={prefix} takes that off"):
        begun(tmp_path / "net.pt")
    read = begun(tmp_path / "net.pt", init_prefix=prefix)
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in own.state_dict().items())
    with pytest.raises(UsageError, match=r"init_prefix=net.: no name in init=.*net.pt begins so; they begin with "):
        begun(tmp_path / "net.pt", init_prefix="net.")


def test_a_prefix_without_a_file_is_refused() -> None:
    s = theirs("two_inputs", "Siamese", init_prefix="module.")
    with pytest.raises(UsageError, match=r"init_prefix=module\.: there is no file to read; give init="):
        build.model(s, build.data(s))


def test_numbers_that_would_become_others_are_refused(tmp_path: Path) -> None:
    s = theirs("two_inputs", "Siamese")
    state = build.model(s, build.data(s)).state_dict()
    torch.save(state | {"head.weight": (100 * state["head.weight"]).to(torch.int8)}, tmp_path / "net.pt")
    with pytest.raises(UsageError, match=r"head.weight is of type torch.int8 in the file and torch.float64"):
        begun(tmp_path / "net.pt")
    norm = nn.BatchNorm1d(3)
    counted = norm.state_dict() | {"num_batches_tracked": torch.tensor(0.7)}
    with pytest.raises(UsageError, match=r"num_batches_tracked is of type torch.float32 .*: 0.7 would be cut"):
        Flat(norm).load(counted)
    Flat(norm).load(counted | {"num_batches_tracked": torch.tensor(7.0)})
    assert int(norm.num_batches_tracked or 0) == 7
