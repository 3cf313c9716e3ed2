"""Opens a published file safely and takes its wrapping off: levels such as `model`, prefixes such as `module.`.

Nothing in a file may run. `weights_only` lets through tensors and plain containers; two more things are let through,
each because a whole family cannot be read without it: `argparse.Namespace` (MAE and its kin save their command line;
only plain values are kept of it) and numpy arrays (prompt files of VPT).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.published.translation import CannotImport, Published

LEVELS = ("model", "state_dict", "model_state_dict", "model_state", "base_model", "weights", "net", "network",
          "teacher", "student")
"""Keys under which others keep the state dict, in the order in which they are tried."""
PREFIXES = ("module.", "_orig_mod.", "model.encoder.", "MAE_encoder.", "swinViT.", "backbone.", "encoder.", "model.")
"""Taken off where *every* tensor carries them; a family that needs its prefix looks for it before."""


def open_published(path: Path, given: Mapping[str, Any] | None = None) -> Published:
    """Read a file written by torch.save, or a .safetensors file.

    Raises:
        CannotImport: not readable, holds something that could run, or holds no tensors.
    """
    raw = _load(path)
    args = _plain_args(raw.get("args")) if isinstance(raw, Mapping) else {}
    wrappers: list[str] = []
    while isinstance(raw, Mapping) and not any(isinstance(value, Tensor) for value in raw.values()):
        level = next((key for key in LEVELS if isinstance(raw.get(key), Mapping)), None)
        if level is None:
            break
        wrappers.append(level)
        raw = raw[level]
    tensors = _tensors(raw)
    if not tensors:
        found = f"the keys {', '.join(map(str, list(raw)[:8]))}" if isinstance(raw, Mapping) else type(raw).__name__
        raise CannotImport(f"{path.name}: found {found} and no tensors, expected a state dict, bare or under "
                           f"{', '.join(LEVELS)}. Save the model's state dict and import that.")
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
            wrappers.append(prefix)
    return Published(tensors, args, dict(given or {}), tuple(wrappers))


def without_prefix(file: Published, prefixes: tuple[str, ...] = PREFIXES) -> Published:
    """The file with each of these prefixes taken off that all of its tensors carry."""
    tensors, wrappers = file.tensors, list(file.wrappers)
    for prefix in prefixes:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
            wrappers.append(prefix)
    return Published(tensors, file.args, file.given, tuple(wrappers))


def _load(path: Path) -> Any:
    if not path.is_file():
        raise CannotImport(f"no file {path}. Expected a checkpoint that torch.save or safetensors wrote.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace, *_numpy_globals()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        said = str(error).split("\n")[0][:300]
        raise CannotImport(f"{path.name} cannot be read safely ({type(error).__name__}: {said}). Expected tensors, "
                           "plain values and at most argparse.Namespace and numpy arrays; nothing else is ever run. If "
                           "you trust its author, load it there and save its state dict alone.") from None


def _numpy_globals() -> list[Any]:
    """What a pickled numpy array of floats consists of."""
    try:
        import numpy as np
    except ImportError:
        return []
    import numpy._core.multiarray as multiarray
    return [multiarray._reconstruct, (multiarray._reconstruct, "numpy.core.multiarray._reconstruct"), np.ndarray,
            np.dtype, np.dtypes.Float32DType]


def _plain_args(args: Any) -> dict[str, Any]:
    """Plain values of a saved command line; everything else is left behind."""
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    return {key: value for key, value in args.items() if _is_plain(value)} if isinstance(args, Mapping) else {}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _tensors(raw: Any) -> dict[str, Tensor]:
    """Tensors by name; nested mappings are joined by dots. Strided views are written out."""
    out: dict[str, Tensor] = {}
    if not isinstance(raw, Mapping):
        return out
    for key, value in raw.items():
        if isinstance(value, Tensor):
            out[str(key)] = value.detach().contiguous()
    return out
