"""What a publisher must not forget: its incarnation, resume token, and how far each copy has come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import orjson
import structlog

from topics import key_to_id
from worker.errors import Fatal, SchemaError, ServiceUnavailable
from worker.mapping.values import back_to_id
from worker.postgres import migration_log
from worker.postgres.audit import BEGAN_ANEW, COPY_AGAIN, os_user
from worker.postgres.connect import ANSWER_WITHIN, connect
from worker.postgres.faults import FAULTS, Action, action_for, describe, unusable
from worker.postgres.mapping_versions import agree
from worker.retry import Backoff

_log = structlog.get_logger()
T = TypeVar("T")

_SCHEMA = "SELECT to_regclass('crossfade.gone_collection') IS NOT NULL"  # its newest table that we need
_LOAD = """
SELECT incarnation, started_time, token, token_time, incarnations
FROM crossfade.checkpoint WHERE publisher = $1
"""
_CREATE = """
INSERT INTO crossfade.checkpoint (publisher, incarnation, started_time) VALUES ($1, $2, $3)
ON CONFLICT (publisher) DO NOTHING
"""
# A new life, if nobody else has begun one; what was copied in the old one no longer proves anything.
_BEGIN_ANEW = """
WITH begun AS (
    UPDATE crossfade.checkpoint SET incarnation = $3, started_time = $4, token = NULL, token_time = NULL,
        incarnations = incarnations + 1, saved_at = now()
    WHERE publisher = $1 AND incarnation = $2 RETURNING publisher
), audited AS (
    INSERT INTO crossfade.audit (os_user, action, subject, reason)
    SELECT $5, $6, $7::jsonb, $8 FROM begun
)
UPDATE crossfade.collection SET copy_state = 'invalid'
WHERE copy_incarnation = $2 AND EXISTS (SELECT FROM begun)
"""
_INVALIDATE = """
WITH invalid AS (
    UPDATE crossfade.collection SET copy_state = 'invalid' WHERE namespace = $1
), gone AS (
    INSERT INTO crossfade.gone_collection (namespace, collection) VALUES ($6, $1)
    ON CONFLICT (namespace) DO NOTHING
)
INSERT INTO crossfade.audit (os_user, action, subject, reason)
VALUES ($2, $3, $4::jsonb, $5)
"""
_DISTRUST = """
UPDATE crossfade.collection SET copy_state = 'invalid' WHERE namespace = ANY($1::text[]) AND copies = 0
"""
_SAVE = """
UPDATE crossfade.checkpoint SET saved_at = now(),
    token = CASE WHEN coalesce(token_time, 0) <= $4 THEN $3 ELSE token END,
    token_time = greatest(token_time, $4)
WHERE publisher = $1 AND incarnation = $2 AND coalesce(token_time, 0) >= $5 RETURNING true
"""
# The rows of a collection that this publisher's mapping no longer names fall behind from here on; the stream
# may have written some before the first copy.
_LEAVE = """
UPDATE crossfade.collection SET copy_state = 'invalid'
WHERE namespace <> ALL($1::text[]) AND copy_state <> 'invalid' RETURNING namespace
"""
_COPIES = """
SELECT namespace, copy_state::text, copies, copy_incarnation, copy_cursor, copied, mapping_hash,
    copy_began_time, copy_seconds, copy_paused FROM crossfade.collection
"""
# Where something was lost before the first copy, what the stream had written may be gone in MongoDB: that
# copy counts as the second, which ends with a removal as every later one does.
_BEGIN = """
UPDATE crossfade.collection SET copy_state = 'copying',
    copies = copies + CASE WHEN copies = 0 AND copy_state = 'invalid' THEN 2 ELSE 1 END,
    copy_incarnation = $3, copy_cursor = NULL, copied = 0, estimated = $4,
    copy_began_time = $6, copy_started_at = now(), copy_finished_at = NULL, copy_seconds = 0, copy_rate = NULL
