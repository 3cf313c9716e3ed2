"""Public multispectral data sets: what is known of them, and their layouts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from domains.public import Archive, PublicSet, Row, Table, expect

_SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}


def eurosat(folder: Path, table: Table) -> Iterator[Row]:
    """<class>/<class>_<number>.tif, at any depth. No official split; which scene a tile was cut from is not told."""
    tiles = sorted(path for path in folder.rglob("*.tif") if re.fullmatch(rf"{path.parent.name}_\d+\.tif", path.name))
    expect(tiles, "<class>/<class>_<number>.tif", folder)
    for path in tiles:
        place = path.relative_to(folder).as_posix()
        yield {"path": place, "group": path.stem, "label": path.parent.name}


def bigearthnet(folder: Path, table: Table) -> Iterator[Row]:
    """One folder per patch with a file per band. Release 1: BigEarthNet-v1.0/<patch>/<patch>_labels_metadata.json, its
    43 labels. Release 2: BigEarthNet-S2/<scene>/<patch>/ and metadata.parquet with 19 labels and the official split."""
    patches = {path.parent.name: path.parent.relative_to(folder).as_posix()
               for path in sorted(folder.rglob("*_B02.tif"))}
    expect(patches, "<patch>/<patch>_B02.tif", folder)
    metadata = folder / "metadata.parquet"
    known = {line["patch_id"]: line for line in table(metadata)} if metadata.is_file() else {}
    labels = {name: known[name]["labels"].split("|") if name in known else _labels_of(folder / place, name)
              for name, place in patches.items()}
    classes = sorted({label for found in labels.values() for label in found})
    for name, place in sorted(patches.items()):
        split = _SPLITS.get(known[name]["split"], "") if name in known else ""
        # The official split cuts scenes along a grid, so that there the patch itself has to be the group.
        yield {"path": place, "group": name if split else re.sub(r"_\d+_\d+$", "", name), "split": split,
               **{label: str(int(label in labels[name])) if labels[name] else "" for label in classes}}


def _labels_of(patch: Path, name: str) -> list[str]:
    path = patch / f"{name}_labels_metadata.json"
    return [str(label) for label in json.loads(path.read_text(encoding="utf-8"))["labels"]] if path.is_file() else []


SETS = (
    PublicSet(
        name="eurosat_ms", domain="satellite", about="27,000 Sentinel-2 tiles of 64 px, 13 bands, 10 classes; 2 GB",
        licence="MIT; Sentinel data under Copernicus terms", home="https://zenodo.org/records/7711810",
        archives=(Archive("EuroSAT_MS.zip", "https://zenodo.org/records/7711810/files/EuroSAT_MS.zip", "zip",
                          md5="091174add3c8e680a49244acf185b9f0", size=2_065_402_329),),
        layout=eurosat,
        # B8A is the last of the 13 in these files, not between B8 and B9.
        read="{kind: multispectral, sensor: sentinel2, size: [64, 64], bands: [B2, B3, B4, B5, B6, B7, B8, B8A, B11, "
             "B12], file_bands: [B1, B2, B3, B4, B5, B6, B7, B8, B9, B10, B11, B12, B8A]}"),
    PublicSet(
        name="bigearthnet", domain="satellite",
        about="590,326 Sentinel-2 patches of 120 px, 12 bands, several labels each (release 1; release 2 by hand); "
              "66 GB",
        licence="CDLA-Permissive 1.0", home="https://bigearth.net",
        archives=(Archive("BigEarthNet-S2-v1.0.tar.gz",
                          "https://zenodo.org/records/12687186/files/BigEarthNet-S2-v1.0.tar.gz", "tar",
                          md5="5a64e9ce38deb036a435a7b59494924c"),),
        by_hand="For release 2 (19 labels, official split) put metadata.parquet of https://zenodo.org/records/10891137 "
                "into the folder, unpack its BigEarthNet-S2.tar.zst there (tar --zstd -xf), and give --no-download.",
        layout=bigearthnet, labels="multi_label",
        read="{kind: multispectral, sensor: sentinel2, size: [120, 120], bands: [B2, B3, B4, B5, B6, B7, B8, B8A, B11, "
             "B12]}"),
)
