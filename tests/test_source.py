"""What must not stand in the tree: ways for data to run code, swallowed errors, one machine's paths, names that say
nothing. A search by pattern, so that it also sees what no import would show."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE_FOLDERS = ("domains", "models", "pipelines", "tests", "benchmarks", "examples", "scripts", ".ci")
LONGEST_FUNCTION, LONGEST_FILE = 60, 400

RUNS_CODE = {
    r"weights_only\s*=\s*False": "load with weights_only=True, or safetensors",
    r"\bpickle\.(load|loads|Unpickler)\b": "use JSON, npy, Parquet or safetensors",
    r"\byaml\.(load|load_all|unsafe_load|full_load)\(": "yaml.safe_load",
    r"allow_pickle\s*=\s*True": "store numbers, not objects",
    r"\b(joblib|dill|cloudpickle|marshal|shelve)\.(load|loads|open)\b": "use JSON, npy, Parquet or safetensors",
    r"(?<![\w.])(eval|exec)\(": "parse it",
    r"\btorch\.load\((?!.*weights_only=True)": "say weights_only=True on the same line",
    r"\.extractall\((?!.*filter=.data.)": "say filter='data'",
    r"shell\s*=\s*True": "give a list of arguments",
}
OTHER = {
    r"\b(TODO|FIXME|XXX)\b": "do it, or write an issue",
    r"raise NotImplementedError": "build it, or leave it out",
    r"except(\s+(Base)?Exception)?(\s+as\s+\w+)?:\s*(#[^\n]*)?\n\s*(pass|continue|\.\.\.)\s*\n": "an error swallowed",
    r"(?<![\w.~}])/(tmp|work|root|home)/": "a path of one machine",
}
ITSELF = Path("tests/test_source.py")


def tracked() -> list[Path]:
    """Text files that git knows, or would know once added, in the folders that hold code and configuration."""
    done = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    if done.returncode:  # an unpacked archive has no git
        names = [str(path.relative_to(ROOT)) for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*.py")]
    else:
        names = done.stdout.splitlines()
    wanted = {".py", ".sh", ".toml", ".yaml", ".yml", ".md", ".cfg", ""}
    return sorted(path for path in map(Path, names) if path.suffix in wanted and (ROOT / path).is_file()
                  and path.name != "LICENSE" and path != ITSELF and (ROOT / path).stat().st_size < 2**20)


def found(patterns: dict[str, str], paths: list[Path]) -> list[str]:
    """file:line and remedy of every match."""
    rows = []
    for path in paths:
        text = (ROOT / path).read_text(encoding="utf-8")
        rows += [f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {match[0].strip()!r}; {remedy}"
                 for pattern, remedy in patterns.items() for match in re.finditer(pattern, text)]
    return rows


def test_nothing_in_the_tree_runs_code_that_came_with_data() -> None:
    assert not found(RUNS_CODE, [path for path in tracked() if path.suffix == ".py"])


def test_nothing_is_left_open_swallowed_or_tied_to_one_machine() -> None:
    assert not found(OTHER, tracked())


def test_the_gate_sees_what_it_is_for() -> None:
    """A gate that matches nothing would pass too."""
    bad = ["torch.load(path)", "np.load(path, allow_pickle=True)", "yaml.load(text)", "pickle.loads(b)", "eval(text)",
           "torch.load(path, weights_only=False)", "archive.extractall(folder)", "subprocess.run(text, shell=True)"]
    good = ["torch.load(path, weights_only=True)", "yaml.safe_load(text)", "model.eval()", "cursor.exec(text)",
            "archive.extractall(folder, filter='data')"]
    for line, matches in [*((one, True) for one in bad), *((one, False) for one in good)]:
        assert any(re.search(pattern, line) for pattern in RUNS_CODE) == matches, line


@pytest.mark.parametrize("path", [path for path in tracked() if path.suffix == ".py"], ids=str)
def test_files_and_functions_stay_short_and_their_names_say_something(path: Path) -> None:
    assert path.name not in {"utils.py", "misc.py", "common.py", "helpers.py"}
    text = (ROOT / path).read_text(encoding="utf-8")
    assert path.parts[0] == "tests" or text.count("\n") <= LONGEST_FILE
    long = [f"{path}:{node.lineno} {node.name}" for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and (node.end_lineno or node.lineno) - node.lineno >= LONGEST_FUNCTION]
    assert not long


@pytest.mark.parametrize("path", [path for path in tracked() if path.suffix == ".py"
                                  and path.parts[0] in ("domains", "models", "pipelines")], ids=str)
def test_every_public_function_and_class_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    silent = [f"{path}:{node.lineno} {node.name}" for node in tree.body
              if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
              and not ast.get_docstring(node)]
    assert not silent
