"""Stage `sample`: write the embedded sample, generated files in real formats, so that everything can be tried without
data of one's own."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from domains.publish import folder_in_the_making
from pipelines.settings import build


@dataclass(frozen=True)
class SampleRun:
    """One paragraph of `sample` in params.yaml."""

    domain: Literal["medical", "satellite", "pointcloud"]
    """Whose generator."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The generator's own settings: kind, counts, seed."""


def run(name: str, settings: SampleRun, root: Path) -> dict[str, Any]:
    """Write data/raw/<name>. Returns how many files there are."""
    sample_data = importlib.import_module(f"domains.{settings.domain}.sample_data")
    chosen = build(sample_data.Sample, settings.settings, f"sample.{name}.settings")
    with folder_in_the_making(root / "data/raw" / name) as making:
        sample_data.make(making, chosen)
        files = sum(1 for path in making.rglob("*") if path.is_file())
    return {"files": files, "folder": f"data/raw/{name}"}
