"""Clouds out of an HDF5 file (`data` N M 3 of floats, `label` N of integers), in a limited process like any reader."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from domains.sample import ManifestRow, Part, Piece, Refused

CLOUDS_PER_PART = 512
MAX_VALUES = 100_000_000


@dataclass(frozen=True)
class Clouds:
    """How HDF5 files of clouds are read; there is nothing to set."""


def read(row: ManifestRow, settings: Clouds) -> Part:
    """The clouds of one file, some hundreds at a time, as float32 M 3 with the fact `label`.

    Raises:
        Refused: other arrays, or arrays that lie in another file.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError("HDF5 files need h5py. Remedy: pip install 'lacuna[remote]'.") from error
    try:
        with h5py.File(row.path, "r", locking=False) as file:
            for name in ("data", "label"):
                # A link or a virtual array would have this process open files that the manifest does not name.
                link = file.get(name, getlink=True)
                if not isinstance(link, h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
                    raise Refused(f"no array {name} of its own")
                if file[name].external or file[name].is_virtual:
                    raise Refused(f"the array {name} lies in another file")
            data, label = file["data"], file["label"]
            if (data.ndim != 3 or data.shape[2] != 3 or data.dtype.kind != "f" or label.dtype.kind not in "iu"
                    or label.size != data.shape[0] or data.size > MAX_VALUES):
                raise Refused(f"found data {data.shape} {data.dtype} and label {label.shape}, expected N M 3 floats "
                              "and N integers")
            begin = row.part * CLOUDS_PER_PART
            values = np.asarray(data[begin:begin + CLOUDS_PER_PART], np.float32)
            numbers = np.asarray(label).reshape(-1)[begin:begin + CLOUDS_PER_PART]
            more = begin + CLOUDS_PER_PART < data.shape[0]
    except (OSError, KeyError) as error:
        raise Refused("no HDF5 file that can be read") from error
    if not np.isfinite(values).all():
        raise Refused("found values that are not finite")
    return Part([Piece(np.ascontiguousarray(cloud), facts={"label": int(number)}, suffix=f"@{begin + i}")
                 for i, (cloud, number) in enumerate(zip(values, numbers, strict=True))], more)
