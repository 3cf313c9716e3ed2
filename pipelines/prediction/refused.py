"""The exit code of a command that has answered, but not all that it was asked about, so that a script notices."""

from __future__ import annotations

import sys

from pipelines.intake.refusals import EXIT_CODE, too_many


def code_of(refused: int, files: int, allowed: float) -> int:
    """0, or 3 where more than the allowed share of the files were refused, or all of them; this is said on stderr."""
    if not refused or not too_many(refused, files, allowed):
        return 0
    answered = "" if refused == files else "The others are answered. "
    print(f"files: found {refused} of {files} refused, expected at most {allowed:.1%}; exit code {EXIT_CODE}. "
          f"{answered}Remedy: mend or leave out these files, or allow a share of them with --bad-files.",
          file=sys.stderr)
    return EXIT_CODE
