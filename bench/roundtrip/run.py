"""Documents to rows, to PostgreSQL, and back; every one equal, or refused by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import bson
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError

from bench.roundtrip.generate import Document, Documents
from bench.roundtrip.mappings import mapping
from bench.roundtrip.tables import definitions
from examples.spaces.exact import differing_paths
from worker.mapping import CollectionPlan, Mapping, Plans, Rebuilder, Rows, Unmappable, Unrebuildable, scopes
from worker.mapping.ignored import without_ignored
from worker.mapping.model import CollectionMapping
from worker.postgres.connect import connect
from worker.postgres.documents import TargetDocuments
from worker.postgres.target import TargetTable

CODEC: CodecOptions[Document] = CodecOptions(
    tz_aware=True,
    uuid_representation=UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
"""As apply decodes a document (topics.envelope)."""
BATCH = 3000
TENANT_NAME = "acme"
_ENOUGH = 20
FAULTS = (asyncpg.PostgresError, asyncpg.InterfaceError, Unrebuildable, BSONError, RecursionError)
FAULTS += (ValueError, TypeError, LookupError, ArithmeticError)
"""What would end apply, or make a dead letter whose reason names nothing: here it is a difference."""
_PARENT = UUID(int=7)


@dataclass(frozen=True, slots=True)
class Difference:
    """A document that did not come back: its number, its collection, and where it differs."""

    number: int
    collection: str
    paths: tuple[str, ...]


@dataclass(slots=True)
class Judged:
    """What became of documents. ``refused``: how many for each reason."""

    documents: int = 0
    equal: int = 0
    rows: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    def add(self, other: Judged) -> None:
        """Count another's documents as well."""
        self.documents += other.documents
        self.equal += other.equal
        self.rows += other.rows
        self.refused += other.refused
        self.differences += other.differences


def through_bson(document: Document) -> Document:
    """Return a document as it comes out of MongoDB and Kafka."""
    return bson.decode(bson.encode(document, codec_options=CODEC), codec_options=CODEC)


class Collection:
    """One collection's codec and tables."""

    def __init__(self, whole: Mapping, name: str, seed: int) -> None:
        real = name.replace("{tenant}", TENANT_NAME)
        planned = Plans(whole).find(f"{whole.database}.{real}")
        assert planned is not None
        self.name = name
        self.mapping: CollectionMapping = whole.collections[name]
        self.plan: CollectionPlan = planned.plan
        tenant = TENANT_NAME if real != name else None
        rebuilder = Rebuilder(self.mapping, tenant, scopes(whole, tenant))
        tables = self.plan.tables
        self.tables = [TargetTable(table) for table in tables]
        self.documents = TargetDocuments(tables, rebuilder)
        self.generate = Documents(self.mapping, seed)

    def rows(self, document: Document) -> Rows:
        """Return a document's rows; where its parent tells the tenant, it is a fixed one."""
        rows = self.plan.rows(document)
        return self.plan.of_tenant(rows, _PARENT) if rows.parent is not None else rows

    async def write(self, connection: asyncpg.Connection, some: Sequence[Rows]) -> int:
        """Write as apply does where documents may be there already."""
        ids = [rows.row_id for rows in some]
        written = 0
        below = [[row for rows in some for row in rows.children[n]] for n in range(len(self.tables) - 1)]
        for table, rows in reversed(list(zip(self.tables[1:], below, strict=True))):
            await table.truncate_arrays(connection, ids, rows)
        for table, rows in zip(self.tables, ([rows.row for rows in some], *below), strict=True):
            if rows:
                await table.upsert(connection, rows)
                written += len(rows)
        return written


class Roundtrip:
    """Writes, reads and compares batches. Rows live for one batch only."""

    def __init__(self, connection: asyncpg.Connection, seed: int) -> None:
        whole = mapping()
        self._connection = connection
        self.collections = [Collection(whole, name, seed) for name in whole.collections]
        names = [f'"{table.name}"' for collection in self.collections for table in collection.tables]
        self._empty = f"TRUNCATE {', '.join(names)}"
        self.judged = Judged()

    async def batch(self, numbers: Iterable[int]) -> None:
        """Judge the documents of these numbers. A third of them takes the place of older ones."""
        by_collection: dict[int, list[int]] = {}
        for number in numbers:
            by_collection.setdefault(number % len(self.collections), []).append(number)
        for n, own in by_collection.items():
            await self._judge(self.collections[n], own)
        await self._connection.execute(self._empty)

    async def _judge(self, collection: Collection, numbers: Sequence[int]) -> None:
        try:
            async with self._connection.transaction(isolation="repeatable_read"):
                judged = await self._batch(collection, numbers)
        except FAULTS as error:
            if len(numbers) > 1:  # find the one that is refused
                for number in numbers:
                    await self._judge(collection, [number])
                return
            told = f"refused at last: {type(error).__name__}"
            judged = Judged(1, differences=[Difference(numbers[0], collection.name, (told,))])
        self.judged.add(judged)

    async def _batch(self, collection: Collection, numbers: Sequence[int]) -> Judged:
        older = [self._mapped(collection, n, 1)[1] for n in numbers if n % 3 == 0]
        await collection.write(self._connection, [rows for rows in older if isinstance(rows, Rows)])
        judged = Judged(len(numbers))
        made: dict[UUID, tuple[int, Document]] = {}
        written: list[Rows] = []
        for number in numbers:
            document, rows = self._mapped(collection, number)
            if isinstance(rows, Rows):
                made[rows.row_id] = number, document
                written.append(rows)
            else:
                judged.refused[rows] += 1
        assert len(made) == len(written), "two documents of one id"
        judged.rows = await collection.write(self._connection, written)
        held = await collection.documents.read(self._connection, list(made))
        for row_id, (number, document) in made.items():
            found = _different(held.get(row_id), without_ignored(collection.mapping, document))
            if found:
                judged.differences.append(Difference(number, collection.name, found))
            else:
                judged.equal += 1
        return judged

    def _mapped(self, collection: Collection, number: int, change: int = 0) -> tuple[Document, Rows | str]:
        document = through_bson(collection.generate.document(number, change))
        try:
            return document, collection.rows(document)
        except Unmappable as refused:
            return document, f"{collection.name}: {refused.kind}: {refused}"


def _different(held: Document | None, document: Document) -> tuple[str, ...]:
    return ("missing",) if held is None else tuple(differing_paths(document, held))


@asynccontextmanager
async def database(admin_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Make a database with the mapping's tables and connect to it; at the end it is dropped."""
    name = f"roundtrip_{uuid4().hex[:12]}"
    admin = await connect(admin_dsn, "roundtrip")
    try:
        await admin.execute(f"CREATE DATABASE \"{name}\" ENCODING 'UTF8' TEMPLATE template0")
        try:
            connection = await connect(urlsplit(admin_dsn)._replace(path=f"/{name}").geturl(), "roundtrip")
            try:
                await connection.execute(definitions(mapping(), unlogged=True))
                yield connection
            finally:
                await connection.close()
        finally:
            await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await admin.close()


async def roundtrip(
    connection: asyncpg.Connection,
    numbers: range,
    seed: int,
    report: Callable[[Judged], None] = lambda judged: None,
) -> Judged:
    """Judge documents by number; ``report`` hears after each batch. Ends early at 20 differences."""
    work = Roundtrip(connection, seed)
    for start in range(0, len(numbers), BATCH):
        await work.batch(numbers[start : start + BATCH])
        report(work.judged)
        if len(work.judged.differences) >= _ENOUGH:
            break
    return work.judged
