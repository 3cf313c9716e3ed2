"""The two places where an adapter may get in: a block may be wrapped, a linear layer may be wrapped.

A wrapper calls what it wraps `wrapped` and names its own tensors in ADDED, and those that it keeps but never trains in
KEPT; so adapters that know nothing of each other can be put on one encoder, and what each has added can be told from
the encoder's own weights. Blocks see no places; an adapter that needs them has them noted (`note_places`).

Legend: B batch, V visible patches, K place coordinates, E width, i inputs, o outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.encoder.transformer import Encoder

LayerName = Literal["query", "key", "value", "output", "mlp"]
"""The linear layers of a block as papers name them; the first three are one layer here, `attention.qkv`."""
QKV: tuple[LayerName, ...] = ("query", "key", "value")
"""In the order of the rows of `attention.qkv`."""
EVERY_LINEAR = ("attention.qkv", "attention.proj", "mlp.0", "mlp.3")
"""The linear layers of a block, by the names that they have in it."""


class Beside(nn.Module):
    """Layers that read the same input, their outputs side by side: a layer cut along its outputs."""

    def __init__(self, parts: Sequence[Any]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.in_features: int = parts[0].in_features
        self.out_features = sum(part.out_features for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        """... i -> ... o"""
        return torch.cat([part(x) for part in self.parts], -1)

    def merged(self) -> nn.Linear:
        """The one layer that this equals, within rounding."""
        parts = [merged(part) for part in self.parts]
        bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
        return linear_of(torch.cat([part.weight for part in parts]), bias)


def inner_blocks(encoder: Encoder) -> list[nn.Module]:
    """The encoder's own blocks, without what adapters have put around them."""
    return [_innermost(block) for block in encoder.blocks]


def wrap_linear(block: nn.Module, name: str, make: Callable[[nn.Module], nn.Module], *,
                outside: bool = False) -> nn.Module:
    """Put `make(layer)` where the layer `name` ("attention.qkv", "mlp.0") of a block is, and return it.

    Args:
        outside: around everything that is there already; False: around the layer itself, within other wrappers, so that
            the order in which adapters are added does not matter.
    """
    owner, _, key = name.rpartition(".")
    holder = block.get_submodule(owner)
    while not outside and hasattr(getattr(holder, key), "wrapped"):
        holder, key = getattr(holder, key), "wrapped"
    old: nn.Module = getattr(holder, key)
    new = make(old).train(old.training)
    setattr(holder, key, new)
    return new


def chosen_linears(layers: Iterable[LayerName]) -> dict[str, tuple[bool, ...]]:
    """Names of a block's layers -> which of their equal parts are meant: (query, key, value), or the whole."""
    chosen = set(layers)
    out = {"attention.qkv": tuple(name in chosen for name in QKV)} if chosen & set(QKV) else {}
    if "output" in chosen:
        out["attention.proj"] = (True,)
    return out | ({"mlp.0": (True,), "mlp.3": (True,)} if "mlp" in chosen else {})


def added(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that adapters have put into a module."""
    for path, child in module.named_modules():
        for name in getattr(child, "ADDED", ()):
            if (value := getattr(child, name)) is not None:
                yield f"{path}.{name}" if path else name, value


def kept(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors that adapters hold beside what is trained, and that are saved with it."""
    for path, child in module.named_modules():
        for name in getattr(child, "KEPT", ()):
            yield f"{path}.{name}" if path else name, getattr(child, name)


class Places:
    """Where the patches of the batch at hand are; the wrappers of blocks that need it share it."""

    def __init__(self, code: nn.Module) -> None:
        self.code_of = code
        """The encoder's own code of places: B N K -> B N E."""
        self.place = torch.empty(0)
        """B V K, visible patches in their order, which are the last tokens of a block's sequence."""
        self.code = torch.empty(0)
        """B V E: what the encoder adds to them."""


class NotedPlaces(nn.Module):
    """A code of places that notes what it was asked for."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.places = Places(wrapped)

    def forward(self, place: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """B V K -> B V E"""
        code: Tensor = self.wrapped(place, grid)
        self.places.place, self.places.code = place, code.detach()
        return code


def note_places(encoder: Encoder) -> Places:
    """Where the patches are that the encoder's blocks are looking at; several adapters are given the same."""
    if not isinstance(encoder.place_code, NotedPlaces):
        encoder.place_code = NotedPlaces(encoder.place_code).train(encoder.place_code.training)
    return encoder.place_code.places


def merged(layer: Any) -> nn.Linear:
    """The plain layer that an adapted one equals, within rounding; a plain one as it is."""
    out: nn.Linear = layer if isinstance(layer, nn.Linear) else layer.merged()
    return out


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer with these weights, o i and o, copied."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    layer.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
    return layer


def _innermost(module: Any) -> nn.Module:
    while hasattr(module, "wrapped"):
        module = module.wrapped
    out: nn.Module = module
    return out
