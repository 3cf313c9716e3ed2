from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domains import seal
from domains.seal import DamagedData
from domains.store import LEAKS, open_prepared
from lacuna import main
from models.encoder.transformer import Encoder, EncoderSettings
from pipelines import ingest
from pipelines.commands import verify as verifying
from pipelines.commands.verify import verify
from pipelines.ingest import DataRun
from pipelines.settings import build
from pipelines.weights import checkpoints
from tests.fabricate import contract_of
from tests.pipelines.fake_ingest import stand_in

NAMES = ("shard-00000.npy", "mask-00000.npy", "index.parquet", "contract.json", "reader.json", "summary.json",
         "leaks.csv", "quarantine.csv", "SHA256SUMS")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one ingested run, and two checkpoints of which one was made from it."""
    stand_in(monkeypatch, ingest, verifying)
    folder = tmp_path / "data/raw/a"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "group", "split", "sick", "mask"])
        for i in range(30):
            values = rng.integers(0, 200, (1, 16, 16), dtype=np.uint8)
            np.save(folder / f"{i}.npy", values)
            np.save(folder / f"{i}_mask.npy", values[0] % 2)
            writer.writerow([f"{i}.npy", f"patient {i}", ("train", "train", "test")[i % 3], i // 3 % 2,
                             f"{i}_mask.npy"])
    raw: dict[str, Any] = {
        "domain": "medical", "files": {"folder": "data/raw/a", "manifest": "data/raw/a/labels.csv",
                                       "mask_column": "mask"},
        "read": {"kind": "squares"}, "limits": {"memory_gb": 2, "seconds": 20, "workers": 1},
        "tasks": {"sick": {"kind": "single_label", "columns": ["sick"]}}}
    ingest.run("a", build(DataRun, raw, "ingest.a"), tmp_path)
    return tmp_path


def record(folder: Path, **content: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text(json.dumps(content))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def rewrite(folder: Path, name: str, values: list[Any]) -> None:
    """Write one column of the index anew and seal the folder again: damage by a program, not by a disk."""
    table = pq.read_table(folder / "index.parquet")
    at = table.schema.get_field_index(name)
    pq.write_table(table.set_column(at, name, pa.array(values, table.schema.field(name).type)),
                   folder / "index.parquet")
    seal.write(folder)


def test_what_ingest_wrote_is_sound(root: Path) -> None:
    text, sound = verify(["a"], root)
    assert sound
    for part in ("data/prepared/a: sound", "8 files", "30 samples", "index", "splits", "contract", "statistics"):
        assert part in text


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_in_any_file_is_found_and_named_by_verify_and_by_whoever_opens_and_reads(
        root: Path, name: str) -> None:
    folder = root / "data/prepared/a"
    size = (folder / name).stat().st_size
    for at in {0, size // 3, size - 1}:
        whole = (folder / name).read_bytes()
        flip(folder / name, at)
        text, sound = verify(["a"], root, quick=True)
        assert not sound and name in text
        with pytest.raises(DamagedData):
            prepared = open_prepared(folder)
            for i in range(len(prepared)):
                prepared.values(i), prepared.mask(i)
        (folder / name).write_bytes(whole)
    assert verify(["a"], root)[1]


def test_a_lost_file_a_strange_one_and_a_lost_seal_are_found(root: Path) -> None:
    folder = root / "data/prepared/a"
    (folder / "shard-00001.npy").write_bytes(b"")
    assert "shard-00001.npy: found a file that was not sealed" in verify(["a"], root)[0]
    (folder / "shard-00001.npy").unlink()
    (folder / "quarantine.csv").unlink()
    assert "quarantine.csv: found no such file" in verify(["a"], root)[0]
    (folder / "SHA256SUMS").unlink()
    assert "SHA256SUMS: found none" in verify(["a"], root)[0]
    (folder / "index.parquet").unlink()
    text, sound = verify(["a"], root)
    assert not sound and "cannot be opened" in text


def test_the_runs_that_damaged_data_went_into_are_named_and_those_that_go_on_from_them(root: Path) -> None:
    folder = root / "data/prepared/a"
    digest = open_prepared(folder).digest
    record(root / "artifacts/pretrain/p", weights_sha256="1", provenance={"data_digest": digest})
    record(root / "artifacts/finetune/f/pretrained/seed0", provenance={"data_digest": "other", "start_weights": "1"})
    record(root / "artifacts/pretrain/q", weights_sha256="2", provenance={"data_digest": "other"})
    flip(folder / "index.parquet", 50)
    text, _ = verify(["a"], root)
    assert "made from this data: artifacts/finetune/f/pretrained/seed0, artifacts/pretrain/p." in text


def test_groups_that_were_cut_after_ingest_are_found(root: Path) -> None:
    folder = root / "data/prepared/a"
    groups = open_prepared(folder).column("group")
    rewrite(folder, "group", [groups[2], *groups[1:]])
    text, sound = verify(["a"], root)
    assert not sound and "found 1 groups in more than one" in text and "patient" not in text


def test_statistics_of_other_rows_than_the_training_rows_are_found(root: Path) -> None:
    folder = root / "data/prepared/a"
    rewrite(folder, "split", ["train"] * 15 + ["test"] * 15)
    assert "statistics: found those of other samples" in verify(["a"], root)[0]


def test_a_changed_mean_is_found_though_the_seal_is_whole(root: Path) -> None:
    path = root / "data/prepared/a/contract.json"
    contract = json.loads(path.read_text())
    contract["channels"][0]["mean"] += 1
    path.write_text(json.dumps(contract))
    seal.write(path.parent)
    text, sound = verify(["a"], root)
    assert not sound and "statistics: mean of grey" in text
    assert verify(["a"], root, quick=True)[1]


def test_a_repeat_across_splits_that_leaks_csv_does_not_list_is_found(root: Path) -> None:
    folder = root / "data/raw/a"
    np.save(folder / "2.npy", np.load(folder / "0.npy"))
    raw = {"domain": "medical", "files": {"folder": "data/raw/a", "manifest": "data/raw/a/labels.csv"},
           "read": {"kind": "squares"}, "limits": {"memory_gb": 2, "seconds": 20, "workers": 1}}
    ingest.run("b", build(DataRun, raw, "ingest.b"), root)
    text, sound = verify(["b"], root)
    assert sound and "note: 1 pairs of samples repeat each other across splits" in text
    path = root / "data/prepared/b" / LEAKS
    path.write_text(path.read_text().splitlines()[0] + "\n")
    seal.write(path.parent)
    text, sound = verify(["b"], root)
    assert not sound and "repeats: rows 0 and 2 of index.parquet hold the same (exact" in text


def test_the_command_ends_with_2_when_something_is_wrong(root: Path, monkeypatch: pytest.MonkeyPatch,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(root)
    assert main(["verify"]) == 0
    flip(root / "data/prepared/a/shard-00000.npy", -1)
    assert main(["verify", "a", "--quick"]) == 2
    assert "sample 29 (row 29 of index.parquet, shard-00000.npy)" in capsys.readouterr().out
    assert main(["verify", "nothing"]) == 2


def test_the_weights_of_a_checkpoint_are_hashed_once_when_written_and_once_when_verified(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed, real = [], seal.hash_file

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return real(path)

    monkeypatch.setattr(seal, "hash_file", counted)
    monkeypatch.setattr(verifying, "hash_file", counted)
    encoder = Encoder(build(EncoderSettings, {"tokenizer": {"kind": "grid", "patch": [4, 4]},
                                              "size": {"width": 24, "depth": 1, "num_heads": 2}}, "encoder"), 1)
    checkpoints.save(tmp_path / "a", {"encoder": encoder}, contract_of("xray"), {
        "kind": "pretrained", "encoder": encoder.settings, "num_channels": 1})
    assert sorted(hashed) == ["checkpoint.json", "contract.json", "weights.safetensors"]
    hashed.clear()
    text, sound = verify(["a"], tmp_path)
    assert sound and hashed.count("weights.safetensors") == 1
    sealed = seal.read(tmp_path / "a")
    assert sealed is not None and sealed.hashes["weights.safetensors"] == real(tmp_path / "a/weights.safetensors")
    (tmp_path / "a/checkpoint.json").write_text((tmp_path / "a/checkpoint.json").read_text().replace(
        real(tmp_path / "a/weights.safetensors"), "0" * 64))
    seal.write(tmp_path / "a")
    text, sound = verify(["a"], tmp_path)
    assert not sound and "found another hash than checkpoint.json has" in text


def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    encoder = Encoder(build(EncoderSettings, {"tokenizer": {"kind": "grid", "patch": [4, 4]},
                                              "size": {"width": 24, "depth": 1, "num_heads": 2}}, "encoder"), 1)
    folder = tmp_path / "artifacts/pretrain/a"
    checkpoints.save(folder, {"encoder": encoder}, contract_of("xray"), {
        "kind": "pretrained", "encoder": encoder.settings, "num_channels": 1})
    text, sound = verify(["a"], tmp_path)
    assert sound and "tensors" in text
    for name in ("weights.safetensors", "checkpoint.json", "contract.json", "SHA256SUMS"):
        whole = (folder / name).read_bytes()
        flip(folder / name, len(whole) // 2)
        text, sound = verify([], tmp_path)
        assert not sound and name in text
        (folder / name).write_bytes(whole)
