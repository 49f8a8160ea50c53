"""What commands tell of moves, and with which exit code."""

from __future__ import annotations

from uuid import UUID

import pytest

from worker.cutover.steps import Result
from worker.move_report import tell

TENANT = UUID(int=1)


@pytest.mark.parametrize(
    ("wanted", "settled", "code", "told"),
    [
        ("postgres", True, 0, ""),
        ("postgres", False, 1, "they cannot write before `crossfade control` has let them"),
        ("mongo", False, 0, "`crossfade control` sees to it later"),
    ],
)
def test_who_cannot_write_yet_has_not_moved(
    wanted: str, settled: bool, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """MongoDB decides, and opens by itself: but after a cutover PostgreSQL has to follow."""
    with pytest.raises(SystemExit) as ended:
        tell([Result([TENANT], wanted, 0.2, settled=settled)], wanted, rehearse=False, as_json=False)
    assert ended.value.code == code
    assert told in capsys.readouterr().out
