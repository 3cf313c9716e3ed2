"""Swin UNETR's self-supervision: both layouts of the checkpoint, both wirings of patch merging, sizes that windows do
not fill, heads and losses. Large maps are recorded with strides."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from models.encoder.swin import normalised, stage_grid
from tests.parity.compare import Case, Taps

EXEMPT: dict[str, str] = {}
PUBLISHED, OWN = "model_swinvit.pt", "model_bestValRMSE.pt"


def outputs(case: Case) -> Iterator[tuple[str, Tensor]]:
    """Every recorded output."""
    for merging in ("legacy", "current"):
        names = [name.removeprefix(f"{merging}/") for name in case.expected if name.startswith(f"{merging}/")]
        ours = maps(case, merging) | tasks(case, merging)
        for name in names:
            if name in ours:
                yield f"{merging}/{name}", thinned(case, f"{merging}/{name}", ours[name])


def maps(case: Case, merging: str) -> dict[str, Tensor]:
    """What the encoder makes of the volume and of the odd sizes, from the published layout. For legacy, nobody says so:
    the importer has to know."""
    given = {} if merging == "legacy" else {"merging": merging}
    encoder = load(case, PUBLISHED, **given).encoder
    assert encoder.settings.merging == merging
    out: dict[str, Tensor] = {}
    for prefix, name in (("", "volume_u8"), ("odd_", "odd_u8")):
        x = whole_patches(case.given[name].float() / 255, encoder.tokenizer.patch)
        patches = encoder.tokenizer.patchify(x)
        embedded = encoder.tokenizer.embed(patches.values)
        with Taps(block for stage in encoder.blocks for block in stage.blocks) as taps:
            features = encoder(patches, layers=range(len(encoder.blocks)))
        grids = [stage_grid(patches.grid, stage) for stage in range(len(encoder.blocks))]
        channels_last = [tokens.unflatten(1, grid) for tokens, grid in zip(features.layers, grids, strict=True)]
        out[f"{prefix}patch_embed"] = embedded.unflatten(1, patches.grid).movedim(-1, 1)
        out[f"{prefix}hidden0"] = normalised(embedded).unflatten(1, patches.grid).movedim(-1, 1)
        number = 0
        for stage, merged in enumerate(channels_last, 1):
            out[f"{prefix}stage{stage}_merged"] = merged
            out[f"{prefix}hidden{stage}"] = normalised(merged).movedim(-1, 1)
            for block in range(len(encoder.blocks[stage - 1].blocks)):
                out[f"{prefix}stage{stage}_block{block}"] = taps[number]
                number += 1
        out[f"{prefix}raw{len(grids)}"] = channels_last[-1].movedim(-1, 1)
        # the tokens that heads get are the last of these maps, in the same order
        torch.testing.assert_close(features.tokens, normalised(features.layers[-1]), rtol=0, atol=0)
    return out


def tasks(case: Case, merging: str) -> dict[str, Tensor]:
    """Heads and losses, from the layout of one's own run."""
    made = load(case, OWN, merging=merging)
    x = case.given["volume_u8"].float() / 255
    answers = made.objective.answer(x)
    second = (0.5 * answers.codes + 0.1).roll(1, dims=-1)  # what meta.json calls the shifted copy
    pair = answers._replace(codes=torch.cat([answers.codes, second]))
    losses = made.objective.score(pair, x, case.given["rot_target"])
    return {"rotation": answers.turns, "contrastive": answers.codes, "reconstruction": answers.restored,
            "loss_rot": losses["rotation"], "loss_contrastive": losses["contrastive"],
            "loss_recon": losses["inpainting"], "loss_total": torch.stack(list(losses.values())).sum()}


def load(case: Case, file: str, **settings: Any) -> Any:
    """The file with other settings is another import."""
    case.imported.pop(file, None)
    return case.load(file, **settings)


def whole_patches(x: Tensor, patch: tuple[int, ...]) -> Tensor:
    """x with zeros at the end of each axis until patches fill it, as the reference's embedding does by itself."""
    filled = [amount for size, edge in zip(x.shape[:1:-1], patch[::-1], strict=True) for amount in (0, -size % edge)]
    return torch.nn.functional.pad(x, filled)


def thinned(case: Case, name: str, x: Tensor) -> Tensor:
    """x at the places that are recorded: every n-th along each axis of space. n makes the shapes agree; where several
    do, it is the one that is written for this kind of map."""
    recorded = case.expected[name].shape
    if x.shape == recorded or len(recorded) != x.dim() or x.dim() < 4:
        return x
    space = range(1, x.dim() - 1) if "stage" in name else range(2, x.dim())
    fitting = [n for n in range(2, max(x.shape) + 1) if all(-(-x.shape[axis] // n) == recorded[axis] for axis in space)]
    written = step_of(case.meta["subsampling"], name.rpartition("/")[2])
    n = written if written in fitting else fitting[0] if fitting else 1
    return x[tuple(slice(None, None, n) if axis in space else slice(None) for axis in range(x.dim()))]


def step_of(text: str, name: str) -> int | None:
    """What the text says of this output: "hidden{i} every 3rd; odd_hidden{i} every 2nd", with `*` and `{i}` for any."""
    for clause in text.split(";"):
        step = re.search(r"every (\d+)", clause)
        words = re.findall(r"[a-z*][\w*{}]*", clause[:step.start()]) if step else []
        if step and any(fnmatchcase(name, word.replace("{i}", "[0-9]")) for word in words):
            return int(step[1])
    return None
