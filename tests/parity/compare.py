"""Compares what a system's folder records with what the project computes."""

from __future__ import annotations

import importlib
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.published.rebuild import Rebuilt
from pipelines.weights.import_published import import_file, load_imported

SYSTEMS = ("mae", "point_cmae", "point_mae", "channelvit", "satmae", "satmae_pp", "peft", "hi_end_mae", "monai_vit",
           "uni4eye_pp", "medical_mae", "swin_unetr_ssl")
"""One module of this package each, of the same name, with `outputs(case) -> Iterator[tuple[str, Tensor]]` and EXEMPT:
names of recorded outputs that are not compared, each with the reason. Where an output needs a wider relative tolerance,
RTOL has it, by a pattern of names."""
ATOL = RTOL = 1e-4
COUNTED = re.compile(r"(block|hidden|raw|proj|stage|group)\d+")
"""Outputs of which there are as many as a model has blocks, stages or groups. A record may hold some of them only."""


@dataclass
class Case:
    """One system's folder."""

    folder: Path
    meta: dict[str, Any]
    given: dict[str, Tensor]
    """Inputs, without `in/`."""
    expected: dict[str, Tensor]
    """Recorded outputs, without `out/`."""
    workspace: Path
    """Where checkpoints are imported to."""
    imported: dict[str, Rebuilt] = field(default_factory=dict)

    def load(self, file: str, **settings: Any) -> Rebuilt:
        """Import a checkpoint of the folder as a user would, and load the folder that comes out."""
        if file not in self.imported:
            out = self.workspace / Path(file).stem
            import_file(self.folder / file, out, given=settings)
            self.imported[file], _ = load_imported(out)
        return self.imported[file]

    def beginnings(self, stem: str, whole: Tensor, axis: int = 1) -> Iterator[tuple[str, Tensor]]:
        """`whole` under every recorded name of this stem, cut along `axis` to as many as the name says (`pred_first6`,
        `pred_first4patches`) or, where it says nothing, to as many as were recorded."""
        for name, recorded in self.expected.items():
            if found := re.fullmatch(re.escape(stem) + r"(?:_first(\d+)[a-z]*)?", name):
                length = recorded.shape[axis] if found[1] is None else int(found[1])
                yield name, whole.narrow(axis, 0, min(length, whole.shape[axis]))


@dataclass(frozen=True)
class Line:
    """One output's verdict."""

    name: str
    passed: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.passed else 'FAIL'} {self.name:56} {self.text}"


def compare(folder: Path, system: str) -> Iterator[Line]:
    """A line for every recorded output, compared or exempt, and for every one that was forgotten."""
    module = importlib.import_module(f"tests.parity.{system}")
    recorded = load_file(folder / "io.safetensors")
    expected = {name.removeprefix("out/"): value for name, value in recorded.items() if name.startswith("out/")}
    given = {name.removeprefix("in/"): value for name, value in recorded.items() if name.startswith("in/")}
    rtol = getattr(module, "RTOL", {})
    seen: set[str] = set()
    with tempfile.TemporaryDirectory() as workspace, torch.no_grad():
        case = Case(folder, json.loads((folder / "meta.json").read_text()), given, expected, Path(workspace))
        for name, ours in module.outputs(case):
            if name in expected:
                seen.add(name)
                wide = next((value for pattern, value in rtol.items() if fnmatchcase(name, pattern)), RTOL)
                yield _line(f"{system}/{name}", ours, expected[name], wide)
            elif not COUNTED.search(name.rpartition("/")[2]):
                yield Line(f"{system}/{name}", False, "computed, and nothing is recorded under this name")
    for name in sorted(set(expected) - seen):
        reason = module.EXEMPT.get(name)
        yield Line(f"{system}/{name}", reason is not None, f"exempt: {reason}" if reason else "recorded, not compared")


def _line(name: str, ours: Tensor, expected: Tensor, rtol: float) -> Line:
    if ours.shape != expected.shape:
        return Line(name, False, f"shape {tuple(ours.shape)}, recorded {tuple(expected.shape)}")
    a, b = ours.double(), expected.double()
    error = (a - b).abs()
    largest = float(error.max()) if error.numel() else 0.0
    relative = float((error / b.abs().clamp(min=1e-12)).max()) if error.numel() else 0.0
    passed = bool(torch.isfinite(a).all()) and bool((error <= ATOL + rtol * b.abs()).all())
    return Line(name, passed, f"max abs {largest:.2e}  max rel {relative:.2e}")


class Taps:
    """Outputs of modules while a forward runs: `with Taps(encoder.blocks) as taps: ...; taps[0]`."""

    def __init__(self, modules: Any) -> None:
        self.modules, self.out, self.hooks = list(modules), {}, []  # type: ignore[var-annotated]

    def __enter__(self) -> dict[int, Tensor]:
        def keep(i: int) -> Any:
            return lambda module, given, out: self.out.__setitem__(i, out)

        self.hooks = [module.register_forward_hook(keep(i)) for i, module in enumerate(self.modules)]
        return self.out

    def __exit__(self, *about: object) -> None:
        for hook in self.hooks:
            hook.remove()
