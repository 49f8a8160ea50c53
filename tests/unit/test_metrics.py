"""What the metrics promise, without any service."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from asyncpg import DeadlockDetectedError, PostgresError, UniqueViolationError
from prometheus_client import CollectorRegistry, Metric

from topics import Collection, TopicNames
from worker import exporter, metrics
from worker.apply.observed import Observed
from worker.errors import ConfigurationError, Fatal, Transient
from worker.postgres.faults import RETRY_REASONS, retry_reason
from worker.postgres.migration_log import PartitionTally

NAMES, NOTES = TopicNames("t"), Collection("db", "notes")
TOPIC, COPY = NAMES.stream(NOTES), NAMES.copy(NOTES)


def families() -> Iterator[tuple[str, Metric]]:
    for role, registry in metrics.REGISTRIES.items():
        for family in registry.collect():
            yield role, family


def value(name: str, **labels: str) -> float | None:
    return metrics.APPLY.get_sample_value(name, labels)


def test_names_say_the_role_the_unit_and_the_type() -> None:
    for role, family in families():
        assert re.match(rf"crossfade_({role}|copy)_", family.name) or family.name.startswith("process_")
        assert family.type != "gauge" or not family.name.endswith("_total")


def test_no_series_for_a_tenant_and_no_id_in_a_label() -> None:
    names = {name for _, family in families() for sample in family.samples for name in sample.labels}
    assert names <= {"collection", "source", "outcome", "reason", "state", "kind", "why", "le"}


def test_an_age_grows_by_itself_and_is_absent_until_known() -> None:
    registry = CollectorRegistry()
    age = metrics.Age("age_seconds", "An age", registry, ["of"])
    assert registry.get_sample_value("age_seconds", {"of": "a"}) is None
    age.since({("a",): time.time() - 100, ("b",): time.time() + 100})
    first = registry.get_sample_value("age_seconds", {"of": "a"})
    second = registry.get_sample_value("age_seconds", {"of": "a"})
    assert first is not None and second is not None and 100 <= first < second < 160
    assert registry.get_sample_value("age_seconds", {"of": "b"}) == 0  # another clock is ahead of ours
    age.since({("b",): time.time()})
    assert registry.get_sample_value("age_seconds", {"of": "a"}) is None


def test_lag_is_that_of_the_worst_of_the_assigned_partitions() -> None:
    observed = Observed(NAMES.namespaces([NOTES]))
    now = datetime.now(UTC)
    observed.heartbeats({(TOPIC, n): now - timedelta(seconds=100 * n) for n in range(4)})
    lag = "crossfade_apply_end_to_end_lag_seconds"
    assert value(lag, collection="db.notes") is None  # nothing is assigned yet
    observed.assigned([(TOPIC, 0), (TOPIC, 2), (COPY, 3)])
    assert value(lag, collection="db.notes") == pytest.approx(200, abs=10)
    observed.committed({(TOPIC, 2): PartitionTally(0, 0, now, {"control": 1})}, 0.01)
    assert value(lag, collection="db.notes") == pytest.approx(0, abs=10)
    observed.heartbeats({(TOPIC, 2): now - timedelta(seconds=500)})  # PostgreSQL was read before that COMMIT
    assert value(lag, collection="db.notes") == pytest.approx(0, abs=10)
    observed.assigned([(TOPIC, 3)])
    assert value(lag, collection="db.notes") == pytest.approx(300, abs=10)
    observed.assigned([])
    assert value(lag, collection="db.notes") is None


def test_outcomes_are_counted_by_collection_and_are_zero_from_the_start() -> None:
    observed = Observed(NAMES.namespaces([Collection("db", "counted")]))
    labels = {"collection": "db.counted"}
    assert value("crossfade_apply_events_total", **labels, outcome="dead_lettered") == 0
    stream, copy = NAMES.stream(Collection("db", "counted")), NAMES.copy(Collection("db", "counted"))
    tallies = {
        (stream, 0): PartitionTally(0, 9, None, {"applied": 3, "dead_lettered": 1}),
        (copy, 1): PartitionTally(0, 9, None, {"applied": 4}),
    }
    observed.committed(tallies, 0.5)
    observed.retried_parked({(stream, 0): PartitionTally(0, 0, None, {"applied": 1})})
    assert value("crossfade_apply_events_total", **labels, outcome="applied") == 7
    assert value("crossfade_apply_events_total", **labels, outcome="dead_lettered") == 1
    assert value("crossfade_apply_parked_retries_total", **labels, outcome="applied") == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PostgresError.new({"C": "40P01", "M": ""}), "conflict"),
        (PostgresError.new({"C": "23505", "M": ""}), "data"),
        (PostgresError.new({"C": "53300", "M": ""}), "resources"),
        (PostgresError.new({"C": "XX000", "M": ""}), "other"),
        (ConnectionResetError(), "connection"),
        (TimeoutError(), "connection"),
        (Transient("x"), "concurrent"),
        (Fatal("x"), "other"),
    ],
)
def test_the_reasons_of_retries_are_few(error: BaseException, reason: str) -> None:
    assert retry_reason(error) == reason and reason in RETRY_REASONS
    assert DeadlockDetectedError.sqlstate == "40P01" and UniqueViolationError.sqlstate == "23505"


def test_processes_below_one_parent_have_ports_one_after_the_other() -> None:
    assert [exporter.port_of(place, 9464) for place in range(3)] == [9464, 9465, 9466]
    assert [exporter.port_of(place, 0) for place in range(3)] == [0, 0, 0]
    with pytest.raises(ConfigurationError):
        exporter.port_of(1, 65535)


async def test_a_port_in_use_is_told_in_one_line() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(exporter.MetricsNotServed, match=rf"127\.0\.0\.1:{port} .*in use") as told:
        exporter.serve("apply", "127.0.0.1", port)
    assert told.value.exit_code == 2 and "CROSSFADE_METRICS_PORT" in str(told.value)
    server.close()
    await server.wait_closed()
