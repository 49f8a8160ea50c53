"""A mapping that uses all of the language: every type, at every kind of place, with every option."""

from __future__ import annotations

from datetime import date
from typing import Any

from worker.mapping import Mapping

LABELS = ["calm", "glad", "sad", "Ünsure, or not", ""]
SCALARS = {
    "text": "text",
    "code": "varchar(5)",
    "mood": "enum(mood)",
    "uuid": "uuid",
    "boolean": "boolean",
    "smallint": "smallint",
    "integer": "integer",
    "bigint": "bigint",
    "double": "double precision",
    "numeric": "numeric",
    "at": "timestamptz",
    "day": "date",
    "bytes": "bytea",
}
CONSTANTS: dict[str, Any] = {
    "text": "fixed",
    "mood": "glad",
    "integer": -7,
    "double": 0.5,
    "numeric": "1.50",
    "boolean": True,
    "uuid": "22222222-2222-4222-8222-222222222222",
    "day": "2020-02-29",
}
DEFAULTS: dict[str, Any] = CONSTANTS | {"text": "", "code": "none", "smallint": 0, "bigint": 2**40}
TENANT = "tenant-of-all"

Columns = dict[str, dict[str, Any]]


def _typed(name: str, **more: Any) -> dict[str, Any]:
    type_ = SCALARS.get(name, name)
    return {"type": type_} | ({"values": LABELS} if type_.startswith("enum") else {}) | more


def _literal(name: str, value: Any) -> Any:
    return date.fromisoformat(value) if name == "day" else value


def scalars() -> Columns:
    """Return a column of each type, by the type's own name."""
    return {name: _typed(name) for name in SCALARS} | {"json": {"type": "jsonb"}}


def _lists() -> Columns:
    listed = {name: _typed(name) for name in SCALARS}
    return {
        f"{name}_list": column | {"type": f"{column['type']}[]", "path": f"lists.{name}"}
        for name, column in listed.items()
    }


def _child(table: str, depth: int, columns: Columns, **more: Any) -> dict[str, Any]:
    own = {"table": table, "parent": ["document_id", *(f"i{n}" for n in range(1, depth))]}
    return own | {"position": f"i{depth}", "tenant": "tenant_id", "rest": "rest", "columns": columns} | more


_FLAT: dict[str, Any] = {
    "table": "flat",
    "tenant": {"path": "of.tenant", "column": "tenant_id"},
    "rest": "rest",
    "columns": {
        **scalars(),
        **{f"deep_{name}": column | {"path": f"deep.er.{name}"} for name, column in scalars().items()},
        **_lists(),
        **{f"is_{n}": _typed(n, constant=_literal(n, v)) for n, v in CONSTANTS.items()},
        **{f"or_{n}": _typed(n, default=_literal(n, v)) for n, v in DEFAULTS.items()},
        "deep_or_text": _typed("text", path="deep.or.text", default="x"),
        "strict": {"type": "integer", "misfit": "dead_letter"},
        "strict_list": {"type": "integer[]", "misfit": "dead_letter"},
        "strict_json": {"type": "jsonb", "misfit": "dead_letter"},
        "needed": {"type": "integer", "required": True},
        "tree_id": {"type": "uuid", "path": "refers.tree", "references": "trees"},
        "tree_ids": {"type": "uuid[]", "path": "refers.trees", "references": "trees"},
        "default_id": {
            "type": "uuid",
            "references": "trees",
            "default": "33333333-3333-4333-8333-333333333333",
        },
    },
    "ignore": ["left_behind", "deep.left.behind"],
}
_ITEM: Columns = {"n": {"type": "integer"}, "m": _typed("numeric", path="o.m"), "json": {"type": "jsonb"}}
_TREES: dict[str, Any] = {
    "table": "trees",
    "tenant": {"constant": TENANT, "column": "tenant_id"},
    "id": "tree_id",
    "rest": "rest",
    "columns": {"title": {"type": "text"}},
    "children": {
        "branches": _child(
            "branches",
            1,
            {**scalars(), "label": _typed("text", default="none")},
            children={
                "twigs": _child(
                    "twigs",
                    2,
                    {**_ITEM, "kind": _typed("mood", constant="calm")},
                    children={
                        "in.leaves": _child("leaves", 3, _ITEM, ignore=["skip", "o.skip"]),
                        "names": _child("names", 3, {"name": _typed("code", path="$")}),
                    },
                    ignore=["skip"],
                ),
                "words": _child("words", 2, {"word": _typed("text", path="$"), **_ITEM}),
            },
        ),
        "at.sizes": _child("sizes", 1, {"size": _typed("double", path="$")}),
        "any": _child("anys", 1, {"it": {"type": "jsonb", "path": "$"}}),
        "rows": _child(
            "tag_rows",
            1,
            {"tags": {"type": "text[]", "path": "$"}, "n": {"type": "integer", "default": 1}},
            children={"below": _child("below", 2, {"d": _typed("day", path="$"), "n": {"type": "integer"}})},
        ),
    },
}
_NAMED: dict[str, Any] = {
    "table": "named",
    "tenant": {"name": "collection", "column": "tenant_id"},
    "rest": "rest",
    "columns": {"v": {"type": "bigint"}, "other": {"type": "uuid", "references": "named_{tenant}"}},
    "children": {"refs": _child("refs", 1, {"ref": _typed("uuid", path="$", references="named_{tenant}")})},
}
_PARTS: dict[str, Any] = {
    "table": "parts",
    "tenant": {"parent": {"collection": "flat", "path": "flat.id"}, "column": "tenant_id"},
    "rest": "rest",
    "columns": {
        "flat_id": {"type": "uuid", "path": "flat.id", "references": "flat"},
        "size": {"type": "double precision"},
    },
    "children": {
        "pieces": _child("pieces", 1, {"of": _typed("uuid", references="parts"), "at": _typed("at")})
    },
}
_SHARED: dict[str, Any] = {
    "table": "shared",
    "tenant": None,
    "rest": "rest",
    "columns": {"amount": {"type": "numeric"}, "doc": {"type": "jsonb"}},
    "children": {
        "lines": {
            k: v for k, v in _child("lines", 1, {**_ITEM, "day": _typed("day")}).items() if k != "tenant"
        }
    },
}
_SELF: dict[str, Any] = {
    "table": "self",
    "tenant": {"path": "_id", "column": "id"},
    "rest": "rest",
    "columns": {"settings": {"type": "jsonb"}},
}


def content(database: str) -> dict[str, Any]:
    """Return the mapping as its file would hold it."""
    collections = {
        "flat": _FLAT,
        "trees": _TREES,
        "named_{tenant}": _NAMED,
        "parts": _PARTS,
        "shared": _SHARED,
        "selves": _SELF,
    }
    return {"version": 1, "database": database, "collections": collections}


def mapping(database: str = "roundtrip") -> Mapping:
    """Return the mapping."""
    return Mapping.model_validate(content(database))
