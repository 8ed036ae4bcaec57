"""Text as bytes, and the net that learns it."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_runs import settings
from test_simulated import same_files, virtual

from easgd_cli.data.text import text
from easgd_cli.errors import UsageError
from easgd_cli.experiment import build
from easgd_cli.launcher.job import Job
from easgd_cli.launcher.processes.local import launch
from easgd_cli.models.gpt import GPT, _turned, _turns
from easgd_cli.settings.schema import Eval


@pytest.fixture
def poem(tmp_path: Path) -> Path:
    path = tmp_path / "poem.txt"
    path.write_bytes(bytes(i % 251 for i in range(1000)))
    return path


def test_windows_are_the_text_in_its_order_and_the_parts_share_nothing_but_a_byte(poem: Path) -> None:
    data = text(str(poem), length=10, test=0.2).hold_out(5)
    whole = poem.read_bytes()
    seen: dict[str, list[bytes]] = {}
    for split in ("train", "held_out", "test"):
        [(windows, none)] = data.evaluation_batches(split, 1000, torch.device("cpu"), torch.float32)  # type: ignore[arg-type]
        assert none is None and windows.dtype == torch.int64 and windows.shape[1] == 11
        seen[split] = [bytes(w.tolist()) for w in windows]
    assert seen["train"] == [whole[i : i + 11] for i in range(0, 740, 10)]
    assert seen["held_out"] == [whole[i : i + 11] for i in range(740, 790, 10)]
    assert seen["test"] == [whole[i : i + 11] for i in range(800, 989, 10)]
    shared = data.share()
    batch = shared.begin(torch.tensor([3, 0]), torch.Generator(), torch.float32)()
    assert batch[0].tolist() == [list(whole[30:41]), list(whole[:11])]


def test_files_of_a_directory_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name, content in (("b.txt", b"bbbb"), ("a/z.txt", b"zzzz"), ("a.md", b"no")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    data = text(str(tmp_path), length=1, test=0.3)
    assert bytes(torch.cat([data.parts["train"], data.parts["test"]]).tolist()) == b"zzzzbbbb"
    assert "8 bytes, 2 files" in data.about


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_text_takes_no_memory_of_a_process(tmp_path: Path) -> None:
    """A file, and files put together: what is read of them lies in the system's own copy."""

    def own() -> int:
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

    for name in ("a.txt", "b.txt"):
        with open(tmp_path / name, "wb") as f:
            f.truncate(100 << 20)
    for place, size in ((tmp_path / "a.txt", 100), (tmp_path, 200)):
        before = own()
        data = text(str(place))
        batch, _ = data.begin(torch.tensor([data.count("train") - 1]), torch.Generator(), torch.float32)()
        assert data.nbytes == 0 and data.cuts["test"][1] == size << 20 and not batch.any()
        assert own() - before < 20 << 10


def test_a_run_goes_on_with_the_text_it_began_with(tmp_path: Path) -> None:
    """Workers map the file that was found, though another has its name by then; all see what the simulator does."""
    s = settings("msgd", steps=6, batch_size=4, eval=Eval(every="3 steps", train_images=10))
    s.dataset = {"name": "text", "target": "easgd_cli.data.text:text", "root": str(tmp_path / "poem.txt"), "length": 8}
    s.model = {"name": "gpt", "target": "easgd_cli.models.gpt:GPT", "width": 16, "depth": 1, "heads": 2}
    (tmp_path / "poem.txt").write_bytes(bytes(i * i % 251 for i in range(4000)))
    virtual(s, tmp_path / "virtual")
    prepared = build.prepare(s)
    (tmp_path / "other.txt").write_bytes(bytes(4000))
    (tmp_path / "other.txt").rename(tmp_path / "poem.txt")
    (tmp_path / "real").mkdir()
    launch(Job(tmp_path / "real"), prepared)
    same_files(tmp_path / "virtual", tmp_path / "real", "center.pt")


def test_without_a_place_it_is_pythons_own_sources() -> None:
    data, again = text(), text()
    assert data.about == again.about and "SHA-256" in data.about
    assert b"import" in bytes(data.parts["train"][:100_000].tolist())


@pytest.mark.parametrize("given, sentence", [
    ({"length": 0}, "dataset.length=0: must be a whole number"),
    ({"test": 1.5}, "dataset.test=1.5: is a share"),
    ({"length": 600}, "the text has 1,000 bytes"),
    ({"root": "/nowhere"}, "dataset.root=/nowhere: there is no such file"),
])  # fmt: skip
def test_what_cannot_be_cut_is_refused(given: dict[str, object], sentence: str, poem: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        text(**{"root": str(poem), **given})  # type: ignore[arg-type]


def test_no_place_sees_what_comes_after_it() -> None:
    torch.manual_seed(0)
    net = GPT(width=16, heads=2).eval()
    tokens = torch.randint(256, (2, 12))
    later = tokens.clone()
    later[:, 7:] = torch.randint(256, (2, 5))
    a, b = net(tokens), net(later)
    torch.testing.assert_close(a[:, :7], b[:, :7])
    assert not torch.allclose(a[:, 7:], b[:, 7:])


def test_what_attention_compares_hangs_on_the_distance_of_two_places_alone() -> None:
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(8, dtype=torch.float64, generator=g) for _ in range(2))
    turns = _turns(20, 8, q)
    of = [_turned(v.expand(1, 1, 20, 8), turns)[0, 0] for v in (q, k)]
    products = of[0] @ of[1].T
    for distance in (0, 1, 5):
        diagonal = products.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert not math.isclose(float(products[5, 5]), float(products[5, 0]))


def test_its_parameters_are_as_many_as_it_says_and_the_embedding_counts_once() -> None:
    comment = Path(__file__).parents[1].joinpath("configs/model/gpt.yaml").read_text().splitlines()[0]
    assert f"{sum(p.numel() for p in GPT().parameters()):,} parameters" in comment
    net = GPT(width=16, heads=2)
    net.embedding.weight.data.normal_()
    hidden: list[torch.Tensor] = []
    net.norm.register_forward_hook(lambda _m, _i, out: hidden.append(out))
    torch.testing.assert_close(net(torch.tensor([[1, 2]])), F.linear(hidden[0], net.embedding.weight))


def test_it_learns_a_text_that_repeats_itself(poem: Path) -> None:
    torch.manual_seed(0)
    net, data = GPT(width=32), text(str(poem), length=16)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    losses = []
    for t in range(60):
        tokens, _ = data.begin(torch.arange(t % 5, 55, 5), torch.Generator(), torch.float32)()
        loss = F.cross_entropy(net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 5 and losses[-1] < 3.5
