"""A model's parameters and gradients as views of one flat vector, which is all that rules and transports know."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from easgd_cli.errors import UsageError


class Flat:
    """The trainable parameters of `model`, in the order of `model.parameters()`, as one vector.

    A parameter that appears in several places counts once; parameters with requires_grad=False and buffers are not
    part of the vector and stay as they are. The model must already be on its device and of its dtype. `behind`: how
    many more entries `gradient_and_behind` has, after the gradient, for the caller's use.
    Raises UsageError when there is nothing to train or the parameters differ in dtype.
    """

    def __init__(self, model: nn.Module, behind: int = 0):
        self.model = model
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        if not self._parameters:
            raise UsageError("The model has no trainable parameters: at least one must have requires_grad=True.")
        dtypes = sorted({str(p.dtype) for p in self._parameters})
        if len(dtypes) > 1 or self._parameters[0].dtype not in (torch.float32, torch.float64):
            raise UsageError(
                f"The model's parameters are of type {' and '.join(dtypes)}: all must be float32, or all float64."
            )
        self._ends: list[int] = []
        end = 0
        for p in self._parameters:
            end += p.numel()
            self._ends.append(end)
        self._slots = {id(p): i for i, p in enumerate(self._parameters)}
        self.places = list(zip([0, *self._ends[:-1]], self._ends, strict=True))  # where each parameter begins and ends
        self.size = end
        self.dtype, self.device = self._parameters[0].dtype, self._parameters[0].device
        self.gradient_and_behind = torch.zeros(self.size + behind, dtype=self.dtype, device=self.device)
        self.gradient = self.gradient_and_behind[: self.size]
        self._bound = 0  # address of the vector of which the parameters are views; 0: they are the model's own tensors
        # The parameters as views of each vector that has been bound and is alive, by its address: a worker's rule
        # differentiates at two or three vectors in turn, and many workers may be served in turn.
        self._views: dict[int, list[Tensor]] = {}
        for p, view in zip(self._parameters, self._split(self.gradient), strict=True):
            p.grad = view  # backward adds into existing gradients in place, so they arrive in the flat buffer

    def bind(self, vector: Tensor) -> None:
        """Makes the model's parameters views of the first entries of `vector` [size or more], which must stay where it
        is; nothing is copied.

        Cheap for a vector that is bound now, or has been bound before.
        """
        address = vector.data_ptr()
        if address == self._bound:
            return
        views = self._views.get(address)
        if views is None:
            assert (
                vector.dim() == 1 and len(vector) >= self.size and vector.dtype == self.dtype and vector.is_contiguous()
            )
            views = self._split(vector.detach())
            # The views keep the memory alive, so while an address is remembered no other vector can come to lie there.
            # It is forgotten with the vector, since a rule may make a new one at every step.
            self._views[address] = views
            weakref.finalize(vector, self._views.pop, address, None).atexit = False
        for p, view in zip(self._parameters, views, strict=True):
            p.data = view
        self._bound = address

    @property
    def names(self) -> list[list[str]]:
        """The names of each parameter in the vector, in their order: a parameter that is used twice has two names."""
        found: list[list[str]] = [[] for _ in self._parameters]
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if parameter.requires_grad:
                found[self._slots[id(parameter)]].append(name)
        return found

    def vector(self) -> Tensor:
        """Returns a copy of the model's parameters [size]."""
        return torch.cat([p.detach().reshape(-1) for p in self._parameters])

    def state_dict(self, vector: Tensor) -> dict[str, Tensor]:
        """Returns a dictionary for `model.load_state_dict`: parameters from `vector` [size], the rest from the model.

        All are plain CPU tensors that share memory with nothing.
        """
        values = self._split(vector.detach())
        state = {}
        for name, tensor in self._named():
            slot = self._slots.get(id(tensor))
            value = tensor if slot is None else values[slot]
            state[name] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return state

    def load(self, state: Mapping[str, Tensor], source: str = "init") -> Tensor:
        """Returns the vector [size] that `state` holds, and copies its buffers and frozen parameters into the model.

        Batch norms' counts of batches may be lacking, as they are in old files, such as torchvision's; torch admits it,
        too. Raises UsageError, with `source` at its beginning, for missing or unexpected names and for other shapes.
        """
        own = self._named()
        names = {name for name, _ in own}
        missing = sorted(name for name in names - state.keys() if not name.endswith("num_batches_tracked"))
        unexpected = sorted(str(k) for k in state.keys() - names)
        if missing:
            also = f" and has {_some(unexpected)}, which the model does not know" if unexpected else ""
            raise UsageError(f"{source}: lacks {_some(missing)}{also}; it must be a state_dict of this model.")
        if unexpected:
            raise UsageError(
                f"{source}: has {_some(unexpected)}, which the model does not know; it must be a state_dict of "
                "this model."
            )
        own = [(name, tensor) for name, tensor in own if name in state]
        for name, tensor in own:
            if not isinstance(state[name], Tensor):
                raise UsageError(
                    f"{source}: {name} is a {type(state[name]).__name__}, where the model has a tensor of shape "
                    f"{tuple(tensor.shape)}."
                )
            if state[name].shape != tensor.shape:
                raise UsageError(
                    f"{source}: {name} is {list(state[name].shape)} in the file and {list(tensor.shape)} in the model."
                )
            _check_type(source, name, state[name], tensor)
        vector = torch.empty(self.size, dtype=self.dtype, device=self.device)
        values = self._split(vector)
        with torch.no_grad():
            for name, tensor in own:
                slot = self._slots.get(id(tensor))
                (tensor if slot is None else values[slot]).copy_(state[name])
        if not bool(torch.isfinite(vector).all()):
            raise UsageError(f"{source}: holds parameters that are not finite numbers.")
        return vector

    def _split(self, vector: Tensor) -> list[Tensor]:
        return [vector[begin:end].view(p.shape) for p, (begin, end) in zip(self._parameters, self.places, strict=True)]

    def _named(self) -> list[tuple[str, Tensor]]:
        """Returns the tensors of a state_dict by name: a parameter that is used twice has two names."""
        return [(name, t) for name, t in self.model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)]


def _check_type(source: str, name: str, theirs: Tensor, own: Tensor) -> None:
    """Raises UsageError where conversion to the model's type would change a number's meaning or value."""
    if theirs.is_floating_point() == own.is_floating_point():
        return
    types = f"{source}: {name} is of type {theirs.dtype} in the file and {own.dtype} in the model"
    if own.is_floating_point():
        raise UsageError(
            f"{types}: whole numbers are not what was trained, but what a quantised net keeps of it; save the net "
            "before that."
        )
    if not torch.equal(theirs.to(own.dtype).to(theirs.dtype), theirs):
        raise UsageError(f"{types}: {theirs.flatten()[0]:g} would be cut to a whole number; save it as {own.dtype}.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