WHERE namespace = $1 AND copies = $2 AND mapping_hash = $5 RETURNING copies
"""
# Only the present copy, and only while it is wanted as it was begun: it may have been asked for anew, or
# apply may have found that Kafka lost a part of it.
_PROGRESS = """
UPDATE crossfade.collection SET copy_cursor = $3, copied = $4, copy_seconds = $5, copy_rate = $6
WHERE namespace = $1 AND copies = $2 AND copy_state = 'copying' RETURNING true
"""
_BEGIN_REMOVAL = """
UPDATE crossfade.collection SET copy_state = 'removing'
WHERE namespace = $1 AND copies = $2 AND copy_state IN ('copying', 'removing') RETURNING true
"""
_FINISH = """
UPDATE crossfade.collection SET copy_state = 'copied', copy_finished_at = now()
WHERE namespace = $1 AND copies = $2 AND copy_state IN ('copying', 'removing') RETURNING true
"""
_CANDIDATES = """
SELECT d.row_id, d.tenant_id, d.document_id
FROM crossfade.document d JOIN crossfade.collection c USING (collection_id)
WHERE c.namespace = $1 AND d.state <> 'deleted' AND d.version_time <= $2
    AND d.row_id >= coalesce($3::uuid, '00000000-0000-0000-0000-000000000000')
    AND d.row_id IS DISTINCT FROM $3
ORDER BY d.row_id LIMIT $4
"""
_FOLLOWED = "SELECT token_time >= $2 FROM crossfade.checkpoint WHERE publisher = $1"
_GONE = "SELECT namespace FROM crossfade.gone_collection WHERE collection = $1"
_APPLIED = """
SELECT NOT EXISTS (
    SELECT FROM unnest($1::text[], $2::integer[], $3::bigint[]) AS k(topic, partition, ends)
    LEFT JOIN crossfade.partition_progress p USING (topic, partition)
    WHERE coalesce(p.next_offset, 0) < k.ends)
