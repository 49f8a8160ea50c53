"""What the copy's rate, its read preference and MongoDB's replication lag are made of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.read_preferences import Primary, SecondaryPreferred

from worker.errors import ConfigurationError
from worker.mongo.preference import read_preference
from worker.mongo.replication_lag import _slowest
from worker.publish.backlog import Backlog
from worker.publish.pace import Pace
from worker.settings import load, tag_sets

NEEDED = {"mongo_uri": "mongodb://x", "postgres_dsn": "x", "kafka_bootstrap": "x", "mapping": "x"}


def test_a_steady_pace_is_exact_at_once_and_a_new_one_takes_over_within_minutes() -> None:
    pace = Pace()
    assert [pace.add(50, 0.5) for _ in range(100)] == pytest.approx([100.0] * 100)
    assert pace.add(0, 0.0) == pytest.approx(100.0)
    assert [pace.add(500, 0.5) for _ in range(600)][-1] == pytest.approx(1000.0, rel=0.03)
    assert Pace().add(10, 0.0) == 0.0


def test_what_waits_for_apply_is_told_as_the_time_that_it_will_take() -> None:
    backlog, here, there = Backlog(), ("t.copy", 0), ("t.copy", 1)
    assert backlog.seconds == 0
    backlog.look({here: 100}, 0.0)
    backlog.sent({here: 1100, there: 1000})
    backlog.look({here: 100}, 1.0)
    assert backlog.seconds == pytest.approx(2000 / 200)  # before apply has shown its pace
    for n in range(2, 30):
        backlog.sent({here: 1100 + 2000 * n, there: 1000 + 2000 * n})
        backlog.look({here: 100 + 2000 * n, there: 2000 * n}, float(n))
    assert backlog.seconds == pytest.approx(2000 / 4000, rel=0.05)
    ends = {here: 1100 + 2000 * 29, there: 1000 + 2000 * 29}
    backlog.look(ends, 30.0)
    assert backlog.seconds == 0


def test_a_batch_of_apply_shows_what_it_did_in_all_the_time_that_it_took() -> None:
    backlog, here = Backlog(), ("t.copy", 0)
    backlog.sent({here: 2000})
    backlog.look({here: 0}, 0.0)
    for n in range(8):
        backlog.sent({here: 2000 * (n + 2)})
        for half_second in range(1, 10):
            backlog.look({here: 2000 * n}, 5.0 * n + half_second / 2)
        backlog.look({here: 2000 * (n + 1)}, 5.0 * (n + 1))
        assert backlog.seconds == pytest.approx(2000 / 400)


def test_time_in_which_nothing_waits_is_no_time_of_apply() -> None:
    backlog, here = Backlog(), ("t.copy", 0)
    backlog.look({here: 0}, 0.0)
    backlog.sent({here: 2000})
    backlog.look({here: 0}, 60.0)
    backlog.look({here: 1000}, 61.0)
    assert backlog.seconds == pytest.approx(1000 / 1000)


def test_a_partition_that_nobody_reads_is_no_backlog_for_ever() -> None:
    backlog, here = Backlog(), ("t.copy", 0)
    backlog.sent({here: 2000})
    backlog.look({here: 0}, 0.0)
    assert backlog.seconds == 10
    backlog.look({here: 0}, 9.0)
    assert backlog.seconds == 10
    backlog.look({here: 0}, 11.0)
    assert backlog.seconds == 0


def _member(id_: int, state: int, behind: float) -> dict[str, Any]:
    return {
        "_id": id_,
        "state": state,
        "optimeDate": datetime(2026, 1, 1, tzinfo=UTC) - timedelta(seconds=behind),
    }


def test_replication_lag_is_that_of_the_slowest_secondary_that_serves_reads() -> None:
    primary, arbiter = _member(0, 1, 0), {"_id": 9, "state": 7}
    down, recovering = _member(3, 8, 900), _member(4, 3, 900)
    assert _slowest([primary, arbiter, down, recovering], {}) is None
    assert _slowest([primary, arbiter, down, _member(1, 2, 3), _member(2, 2, 7)], {}) == 7
    assert _slowest([primary, _member(1, 2, 3), _member(2, 2, 3607)], {2: 3600}) == 7
    assert _slowest([primary, _member(2, 2, 3000)], {2: 3600}) == 0
    assert _slowest([_member(1, 2, 3)], {}) is None  # between two primaries


def test_tags_are_read_in_the_order_of_choice() -> None:
    assert tag_sets("") == []
    assert tag_sets("region:eu, role:etl; region:eu ;") == [
        {"region": "eu", "role": "etl"},
        {"region": "eu"},
        {},
    ]
    preference = read_preference("secondaryPreferred", tag_sets("role:etl"))
    assert preference == SecondaryPreferred([{"role": "etl"}])
    assert read_preference("primary", []) == Primary()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"copy_read_tags": "role:etl"}, "CROSSFADE_COPY_READ_PREFERENCE"),
        ({"copy_read_tags": "etl", "copy_read_preference": "secondary"}, "write tags as region:eu,role:etl"),
        ({"copy_read_preference": "second"}, "CROSSFADE_COPY_READ_PREFERENCE"),
        ({"copy_rate": -1}, "CROSSFADE_COPY_RATE"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load(**NEEDED, **given)
    assert told.lower() in refused.value.message.lower()
