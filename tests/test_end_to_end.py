"""One tiny run per track, from generated files to a registered model, by `dvc repro` in a copy of the project.

The tests stand in the order in which they happen to one project; each leaves it as the next one expects it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = yaml.safe_load((ROOT / "params.yaml").read_text())
STAGES = ("sample", "ingest", "pretrain", "finetune", "evaluate")
ADAPTED: dict[str, dict[str, Any]] = {
    "adapt": {"xray": {"domain": "medical", "data": "xray", "start": "artifacts/pretrain/xray",
                       "method": {"kind": "self_distillation"}, "optimisation": {"steps": 4, "batch_size": 8},
                       "gates": {"min_std": 0, "min_rank": 0}}},
    "domain_adaptation": {"xray": {"domain": "medical", "data": "xray", "labelled": "xray", "task": "opacity",
                                   "labelled_sources": ["clinic"], "target_sources": ["ward"], "seeds": [0],
                                   "start": "artifacts/pretrain/xray", "method": {"kind": "averaged_teacher"},
                                   "optimisation": {"steps": 4, "batch_size": 8, "betas": [0.9, 0.999]}}}}
"""Runs of stages of which none is shipped."""
SHOWN_ONLY = {f"pipelines/{name}.py" for name in (
    "cli", "told_to_stop", "commands/overview", "commands/endings", "commands/under_dvc",
    "tracking/tracking", "tracking/tracked_run", "tracking/lineage", "tracking/loggable",
    "tracking/spool", "tracking/mlflow_server", "report", "intake/contact_sheet", "scoring/evaluation_pictures",
    "scoring/mask_pictures",
    "training/reconstruction", "training/estimate", "training/resources", "training/processes", "prediction/pyfunc")}
"""Left out of `deps` by name: command line, tracking and report change what is shown and never what is computed."""


@dataclass
class Project:
    """A copy of the project in which everything is tiny."""

    root: Path
    environment: dict[str, str]

    def call(self, *command: str, fails: bool = False) -> str:
        done = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=900)
        assert (done.returncode != 0) == fails, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
        return done.stdout + done.stderr

    def json(self, path: str) -> Any:
        return json.loads((self.root / path).read_text())

    def repro(self, *arguments: str) -> set[str]:
        """Run what is stale (with "--dry": say so only); the stages that ran."""
        out = self.call("dvc", "repro", *arguments)
        return {line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage")}

    def change(self, edit: Any) -> None:
        path = self.root / "params.yaml"
        params = yaml.safe_load(path.read_text())
        edit(params)
        path.write_text(yaml.safe_dump(params, sort_keys=False))


def tiny(params: dict[str, Any]) -> dict[str, Any]:
    """The shipped runs, with few samples and steps."""
    for run in params["sample"].values():
        run["settings"] |= {"labelled": 120, "unlabelled": 32}
    for run in params["pretrain"].values():
        run["optimisation"] |= {"steps": 4, "batch_size": 8}
        run["gates"] = {"min_std": 0, "min_rank": 0}
    for run in params["finetune"].values():
        run["optimisation"] |= {"steps": 4, "batch_size": 8}
        run |= {"seeds": [0, 1], "validations": 1}
    for run in params["evaluate"].values():
        run["resamples"] = 100
    for run in params["few_shot"].values():
        run |= {"shots": [1, 3], "episodes": 10, "resamples": 100}
        run["prompts"] |= {"steps": 2, "shots": 2, "validation_episodes": 2}
    for run in params["shift"].values():
        run["resamples"] = 100
    for run in params["verdict"].values():
        run |= {"budgets": [0.5, 1.0], "seeds": [0, 1], "resamples": 100}
        run["processes"] = 1  # what other processes load is noted nowhere
        run["tuning"] |= {"optimisation": {"steps": 2, "batch_size": 8, "betas": [0.9, 0.999]}, "validations": 1}
    return {**params, **ADAPTED}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    root = tmp_path_factory.mktemp("lacuna") / "project"
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True,
                            capture_output=True, check=True).stdout.split("\n")
    for name in listed:
        if name and (ROOT / name).is_file() and not name.startswith(".dvc/"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    params = tiny(yaml.safe_load((ROOT / "params.yaml").read_text()))
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (root / "dvc.lock").unlink(missing_ok=True)
    (root / "bin").mkdir()
    (root / "modules").mkdir()
    shim = root / "bin/lacuna"
    shim.write_text(f'#!/bin/sh\ncd "${{DVC_ROOT:-$PWD}}" && exec {sys.executable} -m tests.stage_program "$@"\n')
    shim.chmod(0o755)
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{root / 'bin'}:{scripts}:{os.environ['PATH']}", "OMP_NUM_THREADS": "2",
                   "LACUNA_TEST_MODULES": str(root / "modules"), "GIT_CONFIG_GLOBAL": "/dev/null"}
    made = Project(root, environment)
    made.call("git", "init", "-q")
    made.call("dvc", "init", "-q")
    made.call("git", "add", "-A")
    made.call("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "start")
    made.call("dvc", "repro")
    yield made


@pytest.mark.parametrize("name", SHIPPED["evaluate"])
def test_each_track_goes_from_raw_files_to_a_score_with_its_interval(project, name):
    record = project.json(f"reports/evaluate/{name}/metrics.json")
    assert set(record["arms"]) == {"scratch", "pretrained"}
    assert (project.root / f"reports/evaluate/{name}/summary.txt").read_text().count("[") >= 2
    for stage in ("ingest", "pretrain", "finetune", "evaluate"):
        assert (project.root / f"reports/{stage}/{name}/metrics.json").is_file()
    assert (project.root / f"reports/pretrain/{name}/reconstruction.png").stat().st_size > 2000


@pytest.mark.parametrize("name", SHIPPED["evaluate"])
def test_lineage_leads_from_the_score_back_to_the_data(project, name):
    runs = {stage: project.json(f"reports/{stage}/{name}/run.json") for stage in STAGES[1:]}
    assert all(run["status"] == "FINISHED" and run["run_id"] for run in runs.values())
    assert len({run["parent_run_id"] for run in runs.values()}) == 1, "one parent per pipeline invocation"
    for later, earlier in (("pretrain", "ingest"), ("finetune", "pretrain"), ("evaluate", "finetune")):
        assert runs[earlier]["run_id"] in json.dumps(runs[later]["upstream"]), (later, earlier)


@pytest.mark.parametrize("name", SHIPPED["evaluate"])
def test_no_test_group_was_pretrained_or_tuned_on(project, name):
    from domains.splits import pseudonym
    from domains.store import open_prepared
    prepared = open_prepared(project.root / "data/prepared" / name)
    groups = np.array(prepared.column("group"))
    held = {pseudonym(group) for group in groups[prepared.rows(split=["val", "test"])]}
    pool = set(project.json(f"artifacts/pretrain/{name}/checkpoint.json")["pool_groups"])
    assert pool and not pool & held


@pytest.mark.parametrize("name", SHIPPED["verdict"])
def test_a_verdict_ends_with_a_sentence_curves_and_a_recipe(project, name):
    folder = project.root / f"reports/verdict/{name}"
    assert "pretraining on your" in (folder / "summary.txt").read_text()
    assert (folder / "curves.png").stat().st_size > 10_000 and (folder / "report.html").is_file()
    assert yaml.safe_load((folder / "recipe.yaml").read_text())[f"{name}_recipe"]["data"] == name


@pytest.mark.parametrize("name", SHIPPED["few_shot"])
def test_a_few_shot_run_ends_with_both_intervals_and_a_picture(project, name):
    folder = project.root / f"reports/few_shot/{name}"
    assert "All episodes ask about the same" in (folder / "summary.txt").read_text()
    assert (folder / "few_shot.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", SHIPPED["shift"])
def test_a_shift_page_tells_what_the_other_source_costs(project, name):
    folder = project.root / f"reports/shift/{name}"
    assert SHIPPED["shift"][name]["source"] in (folder / "summary.txt").read_text()
    assert (folder / "sources.png").stat().st_size > 10_000 and (folder / "report.html").is_file()


@pytest.mark.parametrize("name", ADAPTED["adapt"])
def test_an_encoder_that_went_on_learning_and_its_teacher_can_be_started_from(project, name):
    project.call("lacuna", "verify", f"artifacts/adapt/{name}")
    for folder in (f"artifacts/adapt/{name}", f"artifacts/adapt/{name}/teacher"):
        assert project.json(f"{folder}/checkpoint.json")["provenance"]["start"] == ADAPTED["adapt"][name]["start"]
    upstream = project.json(f"reports/adapt/{name}/run.json")["upstream"]
    assert project.json(f"reports/pretrain/{name}/run.json")["run_id"] in json.dumps(upstream)


def test_a_second_repro_runs_nothing(project):
    assert project.repro("--dry") == set()


def test_each_stage_loads_what_its_deps_name_and_nothing_else(project):
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in (*STAGES, "verdict", "few_shot", "shift", *ADAPTED):
        used: set[str] = set()
        runs = ADAPTED.get(stage) or SHIPPED[stage]
        for name, settings in runs.items():
            loaded = set(json.loads((project.root / f"modules/{stage}-{name}.json").read_text()))
            loaded = {path for path in loaded if not path.endswith("__init__.py")} - SHOWN_ONLY
            deps = [dep.replace("${item.domain}", settings["domain"]) for dep in stages[stage]["do"]["deps"]]
            code = [dep for dep in deps if dep.split("/")[0] in ("pipelines", "domains", "models")]
            missing = {path for path in loaded if not any(path == dep or path.startswith(dep + "/") for dep in code)}
            used |= {dep for dep in code if any(path == dep or path.startswith(dep + "/") for path in loaded)}
            assert not missing, f"{stage}@{name} loads files that dvc.yaml does not list: {sorted(missing)}"
        listed = {dep.replace("${item.domain}", run["domain"]) for run in runs.values()
                  for dep in stages[stage]["do"]["deps"] if dep.split("/")[0] in ("pipelines", "domains", "models")}
        assert used == listed, f"{stage} lists files that no run of it loads: {sorted(listed - used)}"


def test_editing_a_head_re_runs_no_pretraining(project):
    path = project.root / "models/heads/predict_sample.py"
    before = path.read_text()
    path.write_text(before + "\n# edited\n")
    would_run = project.repro("--dry")
    path.write_text(before)
    assert would_run and not {stage for stage in would_run if stage.split("@")[0] in ("ingest", "pretrain", "sample")}


def test_editing_one_run_re_runs_that_run_alone_and_lineage_is_complete_when_it_comes_from_the_cache(project):
    name = next(iter(SHIPPED["evaluate"]))
    before = {stage: project.json(f"reports/{stage}/{name}/run.json") for stage in STAGES[1:]}
    shipped = (project.root / "params.yaml").read_text()
    project.change(lambda params: params["pretrain"][name].update(seed=99))
    after = {f"verdict@{run}" for run, settings in SHIPPED["verdict"].items()
             if settings["arms"]["pretrained"] == f"artifacts/pretrain/{name}"}
    after |= {f"few_shot@{run}" for run, settings in SHIPPED["few_shot"].items()
              if settings["start"] == f"artifacts/pretrain/{name}"}
    tuned = {run for run, settings in SHIPPED["finetune"].items() if settings["start"] == f"artifacts/pretrain/{name}"}
    after |= {f"finetune@{run}" for run in tuned}
    after |= {f"shift@{run}" for run, settings in SHIPPED["shift"].items()
              if {f"artifacts/finetune/{one}" for one in tuned} & set(settings["models"].values())}
    after |= {f"{stage}@{run}" for stage, runs in ADAPTED.items() for run, settings in runs.items()
              if settings["start"] == f"artifacts/pretrain/{name}"}
    assert project.repro() == {f"pretrain@{name}", f"evaluate@{name}"} | after
    other = project.json(f"reports/pretrain/{name}/run.json")
    assert other["run_id"] != before["pretrain"]["run_id"]
    (project.root / "params.yaml").write_text(shipped)
    assert project.repro() == set(), "DVC's run cache holds the earlier results"
    assert {stage: project.json(f"reports/{stage}/{name}/run.json") for stage in STAGES[1:]} == before


@pytest.mark.parametrize("name", SHIPPED["evaluate"])
def test_predict_writes_calibrated_probabilities_and_skips_what_is_done(project, name):
    folder = project.root / "data/raw" / name
    import csv
    with (folder / "labels.csv").open() as file:
        paths = [str(folder / row["path"]) for row in csv.DictReader(file)][:3]
    model = f"artifacts/finetune/{name}/pretrained/seed0"
    project.call("lacuna", "predict", model, *paths, "--out", f"out/{name}")
    rows = project.json(f"out/{name}/predictions.json")
    rows = rows if isinstance(rows, list) else rows["predictions"]
    assert len(rows) == 3
    again = project.call("lacuna", "predict", model, *paths, "--out", f"out/{name}")
    assert "0 files done, 3 done before" in again


def test_compare_puts_the_runs_side_by_side(project):
    out = project.call("lacuna", "compare", "--out", "comparison")
    assert all(name in out for name in SHIPPED["evaluate"])
    assert list((project.root / "comparison").glob("*.png")) and list((project.root / "comparison").glob("*.csv"))


@pytest.mark.parametrize("command", [
    ("pretrain", "nobody"), ("ingest", "nobody"), ("finetune", "medical"), ("describe", "nothing"),
    ("predict", "nothing", "x.dcm", "--out", "out/x"), ("embed", "nothing", "x.dcm"), ("init", "nowhere")])
def test_an_error_is_a_sentence_and_a_traceback_comes_only_with_debug(project, command):
    out = project.call("lacuna", *command, fails=True)
    assert "Traceback" not in out and "lacuna: " in out and out.strip().endswith((".", "'", "}", "DIR", "CSV."))
    assert "Traceback" in project.call("lacuna", "--debug", *command, fails=True)


def test_the_command_works_in_a_folder_with_its_own_models(tmp_path):
    for name in ("models", "domains", "pipelines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    done = subprocess.run([str(Path(sys.executable).parent / "lacuna"), "describe", "nothing"], cwd=tmp_path, text=True,
                          env={**os.environ, "PYTHONPATH": "."}, capture_output=True, timeout=120)
    assert done.returncode == 2 and "the wrong package" not in done.stderr
