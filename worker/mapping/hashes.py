"""A hash of what makes a collection's rows, to know rows of another mapping."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from worker.mapping.model import Child, CollectionMapping, Mapping


def hashes(mapping: Mapping) -> dict[str, str]:
    """Return, by logical namespace, a hash that changes whenever the collection's rows would."""
    return {str(mapping.logical(name)): _hash(mapping, name) for name in mapping.collections}


def _hash(mapping: Mapping, name: str) -> str:
    one = mapping.collections[name]
    told: dict[str, Any] = {"": _dump(one)}
    # Other collections have a part in it: a tenant in their names is part of their row ids, and so of what
    # refers to them; and a parent's tenant is its documents' tenant.
    if scoped := sorted(other for other in _references(one) if _scoped(mapping.collections[other])):
        told["scoped"] = scoped
    tenant = one.tenant
    while tenant is not None and tenant.parent is not None:
        above = mapping.collections[tenant.parent.collection]
        tenant = above.tenant
        told.setdefault("above", []).append(None if tenant is None else tenant.model_dump(mode="json"))
    # Sorted: to write the columns in another order changes no row.
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _dump(one: CollectionMapping) -> dict[str, Any]:
    return one.model_dump(mode="json", exclude_defaults=True)


def _scoped(one: CollectionMapping) -> bool:
    return one.tenant is not None and one.tenant.name is not None


def _references(part: CollectionMapping | Child) -> Iterator[str]:
    for column in part.columns.values():
        if column.references:
            yield column.references
    for child in part.children.values():
        yield from _references(child)
