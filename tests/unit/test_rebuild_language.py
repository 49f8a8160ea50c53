"""Rows back to documents, for everything that the mapping language has."""

from __future__ import annotations

import struct
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import bson
import pytest
from bson import Code, DBRef, Decimal128, ObjectId
from pydantic import ValidationError

from bench.roundtrip import mappings
from tests.support.stored import RowUUID, stored
from worker.mapping import CollectionPlan, Plans, Rebuilder
from worker.mapping.model import CollectionMapping

Row = dict[str, Any]

OWN = {"table": "t", "tenant": None, "rest": "rest"}


def through_postgres(model: CollectionMapping, document: dict[str, Any]) -> tuple[Row, list[list[Row]]]:
    plan = CollectionPlan(model)
    made = plan.rows({"_id": uuid4()} | document)
    (row,) = stored([made.row], plan.table.columns)
    return row, [
        stored(rows, table.columns) for rows, table in zip(made.children, plan.children, strict=True)
    ]


def there_and_back(mapping: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """Return a document, without an id that is not its own, as a mapping keeps it."""
    model = CollectionMapping.model_validate(OWN | mapping)
    back = Rebuilder(model).document(*through_postgres(model, document))
    return {name: value for name, value in back.items() if name != "_id" or "_id" in document}


@pytest.mark.parametrize("value", [5, None, {"a": 1}])
def test_a_field_that_has_a_constants_name_is_kept(value: Any) -> None:
    kind = {"columns": {"kind": {"type": "text", "constant": "fixed"}}}
    assert there_and_back(kind, {"kind": value}) == {"kind": value}
    child = {"table": "c", "parent": "p", "position": "i", "rest": "r"} | kind
    below = {"columns": {}, "children": {"items": child}}
    assert there_and_back(below, {"items": [{"kind": value}, 1]}) == {"items": [{"kind": value}, 1]}


TWISTED: list[Any] = [
    {"second": 1, "first": 2},
    {"a": [{"bb": 1, "a": 2}]},
    {"$bb": 1, "ccc": 2},
    DBRef("c", 1, None, {"second": 1, "first": 2}),
    DBRef("c", {"b": 1, "a": 2}),
    Code("f", {"b": 1, "a": 2}),
]


@pytest.mark.parametrize("value", TWISTED)
def test_an_id_keeps_the_order_of_its_fields_for_another_order_is_another_id(value: Any) -> None:
    other = {"type": "uuid", "references": "others"}
    mapping = {
        "tenant": {"path": "of.tenant", "column": "tenant_id"},
        "columns": {"other": other, "others": other | {"type": "uuid[]"}},
    }
    back = there_and_back(
        mapping, {"_id": value, "of": {"tenant": value}, "other": value, "others": [value, 1, None]}
    )
    found = [back["_id"], back["of"]["tenant"], back["other"], back["others"][0]]
    assert [bson.encode({"": one}) for one in found] == [bson.encode({"": value})] * 4
    assert back["others"][1:] == [1, None]


def test_ids_whose_order_jsonb_keeps_stay_readable() -> None:
    plan = CollectionPlan(CollectionMapping.model_validate(OWN | {"columns": {}}))
    rest = plan.rows({"_id": {"a": 1, "bb": "x"}}).row["rest"]
    assert rest == {"$notes": {"_id": {"a": {"$numberInt": "1"}, "bb": "x"}}}


@pytest.mark.parametrize("bits", ["000000000000f87f", "000000000000f8ff", "010000000000f07f"])
@pytest.mark.parametrize("type_", ["double precision", "numeric", "jsonb"])
def test_every_nan_keeps_its_bits(type_: str, bits: str) -> None:
    (value,) = struct.unpack("<d", bytes.fromhex(bits))
    back = there_and_back({"columns": {"x": {"type": type_}}}, {"x": value, "y": [value]})
    assert [struct.pack("<d", one).hex() for one in (back["x"], *back["y"])] == [bits, bits]


CHILD = {"table": "c", "parent": "p", "position": "i", "rest": "r"}
BELOW = {"table": "d", "parent": ["p", "i"], "position": "j", "rest": "r"}
WORDS = BELOW | {"columns": {"word": {"type": "text", "path": "$"}}}
INTEGER = {"type": "integer"}


@pytest.mark.parametrize("columns", [{"n": INTEGER}, {"n": INTEGER, "whole": {"type": "text", "path": "$"}}])
@pytest.mark.parametrize("column", [True, False])
def test_an_element_that_the_application_made_an_object_is_one(columns: Any, column: bool) -> None:
    model = CollectionMapping.model_validate(
        OWN | {"columns": {}, "children": {"items": CHILD | {"columns": columns, "children": {"in": WORDS}}}}
    )
    row, (items, words) = through_postgres(model, {"items": [7]})
    assert Rebuilder(model).document(row, [items, words])["items"] == [7]
    if column:
        items[0]["n"] = 1
    else:
        words.append({"p": row["id"], "i": 0, "j": 0, "word": "x", "r": None})
    changed = {"n": 1} if column else {"in": ["x"]}
    assert Rebuilder(model).document(row, [items, words])["items"] == [changed]


@pytest.mark.parametrize(
    ("type_", "held", "back"),
    [
        ("uuid", RowUUID(str(UUID(int=5))), UUID(int=5)),
        ("numeric", Decimal("1.5"), Decimal128("1.5")),
        ("date", date(2020, 1, 1), datetime(2020, 1, 1, tzinfo=UTC)),
        ("text", "x", "x"),
    ],
)
def test_an_array_that_the_application_gave_another_dimension_comes_back(
    type_: str, held: Any, back: Any
) -> None:
    model = CollectionMapping.model_validate(OWN | {"columns": {"x": {"type": f"{type_}[]"}}})
    row, _ = through_postgres(model, {"x": [5]})
    row["x"] = [[held, None], [held, held]]
    assert Rebuilder(model).document(row)["x"] == [[back, None], [back, back]]


def test_an_array_directly_inside_an_array_gets_no_table() -> None:
    child = CHILD | {"columns": {}, "children": {"$": WORDS}}
    with pytest.raises(ValidationError, match="an array in an array"):
        CollectionMapping.model_validate(OWN | {"columns": {}, "children": {"items": child}})


@pytest.mark.parametrize("id_", [1, "home", {"b": 1, "a": 2}, ObjectId(), UUID(int=5)])
def test_a_reference_is_the_row_id_of_what_it_refers_to(id_: Any) -> None:
    plans = Plans(mappings.mapping())
    flat, trees = plans.find("roundtrip.flat"), plans.find("roundtrip.trees")
    acme, other = plans.find("roundtrip.named_acme"), plans.find("roundtrip.named_other")
    assert flat and trees and acme and other
    document = {"_id": 1, "of": {"tenant": 1}, "needed": 1, "refers": {"tree": id_, "trees": [id_, None]}}
    made = flat.plan.rows(document)
    assert made.row["tree_id"] == trees.plan.row_id(id_) == trees.plan.rows({"_id": id_}).row["tree_id"]
    assert made.row["tree_ids"] == [trees.plan.row_id(id_), None]
    referring = acme.plan.rows({"_id": 1, "other": id_, "refs": [id_]})
    assert referring.row["other"] == acme.plan.row_id(id_) == referring.children[0][0]["ref"]
    # Short ids are one tenant's where its name tells them apart.
    same = isinstance(id_, UUID | ObjectId)
    assert (acme.plan.row_id(id_) == other.plan.row_id(id_)) is same


def test_a_table_may_hold_elements_whole_beside_objects_and_the_arrays_in_them() -> None:
    columns = {"whole": {"type": "text", "path": "$"}, "n": INTEGER}
    items = CHILD | {"columns": columns, "children": {"in": WORDS}}
    model = CollectionMapping.model_validate(OWN | {"columns": {}, "children": {"items": items}})
    document = {"items": ["x", {"n": 1, "in": ["y", 5]}, 7, {"more": 1}, None]}
    row, (held, words) = through_postgres(model, document)
    assert [(one["i"], one["whole"], one["n"]) for one in held] == [
        (0, "x", None),
        (1, None, 1),
        (2, None, None),
        (3, None, None),
        (4, None, None),
    ]
    assert [one["r"] is None for one in held] == [True, True, False, False, False]
    assert [(one["i"], one["j"], one["word"]) for one in words] == [(1, 0, "y"), (1, 1, None)]
    assert Rebuilder(model).document(row, [held, words])["items"] == document["items"]


def test_a_whole_element_that_the_application_set_to_null_is_null() -> None:
    words = CHILD | {"columns": {"word": {"type": "text", "path": "$"}}}
    model = CollectionMapping.model_validate(OWN | {"columns": {}, "children": {"words": words}})
    row, (held,) = through_postgres(model, {"words": ["a", 5, {"x": 1}]})
    for one in held:
        one["word"] = None
    assert Rebuilder(model).document(row, [held])["words"] == [None, 5, {"x": 1}]


def test_the_parents_tenant_goes_into_every_row_at_every_level() -> None:
    planned = Plans(mappings.mapping()).find("roundtrip.parts")
    assert planned is not None
    made = planned.plan.rows({"_id": 1, "flat": {"id": "home"}, "pieces": [{}, 5]})
    assert made.parent is not None and made.parent.collection == "flat"
    flat = Plans(mappings.mapping()).find("roundtrip.flat")
    assert flat is not None and made.parent.row_id == flat.plan.row_id("home")
    owned = planned.plan.of_tenant(made, UUID(int=9))
    rows = [owned.row, *owned.children[0]]
    assert [row["tenant_id"] for row in rows] == [UUID(int=9)] * 3
    assert owned.tenant_id == UUID(int=9)
