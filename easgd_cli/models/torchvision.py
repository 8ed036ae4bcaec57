"""Any of torchvision's classification nets by name, built and initialised by torchvision, with one output per class."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from easgd_cli.data.vision import torchvision
from easgd_cli.models import image_shape

# These nets have second heads for another loss in training, which no task here has; without these heads they return one
# tensor.
_ONE_HEAD = {"aux_logits": False, "init_weights": True}
_OPTIONS: dict[str, dict[str, Any]] = {"googlenet": _ONE_HEAD, "inception_v3": _ONE_HEAD}


def classifier(name: str, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Returns the untrained net `name`: images [B, 3, H, W] to logits [B, num_classes].

    The nets are made for images of about 224x224; most take smaller ones, each down to its own least size. Transformers
    for one size of images (vit, maxvit) are built for the data's. Raises ValueError for a name that is no
    classification net's, for images without 3 channels, and for a size for which the net cannot be built.
    """
    models = torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        other = "is no net of torchvision"
        if name in models.list_models():
            other = "is none of torchvision's nets for classification that can be trained"
        near = difflib.get_close_matches(name, known, 3, 0.4) or ["resnet18", "vgg11_bn", "vit_b_16"]
        raise ValueError(f"model.name={name}: {other}; did you mean {' or '.join(near)}?")
    channels, *sides = image_shape(input_shape, "torchvision")
    if channels != 3:
        raise ValueError(
            f"model.name={name}: takes images of 3 channels, and these have {channels}; "
            "model=small, model=convnet7 and model=mlp take any number, or use a data set in color."
        )
    options = _OPTIONS.get(name, {}) | _size(name, sides)
    try:
        return models.get_model(name, weights=None, num_classes=num_classes, **options)
    except (AssertionError, ValueError) as e:  # for a size that patches do not fill
        raise ValueError(
            f"model.name={name}: cannot be built for images of {sides[0]}x{sides[1]}: {' '.join(str(e).split())}"
        ) from e


def _size(name: str, sides: list[int]) -> dict[str, Any]:
    """Returns the options that tell the size of images to a net that is built for one size; else none."""
    if name.startswith("maxvit_"):
        return {"input_size": tuple(sides)}
    if not name.startswith("vit_"):
        return {}
    if sides[0] != sides[1]:
        raise ValueError(f"model.name={name}: takes square images, and these are {sides[0]}x{sides[1]}.")
    return {"image_size": sides[0]}
