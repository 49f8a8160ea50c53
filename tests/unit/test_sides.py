"""What one look at a document and its rows tells, without databases."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import bson
import orjson
import pytest
from bson.raw_bson import RawBSONDocument

from worker.mapping import TablePlan, load
from worker.postgres.documents import Stored
from worker.reconcile.judge import Look
from worker.reconcile.sides import Sides, _by_size, _look

OWN, OTHER, ID = UUID(int=1 << 70), UUID(int=2 << 70), UUID(int=3 << 70)
LEAD = {
    "_id": ID,
    "tenantId": OWN,
    "email": "a@b.example",
    "activities": [{"type": "call"}, {"type": "note"}],
}
SIDES = Sides(None, load(Path(__file__).parents[2] / "schema/spaces/mapping.yaml"), {})  # pyright: ignore


def look(own: dict[str, Any] | None = None, child: dict[str, Any] | None = None) -> Look:
    """Look at a lead whose row, and whose second child row, hold something else."""
    source = SIDES.source("spaces.leads")
    rows = source.plan.rows(LEAD)
    (table,) = source.plan.children
    children = [_stored(table, row) for row in rows.children[0]]
    children[1] |= child or {}
    stored = Stored(_stored(source.plan.table, rows.row) | (own or {}), [children], 1)
    return _look(source, source.identity(ID, ID), dict(LEAD), stored, None)


def _stored(table: TablePlan, row: dict[str, Any]) -> dict[str, Any]:
    json = {name for name, type_ in table.columns.items() if type_ == "jsonb"}
    return {
        name: orjson.dumps(value) if name in json and value is not None else value
        for name, value in row.items()
    }


def test_what_fits_is_told_by_nothing() -> None:
    seen = look()
    assert (seen.kind, seen.tenant, seen.row_tenant) == (None, OWN, None)
    assert seen.mongo == seen.postgres


@pytest.mark.parametrize(
    ("own", "paths"), [({}, {"tenantId"}), ({"email": "x@b.example"}, {"tenantId", "email"})]
)
def test_a_row_under_another_tenant_is_its_documents_tenants_with_all_that_differs(
    own: dict[str, Any], paths: set[str]
) -> None:
    seen = look({"tenant_id": OTHER} | own)
    assert (seen.kind, seen.tenant, seen.row_tenant) == ("tenant", OWN, OTHER)
    assert {one.path for one in seen.fields} == paths


def test_so_is_a_child_row_whatever_else_differs() -> None:
    for child, paths in (({}, set[str]()), ({"type": "visit"}, {"activities.1.type"})):
        seen = look(child={"tenant_id": OTHER} | child)
        assert (seen.kind, seen.tenant, seen.row_tenant) == ("tenant", OWN, OTHER)
        assert "lead_activities" in seen.told and {one.path for one in seen.fields} == paths


def test_documents_are_decoded_in_parts_of_bounded_size_and_all_are() -> None:
    sizes = [1, 3 << 20, 2 << 20, 9 << 20, 1, 1, 4 << 20]
    documents = [
        RawBSONDocument(bson.encode({"_id": number, "x": b"x" * size})) for number, size in enumerate(sizes)
    ]
    parts = [[one["_id"] for one in part] for part in _by_size(documents)]
    assert parts == [[0, 1], [2], [3], [4, 5], [6]]
