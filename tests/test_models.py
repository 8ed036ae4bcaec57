"""The paper's nets layer by layer, the digits' net, linear layers, torchvision's nets, how nets begin, and which are
refused.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from easgd_cli.data import vision
from easgd_cli.data.images import Images
from easgd_cli.errors import UsageError
from easgd_cli.models import check_model
from easgd_cli.models.convnet7 import ConvNet7
from easgd_cli.models.convnet11 import ConvNet11
from easgd_cli.models.convnet_digits import ConvNetDigits
from easgd_cli.models.mlp import MLP
from easgd_cli.models.torchvision import classifier
from easgd_cli.problems.tasks.classification import Classification
from easgd_cli.randomness import INIT, seeded
from easgd_cli.system import shared_memory


def images(shape=(1, 6, 6), classes=3) -> Images:
    labels = torch.arange(8) % classes
    pixels = torch.randint(0, 256, (8, *shape), dtype=torch.uint8)
    return Images(pixels, labels, pixels, labels, num_classes=classes)


def tried(net: object, written: str, data: Images, batch_size: int) -> None:
    check_model(net, written, data, Classification(data=data), batch_size)


def layers_with_parameters(net: nn.Module) -> list[nn.Module]:
    return [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def test_convnet7_has_the_papers_layers():
    """(3,28)C(64,24)P(64,12)C(128,8)P(128,4)C(64,2)D(256,1)S(10,1)."""
    net = ConvNet7()
    assert [sum(p.numel() for p in m.parameters()) for m in layers_with_parameters(net)] == [
        4864,
        204928,
        73792,
        65792,
        2570,
    ]
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
    for ours, theirs in zip(
        torch.autograd.grad(F.cross_entropy(net(x), labels), list(net.parameters())), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_convnet11_has_the_papers_layers():
    printed = "(3,221)C(96,108)P(96,36)C(256,32)P(256,16)C(384,14)C(384,13)C(256,12)P(256,6)D(4096,1)D(4096,1)S(1000,1)"
    with torch.device("meta"):
        net, x = ConvNet11().eval(), torch.zeros(2, 3, 221, 221)
    assert sum(p.numel() for p in net.parameters()) == 61_128_808
    drawn = f"({x.shape[1]},{x.shape[2]})"
    for layer in net.features:
        assert x.shape[2] == x.shape[3]
        x = layer(x)
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            drawn = f"{drawn}{'C' if isinstance(layer, nn.Conv2d) else 'P'}({x.shape[1]},{x.shape[2]})"
    for letter, layer in zip("DDS", (m for m in net.classifier if isinstance(m, nn.Linear)), strict=True):
        drawn = f"{drawn}{letter}({layer.out_features},1)"
    assert drawn == printed


def test_convnet11_computes_what_the_paper_draws():
    """ReLU on every inner layer, before pooling as drawn, and dropout on the outputs of both D layers after
    their ReLU.
    """
    net = ConvNet11(input_shape=(3, 101, 113), num_classes=5).eval()
    c1, c2, c3, c4, c5, d1, d2, s = layers_with_parameters(net)
    x = torch.rand(2, 3, 101, 113)

    def drawn(dropout):
        y = F.max_pool2d(F.relu(c1(x)), 3)
        y = F.max_pool2d(F.relu(c2(y)), 2)
        y = F.max_pool2d(F.relu(c5(F.relu(c4(F.relu(c3(y)))))), 2).flatten(1)
        return s(dropout(F.relu(d2(dropout(F.relu(d1(y)))))))

    torch.testing.assert_close(net(x), drawn(lambda y: y))
    net.train()
    torch.manual_seed(3)
    dropped = net(x)
    torch.manual_seed(3)
    torch.testing.assert_close(dropped, drawn(lambda y: F.dropout(y, 0.5)))
    assert all(bool((layer.bias == 0.1).all()) for layer in layers_with_parameters(net))
    bound = (96 * 25) ** -0.5
    assert 0.99 * bound < float(c2.weight.detach().abs().max()) <= bound


def test_linear_layers_compute_what_is_asked_for():
    net = MLP(input_shape=(2, 3, 4), num_classes=5, hidden=(7, 6), dropout=0.25)
    first, second, last = layers_with_parameters(net)
    assert [sum(p.numel() for p in m.parameters()) for m in (first, second, last)] == [24 * 7 + 7, 7 * 6 + 6, 6 * 5 + 5]
    x = torch.rand(9, 2, 3, 4)
    torch.manual_seed(3)
    dropped = net(x)
    torch.manual_seed(3)
    y = F.dropout(F.relu(first(x.flatten(1))), 0.25)
    torch.testing.assert_close(dropped, last(F.dropout(F.relu(second(y)), 0.25)))
    linear = MLP(input_shape=(2, 3, 4), num_classes=5, hidden=())
    [only] = layers_with_parameters(linear)
    torch.testing.assert_close(linear(x), F.linear(x.flatten(1), only.weight, only.bias))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_689_512), ("resnet50", 25_557_032), ("vgg11_bn", 132_868_840), ("alexnet", 61_100_840),
        ("mobilenet_v2", 3_504_872),
        ("densenet121", 7_978_856), ("googlenet", 6_624_904), ("swin_t", 28_288_354), ("vit_b_16", 86_567_656),
        ("maxvit_t", 30_919_624),
    ],
)  # fmt: skip
def test_torchvisions_nets_have_the_published_numbers_of_parameters(name, parameters):
    with torch.device("meta"):
        net = classifier(name, (3, 224, 224), 1000)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert vision.torchvision().models.get_model_weights(name).DEFAULT.meta["num_params"] == parameters


def test_inception_is_the_published_net_without_its_second_head():
    with torch.device("meta"):
        both = vision.torchvision().models.inception_v3(init_weights=False)
        net = classifier("inception_v3", (3, 299, 299), 1000)
    assert sum(p.numel() for p in both.parameters()) == 27_161_264
    assert sum(p.numel() for p in net.parameters()) == 27_161_264 - sum(p.numel() for p in both.AuxLogits.parameters())


@pytest.mark.parametrize(
    ("name", "side"),
    [("resnet18", 28), ("googlenet", 28), ("inception_v3", 75), ("vit_b_32", 32), ("shufflenet_v2_x0_5", 32)],
)
def test_torchvisions_nets_fit_the_data(name, side):
    tried(classifier(name, (3, side, side), 7), f"model.name={name}", images((3, side, side), 7), 2)


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("resnet81", (3, 28, 28), r"model.name=resnet81: is no net of torchvision; did you mean resnet18"),
        ("zzz", (3, 28, 28), r"model.name=zzz: is no net of torchvision; did you mean resnet18 or"),
        (
            "fasterrcnn_resnet50_fpn",
            (3, 28, 28),
            r"fpn: is none of torchvision's nets for classification that can be trained; did you mean .*resnet50",
        ),
        (
            "quantized_resnet18",
            (3, 28, 28),
            r"quantized_resnet18: is none of torchvision's nets for classification that can be trained; did you "
            r"mean resnet18",
        ),
        (
            "resnet18",
            (1, 28, 28),
            r"model.name=resnet18: takes images of 3 channels, and these have 1; model=small, .* or use a data "
            r"set in color",
        ),
        ("vit_b_16", (3, 28, 28), r"model.name=vit_b_16: cannot be built for images of 28x28: .*indivisible"),
        ("vit_b_16", (3, 32, 48), r"model.name=vit_b_16: takes square images, and these are 32x48"),
        (
            "maxvit_t",
            (3, 28, 28),
            r"model.name=maxvit_t: cannot be built for images of 28x28: .*not divisible by partition size 7",
        ),
    ],
)
def test_what_torchvision_does_not_have_or_cannot_take_is_told(name, shape, sentence):
    with pytest.raises(ValueError, match=sentence) as e:
        classifier(name, shape, 10)
    assert "\n" not in str(e.value)


def test_a_net_for_larger_images_is_refused_in_a_sentence():
    with pytest.raises(
        UsageError,
        match=r"model.name=densenet121: does not take the images of this data set, "
        r"3x28x28 .*: RuntimeError: .*too small",
    ):
        tried(classifier("densenet121", (3, 28, 28), 10), "model.name=densenet121", images((3, 28, 28), 10), 2)


def test_the_digits_net_has_13706_parameters():
    net = ConvNetDigits()
    assert [sum(p.numel() for p in m.parameters()) for m in layers_with_parameters(net)] == [160, 4640, 8256, 650]
    assert net(torch.zeros(5, 1, 8, 8)).shape == (5, 10)


@pytest.mark.parametrize("net", [ConvNet7, ConvNetDigits, MLP])
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
    ("net", "shape", "classes"),
    [
        (ConvNet7, (1, 32, 40), 7),
        (ConvNet7, (3, 24, 24), 2),
        (ConvNetDigits, (3, 28, 28), 100),
        (ConvNetDigits, (1, 6, 7), 2),
    ],
)
def test_nets_fit_other_data(net, shape, classes):
    tried(net(input_shape=shape, num_classes=classes), "model=x", images(shape, classes), 2)


def test_nets_say_what_they_cannot_take():
    with pytest.raises(
        ValueError, match="model=convnet7: takes images of at least 24x24, and these are 8x8; model=small"
    ):
        ConvNet7(input_shape=(1, 8, 8))
    with pytest.raises(ValueError, match="model=small: takes images of at least 6x6, and these are 5x8"):
        ConvNetDigits(input_shape=(1, 5, 8))
    with pytest.raises(
        ValueError, match="model=convnet11: takes images of at least 101x101, and these are 100x221; model=convnet7"
    ):
        ConvNet11(input_shape=(3, 100, 221))
    with pytest.raises(ValueError, match=r"model.hidden=\[8, 0\]: widths are whole numbers of at least 1"):
        MLP(hidden=(8, 0))
    for net in (ConvNet7, ConvNet11, MLP):
        with pytest.raises(ValueError, match=r"model.dropout=1.0"):
            net(dropout=1.0)


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
        (
            InTraining(lambda out: 1 / 0),
            "model=x: fails in training mode, on 2 samples, though not in evaluation: ZeroDivisionError",
        ),
        (InTraining(lambda out: (out, out)), "model=x: in training mode returned a tuple"),
        (InTraining(lambda out: out[:1]), r"model=x: in training mode turned inputs \[2, 1, 6, 6\] into \[1, 3\]"),
        (InTraining(lambda out: out.detach()), "model=x: the gradient of its loss cannot be computed: RuntimeError"),
        (7, "model=x: made a int, which is not a torch.nn.Module"),
        (nn.Flatten(), "model=x: has no trainable parameters"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "model=x: has lazy layers"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(7, 3)),
            "model=x: does not take the images of this data set, 1x6x6 .*: RuntimeError: mat1 and mat2",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(36, 4)),
            r"model=x: turned inputs \[2, 1, 6, 6\] into \[2, 4\]; with 3 classes it must be \[2, 3\]",
        ),
        (Says(torch.full((2, 3), torch.nan)), "model=x: its outputs at the start are not finite"),
        (Says((torch.zeros(2, 3),)), "model=x: returned a tuple"),
        (
            nn.Sequential(nn.InstanceNorm2d(1, track_running_stats=True), nn.Flatten(), nn.Linear(36, 3)),
            "model=x: has an InstanceNorm with track_running",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(net, sentence):
    with pytest.raises(UsageError, match=sentence):
        tried(net, "model=x", images(), 2)


def test_a_net_that_does_not_fit_into_memory_is_refused_before_it_is_made_or_differentiated(monkeypatch):
    """One byte less than is needed: 36 pixels, 1,000 and 3 units."""
    many = 37 * 1000 + 1001 * 3
    net = MLP((1, 6, 6), 3, (1000,))
    monkeypatch.setattr(shared_memory, "available_memory", lambda: 8 * many)
    tried(net, "model=mlp", images(), 2)
    monkeypatch.setattr(shared_memory, "available_memory", lambda: 8 * many - 1)
    with pytest.raises(UsageError, match="model=mlp: has 40,003 parameters; to train it takes"):
        tried(net, "model=mlp", images(), 2)
    monkeypatch.setattr(shared_memory, "available_memory", lambda: 4 * many - 1)
    with pytest.raises(ValueError, match=r"model.hidden=\[1000\]: these are 40,003 parameters"):
        MLP((1, 6, 6), 3, (1000,))


def test_a_trial_leaves_the_model_and_the_generator_alone():
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(36, 3)).train()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    data, before = images(), torch.random.get_rng_state()
    tried(net, "model=x", data, 2)
    assert net.training and all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_trial_takes_no_more_images_than_a_batch_has():
    """One value a channel is too few for batch norm in training, and two are not."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.BatchNorm1d(3))
    tried(net, "model=x", images(), 2)
    with pytest.raises(
        UsageError, match="model=x: fails in training mode, on 1 sample, though not in evaluation: ValueError"
    ):
        tried(net, "model=x", images(), 1)
