"""Public data sets of shapes: what is known of them, and their layouts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from domains.public import Archive, PublicSet, Row, Table, expect

SCAN_CLASSES = ("bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow",
                "sink", "sofa", "toilet")
"""ScanObjectNN's classes in the order of its label numbers."""


def modelnet(folder: Path, table: Table) -> Iterator[Row]:
    """<class>/train/*.off and <class>/test/*.off, at any depth: the official split."""
    meshes = sorted(path for path in folder.rglob("*.off") if path.parent.name in ("train", "test"))
    expect(meshes, "<class>/train/*.off", folder)
    for path in meshes:
        yield {"path": path.relative_to(folder).as_posix(), "group": path.stem,
               "split": "test" if path.parent.name == "test" else "", "label": path.parent.parent.name}


def scanobjectnn(folder: Path, table: Table) -> Iterator[Row]:
    """clouds/<variant>/<split>/<class number>_<number>.npy, as written from the publisher's HDF5 files. The perturbed
    variants hold several copies of an object and do not say which: their groups are the clouds."""
    clouds = sorted(folder.glob("clouds/*/*/*.npy"))
    expect(clouds, "*_objectdataset*.h5 below main_split or main_split_nobg", folder)
    for path in clouds:
        number = path.stem.split("_")[0]
        variant, split = path.parts[-3], path.parts[-2]
        yield {"path": path.relative_to(folder).as_posix(), "group": f"{variant}/{split}/{path.stem}",
               "split": "test" if split == "test" else "", "source": variant,
               "label": SCAN_CLASSES[int(number)] if number.isdigit() and int(number) < len(SCAN_CLASSES) else ""}


def shapenet(folder: Path, table: Table) -> Iterator[Row]:
    """shapenet_pc/<synset>-<model>.npy, with train.txt and test.txt of ShapeNet-55, wherever they lie."""
    clouds = sorted(path for path in folder.rglob("*.npy") if "-" in path.stem)
    expect(clouds, "shapenet_pc/<synset>-<model>.npy", folder)
    test = {line.strip() for path in folder.rglob("test.txt") for line in path.read_text(encoding="utf-8").splitlines()}
    for path in clouds:
        synset, _, model = path.stem.partition("-")
        yield {"path": path.relative_to(folder).as_posix(), "group": model,
               "split": "test" if path.name in test else "", "label": synset}


SETS = (
    PublicSet(
        name="modelnet40", domain="pointcloud", about="12,311 meshes, 40 classes, 9,843 to train with; 2 GB",
        licence="for research; the models' rights are their owners'", home="https://modelnet.cs.princeton.edu",
        archives=(Archive("ModelNet40.zip", "https://modelnet.cs.princeton.edu/ModelNet40.zip", "zip",
                          size=2_039_180_837),),
        layout=modelnet, read="{kind: points, size: [1024], points_per_sample: 8192}", split_from_train=True),
    PublicSet(
        name="scanobjectnn", domain="pointcloud", about="2,902 scanned objects of 15 classes, 2,048 points each",
        licence="research, by agreement", home="https://hkust-vgd.github.io/scanobjectnn/",
        by_hand="Fill in the form on the page, unpack h5_files.zip into the folder. Three variants lie in it: "
                "main_split/*_objectdataset.h5 (OBJ-BG), main_split_nobg/*_objectdataset.h5 (OBJ-ONLY), "
                "main_split/*_objectdataset_augmentedrot_scale75.h5 (PB-T50-RS); files.sources chooses one.",
        clouds_in_hdf5="main_split*/*_objectdataset*.h5", layout=scanobjectnn, split_from_train=True,
        read="{kind: points, size: [1024], points_per_sample: 2048}",
        columns="sources: [main_split.objectdataset]"),
    PublicSet(
        name="shapenet55", domain="pointcloud",
        about="52,470 clouds of 8,192 points of 55 categories, sampled from ShapeNet",
        licence="ShapeNet's terms, by registration", home="https://shapenet.org",
        by_hand="Register at ShapeNet; the sampled clouds are linked from the pages of Point-BERT and Point-MAE. "
                "Unpack them (shapenet_pc/*.npy) into the folder, with ShapeNet-55/train.txt and test.txt.",
        layout=shapenet, read="{kind: points, size: [1024], points_per_sample: 8192}", split_from_train=True),
)
