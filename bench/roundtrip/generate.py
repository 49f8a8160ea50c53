"""Documents for a mapping: each from its seed and its number alone, so that any can be made again."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any
from uuid import UUID

from bson import Int64, Timestamp

from bench.roundtrip import values
from worker.mapping.model import ELEMENT, Child, CollectionMapping, Column
from worker.mapping.rebuild import put
from worker.mapping.types import parse_type

Document = dict[str, Any]

_parsed = cache(parse_type)
_ORDINARY = 0.35
"""The share of documents whose fields all have the type of their column."""
_DEEP = 1 / 300
_LONG = 1 / 300


class Documents:
    """One collection's documents. ``parents``: ids of documents whose tenant these may have."""

    def __init__(self, mapping: CollectionMapping, seed: int, parents: list[Any] | None = None) -> None:
        self._mapping = mapping
        self._seed = seed
        self._parents = parents or []

    def document(self, number: int, change: int = 0) -> Document:
        """Return a document; each ``change`` of it has the same id."""
        id_ = _id(Random(f"{self._seed}:{number}"), number)
        rng = Random(f"{self._seed}:{number}:{change}")
        ordinary = rng.random() < _ORDINARY
        document: Document = {}
        if not ordinary:
            document = {values.name(rng): values.any_value(rng) for _ in range(rng.randrange(4))}
            document.pop("_id", None)
        _fill(rng, document, self._mapping, ordinary)
        if rng.random() < _DEEP:
            document["deeper"] = values.nested(rng, rng.randrange(60, 95))
        self._tenant(rng, document, ordinary)
        return {"_id": id_} | document

    def _tenant(self, rng: Random, document: Document, ordinary: bool) -> None:
        tenant = self._mapping.tenant
        if tenant is None or (not ordinary and rng.random() < 0.01):
            return
        if tenant.path is not None and tenant.path != "_id":
            told = rng.random() < 0.7
            put(document, tenant.path, UUID(int=rng.randrange(9)) if told else values.any_value(rng, 1))
        elif tenant.parent is not None:
            put(document, tenant.parent.path, rng.choice(self._parents) if self._parents else "nobody")


def _id(rng: Random, number: int) -> Any:
    """Return an id that no other number has."""
    match rng.randrange(20):
        case 0:
            return number
        case 1:
            return number + 0.5
        case 2:
            return Int64(2**40 + number)
        case 3:
            return f"{values.text(rng)}:{number}"
        case 4:
            return {"n": number, "more": values.any_value(rng, 2)}
        case 5:
            return {"more": values.leaf(rng), "n": number}
        case 6:
            return Timestamp(number, rng.getrandbits(32))
        case 7:
            return b"%d" % number
        case _:
            return values.some_id(rng)


def _fill(rng: Random, document: Document, part: CollectionMapping | Child, ordinary: bool) -> None:
    """Put a value for each column and array of a table into a (sub)document."""
    for name, column in part.columns.items():
        if column.path == ELEMENT:
            continue
        if column.constant is not None:
            if not ordinary and rng.random() < 0.1:  # a field that only has the column's name
                document[name] = values.leaf(rng)
            continue
        chance = rng.random()
        if ordinary or column.required:
            if chance < 0.8 or column.required:
                _put(rng, document, column.path or name, _value(rng, column), ordinary)
        elif chance < 0.75:
            value = _value(rng, column) if chance < 0.5 else values.any_value(rng, 2)
            _put(rng, document, column.path or name, None if chance < 0.05 else value, ordinary)
    for path, child in part.children.items():
        if ordinary or rng.random() < 0.8:
            _put(rng, document, path, _array(rng, child, ordinary), ordinary)
    for path in part.ignore:
        if rng.random() < 0.2:
            _put(rng, document, path, values.any_value(rng, 1), ordinary)


def _put(rng: Random, document: Document, path: str, value: Any, ordinary: bool) -> None:
    """Set a dotted path, unless something that is no object stands in the way."""
    *way, last = path.split(".")
    for name in way:
        if not ordinary and name not in document and rng.random() < 0.02:
            document[name] = values.any_value(rng, 1)
        inner = document.setdefault(name, {})
        if not isinstance(inner, dict):
            return
        document = inner
    document[last] = value


def _value(rng: Random, column: Column) -> Any:
    type_ = _parsed(column.type)
    if column.default is not None and rng.random() < 0.2:
        return values.as_bson(type_.base, column.default)
    if column.references is not None:
        one = values.some_id if rng.random() < 0.7 else values.leaf
    else:
        one = values.FITTING[type_.base]
    if not type_.array:
        return one(rng)
    return [None if rng.random() < 0.1 else one(rng) for _ in range(rng.randrange(4))]


def _array(rng: Random, child: Child, ordinary: bool) -> Any:
    if not ordinary and rng.random() < 0.1:
        return rng.choice([None, [], {}, values.leaf(rng)])
    size = rng.randrange(100, 300) if rng.random() < _LONG else rng.randrange(4)
    return [_element(rng, child, ordinary) for _ in range(size)]


def _element(rng: Random, child: Child, ordinary: bool) -> Any:
    chance = rng.random()
    if not ordinary and chance < 0.1:
        return values.any_value(rng, 2)
    whole = child.columns[child.whole] if child.whole else None
    if whole is not None and (chance < 0.6 or (len(child.columns) == 1 and not child.children)):
        return _value(rng, whole)
    element: Document = {}
    if not ordinary and chance < 0.3:
        element = {values.name(rng): values.any_value(rng, 1) for _ in range(rng.randrange(3))}
    _fill(rng, element, child, ordinary)
    return element
