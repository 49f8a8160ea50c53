"""Names of databases and collections that hold a tenant: ``shop_{tenant}``, ``{tenant}_orders``.

All real collections that fit one template are one logical collection: one table, one topic.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

from bson import ObjectId

from topics import Collection

PLACEHOLDER = "{tenant}"
_INTERNAL = frozenset({"admin", "local", "config", "crossfade"})


class Source(NamedTuple):
    """A real collection: name in the mapping, logical collection, and the tenant's name if it holds one."""

    name: str
    logical: Collection
    tenant: str | None


def check_template(template: str) -> str | None:
    """Return what is wrong with a name that may hold the placeholder."""
    if template.count(PLACEHOLDER) > 1:
        return f"{PLACEHOLDER} may stand in a name only once"
    if "{" in (left := template.replace(PLACEHOLDER, "")) or "}" in left:
        return f"the only placeholder is {PLACEHOLDER}"
    return None


def named_tenant(name: str) -> UUID | ObjectId | str:
    """Return the tenant's id that a name says: a UUID or ObjectId where it reads as one, else the text."""
    if re.fullmatch(r"[0-9a-f]{24}", name):
        return ObjectId(name)
    if re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", name):
        return UUID(name)
    return name


class Sources:
    """Finds what a real namespace is in the mapping."""

    def __init__(self, database: str, collections: Iterable[str]) -> None:
        self.database = database
        self._database = _pattern(database)
        # The more of a name is literal the nearer it fits: "{tenant}_old_orders" before "{tenant}_orders".
        nearest = sorted(collections, key=lambda name: (PLACEHOLDER in name, -len(name)))
        self._collections = [(name, _pattern(name), self.logical(database, name)) for name in nearest]
        self.find = lru_cache(maxsize=10_000)(self._find)
        """Return what ``database.collection`` is, or None where the mapping does not name it."""

    @staticmethod
    def logical(database: str, name: str) -> Collection:
        """Return the logical collection of two names of the mapping."""
        return Collection(_plain(database), _plain(name))

    def names(self) -> tuple[str | re.Pattern[str], list[str | re.Pattern[str]]]:
        """Return the database's name and the collections', each as text, or as the pattern that it must fit.

        They fit all that `find` finds, and a little more: `find` decides.
        """
        names = [pattern if PLACEHOLDER in name else name for name, pattern, _ in self._collections]
        return self._database if PLACEHOLDER in self.database else self.database, list(names)

    def exact(self, logical: Collection) -> bool:
        """Whether a logical collection is one real collection, of that very name."""
        return PLACEHOLDER not in self.database and any(
            logical == found and PLACEHOLDER not in name for name, _, found in self._collections
        )

    def _find(self, namespace: str) -> Source | None:
        database, _, name = namespace.partition(".")
        outer = self._database.fullmatch(database)
        if outer is None or database in _INTERNAL or name.startswith("system."):
            return None
        for written, pattern, logical in self._collections:
            if inner := pattern.fullmatch(name):
                tenants = [*outer.groups(), *inner.groups()]
                return Source(written, logical, tenants[0] if tenants else None)
        return None


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile("(.+)".join(map(re.escape, template.split(PLACEHOLDER))), re.DOTALL)


def _plain(template: str) -> str:
    return template.replace(PLACEHOLDER, "tenant")
