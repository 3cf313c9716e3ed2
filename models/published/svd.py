"""CLIP-SVD (Koleilat et al. 2025, HealthX-Lab/CLIP-SVD): linear layers as singular values and vectors.

Files: {weights, metadata}; of each layer `fc_U` (weight o r, bias), `vector_S` (1 r), `fc_V` (weight r i), or a plain
weight and bias. The layers are imported by themselves; CLIP is no encoder here.

Legend: i inputs, o outputs of a layer, r rank.
"""

from __future__ import annotations

from models.adapters.loose import LooseLayer, LooseSettings, LooseSplit, key_of
from models.published.translation import CannotImport, Channels, Published, Reader, Translation

FAMILY = "svd"
LICENCE = "MIT (HealthX-Lab/CLIP-SVD); the weights' own where they come from CLIP"


def recognise(file: Published) -> bool:
    """At least one layer is split."""
    return any(name.endswith(".vector_S") for name in file.tensors)


def translate(file: Published) -> Translation:
    """Raises CannotImport."""
    read = Reader(file)
    split = [name.removesuffix(".vector_S") for name in file.tensors if name.endswith(".vector_S")]
    plain = [name.removesuffix(".weight") for name, value in file.tensors.items()
             if name.endswith(".weight") and value.dim() == 2
             and name.removesuffix(".weight").rpartition(".")[2] not in ("fc_U", "fc_V")]
    layers = [_split(read, name) for name in split] + [plain_layer(read, name, "loose") for name in plain]
    if not layers:
        raise CannotImport("found no linear layer, plain or split, expected fc_U, vector_S and fc_V of some. Give "
                           "--family another name.")
    return Translation(FAMILY, LICENCE, {"loose": LooseSettings(layers=tuple(layers))}, 0, read.weights, read.names,
                       (), Channels(()), missing=tuple(read.missing),
                       notes=("layers by themselves: the file does not say how they are joined.",))


def _split(read: Reader, name: str) -> LooseLayer:
    rank = read.shape(f"{name}.vector_S")[-1]
    outputs, inputs = read.shape(f"{name}.fc_U.weight")[0], read.shape(f"{name}.fc_V.weight")[1]
    ours = f"layers.{key_of(name)}"
    read.move(f"{name}.vector_S", "loose", f"{ours}.values", lambda x: x.flatten())
    read.move(f"{name}.fc_U.weight", "loose", f"{ours}.left")
    read.move(f"{name}.fc_V.weight", "loose", f"{ours}.right")
    bias = read.has(f"{name}.fc_U.bias")
    if bias:
        read.move(f"{name}.fc_U.bias", "loose", f"{ours}.bias")
    return LooseLayer(name, inputs, outputs, bias, LooseSplit(rank=rank))


def plain_layer(read: Reader, name: str, part: str) -> LooseLayer:
    """A linear layer with nothing on it."""
    outputs, inputs = read.shape(f"{name}.weight")
    read.move_layer(name, part, f"layers.{key_of(name)}")
    return LooseLayer(name, inputs, outputs, read.has(f"{name}.bias"))
