"""Rows back to documents, through what PostgreSQL makes of them on the way."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import bson
import pytest
from bson import Decimal128, ObjectId, Regex
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.same import CODEC, assert_same
from tests.support.stored import RowUUID, stored
from tests.support.values import (
    anything,
    dates,
    decimals,
    floats,
    ids,
    ints,
    leaves,
    names,
    one_deep,
    quick,
    texts,
    two_deep,
)
from worker.mapping import CollectionPlan, Rebuilder, Unrebuildable
from worker.mapping.extended import extended, from_extended
from worker.mapping.ids import objectid_to_uuid
from worker.mapping.model import CollectionMapping

TENANT = UUID("11111111-1111-4111-8111-111111111111")
TYPES = ["text", "uuid", "boolean", "smallint", "integer", "bigint", "double precision", "numeric"]
TYPES += ["timestamptz", "bytea", "jsonb"]
MAPPING = CollectionMapping.model_validate(
    {
        "table": "t",
        "tenant": {"path": "of.tenant", "column": "tenant_id"},
        "rest": "rest",
        "columns": {type_.split()[0]: {"type": type_} for type_ in TYPES}
        | {"deep_text": {"path": "deep.er.text", "type": "text"}}
        | {"deep_json": {"path": "deep.j~1", "type": "jsonb"}},
        "children": {
            path: {
                "table": table,
                "parent": "t_id",
                "position": "position",
                "tenant": "tenant_id",
                "rest": "rest",
                "columns": {
                    "n": {"type": "integer"},
                    "j": {"type": "jsonb"},
                    "m": {"path": "o.m", "type": "numeric"},
                },
            }
            for path, table in (("items", "c"), ("deep.items", "d"))
        },
    }
)
PLAN, REBUILDER = CollectionPlan(MAPPING), Rebuilder(MAPPING)


def through_postgres(document: dict[str, Any]) -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
    made = PLAN.rows(document)
    (row,) = stored([made.row], PLAN.table.columns)
    children = [stored(rows, table.columns) for rows, table in zip(made.children, PLAN.children, strict=True)]
    return row, children


def there_and_back(document: dict[str, Any]) -> dict[str, Any]:
    return REBUILDER.document(*through_postgres(document))


FITTING: dict[str, st.SearchStrategy[Any]] = {
    "text": texts,
    "uuid": ids,
    "boolean": st.booleans(),
    "smallint": ints,
    "integer": ints,
    "bigint": ints,
    "double": floats,
    "numeric": decimals,
    "timestamptz": dates,
    "bytea": st.binary(max_size=3),
    "jsonb": anything,
}
items = st.one_of(
    st.lists(
        st.one_of(
            one_deep,
            st.fixed_dictionaries(
                {},
                optional={
                    "n": one_deep,
                    "j": two_deep,
                    "o": st.one_of(one_deep, st.dictionaries(st.just("m"), decimals)),
                },
            ),
        ),
        max_size=3,
    ),
    leaves,
)
deep = st.one_of(
    leaves,
    st.fixed_dictionaries(
        {},
        optional={
            "er": st.one_of(one_deep, st.fixed_dictionaries({}, optional={"text": leaves, "x": leaves})),
            "j~1": two_deep,
            "items": items,
            ".": leaves,
        },
    ),
)
documents = st.builds(
    lambda id_, tenant, known, more: {"_id": id_, "of": {"tenant": tenant}} | known | more,
    st.one_of(ids, leaves.filter(lambda id_: not isinstance(id_, Regex))),
    st.one_of(ids, leaves.filter(lambda tenant: tenant is not None)),
    st.fixed_dictionaries(
        {},
        optional={name: st.one_of(fitting, anything) for name, fitting in FITTING.items()}
        | {"items": items, "deep": deep},
    ),
    st.dictionaries(names, anything, max_size=2),
)


@quick
@given(documents)
def test_a_document_comes_back_from_its_rows(document: dict[str, Any]) -> None:
    back = there_and_back(document)
    assert_same(back, document)
    assert_same(bson.decode(bson.encode(back, codec_options=CODEC), codec_options=CODEC), document)


@quick
@given(anything)
@example({"$oid": "0" * 24})
@example({"$numberInt": "5"})
@example({"$utf8": "YQ=="})
@example({"$code": "a\0", "$scope": {}})
@example({"$$oid": 1})
def test_extended_json_is_read_back_exactly(value: Any) -> None:
    assert_same(from_extended(json.loads(json.dumps(extended(value)))), value)


@quick
@given(st.sampled_from(sorted(FITTING)), st.data())
def test_a_single_column_comes_back(name: str, data: st.DataObject) -> None:
    document = {"_id": uuid4(), "of": {"tenant": TENANT}, name: data.draw(st.one_of(FITTING[name], anything))}
    assert_same(there_and_back(document), document)


def make(**fields: Any) -> dict[str, Any]:
    return {"_id": TENANT, "of": {"tenant": TENANT}} | fields


def rebuilt(fields: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """Return a document's fields as they come back after the application has changed columns."""
    row, children = through_postgres(make(**fields))
    back = REBUILDER.document(row | changed, children)
    return {name: value for name, value in back.items() if name not in ("_id", "of")}


