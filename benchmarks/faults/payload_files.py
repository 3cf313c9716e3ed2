"""The payloads of payloads.py: programs in pickles, YAML, JSON, arrays, tables, headers, names and modules."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from domains import seal
from domains.seal import hash_file
from pipelines.weights import checkpoints
from tests.pipelines.published_files import Calls, mae_tensors

RUN = "xray"
PRETRAINED, TUNED = f"artifacts/pretrain/{RUN}", f"artifacts/finetune/{RUN}/pretrained/seed0"
PREPARED = f"data/prepared/{RUN}"
Plant = Callable[[Path, Path], None]
"""(a project to plant in, the file that appears if anything runs)"""
READ_DATA = ("verify", "describe", "pretrain", "finetune", "evaluate")
READ_WEIGHTS = ("verify", "predict", "embed", "merge", "export", "finetune", "finetune --start", "evaluate")
READ_FILES = ("init", "ingest", "predict", "embed")
READ_PARAMS = ("ingest", "pretrain", "finetune", "evaluate", "describe", "verify")


def payloads() -> dict[str, tuple[tuple[str, ...], Plant]]:
    """Name -> the commands that read it, and what plants it."""
    return {
        "pickle, torch's archive, .pt": (("import",), _file(torch_pickle)),
        "pickle, torch's layout before 1.6, .ckpt": (("import",), _file(old_torch_pickle)),
        "pickle under a name of safetensors": (("import",), _file(plain_pickle)),
        "safetensors with a pickle in its header": (("import",), _file(_safetensors)),
        "pickle as the weights of a checkpoint": (READ_WEIGHTS, _weights),
        "checkpoint.json that names modules and calls": (READ_WEIGHTS, _record),
        "contract.json that names modules and calls": (READ_WEIGHTS, _contract),
        "pickle as resume state": (("pretrain resumed", "finetune resumed"), lambda root, canary: None),
        "params.yaml with !!python/object": (READ_PARAMS, _params),
        "array of objects as a shard": (READ_DATA, _shard),
        "index.parquet with a pickled type": (READ_DATA, _index),
        "arrays of objects, .npy and .npz, as scenes": (("ingest",), _scenes),
        "array whose header is an expression": (("ingest",), _expression),
        "arrays of objects and LAZ records, as clouds": (("ingest",), _clouds),
        "pickles in DICOM and PNG headers": (READ_FILES, _headers),
        "expressions and shell in manifest and names": (READ_FILES, _manifest),
        "modules in the project's folder": (("process verify", "process ingest", "process predict"), _modules),
    }


# ---- programs ----

def _call(canary: Path) -> Calls:
    return Calls(os.system, f"touch {canary}")


def plain_pickle(canary: Path) -> bytes:
    """A pickle and nothing else."""
    return pickle.dumps(_call(canary))


def torch_pickle(canary: Path, **options: Any) -> bytes:
    """As torch.save writes it, good weights around it."""
    import torch

    content = io.BytesIO()
    torch.save({"model": mae_tensors(), "step": _call(canary)}, content, **options)
    return content.getvalue()


def old_torch_pickle(canary: Path) -> bytes:
    """As torch wrote before 1.6: pickles one after the other."""
    return torch_pickle(canary, _use_new_zipfile_serialization=False)


def _safetensors(canary: Path) -> bytes:
    from safetensors.torch import save

    return save(mae_tensors(), {"__reduce__": plain_pickle(canary).hex(), "format": f"os.system('touch {canary}')"})


def _objects(canary: Path) -> np.ndarray:
    array = np.empty(4, object)
    array[:] = [_call(canary)] * 4
    return array


def _file(content: Callable[[Path], bytes]) -> Plant:
    def plant(root: Path, canary: Path) -> None:
        (root / "evil").write_bytes(content(canary))
    return plant


# ---- checkpoints, settings, prepared data ----

def _sealed_again(folder: Path) -> None:
    """Hashes that fit what was planted, as whoever planted it would leave them."""
    found = seal.read(folder)
    seal.write(folder, found.digest if found else "")


def _weights(root: Path, canary: Path) -> None:
    for folder in (root / PRETRAINED, root / TUNED):
        (folder / checkpoints.WEIGHTS).write_bytes(torch_pickle(canary))
        record = json.loads((folder / checkpoints.RECORD).read_text())
        record["weights_sha256"] = hash_file(folder / checkpoints.WEIGHTS)
        (folder / checkpoints.RECORD).write_text(json.dumps(record))
        _sealed_again(folder)


def _calls_in_json(canary: Path) -> dict[str, Any]:
    """What various readers of JSON would turn into calls."""
    return {"": "os:system", "fields": {"command": f"touch {canary}"}, "kind": "os.system", "py/reduce": [
        {"py/function": "os.system"}, {"py/tuple": [f"touch {canary}"]}], "_target_": "os.system", "__class__": "os"}


def _record(root: Path, canary: Path) -> None:
    for folder, key in ((root / PRETRAINED, "domain"), (root / TUNED, "reader")):
        record = json.loads((folder / checkpoints.RECORD).read_text())
        record[key] = "os" if key == "domain" else _calls_in_json(canary)
        record["adapters"] = [_calls_in_json(canary)]
        (folder / checkpoints.RECORD).write_text(json.dumps(record))
        _sealed_again(folder)


def _contract(root: Path, canary: Path) -> None:
    for folder in (root / PRETRAINED, root / TUNED):
        contract = json.loads((folder / checkpoints.CONTRACT).read_text())
        contract |= {"domain": f"__import__('os').system('touch {canary}')", "channels": [_calls_in_json(canary)]}
        (folder / checkpoints.CONTRACT).write_text(json.dumps(contract))
        _sealed_again(folder)


def _params(root: Path, canary: Path) -> None:
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(
        f"sample: !!python/object/apply:os.system ['touch {canary}']\n"
        f"verdict: !!python/object/new:os.system ['touch {canary}']\n{text}")


def _shard(root: Path, canary: Path) -> None:
    for path in (root / PREPARED).glob("shard-*.npy"):
        with path.open("wb") as file:
            np.save(file, _objects(canary))
    _sealed_again(root / PREPARED)


def _index(root: Path, canary: Path) -> None:
    """Arrow's Python extension type was a pickle, which reading a table once ran."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = root / PREPARED / "index.parquet"
    table = pq.read_table(path)
    evil = {b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": plain_pickle(canary)}
    schema = pa.schema([field.with_metadata(evil) for field in table.schema],
                       {**(table.schema.metadata or {}), **evil, b"pandas": plain_pickle(canary)})
    pq.write_table(table.cast(schema), path)
    _sealed_again(root / PREPARED)


# ---- raw files ----

def _ingest_of(root: Path, names: list[str], paragraph: dict[str, Any]) -> None:
    """A manifest of these files, for the run that the commands name."""
    (root / "raw/evil.csv").write_text("path,group\n" + "".join(f"{name},{name}\n" for name in names))
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["ingest"] = {RUN: {**paragraph, "bad_files": 1.0, "files": {"folder": "raw", "manifest": "raw/evil.csv"}}}
    (root / "params.yaml").write_text(yaml.safe_dump(params))


SCENES = {"domain": "satellite", "read": {"kind": "multispectral", "sensor": "sentinel2", "bands": ["B2", "B3"],
                                          "file_bands": ["B2", "B3"], "size": [8, 8], "check_units": False}}
CLOUDS = {"domain": "pointcloud", "read": {"kind": "points", "size": [64], "points_per_sample": 64, "min_points": 16}}


def _scenes(root: Path, canary: Path) -> None:
    raw = root / "raw"
    raw.mkdir()
    np.save(raw / "good.npy", np.random.default_rng(0).integers(1, 5000, (2, 8, 8)).astype(np.uint16))
    np.save(raw / "objects.npy", _objects(canary))
    with (raw / "archive.npy").open("wb") as file:
        np.savez(file, a=_objects(canary))
    (raw / "pickle.npy").write_bytes(plain_pickle(canary))
    _ingest_of(root, ["good.npy", "objects.npy", "archive.npy", "pickle.npy"], SCENES)


def _expression(root: Path, canary: Path) -> None:
    _scenes(root, canary)
    for i, text in enumerate((f"__import__('os').system('touch {canary}')",
                              f"{{'descr': __import__('os').system('touch {canary}'), 'fortran_order': False, "
                              "'shape': (2, 8, 8)}")):
        head = text.encode() + b"\n"
        (root / f"raw/e{i}.npy").write_bytes(b"\x93NUMPY\x01\0" + len(head).to_bytes(2, "little") + head + bytes(256))
    _ingest_of(root, ["good.npy", "e0.npy", "e1.npy"], SCENES)


def _clouds(root: Path, canary: Path) -> None:
    import laspy

    raw = root / "raw"
    raw.mkdir()
    np.save(raw / "good.npy", np.random.default_rng(0).normal(size=(200, 3)))
    np.save(raw / "objects.npy", _objects(canary))
    las = laspy.LasData(laspy.LasHeader(point_format=3, version="1.2"))
    las.x, las.y, las.z = np.random.default_rng(1).normal(size=(3, 200))
    las.header.vlrs.append(laspy.VLR("pickle", 1, f"os.system('touch {canary}')"[:32], plain_pickle(canary)))
    las.write(raw / "records.laz")
    _ingest_of(root, ["good.npy", "objects.npy", "records.laz"], CLOUDS)


def _headers(root: Path, canary: Path) -> None:
    """In the films of the sample themselves, and in a PNG beside them."""
    import pydicom
    from PIL import Image, PngImagePlugin

    folder = root / f"data/raw/{RUN}"
    first = next(iter(sorted(folder.rglob("*.dcm"))))
    film = pydicom.dcmread(first)
    film.private_block(0x0029, "PICKLE", create=True).add_new(0x10, "OB", plain_pickle(canary) + b"\0")
    film.ImageComments = f"__import__('os').system('touch {canary}')"
    film.save_as(first, enforce_file_format=True)
    text = PngImagePlugin.PngInfo()
    text.add_text("pickle", plain_pickle(canary).decode("latin-1"), zip=True)
    values = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(values).save(folder / "a.png", pnginfo=text)


def _manifest(root: Path, canary: Path) -> None:
    """Cells, headings and names of files; a name of a file can hold no path, so it makes the canary where it stands."""
    folder = root / f"data/raw/{RUN}"
    first = next(iter(sorted(folder.rglob("*.dcm"))))
    for name in (f"$(touch {canary.name}).dcm", f"`touch {canary.name}`.dcm", f"; touch {canary.name};.dcm"):
        shutil.copy(first, folder / name)
    lines = (folder / "labels.csv").read_text().splitlines()
    shell = (f"$(touch {canary})", f"__import__('os').system('touch {canary}')", f"=cmd|' /C touch {canary}'!A1",
             f"{{0.__class__}} !!python/object/apply:os.system [touch {canary}]")
    lines = [f"{line},{shell[i % len(shell)] if i else 'note'}" for i, line in enumerate(lines)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def _modules(root: Path, canary: Path) -> None:
    """Named like what the program and its children import: where a user stands is no place to import from."""
    program = f"import os\nos.system('touch {canary}')\n"
    for name in ("json", "yaml", "numpy", "torch", "pydicom", "lacuna", "sitecustomize", "usercustomize"):
        (root / f"{name}.py").write_text(program)
    for name in ("domains", "pipelines", "models"):
        (root / name).mkdir()
        (root / name / "__init__.py").write_text(program)
