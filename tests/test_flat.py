"""A model seen as one flat vector: the same numbers as autograd's own, and no copies."""

import os
from collections import deque
from pathlib import Path

import pytest
import torch
from torch import nn

from easgd_cli.errors import UsageError
from easgd_cli.problems.flat import Flat


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 2))


class Tied(nn.Module):
    """One weight used twice, under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


def test_the_vector_is_the_parameters_in_order():
    model = net()
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    flat = Flat(model)
    assert flat.size == expected.numel() and torch.equal(flat.vector(), expected)


def test_gradients_land_in_the_flat_buffer_and_equal_autograds():
    model, twin = net(), net()
    flat = Flat(model)
    flat.bind(flat.vector())
    x = torch.randn(5, 1, 4, 4)
    for _ in range(2):  # the second time, too: backward adds, so the buffer is zeroed in between
        flat.gradient.zero_()
        model(x).square().sum().backward()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(twin(x).square().sum(), list(twin.parameters()))])
    torch.testing.assert_close(flat.gradient, expected)
    assert all(p.grad.data_ptr() >= flat.gradient.data_ptr() for p in model.parameters())


def test_bound_vectors_are_used_in_place_and_in_turn():
    model = net().eval()
    flat = Flat(model)
    a, b = flat.vector(), torch.zeros(flat.size)
    x = torch.randn(1, 1, 4, 4)
    for _ in range(3):
        flat.bind(a)
        assert model(x).abs().sum() > 0
        flat.bind(b)
        assert torch.equal(model(x), torch.zeros(1, 2))
    b[-1] = 7.0  # the last bias, seen without binding again
    assert model(x)[0, 1] == 7.0


@pytest.mark.parametrize("kept", [0, 1, 4, 100])
def test_vectors_are_told_apart_however_long_they_live(kept):
    """Freed memory may be had again at the same address: a vector must never be taken for one that lay there before."""
    model = nn.Linear(2, 1, bias=False)
    flat, alive = Flat(model), deque(maxlen=kept)
    for i in range(50):
        vector = torch.full((2,), float(i))
        flat.bind(vector)
        assert torch.equal(model.weight.detach(), torch.full((1, 2), float(i)))
        alive.append((vector, float(i)))
        for earlier, value in alive:
            flat.bind(earlier)
            assert torch.equal(model.weight.detach(), torch.full((1, 2), value))


def test_vectors_that_are_gone_are_not_kept_in_memory():
    """As those of a rule that makes one at every step: 100 of 4 MB would be 400 MB."""
    flat = Flat(nn.Linear(1000, 1000, bias=False))

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    for i in range(100):
        flat.bind(torch.full((flat.size,), float(i)))
    assert resident() - before < 100e6


def test_a_tied_parameter_counts_once_and_gets_both_gradients():
    model = Tied()
    flat = Flat(model)
    assert flat.size == 9
    vector = torch.randn(9)
    flat.bind(vector)
    model(torch.eye(3)).sum().backward()
    w = vector.view(3, 3).clone().requires_grad_()
    (torch.eye(3) @ w.T @ w.T).sum().backward()
    torch.testing.assert_close(flat.gradient, w.grad.flatten())
    state = flat.state_dict(vector)
    assert set(state) == {"first.weight", "second.weight"}
    assert torch.equal(flat.load(state), vector)


def test_frozen_parameters_stay_out_of_the_vector_and_in_the_state():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    flat = Flat(model)
    assert flat.size == 3
    flat.bind(torch.zeros(3))
    model(torch.ones(1, 2)).sum().backward()
    assert torch.equal(model[0].weight, before) and model[0].weight.grad is None
    assert torch.equal(flat.state_dict(torch.ones(3))["0.weight"], before)


def test_a_state_dict_goes_into_a_fresh_model_and_shares_nothing():
    flat = Flat(net())
    vector = torch.randn(flat.size)
    flat.model[1].running_mean.fill_(5.0)
    state = flat.state_dict(vector)
    fresh = net()
    fresh.load_state_dict(state)
    assert torch.equal(torch.cat([p.detach().flatten() for p in fresh.parameters()]), vector)
    assert torch.equal(fresh[1].running_mean, torch.full((3,), 5.0))
    vector.zero_()
    assert state["0.weight"].abs().sum() > 0


def test_float64_models_have_float64_vectors():
    flat = Flat(net().double())
    assert flat.vector().dtype == flat.gradient.dtype == torch.float64


def test_loading_gives_the_vector_and_takes_over_the_buffers():
    saved = net()
    with torch.no_grad():
        for p in saved.parameters():
            p.add_(1.0)
        saved[1].running_var.fill_(3.0)
    model = net()
    flat = Flat(model)
    before = flat.vector()
    vector = flat.load(saved.state_dict())
    assert torch.equal(vector, torch.cat([p.detach().flatten() for p in saved.parameters()]))
    assert torch.equal(flat.vector(), before), "loading does not bind"
    assert torch.equal(model[1].running_var, torch.full((3,), 3.0))


def test_a_file_from_before_batch_norms_counted_batches_is_read():
    state = net().state_dict()
    del state["1.num_batches_tracked"]
    model = net()
    model[1].num_batches_tracked.fill_(7)
    assert torch.equal(
        Flat(model).load(state), Flat(net()).load(dict(state, **{"1.num_batches_tracked": torch.tensor(0)}))
    )
    assert model[1].num_batches_tracked == 7


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda s: s.pop("4.bias"), "init=a.pt: lacks 4.bias; it must be a state_dict of this model."),
        (lambda s: s.update(head=torch.zeros(1)), "init=a.pt: has head, which the model does not know"),
        (
            lambda s: s.update({"4.bias": torch.zeros(3)}),
            r"init=a.pt: 4.bias is \[3\] in the file and \[2\] in " r"the model",
        ),
        (
            lambda s: s.update({"4.weight": s["4.weight"].T}),
            r"init=a.pt: 4.weight is \[\d+, 2\] in the file and " r"\[2, \d+\] in the model",
        ),
        (lambda s: s.update({"4.bias": 3}), r"init=a.pt: 4.bias is a int, where the model has a tensor"),
        (lambda s: s.update({"4.bias": torch.full((2,), torch.nan)}), "not finite"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(spoil, sentence):
    state = dict(net().state_dict())
    spoil(state)
    with pytest.raises(UsageError, match=sentence):
        Flat(net()).load(state, "init=a.pt")


def test_models_that_cannot_be_flattened_are_refused():
    with pytest.raises(UsageError, match="no trainable parameters"):
        Flat(nn.ReLU())
    with pytest.raises(UsageError, match=r"torch.float32 and torch.float64"):
        Flat(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).double()))
    with pytest.raises(UsageError, match=r"torch.float16"):
        Flat(nn.Linear(1, 1).half())
