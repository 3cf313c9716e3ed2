"""Prompts (shallow, deep, gated) with three rules of pooling, singular-value layers, LoRA with and without merging."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from models.adapters.adapter import adapter_state
from models.adapters.seams import added, merged
from models.adapters.singular_values import split
from models.published.rebuild import Rebuilt
from pipelines.weights.import_published import import_file, load_imported
from tests.parity.compare import Case, Taps

EXEMPT: dict[str, str] = {}
POOLS = ("original", "img_pool", "prompt_pool")


def outputs(case: Case) -> Iterator[tuple[str, Tensor]]:
    """Every recorded output."""
    for name, file in (("vpt_shallow", "vpt_shallow.pth"), ("vpt_deep", "vpt_deep.pth"), ("gated", "gated_prompt.pth")):
        for pool in POOLS:
            yield from prompted(case, name, load(case, file, num_heads=heads(case), pool=pool), pool)
    yield from prompts_alone(case)
    yield from singular_values(case)
    yield from lora(case)


def heads(case: Case) -> int:
    return int(case.meta["constructor"]["vit"]["num_heads"])


def load(case: Case, file: str, family: str = "auto", **settings: Any) -> Rebuilt:
    """Import with these settings, and load the folder that comes out."""
    out = case.workspace / "_".join(map(str, (file, *settings.values())))
    import_file(case.folder / file, out, family, settings)
    return load_imported(out)[0]


def prompted(case: Case, name: str, made: Rebuilt, pool: str) -> Iterator[tuple[str, Tensor]]:
    """Blocks, features and logits of an encoder with prompts."""
    encoder, head, images = made.encoder, made.head, case.given["imgs"]
    patches = encoder.tokenizer.patchify(images)
    blocks = [block.wrapped for block in encoder.blocks]                    # what is inside the prompts' wrapper
    given: list[Tensor] = []
    first = blocks[0].register_forward_pre_hook(lambda module, args: given.append(args[0]))
    # a gate's wrapper returns mixed prompts; what was recorded is the block's own output
    with Taps([getattr(block, "wrapped", block) for block in blocks] + [head.norm]) as taps:
        features = encoder(patches)
        logits = head(features, patches, images)
    first.remove()
    yield f"{name}/logits_{pool}", logits
    yield f"{name}/features_{pool}", taps[len(blocks)]
    if pool != POOLS[0]:
        return
    for i in range(len(blocks)):
        yield (f"{name}/block{i}_before_gate" if name == "gated" else f"{name}/block{i}"), taps[i]
    if f"{name}/tokens_in" in case.expected:
        yield f"{name}/tokens_in", given[0]


def prompts_alone(case: Case) -> Iterator[tuple[str, Tensor]]:
    """The trainer's file, on the deep model's encoder with its own prompts wiped, gives the deep model's outputs."""
    made = load(case, "vpt_deep.pth", num_heads=heads(case), pool="original")
    state = adapter_state(load(case, "prompt_ep100.pth").loose)
    own = dict(added(made.encoder))
    assert own.keys() == state.keys()
    for name, value in own.items():
        value.zero_()
        value.copy_(state[name])
    yield from prompted(case, "vpt_deep", made, "original")


def singular_values(case: Case) -> Iterator[tuple[str, Tensor]]:
    """The recorded chain; and our own split of the base, which must compute what the base does."""
    x = case.given["svd/x"]
    base = load(case, "svd_base.pth", family="svd").loose["layers"]
    yield "svd/base_out", chain(base, x)
    yield "svd/base_out", chain(nn.ModuleDict({name: split(layer) for name, layer in base.items()}), x)
    for kind in ("init", "tuned"):
        layers = load(case, f"svd_{kind}.pth").loose["layers"]
        yield f"svd/{kind}_out", chain(layers, x)
        yield f"svd/{kind}_out", chain(nn.ModuleDict({name: merged(layer) for name, layer in layers.items()}), x)


def chain(layers: nn.ModuleDict, x: Tensor) -> Tensor:
    return layers["fc2"](gelu(layers["fc1"](layers["q_proj"](x))))


def lora(case: Case) -> Iterator[tuple[str, Tensor]]:
    """Each layer with its change, without it, and merged."""
    x = case.given["lora/x"]
    parts = [said == "yes" for said in re.findall(r"\b[qkv] (yes|no)\b", case.meta["lora"])]
    layers = load(case, "lora.pth", alpha=case.meta["constructor"]["lora"]["alpha"], enable_lora=parts,
                  fan_in_fan_out=["fan"]).loose["layers"]
    for name, layer in layers.items():
        whole = layer.merged()
        yield f"lora/{name}_out", layer(x)
        yield f"lora/{name}_without_lora", layer.wrapped(x)
        yield f"lora/{name}_merged_weight", whole.weight.T if name == "fan" else whole.weight  # stored i o
        yield f"lora/{name}_merged_out", whole(x)
        assert torch.equal(layer.wrapped.weight, layers[name].wrapped.weight)
