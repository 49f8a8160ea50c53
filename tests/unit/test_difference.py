"""What is changed in a document so that it becomes another."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from bson import Decimal128, Int64, ObjectId

from worker.mapping.difference import Difference, NotByPath, difference, merged, same

ID, AT = UUID(int=4), datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (1, Int64(1), True),
        (1, 1.0, False),
        (1, True, False),
        (0.0, -0.0, False),
        (float("nan"), float("nan"), True),
        ({"a": 1, "b": 2}, {"b": Int64(2), "a": 1}, True),
        ([1, 2], [2, 1], False),
        ([{"a": [1]}], [{"a": [Int64(1)]}], True),
        (ID, ID, True),
        (ID, str(ID), False),
        (AT, AT, True),
        (Decimal128("1.0"), Decimal128("1.00"), False),
        (None, {}, False),
    ],
)
def test_equal_but_for_order_of_fields_and_width_of_integers(one: Any, other: Any, equal: bool) -> None:
    assert same(one, other) is equal


def test_only_paths_that_differ_are_told() -> None:
    now = {"_id": 1, "a": {"b": 1, "c": {"d": 1, "e": 2}}, "list": [1, 2], "gone": 1, "kept": AT}
    wanted = {"_id": 1, "kept": AT, "list": [1], "a": {"c": {"e": 3, "d": 1}, "new": {}}}
    assert difference(now, wanted) == Difference({"list": [1], "a.c.e": 3, "a.new": {}}, ["a.b", "gone"])
    assert difference(now, now) == Difference({}, [])


def test_a_wide_integer_stays_wide() -> None:
    changed = difference({"n": Int64(5)}, {"n": 6}).set["n"]
    assert isinstance(changed, Int64) and changed == 6


@pytest.mark.parametrize("name", ["a.b", "$a", ""])
def test_names_that_no_path_can_hold_make_the_document_whole(name: str) -> None:
    now, wanted = {"x": 1, "in": {name: 1}}, {"x": 1, "in": {name: 2}}
    with pytest.raises(NotByPath):
        difference(now, wanted)
    assert difference(now, {"x": 2, "in": {name: 1}}) == Difference({"x": 2}, [])  # not on the way


def test_what_the_mapping_ignores_stays_where_it_is() -> None:
    whole = {"_id": ObjectId(), "legacy": "kept", "in": {"legacy": 1, "a.b": 1}, "old": 1}
    now = {"_id": whole["_id"], "in": {"a.b": 1}, "old": 1}
    result = merged(whole, now, {"_id": whole["_id"], "in": {"a.b": 2}, "new": 3})
    assert result == {"_id": whole["_id"], "legacy": "kept", "in": {"legacy": 1, "a.b": 2}, "new": 3}
    assert list(result) == ["_id", "legacy", "in", "new"]
