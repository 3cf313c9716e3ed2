"""Claims tried small: what is compared is what is said, on data made in place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import centre_leakage, claims, missing_bands
from domains.store import open_prepared
from models.encoder.chance import chance_of
from models.encoder.patches import take
from pipelines.settings import load_params, load_run
from pipelines.verdict import VerdictRun
from pipelines.verdicts.label_efficiency import Curve
from tests.fabricate import prepare, pretrain_settings


def test_every_claim_names_ways_that_its_verdict_has():
    for claim in claims.CLAIMS.values():
        settings = load_run("verdict", claim.verdict, VerdictRun, claims.ROOT)
        ways = {f"{arm} {adaptation}" for arm in settings.arms.starts for adaptation in settings.adaptations}
        assert {claim.better, claim.than} <= ways, claim.said


def test_every_start_of_a_claim_is_a_run_that_its_file_holds():
    params = load_params(claims.ROOT)
    for verdict in params["verdict"]:
        for start in load_run("verdict", verdict, VerdictRun, claims.ROOT).arms.starts.values():
            _, stage, name = start.split("/")
            assert name in params[stage]


@pytest.mark.parametrize(("better", "fell"), [(0.9, "as claimed"), (0.3, "against"), (0.6, "cannot tell")])
def test_a_claim_falls_where_the_interval_says(better: float, fell: str):
    noise = np.random.default_rng(0).normal(0, 0.01, (2, 4, 101))
    one, other = (Curve((value + each,), (20,)) for value, each in zip((better, 0.6), noise, strict=True))
    found = claims.line("", "", "", one, other, 20)
    assert found.fell == fell and f"{found.gain.value:+.3f}" in found.row()


def test_a_band_that_is_not_shown_has_no_token_or_is_zero_among_others_scaled_up():
    x = torch.arange(1, 25).reshape(1, 3, 2, 4).float()
    apart, known = missing_bands.shown(x, None, [1], "bands")
    assert known is not None and known[0, 1].all() and not known[0, [0, 2]].any()
    together, whole = missing_bands.shown(x, None, [0, 1], "grid")
    assert whole is None and torch.equal(together[0, :2], x[0, :2] * 1.5) and not together[0, 2].any()
    assert torch.equal(apart[0, 1], x[0, 1])


@pytest.mark.parametrize("tokens", ["grid", "bands"])
def test_a_model_trained_on_sampled_bands_answers_every_view_and_not_by_what_is_missing(
        tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(missing_bands, "TASK", "bright")
    monkeypatch.setattr(missing_bands, "BATCH", 8)
    prepared = open_prepared(prepare(tmp_path / "tiles", "multispectral"))
    model = missing_bands.trained(prepared, tokens, True, 0, steps=2)
    told = missing_bands.answers(model, prepared, tokens)
    assert {name: each.shape[0] for name, each in told.items()} == {"all": 1, "one missing": 3, "one alone": 3}
    x, known, _, _ = missing_bands.samples(prepared, "test")
    other = x.clone()
    other[:, 0] += 5
    first, second = (model.predict(*missing_bands.shown(each, known, [1, 2], tokens)) for each in (x, other))
    assert torch.equal(first, second)
    found = missing_bands.curves(prepared, [told, told], resamples=100)
    assert found["all"].scores[0].shape == (2, 101)


def test_centres_alone_hear_nothing_of_the_encoder_and_the_encoder_alone_nothing_of_centres(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(centre_leakage, "BATCH", 8)
    prepared = open_prepared(prepare(tmp_path / "shapes", "points"))
    model = centre_leakage.trained(prepared, pretrain_settings("points"), "as it is", 0, steps=1)
    x = centre_leakage.samples(prepared, prepared.rows(split="test"))
    chance = chance_of(0, 0, 0, torch.arange(len(x)), torch.zeros(len(x), dtype=torch.int64))

    def found(centres: bool, encoder: bool) -> torch.Tensor:
        return centre_leakage.errors(model, x, chance, centres, encoder)

    patches = model.encoder.tokenizer.patchify(x)
    mask = model.masking(patches, chance)
    moved = centre_leakage.elsewhere(patches, mask)
    assert torch.equal(take(moved.place, mask.visible), take(patches.place, mask.visible))
    assert torch.equal(take(moved.place, mask.hidden)[1], take(patches.place, mask.hidden)[0])
    before = found(True, False), found(True, True)
    with torch.no_grad():
        for weight in model.encoder.blocks.parameters():
            weight.add_(torch.randn_like(weight))
    assert torch.equal(before[0], found(True, False)) and not torch.equal(before[1], found(True, True))
    assert not torch.equal(found(True, True), found(False, True))
    told = [centre_leakage.score(model, prepared, True, True)] * 2
    assert centre_leakage.curve(prepared, told, resamples=100).scores[0].shape == (2, 101)
