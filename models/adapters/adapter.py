"""The adapters that can be asked for, the one place that adds them, and their weights saved alone.

An adapter is settings and a function that edits an encoder. It adds and never freezes: which parameters are trained is
the stage's to say, which gets the added ones back.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from models.adapters.any2point import Any2Point, add_any2point
from models.adapters.bias import Bias, add_bias
from models.adapters.bottleneck import Bottleneck, add_bottleneck
from models.adapters.dynamic_prompts import DynamicPrompts, add_dynamic_prompts
from models.adapters.gated_prompts import GatedPrompts, add_gated_prompts
from models.adapters.geometry import Geometry, add_geometry
from models.adapters.lora import Lora, add_lora
from models.adapters.prior_prompts import PriorPrompts, add_prior_prompts, check_memories
from models.adapters.prompts import Prompts, add_prompts
from models.adapters.seams import EVERY_LINEAR, added, inner_blocks, kept, merged, wrap_linear
from models.adapters.singular_values import SingularValues, add_singular_values
from models.encoder.transformer import Encoder

AdapterSettings = (Prompts | GatedPrompts | DynamicPrompts | SingularValues | Lora | Bias | Bottleneck |
                   PriorPrompts | Geometry | Any2Point)
"""Told apart by `kind`."""


def add_adapter(encoder: nn.Module, settings: AdapterSettings) -> list[nn.Parameter]:
    """Edit the encoder as these settings say; returns the parameters that were added. Raises ValueError where the
    encoder has no room for them."""
    if not isinstance(encoder, Encoder):
        raise ValueError(f"adapter: found {settings.kind} for an encoder of kind {type(encoder).__name__}, expected a "
                         "transformer, whose blocks and linear layers adapters know. Leave the adapter out.")
    match settings:
        case Prompts():
            return add_prompts(encoder, settings)
        case GatedPrompts():
            return add_gated_prompts(encoder, settings)
        case DynamicPrompts():
            return add_dynamic_prompts(encoder, settings)
        case SingularValues():
            return add_singular_values(encoder, settings)
        case Lora():
            return add_lora(encoder, settings)
        case Bias():
            return add_bias(encoder, settings)
        case Bottleneck():
            return add_bottleneck(encoder, settings)
        case PriorPrompts():
            return add_prior_prompts(encoder, settings)
        case Geometry():
            return add_geometry(encoder, settings)
        case Any2Point():
            return add_any2point(encoder, settings)


def merge_adapters(encoder: Encoder) -> None:
    """Fold every adapted linear layer into a plain one that computes the same, within rounding. Prompts, gates and
    bottlenecks are no linear layers; they stay."""
    for block in inner_blocks(encoder):
        for name in EVERY_LINEAR:
            wrap_linear(block, name, merged, outside=True)


def left_after_merging(settings: AdapterSettings) -> AdapterSettings | None:
    """What of an adapter is still there when linear layers have been folded; None: nothing."""
    match settings:
        case Lora() | SingularValues() | Bias():
            return None
        case GatedPrompts():
            return dataclasses.replace(settings, num_temperatures=0)
        case _:
            return settings


def adapter_state(encoder: nn.Module) -> dict[str, Tensor]:
    """What adapters have added, by name: all that need be kept beside the encoder they were put on."""
    return {name: value.detach().clone() for name, value in _state(encoder)}


def _state(encoder: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from added(encoder)
    yield from kept(encoder)


def trunk_hash(encoder: nn.Module) -> str:
    """One hash over an encoder's own weights, before adapters are added.

    Raises:
        ValueError: there are adapters; layers that were split no longer hold the weight that was there.
    """
    if adapters := [name for name, _ in added(encoder)]:
        raise ValueError(f"found {len(adapters)} weights of adapters ({adapters[0]} ...), expected an encoder alone. "
                         "Take the hash before adapters are added.")
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_adapter_state(encoder: Encoder, adapters: Sequence[AdapterSettings], state: Mapping[str, Tensor],
                       made_on: str | None) -> list[nn.Parameter]:
    """Add adapters to a bare encoder and fill them.

    Args:
        adapters: in the order in which they were added when `state` was made.
        state: what `adapter_state` gave.
        made_on: `trunk_hash` of the encoder that it was made on; None: not known, as with files of others.

    Returns:
        The parameters that were added.

    Raises:
        ValueError: the encoder is another one, weights are missing, strange or of another shape, or a memory of
            training features is damaged; in the first case nothing has been added.
    """
    if made_on is not None and (found := trunk_hash(encoder)) != made_on:
        raise ValueError(f"these adapter weights were made on an encoder with the hash {made_on[:12]}; found one with "
                         f"{found[:12]}. On other weights they mean nothing. Load the encoder that they were made on.")
    new = [value for settings in adapters for value in add_adapter(encoder, settings)]
    own = dict(_state(encoder))
    unlike = [name for name in own if name in state and own[name].shape != state[name].shape]
    missing, strange = [name for name in own if name not in state], [name for name in state if name not in own]
    if missing or strange or unlike:
        raise ValueError(f"weights of adapters: missing {missing or 'none'}, not expected {strange or 'none'}, other "
                         f"shape {unlike or 'none'}. Expected exactly those that the adapters' settings describe.")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])
    check_memories(encoder)
    return new
