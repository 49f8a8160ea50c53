"""Further looks: at what did not fit before, and at what was changed."""

from __future__ import annotations

from collections.abc import Collection as Container
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from topics import Version
from worker.postgres.connect import Connection
from worker.postgres.mismatches import MismatchRow
from worker.reconcile.compare import Difference
from worker.reconcile.judge import Identity, Look, Mismatch, Moment, first, judge
from worker.reconcile.sides import Sides

_FIRST, AT_ONCE = 16, 500  # documents of one look


async def look_at(
    sides: Sides, reader: Connection, identities: Iterable[Identity], copying: Container[str]
) -> list[tuple[Look, Moment]]:
    """Look at documents of any collections, PostgreSQL first."""
    by_collection: dict[str, list[Identity]] = {}
    for one in identities:
        by_collection.setdefault(one.collection, []).append(one)
    looks: list[tuple[Look, Moment]] = []
    for namespace, some in by_collection.items():
        source, left, most = sides.source(namespace), list(some), _FIRST
        while left:
            # Few at first, for nobody knows how large they are; more while MongoDB shows all of them at once.
            seen, later, moment = await sides.look(reader, source, left[:most], source.namespace in copying)
            looks += [(look, moment) for look in seen]
            left = later + left[most:]
            most = max(1, most // 4) if later else min(AT_ONCE, most * 2)
    return looks


async def recheck(
    sides: Sides,
    reader: Connection,
    before: Sequence[Mismatch],
    copying: Container[str],
    switched: Container[UUID] = (),
) -> tuple[list[Mismatch], list[Look]]:
    """Look again at mismatches; return them as they are now, and the looks at those to be forgotten."""
    known = {one.look.key: one for one in before}
    now: list[Mismatch] = []
    fit: list[Look] = []
    for look, moment in await look_at(sides, reader, [one.look.identity for one in before], copying):
        after = judge(known[look.key], look, moment)
        if after is not None and not left_out(look, switched):
            now.append(after)
        else:
            fit.append(look)
    return now, fit


async def changed(
    sides: Sides,
    reader: Connection,
    ids: Mapping[str, Mapping[bytes, Any]],
    copying: Container[str],
    generation: int,
    switched: Container[UUID] = (),
) -> tuple[int, list[Mismatch]]:
    """Look at changed documents, by real namespace; return how many there were and what does not fit."""
    identities: dict[tuple[str, UUID], Identity] = {}
    for namespace, some in ids.items():
        source = sides.source(namespace)
        for id_ in some.values():
            one = source.identity(source.plan.row_id(id_), id_)
            identities[namespace, one.row_id] = one
    looks = await look_at(sides, reader, identities.values(), copying)
    return len(identities), first_looks(looks, generation, switched)


def first_looks(
    looks: Iterable[tuple[Look, Moment]], generation: int, switched: Container[UUID]
) -> list[Mismatch]:
    """Return what does not fit of documents that were looked at for the first time."""
    found: list[Mismatch] = []
    for look, moment in looks:
        one = judge(first(look, moment.at, generation), look, moment)
        if one is not None and not left_out(look, switched):
            found.append(one)
    return found


def left_out(look: Look, switched: Container[UUID]) -> bool:
    """Whether a look is of tenants alone whose writes go to PostgreSQL: there MongoDB is the copy."""
    return bool(look.tenants) and all(one in switched for one in look.tenants)


def to_row(one: Mismatch) -> MismatchRow:
    """Return a mismatch as a row of ``crossfade.mismatch``."""
    look = one.look
    version = look.version
    return {
        "namespace": look.identity.namespace,
        "row_id": look.identity.row_id,
        "collection": look.identity.collection,
        "document_id": look.identity.document_id,
        "tenant_id": look.tenant,
        "row_tenant_id": look.row_tenant,
        "state": one.state,
        "kind": look.kind,
        "reason": one.reason,
        "fields": [list(field) for field in look.fields],
        "generation": one.generation,
        "first_seen_at": one.first_seen_at,
        "since": one.since,
        "checked_at": one.checked_at,
        "changes": one.changes,
        "observed_time": one.observed_time,
        "version_time": version.time if version else None,
        "version_order": version.order if version else None,
        "mongo_digest": look.mongo,
        "postgres_digest": look.postgres,
        "repaired_at": one.repaired_at,
        "repairs": one.repairs,
    }


def from_row(row: MismatchRow) -> Mismatch:
    """Return the mismatch that a row of ``crossfade.mismatch`` keeps."""
    version = None if row["version_time"] is None else Version(row["version_time"], row["version_order"])
    identity = Identity(row["namespace"], row["row_id"], row["collection"], row["document_id"])
    look = Look(
        identity,
        row["kind"],
        row["mongo_digest"],
        row["postgres_digest"],
        row["tenant_id"],
        version,
        [Difference(*field) for field in row["fields"]],
        row_tenant=row["row_tenant_id"],
    )
    return Mismatch(
        look,
        row["state"],
        row["reason"],
        row["generation"],
        row["first_seen_at"],
        row["since"],
        row["checked_at"],
        row["changes"],
        row["observed_time"],
        row["repaired_at"],
        row["repairs"],
    )
