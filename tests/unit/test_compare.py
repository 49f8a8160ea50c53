"""Two documents are the same to the last bit, or the fields that differ are told; digests say the same."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from bson import Binary, Code, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.reconcile.compare import compare, digest

NAN = float("nan")
AT = datetime(2024, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
UNEQUAL: list[tuple[Any, Any]] = [
    (1, 1.0),
    (1, True),
    (0, False),
    (0.0, -0.0),
    (1.0, math.nextafter(1.0, 2.0)),
    (NAN, None),
    (math.inf, None),
    ("1", 1),
    ("a", "a "),
    ("", None),
    (UUID(int=1), str(UUID(int=1))),
    (UUID(int=1), UUID(int=2)),
    (ObjectId(bytes(12)), bytes(12).hex()),
    (AT, AT.isoformat()),
    (AT, AT.replace(microsecond=677000)),
    (b"ab", "ab"),
    (b"ab", Binary(b"ab", 5)),
    (Decimal128("1.0"), Decimal128("1.00")),
    (Decimal128("1"), 1),
    (Timestamp(1, 2), Timestamp(1, 3)),
    (Regex("a"), Regex("a", "i")),
    (Code("x"), "x"),
    (Code("x"), Code("x", {})),
    (Code("x", {"a": 1}), Code("x", {"a": 1.0})),
    (DBRef("c", 1), DBRef("c", 1.0)),
    (MinKey(), MaxKey()),
    ([1, 2], [2, 1]),
    ([1], [1, None]),
    ({"a": 1}, {"a": 1, "b": None}),
    ({}, []),
]
EQUAL: list[tuple[Any, Any]] = [
    (1, Int64(1)),
    (NAN, NAN),
    (AT, DatetimeMS(AT)),
    ({"a": 1, "b": 2}, {"b": 2, "a": Int64(1)}),
    ([{"a": NAN}], [{"a": NAN}]),
    (Code("x", {"a": 1}), Code("x", {"a": Int64(1)})),
]
_DEEP = 300


def deep(value: Any) -> Any:
    for _ in range(_DEEP):
        value = {"d": value}
    return value


@pytest.mark.parametrize(("one", "other"), UNEQUAL)
def test_what_differs_is_told_with_its_path_and_its_digest_is_another(one: Any, other: Any) -> None:
    for left, right in ((one, other), (other, one)):
        for around in (lambda v: {"_id": 1, "a": {"b": [v]}}, lambda v: {"_id": 1, "x": deep(v)}):
            compared = compare(around(left), around(right))
            assert compared.differences, (left, right)
            assert compared.mongo != compared.postgres
            assert all(one.path.startswith(("a.b.0", "x.d.d")) for one in compared.differences)


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_order_of_fields_and_width_of_integers_are_no_difference(one: Any, other: Any) -> None:
    for around in (lambda v: {"_id": 1, "a": {"b": [v]}}, lambda v: {"_id": 1, "x": deep(v)}):
        compared = compare(around(one), around(other))
        assert compared.differences == []
        assert compared.mongo == compared.postgres


def test_types_are_mongodbs() -> None:
    (found,) = compare({"a": {"b": 1}}, {"a": {"b": "1"}}).differences
    assert found == ("a.b", "int", "string")
    (found,) = compare({"a": 1}, {}).differences
    assert found == ("a", "int", None)


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.uuids(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab$"), inner, max_size=3),
    max_leaves=8,
)
_documents = st.dictionaries(st.text("abc", max_size=2), _values, max_size=4)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(_documents, _documents)
def test_digests_agree_with_the_comparison(one: dict[str, Any], other: dict[str, Any]) -> None:
    compared = compare(one, other)
    assert (compared.mongo == compared.postgres) == (not compared.differences)
    assert compared.mongo == digest(one)
    backwards = dict(reversed(one.items()))
    assert compare(one, backwards).differences == [] and digest(backwards) == digest(one)
