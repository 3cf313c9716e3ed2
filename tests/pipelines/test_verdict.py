"""The stage `verdict` on prepared data made in place: cells are kept, leaks are refused, every way is answered for."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from domains.store import open_prepared, replace_columns
from pipelines import cli, finetune, pretrain, verdict
from pipelines.evaluate import Leak
from pipelines.pretrain import PretrainRun, group_hashes
from pipelines.settings import SettingsError, build, plain
from pipelines.tracking.tracked_run import Run
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.training.resume import REPOSITORY
from pipelines.verdict import VerdictRun
from tests.fabricate import prepare, pretrain_settings, pretrained
from tests.pipelines.test_side_by_side import runs, wait_until

pytestmark = pytest.mark.usefixtures("no_tracking")

LORA = {"adapters": [{"kind": "lora", "rank": 2}], "grid": [1e-2]}


def asked(**changes: Any) -> VerdictRun:
    like = pretrain_settings("xray")
    paragraph = {"domain": "medical", "data": "xray", "task": "bright",
                 "arms": {"pretrained": "artifacts/pretrain/xray"},
                 "tuning": {"grid": [1e-3], "validations": 1, "patience": 0, "machine": like["machine"],
                            "optimisation": {"steps": 3, "batch_size": 8, "betas": [0.9, 0.999]}},
                 "budgets": [0.25, 1.0], "seeds": [0, 1], "resamples": 100, **changes}
    return build(VerdictRun, paragraph, "verdict.xray")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    pretrained(root, count=144, steps=4)
    return root


def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which ways are trained from here on."""
    ways: list[str] = []
    real = finetune.trial

    def counted(one: finetune.Planned) -> finetune.Trial:
        ways.append(one.name)
        return real(one)

    monkeypatch.setattr(finetune, "trial", counted)
    return ways


def test_every_way_is_answered_for_and_cells_are_kept(project, monkeypatch):
    ways = trained(monkeypatch)
    both = asked(adaptations={"full": {}, "lora": LORA}, floors=[{"kind": "intensity"}], longer=2, watts=100.0)
    headlines = verdict.run("xray", both, project)
    assert len(ways) == 2 * 2 * 4  # budgets, seeds; scratch, scratch longer, full, lora
    reports = project / "reports/verdict/xray"
    page = (reports / "report.html").read_text()
    summary = (reports / "summary.txt").read_text()
    for name in ("scratch", "scratch, longer", "pretrained full", "pretrained lora", "floor: intensity"):
        assert name in summary and name in page
    assert "pretraining on your" in headlines["verdict 1"]
    assert (reports / "curves.png").stat().st_size > 10_000 and "data:image/png;base64," in page
    # what is labelled here is brightness, which the floor sees
    assert "beware: the floor intensity" in headlines["floor 1"] and headlines["floor 1"] in summary
    ways.clear()
    assert verdict.run("xray", both, project) == headlines
    assert not ways


def test_one_more_arm_computes_that_arm_alone(project, monkeypatch):
    verdict.run("more", asked(), project)
    other = pretrain_settings("xray", steps=4, seed=9)
    pretrain.run("other", build(PretrainRun, other, "pretrain.test"), project)
    ways = trained(monkeypatch)
    arms = {"pretrained": "artifacts/pretrain/xray", "other": "artifacts/pretrain/other"}
    verdict.run("more", asked(arms=arms), project)
    assert set(ways) == {"other full"} and len(ways) == 4


