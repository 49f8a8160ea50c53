"""Which mapping makes a collection's rows: agreed on at start, watched by every batch, changed on purpose.

Rows of two mappings must not mix. The hash that `crossfade.collection` has is the mapping of the rows; a
program with another one does not start. `accept` takes a new one and has the collection copied again: the
copy's snapshot is newer than whatever the old mapping made, so it replaces every row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import asyncpg

from worker.errors import MappingError, SchemaError, ServiceUnavailable
from worker.postgres.connect import Connection
from worker.postgres.faults import FAULTS, describe

SHARE_CHANGES = "(SELECT changes FROM crossfade.mapping FOR SHARE)"
"""What a batch compares with `Agreed.changes`. Share-locked until its COMMIT: `accept` waits for it, and a
batch that has waited for `accept` reads the new number."""


class Agreed(NamedTuple):
    """What a program that has the rows' mapping goes by."""

    changes: int
    numbers: dict[str, int]
    """The small number of each collection in the ledger's key, by namespace."""


class Known(NamedTuple):
    """A collection as PostgreSQL knows it. ``copies``: how many have begun."""

    number: int
    mapping_hash: str
    copies: int


_CHANGES = "SELECT changes FROM crossfade.mapping"
# Not ON CONFLICT alone, which takes a number for each row that is there already: smallint ends at 32767.
_ADD = """
INSERT INTO crossfade.collection (namespace, mapping_hash)
SELECT namespace, mapping_hash FROM unnest($1::text[], $2::text[]) AS k(namespace, mapping_hash)
WHERE NOT EXISTS (SELECT FROM crossfade.collection c WHERE c.namespace = k.namespace)
ON CONFLICT DO NOTHING
"""
_KNOWN = "SELECT namespace, collection_id, mapping_hash, copies FROM crossfade.collection"
# A collection that publish finds in its file no more is invalid.
_OTHER = """
SELECT coalesce(f.namespace, c.namespace) FROM unnest($1::text[], $2::text[]) AS f(namespace, mapping_hash)
FULL JOIN crossfade.collection c ON c.namespace = f.namespace
WHERE f.mapping_hash <> c.mapping_hash
    OR (c.namespace IS NULL AND EXISTS (SELECT FROM crossfade.collection))
    OR (f.namespace IS NULL AND c.copy_state <> 'invalid')
ORDER BY 1
"""
_CHANGED = "UPDATE crossfade.mapping SET changes = changes + 1"
# What is invalid before its first copy stays so.
_COPY_AGAIN = """
UPDATE crossfade.collection c SET mapping_hash = k.mapping_hash, copy_cursor = NULL, copied = 0,
    copy_state = CASE WHEN copies = 0 THEN copy_state ELSE 'pending' END,
    copy_seconds = 0, copy_rate = NULL, copy_started_at = NULL, copy_finished_at = NULL
FROM unnest($1::text[], $2::text[]) AS k(namespace, mapping_hash) WHERE c.namespace = k.namespace
"""
_AWAY = "SELECT count(*) FROM crossfade.tenant WHERE phase <> 'mongo'"


async def known(connection: Connection) -> dict[str, Known]:
    """Return every collection that was ever mapped, by namespace."""
    return {row[0]: Known(*row[1:]) for row in await connection.fetch(_KNOWN)}


async def agree(connection: Connection, hashes: Mapping[str, str]) -> Agreed:
    """Make new collections known; `MappingError` when the rows of one are another mapping's.

    Or when one is new while tenants have left MongoDB: their documents of it would get no rows.
    """
    # Read first: a change between here and the hashes then ends our first batch.
    changes: int = await connection.fetchval(_CHANGES)  # pyright: ignore[reportAssignmentType]
    before = await known(connection)
    new = sorted(hashes.keys() - before.keys()) if before else []
    if new and (away := await connection.fetchval(_AWAY)):
        raise MappingError(
            f"{', '.join(new)} is new in the mapping, and {away} tenants are no longer in phase mongo: "
            "their documents of it would get no rows",
            remedy="leave it out until they are back, or the migration is done",
        )
    await make_known(connection, hashes)
    stored = await known(connection)
    if other := [name for name, hash_ in hashes.items() if stored[name].mapping_hash != hash_]:
        raise MappingError(
            f"the rows of {', '.join(other)} were made by another mapping than the file has now",
            remedy="put the mapping back, or accept it by "
            f"`crossfade copy start {' '.join(f'--collection {name}' for name in other)}`, which copies "
            "again over the live rows",
        )
    return Agreed(changes, {name: stored[name].number for name in hashes})


async def require(connection: Connection, hashes: Mapping[str, str]) -> None:
    """`MappingError` where the file's collections are not those whose rows PostgreSQL has. Changes nothing.

    For who decides on tenants: what its file lacks it would neither fence nor compare. Where there are
    no rows yet, any file is right.
    """
    if other := [row[0] for row in await connection.fetch(_OTHER, list(hashes), list(hashes.values()))]:
        raise MappingError(
            f"the mapping file is not that of the rows, in {', '.join(other)}",
            remedy="take the file that `crossfade publish` and `apply` have, or start these with this one",
        )


async def make_known(connection: Connection, hashes: Mapping[str, str]) -> None:
    """Make collections known that are not yet; those that are stay as they are."""
    await connection.execute(_ADD, list(hashes), list(hashes.values()))


async def accept(connection: Connection, hashes: Mapping[str, str], chosen: Collection[str]) -> None:
    """Let the chosen collections' rows be made by this mapping from now on, and have them copied again.

    When it returns no batch by another mapping of theirs can commit any more. `MappingError` when a tenant
    has left MongoDB and the mapping is a new one: a copy does not reach that tenant's rows.
    """
    wanted = {name: hashes[name] for name in chosen}
    async with connection.transaction():
        await make_known(connection, wanted)
        stored = await known(connection)
        if any(stored[name].mapping_hash != hash_ for name, hash_ in wanted.items()):
            if away := await connection.fetchval(_AWAY):
                raise MappingError(
                    f"{away} tenants are no longer in phase mongo, and a copy does not change their rows",
                    remedy="keep the mapping until they are back, or the migration is done",
                )
            await connection.execute(_CHANGED)
        await connection.execute(_COPY_AGAIN, list(wanted), list(wanted.values()))


@contextmanager
def told_clearly() -> Iterator[None]:
    """Turn what PostgreSQL may say to a command into one clear line."""
    try:
        yield
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError, asyncpg.UndefinedColumnError):
        raise SchemaError(
            "the database has no control schema, or an older one", remedy="run `crossfade schema apply`"
        ) from None
    except asyncpg.InsufficientPrivilegeError:
        raise SchemaError(
            "the role of CROSSFADE_POSTGRES_DSN may not change schema crossfade",
            remedy="connect as crossfade_sync",
        ) from None
    except FAULTS as error:
        raise ServiceUnavailable(
            f"PostgreSQL does not answer ({describe(error)})", remedy="check the server, then try again"
        ) from None
