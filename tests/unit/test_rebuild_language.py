"""Rows back to documents, for everything that the mapping language has."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from tests.support.same import assert_same
from tests.support.stored import stored
from worker.mapping import CollectionPlan, Rebuilder
from worker.mapping.model import CollectionMapping

OWN = {"table": "t", "tenant": None, "rest": "rest"}


def there_and_back(mapping: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """Return a document, less its id, as a mapping without tenant keeps it."""
    model = CollectionMapping.model_validate(OWN | mapping)
    plan = CollectionPlan(model)
    made = plan.rows({"_id": uuid4()} | document)
    (row,) = stored([made.row], plan.table.columns)
    children = [stored(rows, table.columns) for rows, table in zip(made.children, plan.children, strict=True)]
    back = Rebuilder(model).document(row, children)
    return {name: value for name, value in back.items() if name != "_id" or "_id" in document}


@pytest.mark.parametrize("value", [5, None, {"a": 1}])
def test_a_field_that_has_a_constants_name_is_kept(value: Any) -> None:
    kind = {"columns": {"kind": {"type": "text", "constant": "fixed"}}}
    assert there_and_back(kind, {"kind": value}) == {"kind": value}
    child = {"table": "c", "parent": "p", "position": "i", "rest": "r"} | kind
    below = {"columns": {}, "children": {"items": child}}
    assert there_and_back(below, {"items": [{"kind": value}, 1]}) == {"items": [{"kind": value}, 1]}
