"""The paper's net layer by layer, the digits' net, how nets begin, and which are refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from easgd_cli.data.images import Images
from easgd_cli.errors import UsageError
from easgd_cli.models import check_model
from easgd_cli.models.convnet7 import ConvNet7
from easgd_cli.models.convnet_digits import ConvNetDigits
from easgd_cli.randomness import INIT, seeded


def images(shape=(1, 6, 6), classes=3) -> Images:
    labels = torch.arange(8) % classes
    pixels = torch.randint(0, 256, (8, *shape), dtype=torch.uint8)
    return Images(pixels, labels, pixels, labels, num_classes=classes)


def layers_with_parameters(net: nn.Module) -> list[nn.Module]:
    return [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def test_convnet7_has_the_papers_layers():
    """(3,28)C(64,24)P(64,12)C(128,8)P(128,4)C(64,2)D(256,1)S(10,1)."""
    net = ConvNet7()
    assert [sum(p.numel() for p in m.parameters()) for m in layers_with_parameters(net)] == [4864, 204928, 73792, 65792, 2570]
    assert sum(p.numel() for p in net.parameters()) == 351_946
    seen, x = [], torch.zeros(2, 3, 28, 28)
    for layer in net.features:
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            seen.append(("C" if isinstance(layer, nn.Conv2d) else "P", *x.shape[1:3]))
        x = layer(x)
    assert seen == [("C", 3, 28), ("P", 64, 24), ("C", 64, 12), ("P", 128, 8), ("C", 128, 4)]
    assert x.shape == (2, 64, 2, 2)


def test_convnet7_computes_what_the_paper_draws():
    """ReLU on every inner layer, before pooling as drawn, and the dropout on the 256 outputs after their ReLU."""
    net = ConvNet7().double().eval()
    c1, c2, c3, d, s = layers_with_parameters(net)
    x = torch.rand(4, 3, 28, 28, dtype=torch.float64)

    def drawn(d_output):
        y = F.max_pool2d(F.relu(c1(x)), 2)
        y = F.max_pool2d(F.relu(c2(y)), 2)
        y = F.relu(c3(y)).flatten(1)
        return s(d_output(F.relu(d(y))))

    torch.testing.assert_close(net(x), drawn(lambda y: y))
    net.train()
    torch.manual_seed(3)
    dropped = net(x)
    torch.manual_seed(3)
    torch.testing.assert_close(dropped, drawn(lambda y: F.dropout(y, 0.5)))


def test_gradients_of_convnet7_equal_those_of_the_drawn_order():
    net = ConvNet7(dropout=0.0).double()
    c1, c2, c3, d, s = layers_with_parameters(net)
    x, labels = torch.rand(4, 3, 28, 28, dtype=torch.float64), torch.arange(4)
    y = F.max_pool2d(F.relu(c1(x)), 2)
    y = F.relu(c3(F.max_pool2d(F.relu(c2(y)), 2))).flatten(1)
    expected = torch.autograd.grad(F.cross_entropy(s(F.relu(d(y))), labels), list(net.parameters()))
    for ours, theirs in zip(torch.autograd.grad(F.cross_entropy(net(x), labels), list(net.parameters())), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_digits_net_has_13706_parameters():
    net = ConvNetDigits()
    assert [sum(p.numel() for p in m.parameters()) for m in layers_with_parameters(net)] == [160, 4640, 8256, 650]
    assert net(torch.zeros(5, 1, 8, 8)).shape == (5, 10)


@pytest.mark.parametrize("net", [ConvNet7, ConvNetDigits])
def test_nets_begin_uniform_with_zero_biases(net):
    with seeded(1, INIT):
        made = net()
    for layer in layers_with_parameters(made):
        bound = layer.weight[0].numel() ** -0.5
        weights = layer.weight.detach()
        assert weights.abs().max() <= bound and weights.abs().max() > 0.9 * bound
        assert abs(float(weights.std()) / (bound / 3**0.5) - 1) < 0.1
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


@pytest.mark.parametrize(
    ("net", "shape", "classes"), [(ConvNet7, (1, 32, 40), 7), (ConvNet7, (3, 24, 24), 2), (ConvNetDigits, (3, 28, 28), 100), (ConvNetDigits, (1, 6, 7), 2)]
)
def test_nets_fit_other_data(net, shape, classes):
    check_model(net(input_shape=shape, num_classes=classes), "x", images(shape, classes), 2)


def test_nets_say_what_they_cannot_take():
    with pytest.raises(ValueError, match="model=convnet7: takes images of at least 24x24, and these are 8x8; model=small"):
        ConvNet7(input_shape=(1, 8, 8))
    with pytest.raises(ValueError, match="model=small: takes images of at least 6x6, and these are 5x8"):
        ConvNetDigits(input_shape=(1, 5, 8))
    with pytest.raises(ValueError, match=r"model.dropout=1.0"):
        ConvNet7(dropout=1.0)


def test_the_same_seed_gives_the_same_net_and_leaves_no_trace():
    before = torch.random.get_rng_state()
    nets = []
    for seed in (5, 5, 6):
        with seeded(seed, INIT):
            nets.append(ConvNetDigits())
    first, again, other = (torch.cat([p.flatten() for p in n.parameters()]) for n in nets)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


class Says(nn.Module):
    """Returns what it is given, whatever the images."""

    def __init__(self, output):
        super().__init__()
        self.weight, self.output = nn.Parameter(torch.ones(1)), output

    def forward(self, x):
        return self.output


class Bare(nn.Module):
    """As a beginner may write it."""

    def __init__(self):
        self.width = 3


class InTraining(nn.Module):
    """Does something else, `act`, in training mode only."""

    def __init__(self, act):
        super().__init__()
        self.layer, self.act = nn.Linear(36, 3), act

    def forward(self, x):
        out = self.layer(x.flatten(1))
        return self.act(out) if self.training else out


@pytest.mark.parametrize(
    ("net", "sentence"),
    [
        (Bare(), r"model=x: its __init__ does not call super\(\).__init__\(\)"),
        (InTraining(lambda out: 1 / 0), "model=x: fails in training mode, on 2 images, though not in evaluation: ZeroDivisionError"),
        (InTraining(lambda out: (out, out)), "model=x: in training mode returned a tuple"),
        (InTraining(lambda out: out[:1]), r"model=x: in training mode turned images \[2, 1, 6, 6\] into \[1, 3\]"),
        (InTraining(lambda out: out.detach()), "model=x: the gradient of its loss cannot be computed: RuntimeError"),
        (7, "model=x: made a int, which is not a torch.nn.Module"),
        (nn.Flatten(), "model=x: has no trainable parameters"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "model=x: has lazy layers"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), "model=x: does not take images 1x6x6 of data: RuntimeError: mat1 and mat2"),
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), r"model=x: turned images \[2, 1, 6, 6\] into \[2, 4\]; with 3 classes it must be \[2, 3\]"),
        (Says(torch.full((2, 3), torch.nan)), "model=x: its outputs at the start are not finite"),
        (Says((torch.zeros(2, 3),)), "model=x: returned a tuple"),
    ],
)
def test_models_that_do_not_fit_are_refused(net, sentence):
    with pytest.raises(UsageError, match=sentence):
        check_model(net, "x", images(), 2)


def test_a_trial_leaves_the_model_and_the_generator_alone():
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(36, 3)).train()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    data, before = images(), torch.random.get_rng_state()
    check_model(net, "x", data, 2)
    assert net.training and all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_trial_takes_no_more_images_than_a_batch_has():
    """One value a channel is too few for batch norm in training, and two are not."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.BatchNorm1d(3))
    check_model(net, "x", images(), 2)
    with pytest.raises(UsageError, match="model=x: fails in training mode, on 1 image, though not in evaluation: ValueError"):
        check_model(net, "x", images(), 1)
