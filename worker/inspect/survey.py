"""A survey of one database: its collections' options, indexes and samples, and what cannot be migrated."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from topics import Collection as Namespace
from topics import TopicNames
from worker.errors import ConfigurationError
from worker.inspect.names import shown
from worker.inspect.profile import Profile
from worker.mongo.client import Client
from worker.mongo.sample import CollectionInfo, Taken, collections, database_names, sample

Report = Callable[[str], None]

SYSTEM_DATABASES = ("admin", "config", "local", "crossfade")
_EVERY = 20_000  # documents from one line of progress to the next


@dataclass(slots=True)
class Surveyed:
    """One collection: what MongoDB tells of it, and what was seen of its documents."""

    info: CollectionInfo
    taken: Taken = field(default_factory=Taken)
    profile: Profile = field(default_factory=Profile)

    @property
    def name(self) -> str:
        """The collection's name."""
        return self.info.name

    @property
    def documents(self) -> int:
        """How many documents the profile is of."""
        return self.profile.objects

    def at(self, path: str) -> Profile | None:
        """Return the profile at a dotted path outside arrays."""
        place = self.profile
        for name in path.split("."):
            inner = place.fields.get(name)
            if inner is None:
                return None
            place = inner
        return place


@dataclass(frozen=True, slots=True)
class Unsupported:
    """What MongoDB has and the draft has not, and why."""

    collection: str
    what: str
    why: str


@dataclass(slots=True)
class Survey:
    """A database as it was found."""

    database: str
    collections: list[Surveyed]
    unsupported: list[Unsupported]


def known(kind: str, name: str, names: Collection[str]) -> str:
    """Return a name that is among those that exist; `ConfigurationError` tells the nearest right one."""
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        has = ", ".join(sorted(names)[:10]) or "none"
        raise ConfigurationError(
            f"MongoDB has no {kind} {name}", remedy=f"did you mean {near[0]}?" if near else f"it has: {has}"
        )
    return name


async def known_database(client: Client, name: str) -> str:
    """Return a database's name; `ConfigurationError` where there is none that may be inspected."""
    if name in SYSTEM_DATABASES:
        raise ConfigurationError(
            f"database {name} is a system's, not an application's", remedy="name another with --database"
        )
    if "{" in name or "}" in name:
        raise ConfigurationError(f"a mapping cannot name database {name}: it has a brace in its name")
    return known("database", name, set(await database_names(client)) - set(SYSTEM_DATABASES))


async def survey(
    client: Client, database: str, only: Collection[str], size: int | None, report: Report
) -> Survey:
    """Read a database's collections, or only some; ``size`` documents of each, None: all."""
    infos = await collections(client, database)
    for name in only:
        known("collection", name, {info.name for info in infos})
    chosen = [info for info in infos if not only or info.name in only]
    found, unsupported = list[Surveyed](), list[Unsupported]()
    for info in chosen:
        if why := refused(database, info, infos):
            unsupported.append(Unsupported(info.name, *why))
            continue
        one = Surveyed(info)
        await read(client, database, one, size, report)
        found.append(one)
        unsupported.extend(_noted(one))
    return Survey(database, found, unsupported)


async def read(client: Client, database: str, one: Surveyed, size: int | None, report: Report) -> None:
    """Take a collection's sample into its profile."""
    async for document in sample(client, database, one.name, size, one.taken):
        one.profile.add(document)
        if one.taken.documents % _EVERY == 0:
            report(f"{shown(one.name)}: {one.taken.documents:,} of about {one.info.count:,} documents")
    one.profile.settle()
    report(f"{shown(one.name)}: {told_of(one)}")


def told_of(one: Surveyed) -> str:
    """Return how much of a collection was seen."""
    taken = one.taken
    if taken.whole and not taken.cut_short:
        return f"all {taken.documents:,} documents"
    told = f"{taken.documents:,} of about {one.info.count:,} documents"
    return f"{told}, until the time for a sample was over" if taken.cut_short else told


def refused(database: str, info: CollectionInfo, all_: Sequence[CollectionInfo]) -> tuple[str, str] | None:
    """Return what a collection is and why it cannot be migrated, if so; ``all_``: the database's."""
    bucket, _, part = info.name.rpartition(".")
    pieces = {f"{bucket}.files", f"{bucket}.chunks"} <= {other.name for other in all_}
    if info.kind == "view":
        return "view", "a view has no documents of its own: write it as a view in PostgreSQL"
    if info.kind == "timeseries":
        return "time-series collection", "MongoDB has no change stream for it: copy it by other means"
    if info.options.get("capped"):
        why = "MongoDB reads no snapshot of it, and tells of nothing that it drops: copy it by other means"
        return "capped collection", why
    if part in ("files", "chunks") and pieces:
        return "GridFS bucket", "files in pieces are better kept in an object store: move them by other means"
    if info.name.startswith("enxcol_."):
        return "queryable encryption's own collection", "PostgreSQL has no such encryption"
    if "{" in info.name or "}" in info.name:
        return "name with a brace", "a mapping's names have braces for {tenant} alone"
    try:
        TopicNames().copy(Namespace(database, info.name))
    except ValueError:
        return "name", "Kafka's topics take letters, digits, dots, _ and - only: rename the collection"
    return None


def _noted(one: Surveyed) -> Iterator[Unsupported]:
    """Find options that have no equivalent, in a collection that can be migrated all the same."""
    options, name = one.info.options, one.name
    if options.get("encryptedFields"):
        yield Unsupported(name, "encrypted fields", "they stay as they are, in the rest column")
    elif any(kinds["encrypted"] for kinds in _kinds(one.profile)):
        yield Unsupported(name, "fields encrypted by the client", "they stay as they are, in the rest column")
    if options.get("validator"):
        yield Unsupported(name, "validator", "write it as CHECK constraints, where the application needs it")
    if one.taken.undecodable:
        why = "they are no valid BSON, and will be dead letters"
        yield Unsupported(name, f"{one.taken.undecodable} documents of the sample", why)


def _kinds(profile: Profile) -> Iterator[Any]:
    yield profile.kinds
    for inner in (*profile.fields.values(), *([profile.elements] if profile.elements else [])):
        yield from _kinds(inner)


_NAME_IN_URI = re.compile(r"mongodb(?:\+srv)?://[^/]*/(?P<name>[^?/]+)")


def database_of(uri: str) -> str | None:
    """Return the database that a connection string names."""
    match = _NAME_IN_URI.match(uri)
    return match["name"] if match else None
