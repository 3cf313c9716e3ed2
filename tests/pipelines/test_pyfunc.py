"""The registered model reads native files by itself: in a process that never saw this project, from the registry."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from domains.quarantine import Limits
from pipelines.prediction import predict as prediction
from pipelines.prediction import pyfunc
from pipelines.tracking import lineage, tracking
from tests.pipelines.native_files import ingest_files, tuned
from tests.pipelines.test_masks import of_masks

mlflow = pytest.importorskip("mlflow", reason="registering needs mlflow: pip install 'lacuna[tracking]'")
pytest.importorskip("PIL", reason="reading PNG needs pillow")

LOAD = """
import json, sys
sys.path[:] = [entry for entry in sys.path if entry != {project!r}]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import mlflow
mlflow.set_tracking_uri({uri!r})
model = mlflow.pyfunc.load_model("models:/lacuna-xray@champion")
import pandas
answer = model.predict(pandas.DataFrame({{"path": {paths!r}}}))
import pipelines
print(json.dumps({{"rows": answer.to_dict("records"), "from": pipelines.__file__}}))
"""


MASKS = """
import base64, json, sys
sys.path[:] = [entry for entry in sys.path if entry != {project!r}]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import mlflow
mlflow.set_tracking_uri({uri!r})
model = mlflow.pyfunc.load_model("models:/lacuna-masks@champion")
import pandas
answer = model.predict(pandas.DataFrame({{"path": {paths!r}}}))
from mlflow.pyfunc.scoring_server import predictions_to_json
import io
served = io.StringIO()
predictions_to_json(answer, served)
answer["mask"] = [base64.b64encode(mask).decode() for mask in answer["mask"]]
rows = json.loads(answer.to_json(orient="records"))
import pipelines
print(json.dumps({{"rows": rows, "from": pipelines.__file__, "served": json.loads(served.getvalue())["predictions"],
                   "example": model.input_example}}))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[Path]]:
    """Three films, and a tuned checkpoint that a run has registered."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "LACUNA_TRACKING"):
        monkeypatch.delenv(name, raising=False)
    files, prepared = ingest_files(tmp_path, "xray", count=3)
    checkpoint = tmp_path / "artifacts/finetune/xray/scratch/seed0"
    tuned(checkpoint, prepared, "xray")
    with tracking.open_run(
        stage="evaluate", name="xray", root=tmp_path, settings={}, domain="medical", inputs={"data/prepared/run": None}
    ) as run:
        run.model(checkpoint, "lacuna-xray", metrics={"auroc": 0.8})
    return tmp_path, files


def _client(root: Path) -> Any:
    return mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db", f"sqlite:///{root}/mlflow.db")


@pytest.mark.slow
def test_a_registered_model_reads_files_in_a_process_without_this_project(
    project: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    root, files = project
    record = json.loads(lineage.run_file("evaluate", "xray", root).read_text())
    version = _client(root).get_model_version_by_alias("lacuna-xray", "champion")
    assert record["model"]["uri"] == f"models:/lacuna-xray/{version.version}" and version.run_id == record["run_id"]
    contract = root / "artifacts/finetune/xray/scratch/seed0/contract.json"
    assert version.tags["model.contract"] == pyfunc._hash(contract) and version.tags["lacuna.run"] == record["key"]
    (logged,) = _client(root).search_logged_models([record["experiment_id"]])
    assert {metric.key: metric.value for metric in logged.metrics} == {"auroc": 0.8}

    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "models").mkdir(parents=True)
    (elsewhere / "models/__init__.py").write_text("raise ImportError('the folder of somebody else')")
    code = LOAD.format(
        project=str(pyfunc.HOME), uri=f"sqlite:///{root}/mlflow.db", paths=[str(files[0]), "missing.png"]
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["from"].startswith(str(root / "mlartifacts")), "the code that the model carries"
    (expected,) = prediction.predict(
        root / "artifacts/finetune/xray/scratch/seed0", files[:1], limits=Limits(workers=1)
    )
    first, second = answer["rows"]
    assert first["label"] == expected["label"]
    assert first["p.yes"] == pytest.approx(expected["probabilities"]["yes"], abs=1e-5)
    assert (second["status"], second["label"]) == ("refused", "") and "no such file" in second["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["xray", "points"])
def test_a_registered_model_of_masks_answers_with_the_files_that_predict_writes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "LACUNA_TRACKING"):
        monkeypatch.delenv(name, raising=False)
    files, prepared = ingest_files(tmp_path, kind, count=3)
    checkpoint = tmp_path / "artifacts/finetune/masks/scratch/seed0"
    of_masks(checkpoint, prepared, kind)
    with tracking.open_run(
        stage="evaluate", name="masks", root=tmp_path, settings={}, domain="medical", inputs={"data/prepared/run": None}
    ) as run:
        run.model(checkpoint, "lacuna-masks", metrics={"dice": 0.8})
    code = MASKS.format(
        project=str(pyfunc.HOME), uri=f"sqlite:///{tmp_path}/mlflow.db", paths=[*map(str, files), "missing.png"]
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["from"].startswith(str(tmp_path / "mlartifacts")), "the code that the model carries"
    assert answer["example"] == {"path": [pyfunc.EXAMPLES[kind]]}
    for served, row in zip(answer["served"][:3], answer["rows"], strict=False):  # a server breaks base64 into lines
        assert {**served, "mask": served["mask"].replace("\n", "")} == row
    prediction.predict_to_folder(checkpoint, files, tmp_path / "out", limits=Limits(workers=1))
    expected = json.loads((tmp_path / "out/predictions.json").read_text())
    for row, result in zip(answer["rows"], expected, strict=False):
        written = tmp_path / "out" / result["mask"]
        assert row["file"] == written.name and base64.b64decode(row["mask"]) == written.read_bytes()
        for entry in result["classes"]:
            assert row[f"pixels.{entry['class']}"] == entry["pixels"]
    assert answer["rows"][3]["status"] == "refused" and answer["rows"][3]["mask"] == ""


@pytest.mark.slow
def test_sending_a_model_again_makes_no_second_version(project: tuple[Path, list[Path]]) -> None:
    root, _ = project
    record = json.loads(lineage.run_file("evaluate", "xray", root).read_text())
    server = tracking.connect(tracking.store(root))
    assert server is not None
    server.opened = {"run_id": record["run_id"], "parent_run_id": record["parent_run_id"]}
    server.deliver(
        {
            "op": "model",
            "folder": str(root / "artifacts/finetune/xray/scratch/seed0"),
            "name": "lacuna-xray",
            "metrics": {},
            "alias": "champion",
        }
    )
    assert len(_client(root).search_model_versions("name = 'lacuna-xray'")) == 1


def test_answers_come_in_the_type_of_the_question(tmp_path: Path) -> None:
    import pandas

    files, prepared = ingest_files(tmp_path, "xray", count=3)
    tuned(tmp_path / "checkpoint", prepared, "xray")
    model = pyfunc._load_pyfunc(str(tmp_path / "checkpoint"))
    paths = [str(file) for file in files]
    table = model.predict(pandas.DataFrame({"path": paths}))
    rows = model.predict(paths)
    assert isinstance(table, pandas.DataFrame) and table.to_dict("records") == rows
    assert model.predict([{"path": path} for path in paths]) == rows
    assert list(table.columns) == [name for name, _ in pyfunc.describe(tmp_path / "checkpoint").outputs]


def test_requirements_name_what_the_readers_of_a_domain_need_and_never_this_project() -> None:
    for domain in pyfunc.BY_DOMAIN:
        lines = pyfunc.requirements(domain)
        assert all(re.fullmatch(r"[\w-]+==\d[\w.]*", line) for line in lines), lines
        assert not any(line.startswith("lacuna") for line in lines), "a stranger may own that name on a public index"
    extras = tomllib.loads((pyfunc.HOME / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for domain, names in pyfunc.BY_DOMAIN.items():
        wanted = {re.split(r"[\[>=; ]", line)[0] for line in extras[domain]} - {"monai"}
        assert wanted <= set(names), f"{domain}: {wanted - set(names)} is not in pipelines/prediction/pyfunc.py"
