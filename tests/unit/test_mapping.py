"""Documents to rows, and what becomes of what no column holds."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from bson import Code, Decimal128, Int64, ObjectId

from worker.errors import MappingError
from worker.mapping import CollectionPlan, Rows, Unmappable, load
from worker.mapping.model import CollectionMapping

SPACES = Path(__file__).parents[2] / "schema/spaces/mapping.yaml"
TENANT = uuid4()


def rows(columns: dict[str, Any], document: dict[str, Any], **more: Any) -> Rows:
    mapping = {"table": "t", "tenant": {"path": "tenantId", "column": "tenant_id"}, "rest": "rest"}
    plan = CollectionPlan(CollectionMapping.model_validate(mapping | more | {"columns": columns}))
    return plan.rows({"_id": uuid4(), "tenantId": TENANT} | document)


MIDNIGHT = datetime(2020, 2, 29, tzinfo=UTC)
NOON = timedelta(hours=12)
ONE_TO_THREE: list[Any] = [{"$numberInt": "1"}, "2", {"$numberDouble": "3.0"}]


def typed(type_: str, **more: Any) -> dict[str, Any]:
    return {"type": type_} | ({"values": ["glad", "sad"]} if type_.startswith("enum") else {}) | more


@pytest.mark.parametrize(
    ("type_", "value", "column"),
    [
        ("text", "é", "é"),
        ("integer", 5, 5),
        ("bigint", Int64(2**40), 2**40),
        ("boolean", True, True),
        ("double precision", 1.5, 1.5),
        ("double precision", -0.0, "-0.0"),
        ("double precision", math.nan, "nan"),
        ("numeric", Decimal128("1.20"), "1.20"),
        ("timestamptz", datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)),
        ("bytea", b"\x01\xff", "\\x01ff"),
        ("jsonb", {"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}),
        ("varchar(5)", "ééééé", "ééééé"),
        ("varchar(5)", "😀" * 5, "😀" * 5),
        ("enum(mood)", "glad", "glad"),
        ("date", MIDNIGHT, MIDNIGHT.date()),
        ("text[]", ["a", None, ""], ["a", None, ""]),
        ("text[]", [], []),
        ("date[]", [MIDNIGHT, None], [MIDNIGHT.date(), None]),
        ("double precision[]", [1.5, -0.0, math.inf], [1.5, "-0.0", "inf"]),
    ],
)
def test_what_a_column_can_say_needs_no_note(type_: str, value: Any, column: Any) -> None:
    row = rows({"x": typed(type_)}, {"x": value}).row
    assert (row["x"], row["rest"]) == (column, None)


@pytest.mark.parametrize(
    ("type_", "value", "column", "note"),
    [
        ("text", None, None, None),
        ("text", 5, None, {"$numberInt": "5"}),
        ("text", "a\0b", None, {"$utf8": "YQBi"}),
        ("integer", "5", None, "5"),
        ("integer", 5.0, 5, {"$numberDouble": "5.0"}),
        ("integer", Int64(2**40), None, {"$numberLong": str(2**40)}),
        ("integer", True, None, True),
        ("double precision", 5, 5.0, {"$numberInt": "5"}),
        ("numeric", Decimal128("1E+3"), "1000", {"$numberDecimal": "1E+3"}),
        (
            "numeric",
            Decimal128.from_bid(bytes(15) + b"\xfc"),
            None,
            {"$decimal128": "AAAAAAAAAAAAAAAAAAAA/A=="},
        ),
        ("varchar(5)", "éééééé", None, "éééééé"),
        ("varchar(5)", "a\0", None, {"$utf8": "YQA="}),
        ("enum(mood)", "furious", None, "furious"),
        ("date", MIDNIGHT + NOON, MIDNIGHT.date(), {"$date": {"$numberLong": "1582977600000"}}),
        ("integer[]", [1, "2", 3.0, None], [1, None, 3, None], [*ONE_TO_THREE, None]),
        ("text[]", "a", None, "a"),
        ("text[]", [["a"]], [None], [["a"]]),
    ],
)
def test_what_a_column_cannot_say_is_noted_exactly(type_: str, value: Any, column: Any, note: Any) -> None:
    row = rows({"x": typed(type_)}, {"x": value}).row
    assert (row["x"], row["rest"]) == (column, {"$notes": {"x": note}})


def test_a_missing_field_is_null_without_a_note() -> None:
    row = rows({"x": {"type": "text"}}, {}).row
    assert (row["x"], row["rest"]) == (None, None)


def test_a_date_inside_jsonb_is_plain_there_and_noted_at_its_path() -> None:
    when = datetime(2020, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    row = rows({"x": {"type": "jsonb"}}, {"x": {"a.b": [when]}}).row
    assert row["x"] == {"a.b": ["2020-01-02T03:04:05.678Z"]}
    assert row["rest"] == {"$notes": {"x.a~1b.0": {"$date": {"$numberLong": "1577934245678"}}}}


def test_unmapped_fields_stay_at_their_path_in_the_rest_column() -> None:
    row = rows(
        {"city": {"path": "address.city", "type": "text"}}, {"address": {"city": "Ulm", "zip": 5}, "$x": 1}
    ).row
    assert row["city"] == "Ulm"
    assert row["rest"] == {"address": {"zip": {"$numberInt": "5"}}, "$$x": {"$numberInt": "1"}}


@pytest.mark.parametrize(
    ("value", "rest"),
    [
        ({"$oid": "5"}, {"$$oid": "5"}),
        ([{"$$x": {"$y": True}}], [{"$$$x": {"$$y": True}}]),
        (Code("a\0b"), {"$code": {"$utf8": "YQBi"}}),
        (Decimal128("NaN"), {"$numberDecimal": "NaN"}),
        (
            Decimal128.from_bid(bytes(15) + b"\xfc"),
            {"$decimal128": "AAAAAAAAAAAAAAAAAAAA/A=="},
        ),
    ],
)
def test_the_rest_column_is_exact_at_any_depth(value: Any, rest: Any) -> None:
    assert rows({}, {"x": value}).row["rest"] == {"x": rest}


def test_the_document_itself_is_left_as_it_was() -> None:
    document = {"address": {"city": "Ulm", "zip": 5}}
    rows({"city": {"path": "address.city", "type": "text"}}, document)
    assert document == {"address": {"city": "Ulm", "zip": 5}}


CHILD = {"table": "c", "parent": "t_id", "position": "position", "tenant": "tenant_id", "rest": "rest"}


@pytest.mark.parametrize(("value", "note"), [([], []), (None, None), ("no array", "no array")])
def test_an_array_that_has_no_rows_is_told_apart(value: Any, note: Any) -> None:
    child = CHILD | {"columns": {"n": {"type": "integer"}}}
    made = rows({}, {"items": value}, children={"items": child})
    assert (made.children, made.row["rest"]) == (([],), {"$notes": {"items": note}})


def test_elements_become_child_rows_by_position_with_the_tenant() -> None:
    child = CHILD | {"columns": {"n": {"type": "integer"}}}
    made = rows({}, {"items": [{"n": 1}, 7, {"n": 2, "more": "x"}]}, children={"items": child})
    assert [(r["position"], r["tenant_id"], r["n"], r["rest"]) for r in made.children[0]] == [
        (0, TENANT, 1, None),
        (1, TENANT, None, {"$notes": {"$": {"$numberInt": "7"}}}),
        (2, TENANT, 2, {"more": "x"}),
    ]


@pytest.mark.parametrize(
    ("document", "column", "rest"),
    [
        ({"x": 5}, 5, None),
        ({"x": 3}, 3, None),
        ({}, 3, {"$notes": {"x": {"$undefined": True}}}),
        ({"x": None}, 3, {"$notes": {"x": None}}),
        ({"x": "five"}, 3, {"$notes": {"x": "five"}}),
        ({"x": 5.0}, 5, {"$notes": {"x": {"$numberDouble": "5.0"}}}),
    ],
)
def test_a_default_stands_where_the_document_has_nothing_that_fits(
    document: dict[str, Any], column: Any, rest: Any
) -> None:
    row = rows({"x": {"type": "integer", "default": 3}}, document).row
    assert (row["x"], row["rest"]) == (column, rest)


def test_what_is_ignored_is_nowhere() -> None:
    row = rows({}, {"x": 1, "y": {"z": 2, "w": 3}}, ignore=["x", "y.z", "q.r"]).row
    assert row["rest"] == {"y": {"w": {"$numberInt": "3"}}}


@pytest.mark.parametrize(
    ("type_", "value", "refused"),
    [
        ("integer", "5", True),
        ("integer", 5.0, False),
        ("integer", None, False),
        ("integer[]", [1, "2"], True),
        ("integer[]", [1, 2.0, None], False),
        ("jsonb", b"bytes", True),
        ("jsonb", {"inside": b"bytes"}, False),
        ("varchar(5)", "123456", True),
        ("date", MIDNIGHT + NOON, False),
        ("enum(mood)", "furious", True),
    ],
)
def test_a_misfit_is_a_dead_letter_where_the_column_wants_it(type_: str, value: Any, refused: bool) -> None:
    columns = {"x": typed(type_, misfit="dead_letter")}
    if not refused:
        assert rows(columns, {"x": value}).row["rest"] is not None
        return
    with pytest.raises(Unmappable, match="field x holds"):
        rows(columns, {"x": value})


@pytest.mark.parametrize("document", [{}, {"x": None}, {"x": "five"}])
def test_a_required_column_without_a_fitting_value_is_unmappable(document: dict[str, Any]) -> None:
    with pytest.raises(Unmappable, match="field x"):
        rows({"x": {"type": "integer", "required": True}}, document)


def test_a_document_without_tenant_is_unmappable() -> None:
    with pytest.raises(Unmappable, match="tenantId"):
        rows({}, {"tenantId": None})


def test_references_map_as_ids_do() -> None:
    form = ObjectId()
    made = rows({"form_id": {"path": "formId", "type": "uuid"}}, {"_id": form, "formId": form})
    assert made.row["form_id"] == made.row_id


def test_the_reference_mapping_loads() -> None:
    assert list(load(SPACES).collections) == ["tenants", "users", "passwords", "pages", "forms", "leads"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "rest: rest",
            "rset: rest",
            r"mapping.yaml:\d+: collections.tenants.rset: no such setting; did you mean rest",
        ),
        ("{type: jsonb}", "{type: json}", r"mapping.yaml:\d+: collections.tenants.columns.settings.type"),
        ("table: tenants", "table: 'a\"b'", "must be a plain SQL name"),
        ("version: 1", "version: 2", r"mapping.yaml:3: version"),
        ("database: spaces", "database: [", "not YAML"),
    ],
)
def test_a_wrong_mapping_is_told_with_line_and_place(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    file = tmp_path / "mapping.yaml"
    file.write_text(SPACES.read_text().replace(old, new, 1))
    with pytest.raises(MappingError, match=message):
        load(file)
