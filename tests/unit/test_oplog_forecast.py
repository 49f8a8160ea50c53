"""How long a publisher may stand still, from what the oplog holds."""

from __future__ import annotations

from uuid import UUID

from tests.unit.test_status import AT
from worker.mongo.oplog import Oplog, forecast
from worker.oplog_forecast import lines_of_oplog, told_of_oplog
from worker.postgres.standing import PublisherStanding

HOUR, MB = 3600, 1024 * 1024
BEGAN = 1_800_000_000
NOW = BEGAN + 10 * HOUR


def at(seconds: float) -> int:
    return int(seconds) << 32 | 1


FULL = Oplog(at(BEGAN), at(NOW), 1000 * MB, 1000 * MB)


def test_a_full_oplog_drops_a_place_when_its_window_has_passed() -> None:
    told = forecast(FULL, at(NOW - 4 * HOUR), NOW, 0.25)
    assert (told.left, told.drops_at) == (6 * HOUR, BEGAN + 16 * HOUR)
    assert not told.lost and not told.short


def test_an_oplog_that_is_not_full_yet_holds_more_than_it_has() -> None:
    half = FULL._replace(size=500 * MB)
    assert half.window == 20 * HOUR
    assert forecast(half, at(NOW), NOW, 0.25).left == 20 * HOUR
    assert half.rate * HOUR == 50 * MB


def test_less_than_the_margin_is_short_and_a_place_before_the_oldest_entry_is_lost() -> None:
    assert forecast(FULL, at(NOW - 7.6 * HOUR), NOW, 0.25).short
    assert not forecast(FULL, at(NOW - 7.4 * HOUR), NOW, 0.25).short
    told = forecast(FULL, at(BEGAN - 1), NOW, 0.25)
    assert told.lost and told.short and told.left == 0


def test_an_oplog_of_one_moment_is_no_division_by_zero() -> None:
    fresh = Oplog(at(NOW), at(NOW), 0, 1000 * MB)
    assert forecast(fresh, at(NOW), NOW, 0.25).left > 0
    assert told_of_oplog(fresh, [_publisher(NOW)], NOW, 0.25)["oplog"]["places"]


def _publisher(token: float | None) -> PublisherStanding:
    place = None if token is None else at(token)
    return PublisherStanding("default", UUID(int=5), place, AT, at(BEGAN - 1), 1)


def _lines(publisher: PublisherStanding) -> list[str]:
    return lines_of_oplog(told_of_oplog(FULL, [publisher], NOW, 0.25), lambda s: f"{s / HOUR:.1f} h")


def test_a_person_is_told_how_long_and_warned_in_time() -> None:
    calm = "oplog    holds 10.0 h of changes at 100.0 MB/h"
    assert _lines(_publisher(NOW)) == [f"{calm}; default may be down for 10.0 h"]
    first, warning = _lines(_publisher(NOW - 9 * HOUR))
    assert first == calm
    assert warning.startswith("WARNING  default: in 1.0 h (2027-01-15T19:00:00) MongoDB drops")
    # With no token saved, its stream would go on where its incarnation began.
    assert "no longer has the place" in _lines(_publisher(None))[1]


def test_what_is_not_known_is_one_line() -> None:
    told = told_of_oplog("it is refused", [_publisher(NOW)], NOW, 0.25)
    assert lines_of_oplog(told, str) == ["oplog    not known how long publish may be down: it is refused"]
