"""Documents of every kind of collection come back, and what the application changes in their rows wins."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import bson
import pytest
from bson import Int64
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.roundtrip.mappings import LABELS, mapping
from tests.support.same import CODEC, assert_same
from tests.support.stored import stored
from tests.support.values import anything, dates, decimals, floats, ids, leaves, names, one_deep, quick, texts
from worker.mapping import CollectionPlan, Plans, Rebuilder, Unmappable, scopes
from worker.mapping.columns import MISSING, ColumnPlan
from worker.mapping.ignored import without_ignored
from worker.mapping.model import ELEMENT, Child, CollectionMapping, Column
from worker.mapping.rebuild import put

Row = dict[str, Any]

WHOLE = mapping()
days = st.integers(-719162, 2932896).map(lambda day: datetime.fromtimestamp(day * 86400, UTC))
FITTING: dict[str, st.SearchStrategy[Any]] = {
    "text": texts,
    "varchar": st.one_of(texts, st.sampled_from(["12345", "123456", "ééééé", "éééééé", "😀" * 5, "😀" * 6])),
    "enum": st.sampled_from([*LABELS, "furious"]),
    "uuid": ids,
    "boolean": st.booleans(),
    "smallint": st.integers(-(2**15) - 1, 2**15),
    "integer": st.integers(-(2**31) - 1, 2**31),
    "bigint": st.integers(-(2**63), 2**63 - 1).map(Int64),
    "double precision": floats,
    "numeric": decimals,
    "timestamptz": dates,
    "date": st.one_of(days, dates),
    "bytea": st.binary(max_size=3),
    "jsonb": anything,
}


class Kept:
    """One collection: its codec, through what PostgreSQL makes of rows."""

    def __init__(self, name: str) -> None:
        real = name.replace("{tenant}", "acme")
        tenant = "acme" if real != name else None
        planned = Plans(WHOLE).find(f"roundtrip.{real}")
        assert planned is not None
        self.mapping = WHOLE.collections[name]
        self.plan: CollectionPlan = planned.plan
        self.rebuilder = Rebuilder(self.mapping, tenant, scopes(WHOLE, tenant))
        self.columns = {
            name: ColumnPlan(name, column)
            for name, column in self.mapping.columns.items()
            if column.constant is None and column.references is None
        }

    def rows(self, document: dict[str, Any]) -> tuple[Row, list[list[Row]]]:
        made = self.plan.rows(bson.decode(bson.encode(document, codec_options=CODEC), codec_options=CODEC))
        if made.parent is not None:
            made = self.plan.of_tenant(made, UUID(int=7))
        (row,) = stored([made.row], self.plan.table.columns)
        below = zip(made.children, self.plan.children, strict=True)
        return row, [stored(rows, table.columns) for rows, table in below]


def equal_for_sql(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal_for_sql, one, other))
    return one == other or (one != one and other != other)


KEPT = {name: Kept(name) for name in WHOLE.collections}


def of_column(column: Column) -> st.SearchStrategy[Any]:
    fitting = st.one_of(ids, leaves) if column.references else FITTING[column.parsed.base]
    if column.parsed.array:
        fitting = st.lists(st.one_of(fitting, st.none()), max_size=3)
    return st.one_of(fitting, fitting, one_deep)


@st.composite
def fields(draw: st.DrawFn, part: CollectionMapping | Child) -> dict[str, Any]:
    """Draw a (sub)document with some of what its table holds, and with other fields."""
    document: dict[str, Any] = draw(st.dictionaries(names, one_deep, max_size=2))
    document.pop("_id", None)
    places: list[tuple[str, st.SearchStrategy[Any]]] = [
        (column.path or name, of_column(column))
        for name, column in part.columns.items()
        if column.path != ELEMENT and not column.required
    ]
    places += [(path, arrays(child)) for path, child in part.children.items()] * 2
    places += [(path, one_deep) for path in part.ignore]
    for path, values in draw(st.lists(st.sampled_from(places), max_size=5, unique_by=lambda place: place[0])):
        put(document, path, draw(values))
    for name, column in part.columns.items():
        if column.required:
            document[name] = draw(st.integers(0, 9))
    return document


def arrays(child: Child) -> st.SearchStrategy[Any]:
    whole = of_column(child.columns[child.whole]) if child.whole else one_deep
    elements = st.deferred(lambda: st.lists(st.one_of(fields(child), whole, one_deep), max_size=3))
    return st.one_of(elements, elements, elements, one_deep)


@st.composite
def documents(draw: st.DrawFn, name: str) -> dict[str, Any]:
    part = WHOLE.collections[name]
    document = {"_id": draw(st.one_of(ids, leaves, st.dictionaries(names, leaves, max_size=3)))}
    document |= draw(fields(part))
    if part.tenant is not None and part.tenant.path not in (None, "_id"):
        put(document, part.tenant.path, draw(st.one_of(ids, one_deep.filter(lambda it: it is not None))))
    if part.tenant is not None and part.tenant.parent is not None:
        put(
            document,
            part.tenant.parent.path,
            draw(st.one_of(ids, one_deep.filter(lambda it: it is not None))),
        )
    return document


@quick
@given(
    st.sampled_from(list(WHOLE.collections)).flatmap(lambda name: st.tuples(st.just(name), documents(name)))
)
def test_a_document_of_any_collection_comes_back(drawn: tuple[str, dict[str, Any]]) -> None:
    name, document = drawn
    kept = KEPT[name]
    try:
        row, children = kept.rows(document)
    except Unmappable as refused:
        assert "strict" in str(refused) or refused.kind == "tenant"
        return
    back = kept.rebuilder.document(row, children)
    expected = without_ignored(kept.mapping, document)
    assert_same(back, expected)
    assert_same(bson.decode(bson.encode(back, codec_options=CODEC), codec_options=CODEC), expected)


@pytest.mark.parametrize("name", list(KEPT["flat"].columns))
def test_a_column_that_the_application_changed_wins(name: str) -> None:
    kept, column = KEPT["flat"], KEPT["flat"].mapping.columns[name]
    path = column.path or name

    @settings(quick, max_examples=50)
    @given(st.data())
    def wins(data: st.DataObject) -> None:
        def document(value: Any) -> dict[str, Any]:
            made: dict[str, Any] = {"_id": UUID(int=1), "of": {"tenant": UUID(int=2)}, "needed": 1, "left": 1}
            if value is not MISSING:
                put(made, path, value)
            return made

        values = of_column(column)
        before = document(data.draw(st.one_of(values, st.just(MISSING))))
        after = document(data.draw(values))
        try:
            row, changed = kept.rows(before)[0], kept.rows(after)[0]
        except Unmappable:
            return
        told = kept.rebuilder.document(changed | {"rest": None})  # what the columns alone say
        if changed[name] is None or equal_for_sql(row[name], changed[name]):
            return
        expected = deepcopy(before)
        steps = path.split(".")
        value: Any = told
        for step in steps:
            value = value[step]
        put(expected, path, value)
        assert_same(kept.rebuilder.document(row | {name: changed[name]}), expected)

    wins()


@settings(quick, max_examples=150)
@given(documents("trees"), documents("trees"))
def test_child_rows_that_the_application_replaced_win(one: dict[str, Any], other: dict[str, Any]) -> None:
    kept = KEPT["trees"]
    row, mine = kept.rows(one)
    _, theirs = kept.rows(other)
    for path, child in kept.mapping.children.items():
        tables = _tables(child)
        changed = [
            rows if plan.table in tables else own
            for plan, own, rows in zip(kept.plan.children, mine, theirs, strict=True)
        ]
        if not theirs[[plan.table for plan in kept.plan.children].index(child.table)]:
            continue
        back = kept.rebuilder.document(row, changed)
        expected = deepcopy(without_ignored(kept.mapping, one))
        put(expected, path, _at(without_ignored(kept.mapping, other), path))
        assert_same(back, expected)


def _tables(child: Child) -> list[str]:
    return [child.table, *(table for inner in child.children.values() for table in _tables(inner))]


def _at(document: Any, path: str) -> Any:
    for step in path.split("."):
        document = document[step]
    return document


TREE = {
    "_id": UUID(int=1),
    "branches": [
        {"text": "a", "twigs": [{"n": 1, "in": {"leaves": [{"n": 1}, {"n": 2}]}, "names": ["x", "y"]}, 5]},
        {"text": "b", "twigs": [], "words": ["w", {"n": 1}]},
        {"text": "c", "twigs": None},
    ],
}


def test_rows_that_the_application_adds_and_deletes_at_any_level_are_seen() -> None:
    kept = KEPT["trees"]
    row, children = kept.rows(TREE)
    tables = dict(zip((plan.table for plan in kept.plan.children), children, strict=True))
    del tables["leaves"][0]
    empty = dict.fromkeys(kept.plan.children[2].columns)
    tables["leaves"].append(empty | {"document_id": row["tree_id"], "i1": 2, "i2": 0, "i3": 0, "n": 9})
    tables["twigs"][1:] = [
        dict.fromkeys(tables["twigs"][0])
        | {"document_id": row["tree_id"], "i1": branch, "i2": 0, "n": branch}
        for branch in (1, 2)
    ]
    tables["names"][0]["name"] = "z"
    tables["words"].pop(0)
    back = kept.rebuilder.document(row, children)
    assert back["branches"] == [
        {"text": "a", "twigs": [{"n": 1, "in": {"leaves": [{"n": 2}]}, "names": ["z", "y"]}]},
        {"text": "b", "twigs": [{"n": 1}], "words": [{"n": 1}]},
        {"text": "c", "twigs": [{"n": 2, "in": {"leaves": [{"n": 9}]}}]},
    ]