def test_a_killed_verdict_goes_on_where_it_was(project, monkeypatch):
    real, calls = finetune.trial, []

    def dies(one: finetune.Planned) -> finetune.Trial:
        calls.append(one.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(one)

    run = asked(tuning={**asked().tuning, "grid": [2e-3]})
    monkeypatch.setattr(finetune, "trial", dies)
    with pytest.raises(KeyboardInterrupt):
        verdict.run("killed", run, project)
    monkeypatch.setattr(finetune, "trial", real)
    ways = trained(monkeypatch)
    verdict.run("killed", run, project)
    assert len(ways) == 8 - 2


def test_shares_of_the_cells_together_are_all(project, monkeypatch):
    run = asked(tuning={**asked().tuning, "grid": [3e-3]})
    counts = [verdict.run("shared", run, project, (i, 3))["cells"] for i in range(3)]
    assert sum(counts) == 8
    ways = trained(monkeypatch)
    verdict.run("shared", run, project)
    assert not ways


@pytest.mark.parametrize("split", ["test", "val"])
def test_an_arm_that_has_seen_a_held_group_is_refused_before_anything_is_trained(project, monkeypatch, split):
    record = project / "artifacts/pretrain/xray/checkpoint.json"
    before = record.read_text()
    told = json.loads(before)
    prepared = open_prepared(project / "data/prepared/xray")
    told["pool_groups"] += group_hashes(prepared, prepared.rows(split=split)[:1])
    record.write_text(json.dumps(told))
    ways = trained(monkeypatch)
    try:
        with pytest.raises(Leak, match="found 1 of .* validation and test groups in what arm pretrained"):
            verdict.run("leaky", asked(tuning={**asked().tuning, "grid": [7e-3]}), project)
    finally:
        record.write_text(before)
    assert not ways


def test_a_tested_sample_that_was_pretrained_on_under_another_name_is_refused(project):
    folder = project / "data/prepared/renamed"
    prepare(folder, "xray", 144)
    groups = open_prepared(folder).column("group")
    replace_columns(folder, {"group": [f"other-{group}" for group in groups], "split": ["unlabelled"] * len(groups)})
    paragraph = pretrain_settings("xray", steps=2)
    pretrain.run("renamed", build(PretrainRun, {**paragraph, "data": "renamed"}, "pretrain.test"), project)
    arms = {"pretrained": "artifacts/pretrain/xray", "other": "artifacts/pretrain/renamed"}
    with pytest.raises(Leak, match="byte for byte, in what arm other"):
        verdict.run("renamed", asked(arms=arms), project)


class Heard:
    """Tracking that only remembers what it is sent."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def open_run(self, *, stage: str, name: str, root: Path, **about: Any) -> Iterator[Run]:
        yield Run({"key": "k"}, root / "reports" / stage / name, self.events.append)

    def cells(self) -> list[dict[str, Any]]:
        found = [event for event in self.events if event["op"] == "child"]
        self.events.clear()
        return found


def test_every_cell_is_a_run_below_the_verdicts_also_one_that_was_kept(project, monkeypatch, capsys):
    heard = Heard()
    monkeypatch.setattr(verdict.tracking, "open_run", heard.open_run)
    run = asked(tuning={**asked().tuning, "grid": [4e-3]})
    verdict.run("told", run, project)
    assert capsys.readouterr().out.count("finetune ") == 1, "the estimate, once; all weights are trained"
    cells = heard.cells()
    assert len({cell["key"] for cell in cells}) == len({cell["name"] for cell in cells}) == 8
    assert {cell["tags"]["lacuna.kept"] for cell in cells} == {"false"}
    scratch = next(cell for cell in cells if cell["name"] == "scratch, 25 % of the labels, seed 1")
    assert scratch["params"] | {"arm": "scratch", "adaptation": "full", "budget": "0.25", "seed": "1"} \
        == scratch["params"]
    numbers = {name: value for name, value, _, _ in scratch["points"]}
    assert 0 <= numbers["test_auroc"] <= 1 and numbers["val_loss"] > 0 and numbers["trained"] > 0
    verdict.run("told", run, project)
    again = heard.cells()
    assert [cell["key"] for cell in again] == [cell["key"] for cell in cells]
    assert {cell["tags"]["lacuna.kept"] for cell in again} == {"true"}


def test_time_stands_in_the_report_and_not_in_the_artifact(project):
    verdict.run("timed", asked(), project)
    artifact, reported = (list(csv.DictReader((project / kind / "verdict/timed/cells.csv").open()))
                          for kind in ("artifacts", "reports"))
    assert len(artifact) == len(reported) == 8
    assert "seconds" not in artifact[0] and float(reported[0]["seconds"]) > 0
    assert [{**line, "seconds": ""} for line in artifact] == [{**line, "seconds": ""} for line in reported]


def small(root: Path) -> None:
    """A project with few labelled groups, and an encoder that was pretrained on others."""
    prepare(root / "data/prepared/xray", "xray", 36)
    prepare(root / "data/prepared/pool", "xray", 48, seed=1)
    groups = open_prepared(root / "data/prepared/pool").column("group")
    replace_columns(root / "data/prepared/pool",
                    {"group": [f"pool-{group}" for group in groups], "split": ["unlabelled"] * len(groups)})
    for name, data in (("xray", "pool"), ("own", "xray")):
        paragraph = {**pretrain_settings("xray", steps=2), "data": data}
        pretrain.run(name, build(PretrainRun, paragraph, "pretrain.test"), root)


def test_folds_test_every_labelled_row_and_give_few_groups_an_interval(tmp_path):
    small(tmp_path)
    without = verdict.run("split", asked(budgets=[1.0]), tmp_path)
    assert without["test groups"] == 3 and "not estimable" in without["verdict 1"]
    assert "`folds: 5`" in without["verdict 1"]
    folded = asked(budgets=[1.0], folds=3, floors=[{"kind": "intensity"}])
    with_folds = verdict.run("folds", folded, tmp_path)
    assert with_folds["test groups"] == 15 and "[" in with_folds["verdict 1"]
    lines = list(csv.DictReader((tmp_path / "artifacts/verdict/folds/cells.csv").open()))
    assert len(lines) == 2 * 2 * 3  # ways, seeds, folds
    rows = [len(np.load(path)) for path in sorted((tmp_path / "artifacts/verdict/folds").glob("cell-*.npy"))]
    assert sum(rows) == 2 * 2 * 30  # every labelled row once per way and seed
    page = (tmp_path / "reports/verdict/folds/report.html").read_text()
    assert "3 folds" in page and "floor: intensity (3 folds)" in page
    with pytest.raises(Leak, match="groups of the folds in what arm pretrained"):
        verdict.run("leaky", asked(arms={"pretrained": "artifacts/pretrain/own"}, folds=3), tmp_path)


def test_the_remedy_for_few_test_groups_is_one_that_works(tmp_path):
    """Pretrain on rows without a label alone, in the same data, and every labelled group may be tested."""
    prepare(tmp_path / "data/prepared/xray", "xray", 96)
    data = open_prepared(tmp_path / "data/prepared/xray")
    places = [int(str(group)[1:]) for group in data.column("group")]
    splits = ["unlabelled" if at >= 18 else ("train", "val", "test")[at % 3 if at < 9 else 0] for at in places]
    replace_columns(tmp_path / "data/prepared/xray", {"split": splits})
    for name, changes in (("own", {}), ("apart", {"splits": ["unlabelled"]})):
        pretrain.run(name, build(PretrainRun, {**pretrain_settings("xray", steps=2), **changes}, "pretrain"), tmp_path)

    def folded(name: str) -> dict[str, Any]:
        return verdict.run(name, asked(arms={"pretrained": f"artifacts/pretrain/{name}"}, folds=3, budgets=[1.0]),
                           tmp_path)

    with pytest.raises(Leak, match=r"`splits: \[unlabelled\]` of the pretrain run"):
        folded("own")
    assert folded("apart")["test groups"] >= 10


@pytest.mark.slow
def test_processes_and_shares_say_what_one_process_says(project, tmp_path, monkeypatch):
    run = asked(tuning={**asked().tuning, "grid": [5e-3]})
    (project / "params.yaml").write_text(yaml.safe_dump({"verdict": {
        name: {**plain(run), "processes": count} for name, count in (("one", 1), ("two", 2), ("thirds", 1))}}))
    monkeypatch.chdir(project)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(verdict.__file__).parents[1]),
                                                      os.environ.get("PYTHONPATH", "")]))

    def said(name: str) -> list[bytes]:
        return [path.read_bytes() for path in sorted((project / "artifacts/verdict" / name).glob("cell-*.npy"))]

    kept = project / verdict.CELLS
    for name in ("one", "two", "thirds"):
        shutil.rmtree(kept, ignore_errors=True)
        if name == "thirds":
            assert all(cli.main(["verdict", name, "--cells", f"{i}/3"]) == 0 for i in range(3))
            ways = trained(monkeypatch)
        if name == "two":  # only what a process has left behind is trained here
            ways = trained(monkeypatch)
        assert cli.main(["verdict", name]) == 0
        if name != "one":
            assert not ways
    assert len(said("one")) == 8 and said("one") == said("two") == said("thirds")


@pytest.mark.slow
def test_processes_of_a_killed_verdict_end_with_it(project, tmp_path):
    run = asked(processes=2, tuning={**asked().tuning, "optimisation": {"steps": 10**6, "batch_size": 8}})
    (tmp_path / "asked.json").write_text(json.dumps(plain(run)))
    program = ("import json, sys; from pathlib import Path; from pipelines import verdict; "
               "from pipelines.settings import build; "
               "verdict.run('killed', build(verdict.VerdictRun, json.loads(Path(sys.argv[1]).read_text()), 'verdict'), "
               "Path(sys.argv[2]))")
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "asked.json"), str(project)],
                              env={**os.environ, "PYTHONPATH": str(REPOSITORY), "LACUNA_TRACKING": "off"})
    at_work: list[Path] = []

    def training() -> bool:
        assert parent.poll() is None, "the verdict ended by itself"
        at_work[:] = [Path(f"/proc/{process}") for process in
                      Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
        return len(at_work) == 2 and len(list((project / verdict.CELLS).glob("*.work"))) == 2

    wait_until(training)
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(runs(int(process.name)) for process in at_work))


@pytest.mark.parametrize("text", ["4", "2/2", "a/b", "-1/2"])
def test_a_share_of_cells_that_means_nothing_is_refused(text):
    with pytest.raises(ValueError, match="expected I/N"):
        verdict.share_of(text)


def test_the_recipe_is_a_paragraph_that_runs_under_a_name_of_its_own(project):
    verdict.run("recipe", asked(adaptations={"full": {}, "lora": LORA}), project)
    paragraphs = yaml.safe_load((project / "reports/verdict/recipe/recipe.yaml").read_text())
    run = build(FinetuneRun, paragraphs["recipe_recipe"], "finetune.recipe")
    assert run.data == "xray" and run.seeds == (0, 1) and run.label_share == 1.0
    wanted = build(FinetuneRun, {**plain(run), **asked().tuning}, "as asked")
    assert (run.optimisation, run.machine, run.patience) == (wanted.optimisation, wanted.machine, wanted.patience)
    assert set(finetune.run("recipe_recipe", run, project)) and (project / "artifacts/finetune/recipe_recipe").is_dir()
    optimisation = paragraphs["recipe_recipe"]["optimisation"]
    assert set(optimisation) == {"steps", "batch_size", "betas"}, "what is usual is left out"


@pytest.mark.parametrize(("changes", "message"), [
    ({"budgets": [1.0, 0.5]}, "budgets: found"), ({"seeds": [0]}, "seeds: found"),
    ({"arms": {"pretrained": "scratch"}}, "pretrained: found scratch"),
    ({"arms": {"pretrained": "artifacts/pretrain/xray", "mine": "x"}}, r"arms\.mine"),
    ({"longer": 1}, "longer: found 1"), ({"folds": 2}, "folds: found 2"),
], ids=["budgets", "seeds", "scratch", "arm", "longer", "folds"])
def test_settings_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(SettingsError, match=message):
        asked(**changes)


def test_probes_need_no_head_of_their_own(project):
    adaptations = {"full": {}, "linear": {"protocol": "linear"}, "knn": {"protocol": "knn"}}
    tuning = {**asked().tuning, "head": {"kind": "sample", "pool": "summary"}}
    run = asked(adaptations=adaptations, budgets=[1.0], tuning=tuning)
    runs = verdict.tunings("probed", run)
    assert runs["linear"].head.pool == runs["full"].head.pool == "summary" and runs["knn"].head.kind == "nearest"
    headlines = verdict.run("probed", run, project)
    assert "adapted by linear" in headlines["verdict 2"] and "adapted by knn" in headlines["verdict 3"]


def test_a_wrong_key_of_an_adaptation_is_refused_by_its_path(project):
    with pytest.raises(SettingsError, match=r"verdict\.x\.adaptations\.lora\.adapterz"):
        verdict.run("x", asked(adaptations={"full": {}, "lora": {"adapterz": []}}), project)
    with pytest.raises(ValueError, match="expected one that does"):
        verdict.run("x", asked(adaptations={"lora": LORA}), project)
