"""Each planted bug still finds the text that it changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.planted import BUGS, OF_MOVES, plant


@pytest.mark.parametrize("name", sorted([*BUGS, *OF_MOVES]))
def test_a_bug_can_be_planted(name: str, tmp_path: Path) -> None:
    plant(name, tmp_path / "code")
