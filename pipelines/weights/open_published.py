"""Opens a published file safely and takes its wrapping off: levels such as `model`, prefixes such as `module.`.

Nothing in a file may run. `weights_only` lets through tensors and plain containers; two more things are let through,
each because a whole family cannot be read without it: `argparse.Namespace` (MAE and its kin save their command line;
only plain values are kept of it) and numpy arrays of floats (prompt files of VPT). What other packages of this process
have allowed besides is taken away while a file is read.
"""

from __future__ import annotations

import argparse
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.published.translation import CannotImport, Published

LEVELS = ("model", "state_dict", "model_state_dict", "model_state", "base_model", "weights", "net", "network",
          "teacher", "student")
"""Keys under which others keep the state dict, in the order in which they are tried."""
EVERYWHERE = ("module.", "_orig_mod.")
"""What wrappers of training put before every name; taken off at once."""
PREFIXES = ("model.encoder.", "encoder.", "model.", "backbone.", "MAE_encoder.", "swinViT.", "module.", "_orig_mod.")
"""Where a model lies in a larger one. Taken off only for a family that does not know the file with them."""
DEEPEST = 6
"""Levels that are taken off at most: a file may hold itself."""
UNFOLDED = 1 << 30
"""Bytes that a file's tensors may unfold to, or four times the file's own size where that is more. Views that repeat a
few numbers are honest, and a bomb in a file of no size."""
MOST_ARGS, LONGEST_TEXT = 1000, 1000
"""Of a saved command line: values, and letters in one."""
ZIP, LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of torch.save begin, since 1.6 and before."""


class Given(dict[str, Any]):
    """What the user has said with --set, and which of it anybody has asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or the default; either way it was asked for."""
        return self[key] if key in self else default

    def unused(self) -> list[str]:
        """What nobody has asked for."""
        return [key for key in self if key not in self.asked]


def open_published(path: Path, given: Mapping[str, Any] | None = None) -> Published:
    """Read a file written by torch.save, or a .safetensors file.

    Raises:
        CannotImport: not readable, holds something that could run, unfolds to more than it is, or holds no tensors.
    """
    raw = _load(path)
    top = _items(raw)
    args = _plain_args(top.get("args"))
    wrappers: list[str] = []
    while len(wrappers) < DEEPEST and (level := _level(top)) is not None:
        wrappers.append(level)
        top = _items(top[level])
    tensors = _tensors(top, path)
    if not tensors:
        found = f"the keys {', '.join(list(top)[:8])}" if top else f"nothing but {type(raw).__name__}"
        raise CannotImport(f"{path.name}: found {found} and no tensors, expected a state dict, bare or under "
                           f"{', '.join(LEVELS)}. Save the model's state dict and import that.")
    file = Published(tensors, args, Given(given or {}), tuple(wrappers))
    while (prefix := next((prefix for prefix in EVERYWHERE if all(name.startswith(prefix) for name in file.tensors)),
                          None)) is not None:
        file = without_prefix(file, prefix)
    return file


def readings(file: Published, depth: int = 3) -> Iterator[Published]:
    """The file as it is; then without each prefix that tensors carry, those first that all carry, and again without one
    more. Tensors without the prefix keep their names."""
    yield file
    carried = [prefix for prefix in PREFIXES if depth and any(name.startswith(prefix) for name in file.tensors)]
    for prefix in sorted(carried, key=lambda prefix: not all(name.startswith(prefix) for name in file.tensors)):
        shorter = without_prefix(file, prefix)
        if len(shorter.tensors) == len(file.tensors):                       # else two tensors would have one name
            yield from readings(shorter, depth - 1)


def without_prefix(file: Published, prefix: str) -> Published:
    """The file with this prefix taken off where tensors carry it."""
    tensors = {name.removeprefix(prefix): value for name, value in file.tensors.items()}
    return replace(file, tensors=tensors, wrappers=(*file.wrappers, prefix))


def _load(path: Path) -> Any:
    """What a file holds. Raises CannotImport."""
    if not path.is_file():
        raise CannotImport(f"no file {path}. Expected a checkpoint that torch.save or safetensors wrote.")
    kind = _kind(path)
    try:
        if kind == "safetensors":
            from safetensors.torch import load_file
            return load_file(path)
        if kind == "zip":
            _check_zip(path)
        with _only_these([argparse.Namespace, *_numpy_globals()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except CannotImport:
        raise
    except Exception as error:
        raise CannotImport(f"{path.name} cannot be read safely ({_said(error)}). Expected tensors, plain values and at "
                           "most argparse.Namespace and numpy arrays of floats; nothing else is ever run. If you trust "
                           "its author, load it where it was made and save its state dict alone.") from None


def _kind(path: Path) -> str:
    """By content, never by the file's name. Raises CannotImport for what is neither of the three."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(max(len(LEGACY), 512))
    if head.startswith(ZIP):
        return "zip"
    if head.startswith(LEGACY):
        return "legacy"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    found = "an empty file" if not head else "a tar archive" if head[257:262] == b"ustar" else "neither"
    raise CannotImport(f"{path.name}: found {found}, expected a file of torch.save or of safetensors. Download it "
                       "again if this is a page that stands in its place; load and save anew what torch's first "
                       "releases wrote as a tar archive.")


