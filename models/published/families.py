"""The families that can be read, in the order in which a file's names are tried."""

from __future__ import annotations

from types import ModuleType

from models.published import (
    channelvit,
    hi_end_mae,
    lora,
    mae,
    monai_vit,
    point_cmae,
    point_mae,
    satmae,
    svd,
    swin_unetr,
    uni4eye,
    vpt,
)
from models.published.translation import CannotImport, Published, Translation

FAMILIES: dict[str, ModuleType] = {
    "channelvit": channelvit,
    "satmae": satmae,
    "hi_end_mae": hi_end_mae,
    "vpt": vpt,
    "svd": svd,
    "lora": lora,
    "monai_vit": monai_vit,
    "uni4eye": uni4eye,
    "mae": mae,
    "point_cmae": point_cmae,
    "point_mae": point_mae,
    "swin_unetr": swin_unetr,
}
"""Name -> module with FAMILY, LICENCE, recognise(file) -> bool, translate(file) -> Translation. Narrow ones first."""


def translate(file: Published, family: str = "auto") -> Translation:
    """Read a file as a family's, or as the first that recognises its names. Raises CannotImport."""
    if family == "auto":
        family = next((name for name, module in FAMILIES.items() if module.recognise(file)), "")
        if not family:
            some = ", ".join(list(file.tensors)[:6])
            raise CannotImport(f"no family recognises these names ({some} ...). Known: {', '.join(FAMILIES)}. If it is "
                               "one of them, say so with --family.")
    if family not in FAMILIES:
        raise CannotImport(f"--family: found {family!r}, expected auto or one of {', '.join(FAMILIES)}.")
    return FAMILIES[family].translate(file)
