"""Every recorded output of every system, through the importer and the project's own forward."""

from __future__ import annotations

import pytest

from tests.parity.compare import SYSTEMS, compare


@pytest.mark.parametrize("system", SYSTEMS)
def test_recorded_outputs_are_reproduced(system, shared_golden):
    wrong = [str(line) for line in compare(shared_golden / system, system) if not line.passed]
    assert not wrong, "\n".join(wrong)
