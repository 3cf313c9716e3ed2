"""Files as others publish them, tiny and made in place: of MAE's layout at any size, and hostile ones."""

from __future__ import annotations

import argparse
import builtins
import importlib
import io
import os
import pickle
import subprocess
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.encoder.positions import Table
from models.encoder.tokenizers import Grid
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.objectives.decoders import DecoderSettings
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from models.published import mae


def mae_tensors(width: int = 24, depth: int = 2, num_heads: int = 3, patch: int = 4, side: int = 3,
                num_channels: int = 3, decoder: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """A state dict in MAE's layout, all numbers random, positions too."""
    torch.manual_seed(seed)
    encoder = Encoder(EncoderSettings(tokenizer=Grid(patch=(patch, patch)), size=Shape(width, depth, num_heads),
                                      positions=Table(grid=(side, side), learnt=False)), num_channels)
    objective = None
    if decoder:
        objective = MaskedAutoencoder(MaskedAutoencoderSettings(decoder=DecoderSettings(
            width=16, depth=1, num_heads=2, positions=Table(grid=(side, side), learnt=False))), encoder)
    tensors = mae.export(encoder, (side * patch, side * patch), objective)
    return {name: value + 0.01 * torch.randn_like(value) if "pos_embed" not in name else value
            for name, value in tensors.items()}


def mae_file(path: Path, level: str | None = "model", **sizes: Any) -> dict[str, Tensor]:
    """Write such a file; returns its tensors."""
    tensors = mae_tensors(**sizes)
    torch.save(tensors if level is None else {level: tensors}, path)
    return tensors


class Calls:
    """Unpickled, it calls a function."""

    def __init__(self, function: Callable[..., Any], *given: Any) -> None:
        self.call = function, given

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def rebuilt(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Calls:
    """A tensor over four numbers, put together as a file says."""
    storage = torch.randn(4)._typed_storage()
    return Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


def write(path: Path, content: bytes) -> None:
    """As it is."""
    path.write_bytes(content)


def saved(content: Any, path: Path, **options: Any) -> None:
    """torch.save, of whatever it is."""
    torch.save(content, path, **options)


def repacked(path: Path, edit: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """A file of torch.save, its entries changed."""
    buffer = io.BytesIO()
    torch.save({"model": mae_tensors()}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, edit(entry.filename, old.read(entry)))


def cut_short(path: Path) -> None:
    """Without its end, where the directory of a zip archive is."""
    mae_file(path)
    path.write_bytes(path.read_bytes()[:-4000])


def promises_too_much(path: Path) -> None:
    """A directory that names one entry a thousand times."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", b"0" * 10_000)
        entry = archive.infolist()[0]
        archive.filelist += [entry] * 999


def containing_itself(path: Path) -> None:
    """A model in the model in the model."""
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content["state_dict"] = content
    torch.save(content, path)


def tarred(path: Path) -> None:
    """As torch's first releases wrote."""
    with tarfile.open(path, "w") as archive:
        about = tarfile.TarInfo("pickle")
        content = pickle.dumps({"model": 1}, 2)
        about.size = len(content)
        archive.addfile(about, io.BytesIO(content))


def scripted(path: Path) -> None:
    """What torch.load takes for a program of TorchScript."""
    mae_file(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("file/constants.pkl", b"")


def hostile_files(canary: Path) -> dict[str, Callable[[Path], None]]:
    """Name -> what writes the file. Each that can run something would make `canary`."""
    touch = f"touch {canary}"
    python = f"open({str(canary)!r}, 'w')"
    good = mae_tensors()
    calls: dict[str, Any] = {
        "a shell as a tensor": {"model": {**good, "norm.bias": Calls(os.system, touch)}},
        "an expression beside the model": {"model": good, "epoch": Calls(builtins.eval, python)},
        "statements in the command line": {"model": good, "args": argparse.Namespace(lr=Calls(builtins.exec, python))},
        "a process in the optimizer": {"model": good, "optimizer": {"state": [Calls(subprocess.Popen, ["touch",
                                                                                                     str(canary)])]}},
        "a shell four levels down": {"model": {"model": {"model": {"model": Calls(os.system, touch)}}}},
        "a shell in an array of objects": {"shallow_prompt": np.array([Calls(os.system, touch)], dtype=object)},
        "torch itself, told to write": {"model": good, "epoch": Calls(torch.save, {}, str(canary))},
        "torch itself, told to load code": {"model": good, "epoch": Calls(torch.hub.load, "a/b", "c")},
        "a module, to be imported": {"model": good, "epoch": Calls(importlib.import_module, "antigravity")},
        "a path, told to write": {"model": good, "epoch": Calls(Path.touch, canary)},
        "a name as a shell": {Calls(os.system, touch): good["norm.bias"]},
        "a negative stride": {"model": {**good, "norm.bias": rebuilt((4,), (-1,), 3)}},
        "a tensor beyond its storage": {"model": {**good, "norm.bias": rebuilt((24,), (1,))}},
        "an offset beyond the storage": {"model": {**good, "norm.bias": rebuilt((1,), (1,), 1 << 40)}},
        "one number as a terabyte": {"model": {**good, "norm.bias": torch.zeros(1).expand(1 << 38)}},
        "four numbers as many gigabytes, in pieces": {"model": {f"{i}": torch.zeros(1).expand(1 << 26)
                                                                for i in range(64)}},
        "a sparse tensor": {"model": {**good, "norm.bias": torch.zeros(24).to_sparse()}},
        "a tensor without numbers": {"model": {**good, "norm.bias": torch.zeros(24, device="meta")}},
        "an array of text": {"shallow_prompt": np.array(["a"])},
        "no tensors": {"model": {"epoch": 3}},
        "a list": [1, 2, 3],
    }
    return {**{name: (lambda path, content=content: saved(content, path)) for name, content in calls.items()},
            "a shell in the layout before 1.6": lambda path: saved(
                {"model": {"norm.bias": Calls(os.system, touch)}}, path, _use_new_zipfile_serialization=False),
            "a shell in a plain pickle": lambda path: write(path, pickle.dumps(Calls(os.system, touch))),
            "a newer pickle": lambda path: saved({"model": good, "epoch": Calls(os.system, touch)}, path,
                                                 pickle_protocol=4),
            "cut short": cut_short, "nothing": lambda path: write(path, b""),
            "a web page": lambda path: write(path, b"<!DOCTYPE html><title>Not found</title>"),
            "a bomb of zeros": lambda path: repacked(path, lambda name, data: b"\0" * (1 << 24) if "/data/0" in name
                                                     else data, zipfile.ZIP_DEFLATED),
            "one entry a thousand times": promises_too_much,
            "storages shorter than said": lambda path: repacked(path, lambda name, data: data[:4] if "/data/" in name
                                                                else data),
            "itself": containing_itself, "a tar archive": tarred, "a program of TorchScript": scripted,
            "safetensors of wrong lengths": lambda path: write(
                path, (40).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9],"data_off' + b"\0" * 9)}


NAMES = tuple(hostile_files(Path("canary")))
