"""VPT (Jia et al. 2022, KMnP/vpt) and gated prompt tuning (Yoo et al. 2023), both on an MAE encoder.

Files: whole models ({model}: MAE's names, prompts, `fc_norm` or `norm`, head), and what VPT's trainer writes,
`prompt_ep*.pth`: {shallow_prompt, deep_prompt}, numpy arrays and nothing else.

Legend: E width, X prompts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from models.adapters.gated_prompts import GatedPrompts
from models.adapters.loose import LooseSettings
from models.adapters.prompts import Prompts
from models.heads.predict_sample import SampleHead
from models.published import mae
from models.published.translation import CannotImport, Published, Reader, Translation

FAMILY = "vpt"
LICENCE = "CC-BY-NC 4.0 (KMnP/vpt); gated prompt tuning: MIT, an edit of it"
OWN = ("prompt_embeddings", "deep_prompt_embeddings", "gate_logit", "temp")
"""What these files have beside MAE's tensors."""
ALONE = ("shallow_prompt", "deep_prompt")
"""Names in files that hold prompts alone."""
POOLS: dict[str, Literal["mean_with_prompts", "mean", "prompts"]] = {
    "original": "mean_with_prompts", "imgprompt_pool": "mean_with_prompts", "img_pool": "mean",
    "prompt_pool": "prompts"}
"""The release's VIT_POOL_TYPE -> ours. The first two are one rule on MAE encoders."""


def recognise(file: Published) -> bool:
    """Prompts under the release's names."""
    return any(name in file.tensors for name in ("prompt_embeddings", *ALONE))


def translate(file: Published) -> Translation:
    """Raises CannotImport."""
    if any(name in file.tensors for name in ALONE):
        return _prompts_alone(file)
    read = Reader(file)
    trunk = mae.translate(replace(file, tensors={name: value for name, value in file.tensors.items()
                                                 if name not in OWN}))
    num_prompts = read.shape("prompt_embeddings")[1]
    gates = read.shape("gate_logit")[0] if read.has("gate_logit") else 0
    temperatures = read.shape("temp")[0] if read.has("temp") else 0
    adapter: Prompts | GatedPrompts = Prompts(num_prompts=num_prompts, deep=read.has("deep_prompt_embeddings"))
    if gates or temperatures:
        adapter = GatedPrompts(num_prompts=num_prompts, num_gates=gates, num_temperatures=temperatures)
    read.move("prompt_embeddings", "encoder", "blocks.0.prompts", _first)
    for i in range(read.shape("deep_prompt_embeddings")[0] if read.has("deep_prompt_embeddings") else 0):
        read.move("deep_prompt_embeddings", "encoder", f"blocks.{i + 1}.prompts", lambda x, i=i: x[i])  # type: ignore[misc]
    for i in range(gates):
        read.move("gate_logit", "encoder", f"blocks.{i}.wrapped.gate_logit",
                  lambda x, i=i: x.flatten()[i:i + 1])  # type: ignore[misc]
    for i in range(temperatures):
        block = _block(i, gates)
        read.move("temp", "encoder", f"{block}.attention.qkv.temperature",
                  lambda x, i=i: x.flatten()[i:i + 1])  # type: ignore[misc]
    moved = {ours: _wrapped(ours, gates, temperatures) for ours in trunk.weights["encoder"]}
    weights = {**trunk.weights, "encoder": {moved[ours]: value for ours, value in trunk.weights["encoder"].items()}
               | read.weights["encoder"]}
    names = {theirs: [f"encoder.{moved[own]}" if (own := ours.removeprefix("encoder.")) != ours else ours
                      for ours in several] for theirs, several in trunk.names.items()}
    settings = {**trunk.settings, "adapter": adapter}
    if "head" in settings:
        settings["head"] = _head(trunk.settings["head"], read)
        if trunk.settings["encoder"].last_norm:
            _norm_after_pooling(settings, weights, names)
    return replace(trunk, family=FAMILY, licence=LICENCE, settings=settings, weights=weights,
                   names=names | read.names, notes=(*trunk.notes, *read.notes))


def _head(found: SampleHead, read: Reader) -> SampleHead:
    pool = read.file.given.get("pool")
    if pool is None:
        pool = "original"
        read.notes.append("pool = original: what both releases use on MAE encoders; weights do not tell.")
    if pool not in POOLS:
        raise CannotImport(f"pool: found {pool!r}, expected one of {', '.join(POOLS)}. Give the run's VIT_POOL_TYPE: "
                           "--set pool=...")
    return replace(found, pool=POOLS[pool])


def _norm_after_pooling(settings: dict[str, Any], weights: dict[str, dict[str, Tensor]],
                        names: dict[str, list[str]]) -> None:
    """Gated prompt tuning has no `fc_norm`: the pretrained `norm` runs on the pooled token, so it is the head's."""
    settings["encoder"] = replace(settings["encoder"], last_norm=False)
    settings["head"] = replace(settings["head"], norm="layer", norm_eps=settings["encoder"].norm_eps)
    for name in ("norm.weight", "norm.bias"):
        if name in weights["encoder"]:
            weights["head"][name] = weights["encoder"].pop(name)
            names[name] = [f"head.{name}"]


def _prompts_alone(file: Published) -> Translation:
    """Prompts without the encoder they were learnt on."""
    read = Reader(file)
    _, num_prompts, width = read.shape("shallow_prompt")
    deep = read.has("deep_prompt")
    later = read.shape("deep_prompt")[0] if deep else 0
    read.move("shallow_prompt", "loose", "blocks.0.prompts", _first)
    for i in range(later):
        read.move("deep_prompt", "loose", f"blocks.{i + 1}.prompts", lambda x, i=i: x[i])  # type: ignore[misc]
    settings = LooseSettings(prompts=Prompts(num_prompts=num_prompts, deep=deep), width=width, num_blocks=1 + later)
    return Translation(FAMILY, LICENCE, {"loose": settings}, 0, read.weights, read.names, (), mae.IMAGENET,
                       notes=("prompts alone: they mean something on the encoder that they were learnt on, which the "
                              "file does not name.",))


def _first(x: Tensor) -> Tensor:
    """1 X E -> X E"""
    return x[0]


def _block(i: int, gates: int) -> str:
    """Where a block lies after prompts, and gates for the first blocks, have been put around it."""
    return f"blocks.{i}.wrapped.wrapped" if i < gates else f"blocks.{i}.wrapped"


def _wrapped(name: str, gates: int, temperatures: int) -> str:
    """A name within a bare encoder -> the same within the adapted one."""
    if not name.startswith("blocks."):
        return name
    _, number, rest = name.split(".", 2)
    if int(number) < temperatures:
        rest = rest.replace("attention.qkv.", "attention.qkv.wrapped.")
    return f"{_block(int(number), gates)}.{rest}"