def _check_zip(path: Path) -> None:
    """Nothing in the archive is larger than the archive: torch.save never compresses. Raises CannotImport."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    promised = sum(entry.file_size for entry in entries)
    squeezed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if squeezed:
        what = f"{squeezed[0]} compressed"
    elif promised > size:
        what = f"entries of {promised} bytes in an archive of {size}"
    elif min((entry.header_offset for entry in entries), default=1):
        what = "no entry at its beginning"
    else:
        return
    raise CannotImport(f"{path.name}: found {what}, expected entries stored as they are, as torch.save writes them. It "
                       "was packed by something else, or is a bomb. Unpack it, load it where it was made, and save its "
                       "state dict.")


@contextmanager
def _only_these(allowed: list[Any]) -> Iterator[None]:
    """Globals that weights_only lets through beside its own; what others have allowed comes back afterwards."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        torch.serialization.add_safe_globals(allowed)
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _numpy_globals() -> list[Any]:
    """What a pickled numpy array of floats consists of."""
    try:
        import numpy as np
    except ImportError:
        return []
    import numpy._core.multiarray as multiarray
    return [multiarray._reconstruct, (multiarray._reconstruct, "numpy.core.multiarray._reconstruct"), np.ndarray,
            np.dtype, np.dtypes.Float32DType]


def _said(error: Exception) -> str:
    """The one thing of an unpickler's long advice that matters: what the file wanted."""
    text = str(error)
    wanted = re.search(r"GLOBAL ([\w.]+)", text)
    if wanted:
        return f"it asks for {wanted[1]}, which is not let through"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    inner = next((line for line in lines if "WeightsUnpickler error" in line), lines[0] if lines else "")
    return f"{type(error).__name__}: {inner.removeprefix('WeightsUnpickler error: ')[:300]}"


def _items(raw: Any) -> dict[str, Any]:
    """A mapping's own entries, read past any attribute that the file may have set on it; empty for anything else."""
    if isinstance(raw, argparse.Namespace):
        raw = vars(raw)
    return {str(key): value for key, value in dict.items(raw) if isinstance(key, str | int)} if isinstance(
        raw, dict) else {}


def _level(top: dict[str, Any]) -> str | None:
    """The level that tensors are under; None where they are here."""
    return next((key for key in LEVELS if _holds_tensors(top.get(key))), None)


def _holds_tensors(raw: Any, depth: int = 3) -> bool:
    """Here, one mapping further down, or under one more level."""
    here = _items(raw)
    return (any(_is_array(value) for value in here.values())
            or any(_is_array(value) for below in here.values() for value in _items(below).values())
            or (depth > 0 and any(_holds_tensors(here.get(key), depth - 1) for key in LEVELS)))


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or type(value).__name__ == "ndarray"


def _tensors(top: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Tensors by name; those one mapping further down are joined by dots. Views are written out, after a look at how
    much that is. Raises CannotImport."""
    named = {name: value for name, value in top.items() if _is_array(value)}
    named |= {f"{outer}.{name}": value for outer, below in top.items() for name, value in _items(below).items()
              if _is_array(value)}
    out: dict[str, Tensor] = {}
    left = max(UNFOLDED, 4 * path.stat().st_size)
    for name, value in named.items():
        tensor = _plain_tensor(name, value, path)
        left -= math.prod(tensor.shape) * tensor.element_size()
        if left < 0:
            raise CannotImport(f"{path.name}: found tensors that unfold to more than {UNFOLDED >> 30} GiB and four "
                               f"times the file's {path.stat().st_size} bytes ({name} is {tuple(tensor.shape)}), "
                               "expected about as much as the file is. It is damaged, or a bomb.")
        out[name] = Tensor.contiguous(tensor)
    return out


def _plain_tensor(name: str, value: Any, path: Path) -> Tensor:
    """One array as an ordinary tensor, not copied yet where it is one. Raises CannotImport."""
    if type(value).__name__ == "ndarray":
        if value.dtype.str[1:] not in ("f2", "f4", "f8") or value.nbytes > max(UNFOLDED, 4 * path.stat().st_size):
            raise CannotImport(f"{path.name}: {name} is an array of {value.dtype} with {value.size} numbers, expected "
                               "floats of 16, 32 or 64 bits, and not many more bytes than the file has.")
        return torch.tensor(value.astype(value.dtype.newbyteorder("=")))
    dense = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided and value.device.type == "cpu"
    if not dense or value.is_quantized:
        raise CannotImport(f"{path.name}: {name} is a {type(value).__name__} ({value.layout}, {value.device}), "
                           "expected ordinary dense tensors. Save it as one, with .to_dense() or .dequantize().")
    return Tensor.detach(value)


def _plain_args(args: Any) -> dict[str, Any]:
    """Plain values of a saved command line; everything else is left behind."""
    return {key: value for key, value in list(_items(args).items())[:MOST_ARGS] if _is_plain(value)}


def _is_plain(value: Any, depth: int = 3) -> bool:
    if isinstance(value, list | tuple):
        return depth > 0 and len(value) <= MOST_ARGS and all(_is_plain(item, depth - 1) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return len(value) <= LONGEST_TEXT
    return value is None or (isinstance(value, int) and abs(value) < 1 << 63)
