"""The pages say what is there: settings that validate, links and paths that lead somewhere, runs that are shipped."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.adapters.adapter import AdapterSettings
from models.encoder.mask_lists import num_visible
from models.heads.tuned import HeadSettings
from pipelines import cli
from pipelines.adapt import AdaptRun
from pipelines.domain_adaptation import DomainAdaptationRun
from pipelines.few_shot import FewShotRun
from pipelines.ingest import DataRun, domain_reader
from pipelines.pretrain import PretrainRun
from pipelines.settings import build
from pipelines.shift import ShiftRun
from pipelines.training.batches import domain_code
from pipelines.training.finetune_settings import FinetuneRun

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CARDS = sorted((ROOT / "docs/methods").glob("*.md"))


def paragraphs(page: Path, stage: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, raw settings) of every run in the page's YAML blocks that begin with this stage."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [pair for block in blocks if block.startswith(f"{stage}:")
            for pair in yaml.safe_load(block)[stage].items()]


def adapter_blocks(page: Path) -> list[dict[str, Any]]:
    """The page's YAML blocks with an adapter, and the head that goes with it."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [yaml.safe_load(block) for block in blocks if block.startswith("adapters:")]


def published(card: str) -> PretrainRun:
    name, raw = paragraphs(ROOT / "docs/methods" / card, "pretrain")[0]
    return build(PretrainRun, raw, name)


def test_every_method_has_a_card() -> None:
    assert {card.stem for card in CARDS} >= {"mae", "mae_3d", "channel_mae", "point_mae"}


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.stem)
def test_the_recipe_of_a_method_card_validates(card: Path) -> None:
    found, tuned, few, adapted, between = (paragraphs(card, stage) for stage in (
        "pretrain", "finetune", "few_shot", "adapt", "domain_adaptation"))
    some = found or tuned or few or adapted or between or adapter_blocks(card)
    assert some, "a card without settings of what was published"
    for name, raw in found:
        run = build(PretrainRun, raw, f"pretrain.{name}")
        if run.augment is not None:
            build(domain_code(run.domain).augment.Augment, run.augment, f"pretrain.{name}.augment")
    for name, raw in tuned:
        build(FinetuneRun, raw, f"finetune.{name}")
    for name, raw in few:
        build(FewShotRun, raw, f"few_shot.{name}")
    for name, raw in adapted:
        build(AdaptRun, raw, f"adapt.{name}")
    for name, raw in between:
        build(DomainAdaptationRun, raw, f"domain_adaptation.{name}")


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.stem)
def test_the_adapters_of_a_method_card_validate(card: Path) -> None:
    for raw in adapter_blocks(card):
        for one in raw.pop("adapters"):
            build(AdapterSettings, one, f"{card.stem}: adapters")  # type: ignore[arg-type]
        build(HeadSettings, raw.pop("head", {"kind": "sample"}), f"{card.stem}: head")  # type: ignore[arg-type]
        assert not raw


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_data_run_in_the_pages_validates(page: Path) -> None:
    for name, raw in paragraphs(page, "ingest"):
        run = build(DataRun, raw, f"ingest.{name}")
        build(domain_reader(run.domain).settings, run.read, f"ingest.{name}.read")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_shift_run_in_the_pages_validates(page: Path) -> None:
    for name, raw in paragraphs(page, "shift"):
        build(ShiftRun, raw, f"shift.{name}")


def test_the_recipes_have_the_published_numbers() -> None:
    films, points = published("mae.md"), published("point_mae.md")
    assert films.objective.masking.ratio == 0.90
    assert films.augment is not None and films.augment["crop_scale"] == [0.5, 1.0]
    masking = points.objective.masking
    assert 64 - num_visible(64, masking.ratio, masking.round_hidden) == 38


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_every_path_at_the_left_of_the_readme_tree_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(part for part in readme.split("```") if "\npipelines/" in part)
    named = re.findall(r"^([\w./-]+) {2,}\S", block, re.MULTILINE)
    assert len(named) > 10
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_readme_and_the_cards_name_every_shipped_pretraining_and_no_other() -> None:
    files = (ROOT / "params.yaml", ROOT / "examples/real/params.yaml")
    shipped = {name for file in files for name in yaml.safe_load(file.read_text(encoding="utf-8"))["pretrain"]}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.split("| paper | run")[1].split("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[2])}
    assert named == shipped
    table = readme.split("| paper | run in examples/methods")[1].split("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[2])}
    methods = yaml.safe_load((ROOT / "examples/methods/params.yaml").read_text(encoding="utf-8"))["pretrain"]
    # The four of the first table are repeated there so that all can be run alike
    assert named == set(methods) - {"mae", "channel_mae", "point_mae"}
    in_cards = {name for card in CARDS for name in re.findall(r"`pretrain\.(\w+)`", card.read_text(encoding="utf-8"))}
    assert in_cards == shipped


def commands_of(page: Path) -> list[tuple[str, str, str]]:
    """(command, options, as it stands there) of what a page shows of `lacuna COMMAND`, in blocks and in backticks."""
    text = page.read_text(encoding="utf-8")
    code = re.findall(r"^```(?:bash)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    code += [" ".join(part.split()) for part in re.findall(r"(?<!`)`(lacuna [^`]+)`(?!`)", text)]
    lines = [line for block in code for line in block.splitlines()]
    return [(found[1], found[2].partition("#")[0], line) for line in lines
            for found in re.finditer(r"\blacuna ([a-z][a-z_-]+)((?:(?!&&).)*)", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_command_and_option_that_a_page_shows_is_one_of_the_command_line(page: Path) -> None:
    (subs,) = (one for one in cli.parser()._actions if isinstance(one, argparse._SubParsersAction))
    options = {name: {text for action in sub._actions for text in action.option_strings}
               for name, sub in subs.choices.items()}
    for command, rest, line in commands_of(page):
        assert command in options, f"{page.name}: no command {command} ({line})"
        unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)) - options[command]
        assert not unknown, f"{page.name}: {command} has no option {', '.join(unknown)} ({line})"


def test_the_readme_shows_commands() -> None:
    assert len({command for command, _, _ in commands_of(ROOT / "README.md")}) > 20
