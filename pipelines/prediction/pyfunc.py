"""The registered model: takes paths of native files and answers with labels and probabilities, or with masks.

MLflow imports this module and calls `_load_pyfunc` on the checkpoint folder that lies in the model; nothing is
unpickled. The model carries this project's code (`CODE`), so it needs the packages in its requirements and not an
installed Lacuna. MLflow itself is not imported here.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HOME = Path(__file__).resolve().parents[2]
CODE = (HOME / "pipelines", HOME / "domains", HOME / "models")
"""Folders that go into a registered model."""
ALWAYS = ("torch", "numpy", "pydantic", "PyYAML", "safetensors", "pyarrow", "tqdm", "mlflow")
BY_DOMAIN = {
    "medical": ("pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "nibabel", "isal", "pillow"),
    "satellite": ("rasterio",),
    "pointcloud": ("open3d-cpu", "open3d", "laspy", "lazrs", "scipy", "fpsample"),
}
"""Packages that a loaded model imports; those installed here are pinned to their versions."""
EXAMPLES = {"xray": "film.dcm", "ct": "volume.nii.gz", "multispectral": "scene.tif", "points": "cloud.laz"}
"""What a file of each kind may be called."""


@dataclass(frozen=True)
class Card:
    """What a registry shows of a checkpoint."""

    inputs: tuple[tuple[str, str], ...]
    """(column, type) of what goes in."""
    params: tuple[tuple[str, str, str], ...]
    """(name, type, default) of what may be said beside the paths."""
    outputs: tuple[tuple[str, str], ...]
    """(column, type) of what comes out."""
    example: dict[str, list[str]]
    """A table to ask with, by column; no such file has to be there, since each answer stands alone."""
    requirements: tuple[str, ...]
    """Lines for pip."""
    tags: dict[str, str]
    """Hashes and names that lead back to where the weights come from."""


def describe(folder: Path) -> Card:
    """A tuned checkpoint's card, from its JSON files alone."""
    record = json.loads((folder / "checkpoint.json").read_text())
    contract = json.loads((folder / "contract.json").read_text())
    provenance = record.get("provenance", {})
    outputs = (("path", "string"), ("status", "string"), ("reason", "string"), *_answers(record["task"]))
    tags = {"model.domain": record["domain"], "model.kind": contract["kind"],
            "model.task": provenance.get("task", ""), "model.task_kind": record["task"]["kind"],
            "model.weights": record["weights_sha256"][:16], "model.contract": _hash(folder / "contract.json"),
            "model.data": str(provenance.get("data_digest", ""))[:36], "model.arm": provenance.get("arm", ""),
            "model.seed": str(provenance.get("seed", "")), "model.temperature": f"{record.get('temperature', 1.0):.4g}"}
    tags = {key: text for key, text in tags.items() if text}
    return Card((("path", "string"),), (("source", "string", ""),), outputs,
                {"path": [EXAMPLES[contract["kind"]]]}, requirements(record["domain"]), tags)


def _answers(task: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Columns of what a model of a task says of a file. Of masks: what the file is called that `lacuna predict` writes,
    its bytes, pixels (voxels, points) of each class and those without one."""
    if task["kind"] == "segmentation":
        return (("file", "string"), ("mask", "binary"), *((f"pixels.{name}", "double") for name in task["classes"]),
                ("not_looked_at", "double"))
    names = task["classes"] if task["kind"] == "single_label" else task["columns"]
    return (("label", "string"), *((f"p.{name}", "double") for name in names))


def requirements(domain: str) -> tuple[str, ...]:
    """The packages that a model of this domain needs, at the versions that it was made with."""
    lines = []
    for name in (*ALWAYS, *BY_DOMAIN[domain]):
        try:
            lines.append(f"{name}=={metadata.version(name).partition('+')[0]}")  # "+cpu" is on no public index
        except metadata.PackageNotFoundError:
            continue  # of open3d-cpu and open3d a machine has one
    return tuple(lines)


def unasked(flavor: Any) -> Any:
    """A flavor whose models are not loaded again to be asked about their example: `Model.log` has a setting for that,
    and passes it on to a function that does not take it."""
    def save_model(validate_serving_input: bool, **settings: Any) -> None:
        flavor.save_model(**settings)

    return SimpleNamespace(__name__=flavor.__name__, save_model=save_model)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _load_pyfunc(path: str) -> Predictor:
    """What MLflow calls; `path` is the checkpoint folder inside the model."""
    for name in ("models", "domains", "pipelines"):
        origin = getattr(sys.modules.get(name), "__file__", None)
        if origin is not None and not Path(origin).resolve().is_relative_to(HOME):
            raise ImportError(f"found another package named {name!r} already imported ({origin}), expected the one "
                              "that this model carries. Load the model in a process of its own, or rename that folder.")
    return Predictor(Path(path))


class Predictor:
    """The model behind mlflow.pyfunc.load_model(...)."""

    def __init__(self, folder: Path) -> None:
        from pipelines.prediction.native import open_checkpoint

        self.native = open_checkpoint(folder)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """One answer per path, in order; a file that cannot be used has status `refused` and a reason.

        Args:
            model_input: a table with the column `path`, a list of paths, or a list of {"path": ...}.
            params: `source`, the hospital or sensor, for readers that treat sources differently.

        Returns:
            A table of the same type as the one given, or a list of dictionaries.
        """
        from pipelines.prediction.native import row_of
        from pipelines.prediction.predict import of_masks, result_of

        table = type(model_input) if hasattr(model_input, "columns") else None
        rows = [row_of(Path(path), (params or {}).get("source", "")) for path in _paths(model_input)]
        if of_masks(self.native):
            answers = self._masks(rows)
        else:
            answers = [_flat(result_of(read, self.native)) for read in self.native.read(rows, self.native.answer)]
        names = [name for name, _ in describe(self.native.folder).outputs]
        answers = [{name: answer.get(name, float("nan")) for name in names} for answer in answers]
        return answers if table is None else table({name: [answer[name] for answer in answers] for name in names})


    def _masks(self, rows: Sequence[Any]) -> list[dict[str, Any]]:
        """The files that `lacuna predict` writes, as bytes; all answers of a call are held in memory."""
        from pipelines.prediction.masks import names_for
        from pipelines.prediction.predict import masks_into

        answers = []
        with tempfile.TemporaryDirectory() as folder:
            for result in masks_into(Path(folder), self.native, rows, names_for(rows, {})):
                answer = {"path": result["path"], "status": result["status"], "reason": result["reason"], "file": "",
                          "mask": b""}
                if "mask" in result:
                    written = Path(folder) / result["mask"]
                    counts = {f"pixels.{entry['class']}": float(entry["pixels"]) for entry in result["classes"]}
                    answer |= {"file": written.name, "mask": written.read_bytes(), **counts,
                               "not_looked_at": float(result["not_looked_at"])}
                answers.append(answer)
        return answers


def _paths(model_input: Any) -> Sequence[str]:
    named = hasattr(model_input, "columns") or isinstance(model_input, dict)
    items = model_input["path"] if named else model_input
    items = [items] if isinstance(items, str) else items
    return [str(item["path"]) if isinstance(item, dict) else str(item) for item in items]


def _flat(result: dict[str, Any]) -> dict[str, Any]:
    label = result["label"]
    return {"path": result["path"], "status": result["status"], "reason": result["reason"],
            "label": ";".join(label) if isinstance(label, list) else label or "",
            **{f"p.{name}": value for name, value in result["probabilities"].items()}}
