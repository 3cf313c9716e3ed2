"""`lacuna --help` leads a newcomer to what is needed first, and shows how each command is written."""

from __future__ import annotations

import argparse
import shlex

import pytest

from pipelines import cli
from pipelines.commands import overview


def commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {name: sub for name, sub in found.choices.items() if "_" not in name}


def test_every_command_is_listed_once_under_a_heading_and_none_that_is_not_there() -> None:
    listed = [name for group in overview.GROUPS.values() for name in group]
    assert sorted(listed) == sorted(commands())


def test_the_five_that_a_newcomer_needs_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert next(iter(overview.GROUPS)) == "to begin with" and len(overview.GROUPS["to begin with"]) == 5
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert said.index("to begin with") < said.index("init ") < said.index("data:") < said.index("note ")


@pytest.mark.parametrize("name", sorted(overview.EXAMPLES))
def test_the_help_of_a_command_ends_with_an_example_that_it_accepts(name: str) -> None:
    help_text = commands()[name].format_help()
    assert help_text.rstrip().endswith(overview.EXAMPLES[name].splitlines()[-1])
    for line in " && ".join(overview.EXAMPLES[name].splitlines()).split(" && "):
        program, *arguments = shlex.split(line)
        assert program == "lacuna"
        cli.parser().parse_args(arguments)


def test_a_misspelled_command_is_told_from_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--debug", "pretrian", "xray"]) == 2
    assert "found no command 'pretrian'" in (said := capsys.readouterr().err) and "Did you mean pretrain?" in said
    assert overview.is_command("few_shot") and overview.is_command("few-shot")
