"""Names of topics: a stream topic, a copy topic and a reverse topic for each collection."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_LEGAL = re.compile(r"[A-Za-z0-9._-]+")
_LONGEST = 249
_COPY = ".copy"
_REVERSE = "reverse"


@dataclass(frozen=True, slots=True, order=True)
class Collection:
    """A MongoDB collection by database and name; written ``database.name``."""

    database: str
    name: str

    def __str__(self) -> str:
        return f"{self.database}.{self.name}"

    @classmethod
    def parse(cls, namespace: str) -> Collection:
        """Return the collection that ``database.name`` names (the name may hold dots)."""
        database, dot, name = namespace.partition(".")
        if not (database and dot and name):
            raise ValueError(f"not a namespace: {namespace!r}; write database.collection")
        return cls(database, name)


@dataclass(frozen=True, slots=True)
class TopicNames:
    """Topic names under one prefix.

    The copy has topics of its own, so that its backlog never stands before a live change. Order between
    the two never matters: versions decide.
    """

    prefix: str = "crossfade"

    def stream(self, collection: Collection) -> str:
        """Return the topic of the collection's live changes."""
        return self._legal(f"{self.prefix}.{collection}")

    def copy(self, collection: Collection) -> str:
        """Return the topic of the collection's copy."""
        return self._legal(f"{self.prefix}.{collection}{_COPY}")

    def reverse(self, collection: Collection) -> str:
        """Return the topic of the collection's way back, from PostgreSQL to MongoDB."""
        return self._legal(f"{self.prefix}.{_REVERSE}.{collection}")

    def namespaces(self, collections: Iterable[Collection]) -> dict[str, str]:
        """Return the namespace that each topic which apply reads of these collections belongs to."""
        return {
            topic: str(collection)
            for collection in collections
            for topic in (self.stream(collection), self.copy(collection))
        }

    @staticmethod
    def _legal(name: str) -> str:
        if len(name) > _LONGEST or not _LEGAL.fullmatch(name):
            raise ValueError(
                f"{name!r} cannot be a Kafka topic (letters, digits, '.', '_' and '-', at most {_LONGEST}); "
                "rename the collection or choose another prefix"
            )
        return name
