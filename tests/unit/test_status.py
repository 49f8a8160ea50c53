"""What `crossfade status` makes of what PostgreSQL holds."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

from topics import TopicNames
from worker.mongo.oplog import Oplog
from worker.oplog_forecast import told_of_oplog
from worker.postgres.audit import BEGAN_ANEW, Incident
from worker.postgres.migration_log import OUTCOMES
from worker.postgres.move_standing import ENDS, Broken, Ended, MoveStanding, Moving
from worker.postgres.proof import NOTHING, Clean, LastFull, Proof, UnderWay
from worker.postgres.shadow_reads import OUTCOMES as OUTCOMES_OF_SHADOWS
from worker.postgres.shadow_reads import Place, ShadowReads
from worker.postgres.standing import CopyStanding, PartitionStanding, PublisherStanding, Standing
from worker.status import lines, report

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HELD = {
    "enabled": True,
    "held_by": "apply lag",
    "rate": 2000.0,
    "max_lag": 30.0,
    "max_replication_lag": None,
    "lag": 16.5,
    "replication_lag": None,
    "replication_lag_unknown": None,
}
SECOND = int(AT.timestamp())
DOCUMENTED = Path(__file__).parents[2] / "docs/status.md"


def ago(seconds: float) -> datetime:
    return AT - timedelta(seconds=seconds)


def partition(topic: str, number: int, beat: float | None, **outcomes: int) -> PartitionStanding:
    counts = dict.fromkeys(OUTCOMES, 0) | outcomes
    return PartitionStanding(topic, number, sum(counts.values()), None if beat is None else ago(beat), counts)


def standing(**changed: object) -> Standing:
    fields: dict[str, Any] = {
        "at": AT,
        "copies": [
            CopyStanding("s.leads", "copied", 500, 480, ago(100), ago(50), 1, "a", False, 20.0, 30.0),
            CopyStanding("s.pages", "copying", 1000, 4000, ago(10), None, 2, "b", False, 8.0, 100.0),
            CopyStanding("s.users", "pending", 0, 0, None, None, 0, "c"),
        ],
        "publishers": [
            PublisherStanding(
                "default",
                UUID(int=5),
                (SECOND - 3) << 32 | 9,
                ago(1),
                (SECOND - 90) << 32,
                2,
                HELD,
                ago(0.5),
            )
        ],
        "partitions": [
            partition("crossfade.s.pages", 0, 0.25, applied=7, control=2),
            partition("crossfade.s.pages", 1, 42, superseded=1, control=2),
            partition("crossfade.s.pages.copy", 0, None, applied=600),
            partition("crossfade.s.pages.copy", 1, None, applied=298, dead_lettered=2),
        ],
        "last_batch_at": ago(0.5),
        "dead_letters": {"dead": 2, "healed": 3},
        "tenants": {"mongo": 5, "draining": 1},
        "incidents": [Incident(ago(60), BEGAN_ANEW, {"publisher": "default"}, "the token is damaged")],
    }
    return Standing(**(fields | changed))


PROVEN = Proof(
    UnderWay(12, None, ago(20), 40_000, 0, 8.0, ago(1.5)),
    LastFull(4, ago(4000), ago(3600), 500_000, 500_100, 25.0, 1, 2, 0, None),
    Clean(3, ago(5000)),
    [("real", "different", 2, ago(3700)), ("settling", "missing", 1, ago(3))],
)


MOVES = MoveStanding(
    [Moving(UUID(int=7), "opening", 5, 12.34)],
    4,
    {"opening": 12.34},
    [
        Ended(UUID(int=8), "cutover", "done", ago(9), 0.1234, "planned"),
        Ended(UUID(int=9), "rollback", "aborted", ago(10), None, f"aborted: {'why ' * 40}"),
    ],
    dict.fromkeys(ENDS, 2),
    rogue=3,
    broken=[Broken(UUID(int=6), "refused", "s.pages", "a row", "not unique", ago(3))],
    broken_tenants=1,
    outbox_rows=1234,
    outbox_seconds=61.5,
    back_lag=61.75,
)
SHADOWS = ShadowReads(
    dict.fromkeys(OUTCOMES_OF_SHADOWS, 0) | {"equal": 5000, "different": 2},
    3,
    ago(1),
    1,
    [Place(UUID(int=7), "an id", "a.path", 2, ago(1))],
)


def told(proven: Proof = PROVEN, **changed: object) -> dict[str, Any]:
    return report(standing(**changed), TopicNames(), None, proven, MOVES, SHADOWS)


def test_lag_is_that_of_the_partition_that_is_furthest_behind() -> None:
    apply = told()["apply"]
    assert apply["lag_seconds"] == 42.0
    assert apply["lag_partition"] == "crossfade.s.pages:1"
    assert apply["heartbeat_partitions"] == 2


def test_a_collection_that_left_the_mapping_is_no_lag() -> None:
    partitions = [
        partition("crossfade.s.pages", 0, 1, control=1),
        partition("crossfade.s.gone", 0, 9, control=1),
    ]
    apply = report(standing(partitions=partitions), TopicNames(), {"s.pages": "b"})["apply"]
    assert (apply["lag_seconds"], apply["heartbeat_partitions"], apply["records"]) == (1.0, 1, 2)


def test_rate_and_time_left_leave_pauses_out() -> None:
    copied, copying, pending = told()["collections"]
    assert (copying["rate_per_second"], copying["eta_seconds"], copying["arrived"]) == (100.0, 30.0, 900)
    assert (copied["rate_per_second"], copied["eta_seconds"]) == (25.0, 0.0)
    assert (pending["rate_per_second"], pending["eta_seconds"]) == (None, None)


def test_a_copy_beyond_its_estimate_has_no_time_left_to_tell() -> None:
    copy = CopyStanding("s.pages", "copying", 5000, 4000, ago(10), None, 1, "", rate=500.0)
    [one] = told(copies=[copy])["collections"]
    assert one["eta_seconds"] is None and one["rate_per_second"] == 500.0


def test_a_paused_copy_has_no_time_left_to_tell() -> None:
    copy = CopyStanding("s.pages", "copying", 1000, 4000, ago(10), None, 1, "", paused=True, rate=500.0)
    all_ = told(copies=[copy])
    assert all_["collections"][0]["eta_seconds"] is None
    assert re.search(r"s\.pages +paused ", lines(all_)[1])


def test_what_holds_the_copy_is_told_while_its_publisher_runs() -> None:
    assert told()["publishers"][0]["copy"]["held_by"] == "apply lag"
    assert "copy     held by apply lag (16 s, at most 30 s)" in lines(told())
    silent = PublisherStanding("default", UUID(int=5), 1 << 32, ago(1), 1 << 32, 1, HELD, ago(60))
    all_ = told(publishers=[silent])
    assert (all_["publishers"][0]["copy"]["held_by"], all_["publishers"][0]["copy"]["running"]) == (
        None,
        False,
    )
    assert "copy     publish does not run: its last word is 60 s old" in lines(all_)
    off = silent._replace(copy=HELD | {"enabled": False}, copy_at=ago(0))
    assert "copy     switched off by CROSSFADE_COPY_ENABLED" in lines(told(publishers=[off]))
    never = silent._replace(copy=None, copy_at=None)
    assert told(publishers=[never])["publishers"][0]["copy"] is None


def test_counts_add_up_and_ages_are_told() -> None:
    all_ = told()
    assert all_["apply"]["records"] == sum(all_["apply"]["outcomes"].values()) == 912
    assert all_["publishers"][0]["token_age_seconds"] == 3.0
    assert all_["dead_letters"] == {"dead": 2, "parked": 0, "healed": 3, "discarded": 0}
    assert all_["tenants"] == {"draining": 1, "mongo": 5}


def test_a_clock_ahead_of_postgresql_is_no_negative_lag() -> None:
    assert told(partitions=[partition("t", 0, -1.5, control=1)])["apply"]["lag_seconds"] == 0.0


def test_nothing_begun_is_told_as_such() -> None:
    empty = told(copies=[], publishers=[], partitions=[], last_batch_at=None, dead_letters={}, tenants={})
    assert empty["apply"]["lag_seconds"] is None and empty["apply"]["records"] == 0
    assert "nothing has been published yet: crossfade run" in lines(empty)


def test_lines_are_aligned_and_short() -> None:
    shown = lines(told())
    table = shown[:4]
    assert len({len(line) for line in table}) == 1
    assert re.search(r"s\.pages +re-copying +1,000 +4,000 +100 +30 s +900$", table[2])
    assert max(map(len, shown)) <= 100
    assert "apply    lag 42 s over 2 partitions, last batch 0.5 s ago" in shown
    assert "letters  2 dead, 0 parked" in shown


def test_a_mapping_that_is_not_that_of_the_rows_is_told_with_what_to_do() -> None:
    all_ = report(standing(), TopicNames(), {"s.leads": "a", "s.pages": "new"})
    assert [one["mapping"] for one in all_["collections"]] == ["same", "differs", "unmapped"]
    shown = lines(all_)
    assert "mapping  s.pages: not that of its rows: crossfade copy start --collection s.pages" in shown
    assert "mapping  s.users: no longer mapped; its rows fall behind" in shown
    assert [one["mapping"] for one in told()["collections"]] == [None] * 3


def test_a_copy_over_rows_that_are_there_is_told_apart_from_the_first() -> None:
    again = CopyStanding("s.leads", "pending", 0, 0, None, None, 1, "")
    assert "re-copy pending" in lines(told(copies=[again]))[1]


def test_what_is_proven_is_told_and_what_is_under_way() -> None:
    reconcile = told()["reconcile"]
    assert reconcile["under_way"]["documents_per_second"] == 5000.0
    assert reconcile["last_full"]["age_seconds"] == 3600.0 and reconcile["clean"]["generation"] == 3
    assert reconcile["mismatches"][0] == {
        "state": "real",
        "kind": "different",
        "count": 2,
        "oldest_age_seconds": 3700.0,
    }
    shown = lines(told())
    assert "proof    all equal 83 min ago, generation 3" in shown
    assert "compare  full generation 12: 40,000 documents, 5,000/s, last read 1.5 s ago" in shown
    assert (
        "compared 500,000 documents in full generation 4, ended 60 min ago: 2 mismatches, 1 settling" in shown
    )
    assert "differs  2 real: different, the oldest for 62 min" in shown
    assert "         crossfade mismatches list --state real" in shown


def test_moves_are_told_those_under_way_first() -> None:
    shown = lines(told())
    start = shown.index(f"moving   {UUID(int=7)} in opening for 12 s")
    assert shown[start + 1 : start + 11] == [
        "moving   3 more",
        f"moved    2026-01-02T03:03:56  {UUID(int=8)} cutover done, 123 ms",
        f"moved    2026-01-02T03:03:55  {UUID(int=9)} rollback aborted",
        f"         {('why ' * 40)[:70]}...",
        "way back lag 62 s, 1,234 rows wait, the first for 62 s",
        f"broken   {UUID(int=6)}: refused s.pages a row",
        "         not unique",
        "broken   the way back of 1 tenants: docs/way_back.md, Broken",
        "rogue    3 writes in MongoDB for tenants that had left: crossfade dead-letters list --kind rogue",
        "shadow   5,000 equal, 2 different: reads of 3 tenants on both sides",
    ]
    assert shown[start + 11] == f"shadow   {UUID(int=7)} an id a.path"
    assert told()["moves"]["ended"]["rollback"] == {"done": 2, "rehearsed": 2, "aborted": 2}


def test_where_nothing_ever_moved_nothing_is_told_of_moves() -> None:
    shown = lines(report(standing(), TopicNames()))
    assert not [line for line in shown if line.startswith(("mov", "way back", "broken", "rogue", "shadow"))]


def test_where_nothing_is_proven_that_is_told_with_the_reason() -> None:
    assert "proof    never was everything compared: crossfade reconcile" in lines(told(NOTHING))
    first = PROVEN._replace(last_full=None, clean=None, open=())
    assert "proof    none yet that all is equal" in lines(told(first))
    assert PROVEN.last_full is not None
    stale = PROVEN._replace(
        under_way=None, clean=None, last_full=PROVEN.last_full._replace(stale="the mapping was changed")
    )
    told_lines = lines(told(stale))
    assert "proof    none any more: the mapping was changed; a full generation begins anew" in told_lines
    assert told(stale)["reconcile"]["last_full"]["stale"] == "the mapping was changed"


def _keys(value: Any, path: str = "") -> set[str]:
    if isinstance(value, dict):
        return {key for name, item in value.items() for key in _keys(item, f"{path}.{name}".lstrip("."))}
    if isinstance(value, list):
        return {key for item in value for key in _keys(item, f"{path}[]")}
    return {path}


def test_every_key_is_documented_and_no_other() -> None:
    documented = set(re.findall(r"^\| `([^`]+)` \|", DOCUMENTED.read_text(), re.MULTILINE))
    open_ended = tuple(name.removesuffix("*") for name in documented if name.endswith("*"))
    oplog = told_of_oplog(Oplog(1 << 32, 2 << 32, 1, 1), standing().publishers, 0, 0.25)
    printed = _keys(orjson.loads(orjson.dumps(told() | oplog)))
    closed = {key for key in printed if not key.startswith(open_ended)}
    assert closed == {name for name in documented if not name.endswith("*")}
    assert all(any(key.startswith(part) for key in printed) for part in open_ended)