WHEN = datetime(2020, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("before", "changed", "after"),
    [
        ({"integer": 5.0}, {"integer": 6}, {"integer": 6}),
        ({"integer": 5.0}, {"integer": None}, {}),
        ({"integer": "five"}, {"integer": 5}, {"integer": 5}),
        ({"text": None}, {"text": "x"}, {"text": "x"}),
        ({"text": "a\0"}, {"text": "a"}, {"text": "a"}),
        ({"double": 5}, {"double": 5.5}, {"double": 5.5}),
        ({"numeric": 5}, {"numeric": Decimal("5.5")}, {"numeric": Decimal128("5.5")}),
        ({"jsonb": {"at": WHEN}}, {"jsonb": b'{"at": "later"}'}, {"jsonb": {"at": "later"}}),
        ({"jsonb": {"at": WHEN}}, {"jsonb": b'{"at": null}'}, {"jsonb": {"at": None}}),
        ({"jsonb": {"at": WHEN}}, {"jsonb": b"{}"}, {"jsonb": {}}),
        ({"jsonb": {"at": WHEN}}, {"jsonb": b'"gone"'}, {"jsonb": "gone"}),
        ({"jsonb": {"at": WHEN}}, {"jsonb": None}, {}),
        ({"jsonb": [WHEN, WHEN]}, {"jsonb": b"[1]"}, {"jsonb": [1]}),
        ({"jsonb": {"z": -0.0}}, {"jsonb": b'{"z": false}'}, {"jsonb": {"z": False}}),
        ({"jsonb": None}, {"jsonb": b"null"}, {"jsonb": None}),
        ({"jsonb": Regex("x")}, {"jsonb": b"5"}, {"jsonb": 5}),
        ({"deep": 5}, {"deep_text": "x"}, {"deep": {"er": {"text": "x"}}}),
    ],
)
def test_the_applications_change_wins(before: Any, changed: Any, after: Any) -> None:
    assert_same(rebuilt(before, **changed), after)


def test_a_change_beside_a_note_leaves_the_note() -> None:
    row = {"jsonb": b'{"at": "2020-01-02T03:04:05.678Z", "n": 2}'}
    assert rebuilt({"jsonb": {"at": WHEN, "n": 1}}, **row) == {"jsonb": {"at": WHEN, "n": 2}}


@pytest.mark.parametrize("noted", [[], None, "no array"])
def test_rows_that_the_application_adds_win_over_a_noted_array(noted: Any) -> None:
    row, _ = through_postgres(make(items=noted))
    added = {"n": 1, "j": None, "m": None, "rest": None}
    assert REBUILDER.document(row, [[added], []])["items"] == [{"n": 1}]
    assert REBUILDER.document(row, [[], []])["items"] == noted


def test_columns_win_over_an_element_that_was_no_object() -> None:
    row, children = through_postgres(make(items=[7]))
    assert REBUILDER.document(row, children)["items"] == [7]
    children[0][0]["n"] = 1
    assert REBUILDER.document(row, children)["items"] == [{"n": 1}]


