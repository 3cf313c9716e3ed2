"""Stands in for the command `lacuna` in a copy of the project: the same, and afterwards it notes which project files
the command has loaded.

`python -m tests.stage_program COMMAND ARGUMENT...` with LACUNA_TEST_MODULES naming a folder.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import lacuna

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    arguments = sys.argv[1:]
    code = lacuna.main(arguments)
    named = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    files = {Path(name).resolve() for name in named if name}
    ours = {file.relative_to(ROOT) for file in files if file.is_relative_to(ROOT)}
    loaded = sorted(file.as_posix() for file in ours if file.parts[0] in ("pipelines", "domains", "models"))
    name = "-".join(argument for argument in arguments[:2] if "/" not in argument)
    (Path(os.environ["LACUNA_TEST_MODULES"]) / f"{name}.json").write_text(json.dumps(loaded))
    sys.exit(code)
