"""Arrays of numbers in .npy files, without objects: from bytes that are here, or mapped."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.lib import format as npy_format

from domains.sample import Refused

HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}


def array_of(content: bytes) -> np.ndarray | None:
    """The array in the bytes of a file, read-only; None where they are anything but a plain whole file: `mapped` then
    says what is wrong with it."""
    stream = io.BytesIO(content)
    try:
        shape, by_columns, dtype = HEADERS[npy_format.read_magic(stream)](stream)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or min(shape, default=0) < 1 or not 0 < size <= len(content) - stream.tell():
            return None
        return np.ndarray(shape, dtype, content, stream.tell(), order="F" if by_columns else "C")
    except (ValueError, LookupError, TypeError, OverflowError, TokenError):  # the last: half a header
        return None


def mapped(path: Path) -> np.ndarray:
    """The array in a file. It is mapped, so a header that claims more than the file holds is refused by numpy. Raises
    Refused."""
    try:
        # As text: of a path numpy looks at every folder above it.
        array = np.load(os.fspath(path), mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, TokenError) as error:
        raise Refused(f".npy could not be opened ({type(error).__name__}); expected an array of numbers.") from error
    if not isinstance(array, np.ndarray):
        raise Refused(".npy holds an archive, expected an array of numbers.")
    return np.asarray(array)  # numpy's own class for maps does much at every slice