"""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A publisher's stream: its incarnation, the clusterTime S where it began, and the last saved token."""

    incarnation: UUID
    started_time: int
    token: bytes | None
    token_time: int | None
    incarnations: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document that may be gone: it has not been seen since a copy began."""

    row_id: UUID
    tenant_id: UUID | None
    id: Any


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """How far the copy of a collection has come. ``state``: pending, copying, removing, copied or invalid.

    ``number`` counts the copies that have begun; the present one has it. ``began``: a clusterTime.
    ``seconds`` were spent on it so far, pauses left out.
    """

    state: str
    number: int
    incarnation: UUID | None
    cursor: bytes | None
    copied: int
    mapping_hash: str
    began: int | None
    seconds: float
    paused: bool


class Checkpoints:
    """The publisher's rows, over one connection that comes back by itself."""

    def __init__(self, dsn: str, publisher: str) -> None:
        self._dsn = dsn
        self._publisher = publisher
        self._lock = asyncio.Lock()
        self._connection: asyncpg.Connection | None = None

    async def open(self) -> None:
        """Connect; `ServiceUnavailable` or `SchemaError` says why it cannot work."""
        self._connection = await connect(self._dsn, "publish", statement_timeout=ANSWER_WITHIN)
        try:
            found = await self._connection.fetchval(_SCHEMA)
        except asyncpg.InsufficientPrivilegeError:
            raise SchemaError(
                "the role of CROSSFADE_POSTGRES_DSN may not use schema crossfade",
                remedy="connect as crossfade_sync",
            ) from None
        if not found:
            raise SchemaError(
                "the database has no control schema, or an older one", remedy="run `crossfade schema apply`"
            )

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None and not self._connection.is_closed():
            try:
                await self._connection.close(timeout=2)
            except FAULTS:
                self._connection.terminate()

    async def load(self) -> Checkpoint | None:
        """Return this publisher's checkpoint, if it has begun."""
        row = await self._run(lambda connection: connection.fetchrow(_LOAD, self._publisher))
        return Checkpoint(*row) if row else None

    async def create(self, incarnation: UUID, started_time: int) -> Checkpoint:
        """Save where the stream begins (C4), unless it has begun; return what holds."""
        await self._run(
            lambda connection: connection.execute(_CREATE, self._publisher, incarnation, started_time)
        )
        checkpoint = await self.load()
        assert checkpoint is not None
        return checkpoint

    async def begin_anew(
        self, before: Checkpoint, incarnation: UUID, started_time: int, reason: str
    ) -> Checkpoint:
        """Begin another incarnation after ``before`` (C7), unless that has happened; return what holds.

        The audit log keeps why, and between which times no event was read.
        """
        subject = {
            "publisher": self._publisher,
            "incarnation": str(incarnation),
            "after": str(before.incarnation),
            "followed_until": _moment(before.token_time or before.started_time),
            "follows_since": _moment(started_time),
        }
        audited = os_user(), BEGAN_ANEW, orjson.dumps(subject), reason
        arguments = self._publisher, before.incarnation, incarnation, started_time, *audited
        await self._run(lambda connection: connection.execute(_BEGIN_ANEW, *arguments))
        checkpoint = await self.load()
        assert checkpoint is not None
        return checkpoint

    async def save_token(self, incarnation: UUID, token: bytes, time: int, before: int) -> None:
        """Save a token, never one older than what is saved. ``before``: the time of the one saved last, or 0.

        `Fatal` when the checkpoint is another incarnation's, gone, or behind what was saved: another
        publisher has begun anew, or PostgreSQL was restored to an older state. That lacks what was asked for
        meanwhile, as the copy of a collection that was dropped, and the stream must tell it again.
        """
        arguments = self._publisher, incarnation, token, time, before
        if not await self._run(lambda connection: connection.fetchval(_SAVE, *arguments)):
            raise Fatal("the checkpoint is no longer this publisher's", remedy="start publish again")

    async def invalidate(self, namespace: str, real: str, change: str) -> None:
        """Have a collection copied again, because ``real``, one of its collections, changed as a whole."""
        subject = orjson.dumps({"collection": namespace, "namespace": real})
        audited = os_user(), COPY_AGAIN, subject, f"changed as a whole: {change}"
        await self._run(lambda connection: connection.execute(_INVALIDATE, namespace, *audited, real))

    async def distrust(self, namespaces: Sequence[str]) -> None:
        """Have collections' first copies end with a removal; every later copy does anyway."""
        await self._run(lambda connection: connection.execute(_DISTRUST, namespaces))

    async def agree(self, hashes: Mapping[str, str]) -> None:
        """Make the mapping's collections known; `MappingError` when the rows are another mapping's.

        A collection that is no longer mapped is copied again if it ever comes back.
        """
        await self._run(lambda connection: agree(connection, hashes))
        left = await self._run(lambda connection: connection.fetch(_LEAVE, list(hashes)))
        for row in left:
            _log.warning("collection is no longer mapped; its rows fall behind", collection=row[0])

    async def copies(self) -> dict[str, CopyProgress]:
        """Return the progress of all copies, by namespace."""
        rows = await self._run(lambda connection: connection.fetch(_COPIES))
        return {row[0]: CopyProgress(*row[1:]) for row in rows}

    async def begin_copy(
        self, namespace: str, before: CopyProgress, incarnation: UUID, estimated: int, began: int
    ) -> int | None:
        """Begin the copy after ``before`` from the first document; return its number, or None.

        None: another was begun meanwhile, or another mapping was accepted.
        """
        arguments = namespace, before.number, incarnation, estimated, before.mapping_hash, began
        return await self._run(lambda connection: connection.fetchval(_BEGIN, *arguments))

    async def advance_copy(
        self, namespace: str, number: int, cursor: bytes, copied: int, seconds: float, rate: float
    ) -> bool:
        """Save that everything up to a document is in Kafka, ``copied`` documents in all.

        ``seconds`` were spent on them, ``rate`` is documents a second lately. False: this copy is no longer
        the one that is wanted.
        """
        arguments = namespace, number, cursor, copied, seconds, rate
        return bool(await self._run(lambda connection: connection.fetchval(_PROGRESS, *arguments)))

    async def begin_removal(self, namespace: str, number: int) -> bool:
        """Save that all documents are in Kafka; False: this copy is no longer the one that is wanted."""
        return bool(
            await self._run(lambda connection: connection.fetchval(_BEGIN_REMOVAL, namespace, number))
        )

    async def candidates(self, namespace: str, began: int, after: UUID | None, most: int) -> list[Candidate]:
        """Return documents that nothing has shown since a clusterTime, in the order of row ids.

        ``after``: the last row id of those before; None at first, for the lowest UUID is an id too.
        """
        rows = await self._run(
            lambda connection: connection.fetch(_CANDIDATES, namespace, began, after, most)
        )
        return [Candidate(row[0], row[1], document_id(row[0], row[2])) for row in rows]

    async def followed(self, time: int) -> bool:
        """Whether the saved token is at or past a clusterTime: Kafka has all that was changed before."""
        return bool(await self._run(lambda connection: connection.fetchval(_FOLLOWED, self._publisher, time)))

    async def gone(self, namespace: str) -> list[str]:
        """Return the real collections of a logical one that were dropped, renamed or overwritten."""
        rows = await self._run(lambda connection: connection.fetch(_GONE, namespace))
        return [row[0] for row in rows]

    async def applied(self, ends: Mapping[tuple[str, int], int]) -> bool:
        """Whether apply has read every partition up to these offsets."""
        topics, partitions = [place[0] for place in ends], [place[1] for place in ends]
        offsets = list(ends.values())
        return bool(
            await self._run(lambda connection: connection.fetchval(_APPLIED, topics, partitions, offsets))
        )

    async def forget_topics(self, topics: Mapping[str, str]) -> list[str]:
        """As `migration_log.forget_topics`."""
        return await self.do(lambda connection: migration_log.forget_topics(connection, topics))

    async def read_to(self) -> dict[migration_log.Partition, int]:
        """Return the next offset of each partition that apply has read."""
        return await self._run(migration_log.offsets)

    async def forget_partitions(self, gone: Sequence[tuple[str, str, int]]) -> list[str]:
        """See `migration_log.forget_partitions`."""
        return await self._run(lambda connection: migration_log.forget_partitions(connection, gone))

    async def finish_copy(self, namespace: str, number: int) -> bool:
        """Save that the copy is whole; False: it is no longer the one that is wanted."""
        return bool(await self._run(lambda connection: connection.fetchval(_FINISH, namespace, number)))

    async def do(self, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """Do a statement of another module over this connection, as patiently."""
        return await self._run(work)

    async def _run(self, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """Do one statement; while PostgreSQL is away, wait and do it again (each may run twice)."""
        async with self._lock:
            delays = Backoff().delays()
            told = False
            while True:
                try:
                    if self._connection is None or self._connection.is_closed():
                        self._connection = await connect(
                            self._dsn, "publish", statement_timeout=ANSWER_WITHIN
                        )
                    result = await work(self._connection)
                except ServiceUnavailable as error:
                    reason = str(error.message)
                except FAULTS as error:
                    if unusable(error) and self._connection is not None:
                        self._connection.terminate()
                    reason = _reason(error)
                else:
                    if told:
                        _log.info("PostgreSQL is back")
                    return result
                if not told:
                    _log.warning("PostgreSQL is away, trying again", error=reason)
                told = True
                await asyncio.sleep(next(delays))


def _moment(time: int) -> str:
    """Return a clusterTime's second, as ISO 8601."""
    return datetime.fromtimestamp(time >> 32, UTC).isoformat()


def document_id(row_id: UUID, kept: bytes | None) -> Any:
    """Return a document's id from its row id, or from what the ledger keeps where that does not tell it."""
    return key_to_id(kept) if kept is not None else back_to_id(row_id)


def _reason(error: BaseException) -> str:
    action, why = action_for(error)
    if action is not Action.RETRY:
        raise Fatal(f"PostgreSQL: {why} ({describe(error)})") from None
    return describe(error)
