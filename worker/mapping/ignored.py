"""A document without what its mapping leaves behind on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from worker.mapping.model import Child, CollectionMapping

Document = dict[str, Any]


def without_ignored(part: CollectionMapping | Child, document: Document) -> Document:
    """Return a (sub)document as it can be read back, in its arrays' elements too."""
    for path in part.ignore:
        document = _at(document, path.split("."), None)
    for path, child in part.children.items():
        document = _at(document, path.split("."), lambda array, of=child: _elements(of, array))
    return document


def _elements(child: Child, array: Any) -> Any:
    if type(array) is not list or (
        child.whole is not None and len(child.columns) == 1 and not child.children
    ):
        return cast("Any", array)
    items = cast("list[Any]", array)
    return [without_ignored(child, cast("Document", one)) if type(one) is dict else one for one in items]


def _at(document: Document, steps: list[str], change: Callable[[Any], Any] | None) -> Document:
    """Return a copy with the value at a path changed, or left out."""
    name, *inner = steps
    if name not in document or (inner and type(document[name]) is not dict):
        return document
    document = dict(document)
    if inner:
        document[name] = _at(cast("Document", document[name]), inner, change)
    elif change is not None:
        document[name] = change(document[name])
    else:
        del document[name]
    return document
