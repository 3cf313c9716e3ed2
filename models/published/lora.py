"""LoRA (Hu et al. 2021, microsoft/LoRA): linear layers with `lora_A` and `lora_B` beside their weight.

Files: a bare state dict. Layers are plain, hold several side by side of which some are changed (MergedLinear: A is
G r i, B is G o/n r), or keep their weight as i o (fan_in_fan_out). The layers are imported by themselves.

Legend: i inputs, o outputs of a layer, r rank, G parts of a layer that are changed, n parts in all.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from models.adapters.loose import LooseLayer, LooseLora, LooseSettings, key_of
from models.published.svd import plain_layer
from models.published.translation import CannotImport, Channels, Published, Reader, Translation

FAMILY = "lora"
LICENCE = "MIT (microsoft/LoRA); the weights' own otherwise"
PARTS = ("query", "key", "value")


def recognise(file: Published) -> bool:
    """At least one layer has a low-rank change."""
    return any(name.endswith(".lora_A") for name in file.tensors)


def translate(file: Published) -> Translation:
    """What weights do not tell, from the user: alpha, which parts (`enable_lora`, default query and value), and of
    square layers whether they are stored transposed (`fan_in_fan_out`, their names). Raises CannotImport."""
    read = Reader(file)
    alpha = float(read.setting("alpha", "the scale of the change, alpha / rank"))
    changed = [name.removesuffix(".lora_A") for name in file.tensors if name.endswith(".lora_A")]
    layers = [_layer(read, name, alpha) for name in changed]
    layers += [plain_layer(read, name, "loose") for theirs, value in file.tensors.items()
               if theirs.endswith(".weight") and value.dim() == 2
               and (name := theirs.removesuffix(".weight")) not in changed]
    return Translation(FAMILY, LICENCE, {"loose": LooseSettings(layers=tuple(layers))}, 0, read.weights, read.names,
                       (), Channels(()), missing=tuple(read.missing),
                       notes=("layers by themselves: the file does not say how they are joined.", *read.notes))


def _layer(read: Reader, name: str, alpha: float) -> LooseLayer:
    rows, inputs = read.shape(f"{name}.lora_A")
    share, rank = read.shape(f"{name}.lora_B")
    outputs = sum(read.shape(f"{name}.weight")) - inputs                    # whichever way round it is stored
    parts = _parts(read, name, rows // rank, share, outputs)
    ours = f"layers.{key_of(name)}"
    change = _transposed if _is_transposed(read, name, inputs, outputs) else None
    read.move_layer(name, "loose", f"{ours}.wrapped", change)
    read.move(f"{name}.lora_A", "loose", f"{ours}.down")
    read.move(f"{name}.lora_B", "loose", f"{ours}.up")
    return LooseLayer(name, inputs, outputs, read.has(f"{name}.bias"), LooseLora(rank=rank, alpha=alpha, parts=parts))


def _parts(read: Reader, name: str, groups: int, share: int, outputs: int) -> tuple[bool, ...]:
    """Which equal shares of the outputs are changed: G rows of shares in B, out of all outputs."""
    count = outputs * groups // share
    if groups == count:
        return (True,) * count
    given: Sequence[bool] | None = read.file.given.get("enable_lora")
    if given is None:
        given = tuple(part in ("query", "value") for part in PARTS)
        read.notes.append(f"{name}: enable_lora = {list(given)}: query and value, as in the paper; weights do not "
                          "tell which.")
    parts = tuple(bool(part) for part in given)
    if (len(parts), sum(parts)) != (count, groups):
        raise CannotImport(f"{name}: found a change of {groups} out of {count} parts, expected enable_lora to name as "
                           f"many; found {list(parts)}. Give it: --set enable_lora=[true,false,true]")
    return parts


def _is_transposed(read: Reader, name: str, inputs: int, outputs: int) -> bool:
    """Whether the weight is stored i o. Shapes tell, unless the layer is square."""
    if inputs != outputs:
        return read.shape(f"{name}.weight") == (inputs, outputs)
    if "fan_in_fan_out" not in read.file.given:
        read.notes.append(f"{name}: square, and taken as stored o i. If not: --set fan_in_fan_out=[{name}]")
    return name in read.file.given.get("fan_in_fan_out", ())


def _transposed(x: Tensor) -> Tensor:
    """i o -> o i"""
    return x.T
