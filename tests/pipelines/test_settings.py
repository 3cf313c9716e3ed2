"""A paragraph without a `kind`: the default's where it cannot be mistaken, a refusal that lists the kinds elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from models.encoder.tokenizers import Bands, Grid
from models.encoder.transformer import EncoderSettings
from models.objectives.masked_autoencoder import MaskedAutoencoderSettings
from models.objectives.point_cmae import PointCMAESettings
from pipelines.pretrain import PretrainRun
from pipelines.settings import SettingsError, build, plain


@dataclass(frozen=True)
class Round:
    """One member."""

    kind: Literal["round"] = "round"
    size: int = 1
    """Shared."""
    radius: int = 1
    """Its own."""


@dataclass(frozen=True)
class Square:
    """Another."""

    kind: Literal["square"] = "square"
    size: int = 1
    """Shared."""
    side: int = 1
    """Its own."""


@dataclass(frozen=True)
class Drawing:
    """With a default, and without."""

    shape: Round | Square = field(default_factory=Square)
    """By default not the union's first."""
    frame: Round | Square | None = None
    """None by default."""


def test_without_a_kind_it_is_the_default_s_class() -> None:
    assert build(Drawing, {"shape": {"size": 3}}, "run").shape == Square(size=3)
    assert build(Drawing, {"shape": {"side": 3}}, "run").shape == Square(side=3)
    assert build(Drawing, {"shape": {}}, "run").shape == Square()


@pytest.mark.parametrize(("raw", "said"), [
    ({"shape": {"radius": 3}}, "missing key: run.shape.kind. Expected one of round, square."),
    ({"frame": {"size": 3}}, "missing key: run.frame.kind. Expected one of round, square."),
    ({"shape": {"sid": 3}}, "unknown key: run.shape.sid. Did you mean side? Allowed here: kind, size, side."),
    ({"shape": {"kind": "oval"}}, "run.shape.kind: found 'oval', expected one of round, square.")])
def test_what_could_be_mistaken_is_refused(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        build(Drawing, raw, "run")
    assert str(refused.value) == said


def test_a_bare_union_has_no_default() -> None:
    with pytest.raises(SettingsError, match=r"missing key: here\.kind\. Expected one of round, square"):
        build(Round | Square, {"size": 3}, "here")  # type: ignore[arg-type]


def test_objectives_and_tokenizers_of_params_yaml() -> None:
    raw = {"domain": "medical", "data": "x", "objective": {"masking": {"kind": "block"}}}
    assert isinstance(build(PretrainRun, raw, "p").objective, MaskedAutoencoderSettings)
    raw["objective"] = {"agreement_weight": 0.1}
    with pytest.raises(SettingsError, match=r"missing key: p\.objective\.kind\. Expected one of masked_autoencoder"):
        build(PretrainRun, raw, "p")
    assert build(EncoderSettings, {"tokenizer": {"patch": [4, 4]}}, "e").tokenizer == Grid(patch=(4, 4))
    assert build(EncoderSettings, {"tokenizer": {"kind": "bands"}}, "e").tokenizer == Bands()
    with pytest.raises(SettingsError, match=r"missing key: e\.tokenizer\.kind"):
        build(EncoderSettings, {"tokenizer": {"num_groups": 4}}, "e")


def test_an_objective_survives_being_saved() -> None:
    settings = PointCMAESettings(summary_widths=(4, 4), agreement="all_pairs")
    assert build(PointCMAESettings, plain(settings), "again") == settings
