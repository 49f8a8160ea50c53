from __future__ import annotations

import json
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID

import pytest
from bson import Code, DBRef, Decimal128, Int64, ObjectId

from examples.spaces.exact import differing_paths
from examples.spaces.rebuild import TABLES, document_id, rebuild, row_id

_NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
_TENANT = UUID("11111111-1111-4111-8111-111111111111")


def _row(**columns: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys([*TABLES["leads"].columns, "rest"])
    return row | {"id": UUID(int=5), "tenant_id": _TENANT} | columns


def _lead(notes: dict[str, Any] | None = None, rest: dict[str, Any] | None = None, **columns: Any) -> Any:
    left = (rest or {}) | ({"$notes": notes} if notes else {})
    document = rebuild("leads", _row(**columns, rest=json.dumps(left) if left else None)).document
    del document["_id"], document["tenantId"]
    return document


def _by_the_brief(oid: bytes) -> UUID:
    """The layout, byte by byte, as it was agreed."""
    b = bytearray(16)
    b[0:6] = oid[0:6]
    b[6] = 0x80 | (oid[6] >> 4)
    b[7] = ((oid[6] & 0x0F) << 4) | (oid[7] >> 4)
    b[8] = 0x80 | ((oid[7] & 0x0F) << 2) | (oid[8] >> 6)
    for at in range(9, 12):
        b[at] = ((oid[at - 1] & 0x3F) << 2) | (oid[at] >> 6)
    b[12] = (oid[11] & 0x3F) << 2
    b[13:16] = b"xfo"
    return UUID(bytes=bytes(b))


def test_object_ids_make_uuids_of_version_8_and_come_back() -> None:
    rng = Random(1)
    for oid in [bytes(12), b"\xff" * 12, *(rng.randbytes(12) for _ in range(5000))]:
        made = row_id(ObjectId(oid))
        assert made == _by_the_brief(oid)
        assert made is not None and made.version == 8 and made.variant == "specified in RFC 4122"
        assert document_id(made) == ObjectId(oid)


def test_row_ids_sort_as_object_ids_do() -> None:
    rng = Random(2)
    ids = sorted(ObjectId(rng.randbytes(12)) for _ in range(2000))
    rows = [row_id(key) for key in ids]
    assert rows == sorted(rows, key=lambda row: row.bytes if row else b"")


def test_uuids_stay_as_they_are_and_other_ids_have_no_row() -> None:
    rng = Random(3)
    for key in (UUID(int=rng.getrandbits(128), version=4) for _ in range(1000)):
        assert row_id(key) == key
        assert document_id(key) == key
    assert row_id("a name") is None


def test_null_column_is_an_absent_field_unless_noted() -> None:
    assert _lead() == {}
    assert _lead(notes={"phone": None}) == {"phone": None}
    assert _lead(notes={"phone": None}, phone="1") == {"phone": "1"}


@pytest.mark.parametrize(
    ("plain", "extended", "exact"),
    [
        ("2026-05-01T12:00:00.000Z", {"$date": {"$numberLong": "1777636800000"}}, _NOW),
        ("12.50", {"$numberDecimal": "12.50"}, Decimal128("12.50")),
        (
            "65b30f37e307b5b75b0ffcee",
            {"$oid": "65b30f37e307b5b75b0ffcee"},
            ObjectId("65b30f37e307b5b75b0ffcee"),
        ),
        (10**20, {"$numberDouble": "1e20"}, 1e20),
    ],
)
def test_note_inside_json_counts_while_its_plain_form_is_there(plain: Any, extended: Any, exact: Any) -> None:
    notes = {"data.list.1.x": extended}
    for held, expected in ((plain, exact), ("changed", "changed"), (None, None)):
        data = json.dumps({"list": [{}, {"x": held}]})
        assert _lead(notes=notes, data=data) == {"data": {"list": [{}, {"x": expected}]}}
    assert _lead(notes=notes, data=json.dumps({"list": []})) == {"data": {"list": []}}


def test_steps_of_a_note_may_hold_dots() -> None:
    data = json.dumps({"a.b": {"c~": "65b30f37e307b5b75b0ffcee"}})
    exact = {"$oid": "65b30f37e307b5b75b0ffcee"}
    assert _lead(notes={"data.a~1b.c~0": exact}, data=data) == {
        "data": {"a.b": {"c~": ObjectId("65b30f37e307b5b75b0ffcee")}}
    }


def test_left_over_fields_come_back_with_their_types() -> None:
    document = _lead(rest={"legacyId": {"$numberLong": "5"}, "when": {"$date": {"$numberLong": "0"}}})
    assert document == {"legacyId": 5, "when": datetime(1970, 1, 1, tzinfo=UTC)}
    assert rebuild("leads", _row(name="x", rest='{"name": "y"}')).faults == ["rest.name"]


def test_children_must_be_numbered_from_zero_and_of_the_same_tenant() -> None:
    child: dict[str, Any] = dict.fromkeys(("type", "occurred_at", "actor_id", "note", "meta", "rest"))
    child |= {"lead_id": UUID(int=5), "tenant_id": _TENANT, "position": 0, "type": "call"}
    rebuilt = rebuild("leads", _row(), [child, child | {"position": 1, "note": "n"}])
    assert rebuilt.document["activities"] == [{"type": "call"}, {"type": "call", "note": "n"}]
    assert rebuilt.faults == []
    assert rebuild("leads", _row(), [child | {"position": 1}]).faults == ["activities.position"]
    other = child | {"tenant_id": UUID(int=9)}
    assert rebuild("leads", _row(), [other]).faults == ["activities.0.tenantId"]


def test_noted_arrays_are_null_or_empty() -> None:
    assert _lead(notes={"activities": None}) == {"activities": None}
    assert _lead(notes={"activities": []}) == {"activities": []}


@pytest.mark.parametrize(
    ("left", "right", "paths"),
    [
        ({"a": 1, "b": 2}, {"b": Int64(2), "a": 1}, set()),
        ({"a": 1}, {"a": 1.0}, {"a"}),
        ({"a": 1}, {"a": True}, {"a"}),
        ({"a": 0.0}, {"a": -0.0}, {"a"}),
        ({"a": float("nan")}, {"a": float("nan")}, set()),
        ({"a": {"b": [1, {"c": 2}]}}, {"a": {"b": [1, {"c": 3}]}}, {"a.b.1.c"}),
        ({"a": [1, 2, 3]}, {"a": [1]}, {"a.1", "a.2"}),
        ({"a": None}, {}, {"a"}),
        ({}, {"a": None}, {"a"}),
        ({"a": []}, {"a": {}}, {"a"}),
        ({"a": Decimal128("1.0")}, {"a": Decimal128("1.00")}, {"a"}),
        ({"a": DBRef("c", 1)}, {"a": DBRef("c", Int64(1))}, set()),
        ({"a": DBRef("c", 1)}, {"a": DBRef("c", 1.0)}, {"a"}),
        ({"a": Code("c", {"x": 1})}, {"a": Code("c", {"x": True})}, {"a"}),
    ],
)
def test_values_differ_by_type_and_bit_but_not_by_order_or_width(
    left: Any, right: Any, paths: set[str]
) -> None:
    assert set(differing_paths(left, right)) == paths
