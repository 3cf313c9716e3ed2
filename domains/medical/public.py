"""Public data sets of X-rays and CT: what is known of them, and their layouts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from domains.public import Archive, PublicSet, Row, Table, expect

FINDINGS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
            "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax")
_BOX = ("vfk49d74nhbxq3nqjg0900w5nvkorp5c", "i28rlmbvmfjbl8p2n3ril0pptcmcu9d1", "f1t00wrtdk94satdfb9olcolqx20z2jp",
        "0aowwzs5lhjrceb3qp67ahp0rd1l1etg", "v5e3goj22zr6h8tzualxfsqlqaygfbsn", "asi7ikud9jwnkrnkj99jnpfkjdes7l6l",
        "jn1b4mw4n6lnh74ovmcjb8y48h8xj07n", "tvpxmn7qyrgl0w8wfh9kqfjskv6nmm1j", "upyy3ml7qdumlgk2rfcvlb9k6gvqq2pj",
        "l6nilvfa9cg3s28tqv1qc1olm3gnz54p", "hhq8fkdgvcari67vfhs7ppg2w6ni4jze", "ioqwiy20ihqwyr8pf4c24eazhh281pbu")
"""Box's names of images_001.tar.gz to images_012.tar.gz."""


def chestxray14(folder: Path, table: Table) -> Iterator[Row]:
    """Data_Entry_2017*.csv beside .png files in any folders; test_list.txt is the official test split."""
    entries = sorted(folder.glob("Data_Entry_2017*.csv"))
    expect(entries, "Data_Entry_2017_v2020.csv (by hand, from the publisher's page)", folder)
    images = {path.name: path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))}
    expect(images, "images (.png)", folder)
    listed = folder / "test_list.txt"
    test = set(listed.read_text(encoding="utf-8").split()) if listed.is_file() else set()
    for line in sorted(table(entries[0]), key=lambda line: line["Image Index"]):
        if line["Image Index"] not in images:  # part of the archives may be missing on purpose
            continue
        found = line["Finding Labels"].split("|")
        yield {"path": images[line["Image Index"]], "group": line["Patient ID"],
               "split": "test" if line["Image Index"] in test else "", "view": line.get("View Position", ""),
               **{name: str(int(name in found)) for name in FINDINGS}}


def lidc(folder: Path, table: Table) -> Iterator[Row]:
    """LIDC-IDRI/<patient>/<study>/<series>/*.dcm: a row per series. The readers' annotations are not read."""
    series = sorted({path.parent for path in folder.glob("LIDC-IDRI/*/*/*/*.dcm")})
    expect(series, "LIDC-IDRI/<patient>/<study>/<series>/*.dcm", folder)
    for place in series:
        yield {"path": place.relative_to(folder).as_posix(), "group": place.parts[-3]}


SETS = (
    PublicSet(
        name="chestxray14", domain="medical",
        about="112,120 frontal films of 30,805 patients, 14 findings mined from reports; 42 GB",
        licence="free to use, with attribution to the NIH Clinical Center", home="https://nihcc.app.box.com/v/ChestXray-NIHCC",
        archives=tuple(Archive(f"images_{i:03d}.tar.gz", f"https://nihcc.box.com/shared/static/{name}.gz", "tar",
                               hosts=("public.boxcloud.com", "dl.boxcloud.com", "nihcc.app.box.com"))
                       for i, name in enumerate(_BOX, 1)),
        by_hand="Box gives no lasting address for the tables: download Data_Entry_2017_v2020.csv and test_list.txt "
                "from the page and put them into the folder.",
        layout=chestxray14, read="{kind: xray, size: [224, 224]}", labels="multi_label", split_from_train=True),
    PublicSet(
        name="lidc", domain="medical", about="LIDC-IDRI: 1,018 chest CTs of 1,010 patients; 125 GB",
        licence="CC BY 3.0", home="https://www.cancerimagingarchive.net/collection/lidc-idri/",
        collection="LIDC-IDRI", layout=lidc, labels="",
        read="{kind: ct, size: [96, 96, 96], spacing: [1.5, 1.5, 1.5]}"),
)
