"""Paragraphs of params.yaml that go on from an ingest run: pretraining, fine-tuning with and without it, the verdict.

They share one ingest run and so its splits: two runs over the same files may divide them otherwise, and a model is not
scored on what it was pretrained on.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

ENCODERS: dict[str, dict[str, Any]] = {
    "xray": {"tokenizer": {"kind": "grid", "patch": [16, 16]}, "size": "small"},
    "ct": {"tokenizer": {"kind": "grid", "patch": [8, 8, 8]}, "size": "small"},
    "multispectral": {"tokenizer": {"kind": "bands", "patch": [16, 16]}, "size": "small"},
    "points": {"tokenizer": {"kind": "groups", "num_groups": 64, "group_size": 32}, "size": "small",
               "place_every_block": True},
}
"""What a run from scratch takes when nothing else is said; `--set encoder.size=tiny` changes it."""
AUGMENT: dict[str, dict[str, Any]] = {
    "xray": {"crop_scale": [0.8, 1.0]}, "ct": {"intensity_scale": 0.1, "intensity_shift": 0.1},
    "multispectral": {}, "points": {}}
"""What fine-tuning does to samples when nothing else is said."""
LIGHT = {"width": 256, "depth": 4, "num_heads": 8}
"""A decoder for small encoders. MAE's 512 by 8 would be five times as large as a tiny encoder, and is no better for
fine-tuning (MAE, table 1)."""
OBJECTIVES: dict[str, dict[str, Any]] = {
    "multispectral": {"masking": {"kind": "channels", "ratio": 0.75}, "decoder": LIGHT, "readout": {"kind": "pixels"}},
    "points": {"masking": {"kind": "random", "ratio": 0.6},
               "decoder": {"width": 384, "depth": 4, "num_heads": 6, "place_every_block": True},
               "readout": {"kind": "chamfer"}},
}
"""What pretraining restores; films and volumes: MAE's."""
MAE: dict[str, Any] = {"masking": {"kind": "random", "ratio": 0.75}, "decoder": LIGHT, "readout": {"kind": "pixels"}}
FLOORS = {"xray": "intensity", "ct": "intensity", "multispectral": "intensity", "points": "shape"}


def starter(name: str, domain: str, kind: str, task: str, masks: bool) -> str:
    """YAML of the stages behind ingest; without a task, pretraining alone.

    Args:
        kind: xray, ct, multispectral or points.
        task: of the ingest run; "" where nothing is to be learnt yet.
        masks: whether it is a task of masks.
    """
    encoder = {**ENCODERS[kind], **({"class_token": False} if kind == "points" else {})}
    made: dict[str, Any] = {"pretrain": {name: {
        "domain": domain, "data": name, "start": "scratch", "teacher": "scratch", "encoder": encoder,
        "objective": OBJECTIVES.get(kind, MAE), "augment": {},
        "optimisation": {"steps": 2000, "batch_size": 64, "learning_rate": 0.001}}}}
    tuning = {**({"head": {"kind": "segment"}} if masks else {}), "augment": AUGMENT[kind],
              "optimisation": {"steps": 500, "batch_size": 8 if masks else 32, "betas": [0.9, 0.999]}}
    start = f"artifacts/pretrain/{name}"
    if task:
        floors = {} if masks else {"floors": [{"kind": FLOORS[kind]}]}
        made |= {"finetune": {name: {"domain": domain, "data": name, "task": task, "start": start, **tuning}},
                 "evaluate": {name: {"domain": domain, "finetune": name, "data": name, **floors}},
                 "verdict": {name: {
                     "domain": domain, "data": name, "task": task,
                     "arms": {"pretrained": start, "other": "scratch", "further": "scratch", "distilled": "scratch"},
                     "tuning": tuning, "budgets": [0.25, 1.0], "seeds": [0, 1, 2]}}}
    # Stage by stage, since YAML would write what two share as an alias.
    text = "".join(yaml.safe_dump({stage: runs}, sort_keys=False, default_flow_style=None, width=110)
                   for stage, runs in made.items())
    return text.replace("size: small", "size: small  # CHECK: tiny, and a smaller read.size, where there is no GPU", 1)


def added(params: str, paragraphs: str) -> str:
    """The text of params.yaml with these paragraphs under their headings; the rest stays as it is, comments included.

    Raises:
        ValueError: a run of that name is there already.
    """
    before, new = yaml.safe_load(params) or {}, yaml.safe_load(paragraphs)
    for stage, runs in new.items():
        for name in runs:
            if name in (before.get(stage) or {}):
                raise ValueError(f"params.yaml: found a run {name} under {stage} already. Remedy: rename or remove it, "
                                 "or rename the folder.")
    for block in re.split(r"(?m)^(?=\w)", paragraphs):
        if not block.strip():
            continue
        heading, body = block.split("\n", 1)
        there = re.compile(rf"(?m)^{heading}[ ]*(\{{\}})?[ ]*(#.*)?$\n?")
        if there.search(params):
            params = there.sub(lambda found, body=body, heading=heading: (  # type: ignore[misc]
                f"{heading}{'  ' + found[2] if found[2] else ''}\n{body}"), params, count=1)
        else:
            params = f"{params.rstrip()}\n\n{block}" if params.strip() else block
    merged = {stage: {**(before.get(stage) or {}), **new.get(stage, {})} for stage in (*before, *new)}
    if yaml.safe_load(params) != {**before, **{stage: merged[stage] for stage in new}}:
        raise ValueError("params.yaml: it is written in a way that paragraphs cannot be put into. Remedy: run without "
                         "--add and paste them.")
    return params
