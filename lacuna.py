"""Lacuna for Python, and the door of its command line.

    import lacuna
    rows = lacuna.predict("artifacts/finetune/xray/pretrained/seed0", ["film.dcm"])
    keys, features = lacuna.embed("artifacts/pretrain/xray", ["film.dcm"])
    folder, record = lacuna.import_weights("mae_pretrain_vit_base.pth")
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# Before torch is imported: a thread that waits looks 1000 times, then sleeps. libgomp's own 300,000 times cost nothing
# on an idle machine and, where another process holds a core, make a small model's step many times slower; sleeping at
# once (OMP_WAIT_POLICY=passive) costs a quarter of the idle machine's speed.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Our packages are called models, domains and pipelines, and so may folders of whoever calls us. Ours come first on the
# path, so that `lacuna` works in a folder with a ./models of its own (PYTHONPATH=. is common there).
_HOME = str(Path(__file__).resolve().parent)
sys.path[:] = [_HOME, *(entry for entry in sys.path if entry != _HOME)]

for _name in ("models", "domains", "pipelines"):
    _other = getattr(sys.modules.get(_name), "__file__", None)
    if _other is not None and not str(Path(_other).resolve()).startswith(_HOME):
        raise ImportError(f"found another package named {_name!r} already imported ({_other}), expected Lacuna's. "
                          "Import lacuna before it, or rename that folder.")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `lacuna`; returns its exit code."""
    from pipelines.cli import main as command

    # At its end Python looks for cycles among the million objects of torch: 1.5 s in which nobody gets anything
    atexit.register(gc.freeze)
    return command(sys.argv[1:] if arguments is None else list(arguments))


def predict(checkpoint: str | Path, inputs: Sequence[str | Path], **options: Any) -> list[dict[str, Any]]:
    """Labels with calibrated probabilities for native files; see pipelines.prediction.predict.predict."""
    from pipelines.prediction.predict import predict as call
    return call(checkpoint, inputs, **options)


def embed(checkpoint: str | Path, inputs: Sequence[str | Path], **options: Any) -> tuple[list[str], np.ndarray]:
    """Keys and features (n E) of native files; see pipelines.prediction.embed.embed."""
    from pipelines.prediction.embed import embed as call
    return call(checkpoint, inputs, **options)


def import_weights(file: str | Path, out: str | Path | None = None, **options: Any) -> tuple[Path, dict[str, Any]]:
    """A published checkpoint as a checkpoint folder, and its record; see
    pipelines.weights.import_published.import_weights."""
    from pipelines.weights.import_published import import_weights as call
    return call(file, out, **options)


def export_weights(checkpoint: str | Path, out: str | Path, family: str, encoder_only: bool = False) -> list[str]:
    """A checkpoint folder as a file in a published family's layout; see
    pipelines.weights.export_published.export_weights."""
    from pipelines.weights.export_published import export_weights as call
    return call(checkpoint, out, family, encoder_only)


if __name__ == "__main__":
    sys.exit(main())