def test_ids_that_the_application_changed_win_over_their_notes() -> None:
    row, children = through_postgres({"_id": "one", "of": {"tenant": "us"}})
    other = ObjectId()
    row["id"] = row["tenant_id"] = RowUUID(str(objectid_to_uuid(other)))
    assert REBUILDER.document(row, children) == {"_id": other, "of": {"tenant": other}}


def test_what_bson_cannot_say_comes_as_the_nearest_that_it_can() -> None:
    changed = {
        "timestamptz": datetime(2020, 1, 1, 0, 0, 0, 123456, tzinfo=UTC),
        "numeric": Decimal("1." + "1" * 40),
        "jsonb": b"[9223372036854775808, 1]",
    }
    assert_same(
        rebuilt({}, **changed),
        {
            "timestamptz": datetime(2020, 1, 1, 0, 0, 0, 123000, tzinfo=UTC),
            "numeric": Decimal128("1." + "1" * 33),
            "jsonb": [9223372036854775808.0, 1],
        },
    )


@pytest.mark.parametrize("rest", [b"[]", b'{"$notes": 5}'])
def test_a_rest_column_that_is_none_is_refused(rest: bytes) -> None:
    with pytest.raises(Unrebuildable, match="column rest"):
        rebuilt({}, rest=rest)


def test_an_object_of_an_unknown_type_in_the_rest_column_is_taken_as_it_is() -> None:
    rest = b'{"a": {"$foo": 1}, "b": {"$oid": "short"}, "c": 18446744073709551615}'
    assert_same(
        rebuilt({}, rest=rest), {"a": {"$foo": 1}, "b": {"$oid": "short"}, "c": 18446744073709551615.0}
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"jsonb": dict.fromkeys(["", ".", "~", "~0", "~1", "~01", "~10", "a.b", "0", "$x", "٣"], WHEN)},
        {"jsonb": [[WHEN], {"0": WHEN}]},
        {"numeric": Decimal128("-0")},
        {"numeric": Decimal128("-0.00")},
        {"numeric": Decimal128("120000")},
        {"$notes": {"text": 5}, "$value": 1, "$$notes": 2},
        {"items": [{"$value": 1}, {"$notes": {"n": 1}}, {}, None, [], {"n": None, "o": {}}]},
        {"deep": {"er": {}, "items": []}, "deep.er.text": "a field with dots in its name"},
    ],
)
def test_what_could_be_mistaken_comes_back(fields: dict[str, Any]) -> None:
    assert_same(rebuilt(fields), fields)


def test_deep_nesting_comes_back() -> None:
    value: Any = WHEN
    for _ in range(95):
        value = {"a": value}
    assert rebuilt({"jsonb": value, "other": value}) == {"jsonb": value, "other": value}


CHILD = {"table": "c", "parent": "p", "position": "i", "tenant": "t", "rest": "r"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": {"x": {"type": "text", "path": "_id"}}}, "has its own column"),
        ({"columns": {"x": {"type": "text", "path": "of.tenant"}}}, "mapped twice"),
        ({"columns": {"of": {"type": "jsonb"}}}, "lies inside of"),
        ({"columns": {"tenant_id": {"type": "text"}}}, "column tenant_id"),
        ({"tenant": {"path": "t", "column": "id"}}, "column id"),
        ({"children": {"c": CHILD | {"columns": {"i": {"type": "integer"}}}}}, "column i"),
        (
            {
                "children": {
                    "c": CHILD | {"columns": {"x": {"type": "jsonb"}, "y": {"type": "text", "path": "x.y"}}}
                }
            },
            "lies inside x",
        ),
    ],
)
def test_a_mapping_that_could_not_be_read_back_is_refused(change: dict[str, Any], message: str) -> None:
    mapping = {
        "table": "t",
        "tenant": {"path": "of.tenant", "column": "tenant_id"},
        "rest": "rest",
        "columns": {},
    }
    with pytest.raises(ValidationError, match=message):
        CollectionMapping.model_validate(mapping | change)
