"""Features of files are what the model computes for prepared samples, and come out as one Parquet table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import lacuna
from domains.quarantine import Limits
from pipelines.prediction.embed import embed, embed_to_parquet
from pipelines.pretrain import embed as embed_prepared
from pipelines.training.batches import Source, domain_code
from pipelines.weights import checkpoints
from tests.pipelines.native_files import ingest_files, tuned

pytest.importorskip("PIL", reason="reading PNG needs pillow")
ONE = Limits(workers=1)


def test_a_pretrained_encoder_gives_files_the_features_of_prepared_samples(tmp_path: Path) -> None:
    files, prepared = ingest_files(tmp_path, "xray", count=3)
    model = tuned(tmp_path / "tuned", prepared, "xray")
    record = {**checkpoints.read_record(tmp_path / "tuned"), "kind": "pretrained"}
    checkpoints.save(
        tmp_path / "pretrained",
        {"encoder": model.encoder},
        prepared.contract,
        {key: value for key, value in record.items() if key not in ("weights_sha256", "format_version")},
    )
    source = Source(prepared, prepared.contract, domain_code("medical"), np.arange(3))
    keys, features = embed(tmp_path / "pretrained", files, limits=ONE)
    assert keys == [file.as_posix() for file in files]
    np.testing.assert_allclose(
        features, embed_prepared(model.encoder, source, next(model.parameters()).device), atol=1e-5
    )


def test_features_are_written_beside_their_keys_and_a_bad_file_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, prepared = ingest_files(tmp_path, "xray", count=3)
    tuned(tmp_path / "tuned", prepared, "xray")
    assert (
        embed_to_parquet(tmp_path / "tuned", [*files, "missing.png"], tmp_path / "out/features.parquet", limits=ONE)
        == 3
    )
    table = pq.read_table(tmp_path / "out/features.parquet")
    assert table.column_names == ["key", "path", "sha256", "features"] and table.num_rows == 3
    assert np.array(table["features"].to_pylist()).shape == (3, 24)
    assert "refused file 4: no such file" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["features.parquet"]
    assert embed_to_parquet(tmp_path / "tuned", ["missing.png"], tmp_path / "none.parquet", limits=ONE) == 3


def test_three_lines_of_python_do_the_same(tmp_path: Path) -> None:
    files, prepared = ingest_files(tmp_path, "xray", count=3)
    tuned(tmp_path / "tuned", prepared, "xray")
    (row, *_) = lacuna.predict(tmp_path / "tuned", files)
    keys, features = lacuna.embed(tmp_path / "tuned", files)
    assert row["status"] == "done" and len(keys) == len(features) == 3
