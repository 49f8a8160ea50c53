"""Brings a database's schema to where the numbered SQL files of a target say.

    MigrationError
    ├── BadTarget         the files are no sequence (schema.targets)
    ├── SchemaDrift       a file was changed after it had been applied
    ├── UnknownMigration  the database has what these files have not
    └── MigrationFailed   PostgreSQL refused a file

Each file runs once, in order, in a transaction that also records it. One applier works at a time; a second
one waits and then finds nothing to do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from schema.targets import Migration, MigrationError, Target, read_target

ADVISORY_LOCK = 0x43524F5353464144
"""The key of the lock that appliers hold: "CROSSFAD" in ASCII."""

VERSION_TABLE = """
CREATE SCHEMA IF NOT EXISTS crossfade;
CREATE TABLE crossfade.schema_version (
    target text,
    number integer,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (target, number)
);
"""
VERSION_TABLE_EXISTS = "SELECT to_regclass('crossfade.schema_version') IS NOT NULL AS found"
APPLIED = """
SELECT number, name, checksum, applied_at FROM crossfade.schema_version WHERE target = $1 ORDER BY number
"""
RECORD = "INSERT INTO crossfade.schema_version (target, number, name, checksum) VALUES ($1, $2, $3, $4)"


class Connection(Protocol):
    """What is asked of a connection; asyncpg's has it.

    It must be one session from beginning to end: a direct connection, not one through a transaction pooler,
    which would leave the lock with a stranger.
    """

    async def execute(self, query: str, *args: Any) -> str:
        """Run statements; without arguments, several at once."""
        ...

    async def fetch(self, query: str, *args: Any) -> Sequence[Mapping[str, Any]]:
        """Return all rows."""
        ...

    async def fetchrow(self, query: str, *args: Any) -> Mapping[str, Any] | None:
        """Return the first row."""
        ...

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """Return a block that commits at its end and rolls back on an error."""
        ...


class SchemaDrift(MigrationError):
    """A file was changed after it had been applied."""


class UnknownMigration(MigrationError):
    """The database has a migration that these files have not, or lacks one in the middle."""


class MigrationFailed(MigrationError):
    """PostgreSQL refused a file; nothing of it remains."""

    def __init__(self, migration: Migration, error: Exception) -> None:
        self.migration = migration
        self.sqlstate: str = getattr(error, "sqlstate", "")
        # Only the primary message: DETAIL of a refused index or constraint quotes rows.
        reason = getattr(error, "message", None) or type(error).__name__
        super().__init__(f"{migration.file}{_line(migration, error)}: {reason} (SQLSTATE {self.sqlstate})")


class State(StrEnum):
    """How a migration stands between the files and the database. Computed, stored nowhere."""

    PENDING = "pending"
    """The next `apply` runs it."""
    APPLIED = "applied"
    """It ran, with the text that the file has now."""
    DRIFTED = "drifted"
    """It ran with another text: `apply` refuses."""
    UNKNOWN = "unknown"
    """It ran, and no file here has its number: a newer Crossfade made it. `apply` refuses."""


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """One line of a target's state."""

    target: str
    number: int
    name: str
    state: State
    applied_at: datetime | None


async def apply(
    connection: Connection, target: str | Path, *, report: Callable[[Migration], None] | None = None
) -> list[Migration]:
    """Run what is pending of a target and return it; `report` hears of each file after its COMMIT.

    When a file fails, the files before it stay, and a later run goes on with that file.
    Raises MigrationError's subclasses; errors of the connection itself pass as they are.
    """
    source = read_target(target)
    async with _sole_applier(connection):
        await _create_version_table(connection)
        pending = _pending(source, await connection.fetch(APPLIED, source.name))
        for migration in pending:
            await _run(connection, migration)
            if report is not None:
                report(migration)
    return pending


async def status(connection: Connection, target: str | Path) -> list[MigrationStatus]:
    """Compare a target's files with what the database has; changes nothing and needs no lock."""
    source = read_target(target)
    row = await connection.fetchrow(VERSION_TABLE_EXISTS)
    applied = await connection.fetch(APPLIED, source.name) if row is not None and row["found"] else []
    recorded = {row["number"]: row for row in applied}
    states = [_status(migration, recorded.pop(migration.number, None)) for migration in source.migrations]
    strangers = [
        MigrationStatus(source.name, number, row["name"], State.UNKNOWN, row["applied_at"])
        for number, row in recorded.items()
    ]
    return states + strangers


def _status(migration: Migration, row: Mapping[str, Any] | None) -> MigrationStatus:
    if row is None:
        state = State.PENDING
    else:
        state = State.APPLIED if row["checksum"] == migration.checksum else State.DRIFTED
    applied_at = None if row is None else row["applied_at"]
    return MigrationStatus(migration.target, migration.number, migration.name, state, applied_at)


@asynccontextmanager
async def _sole_applier(connection: Connection) -> AsyncIterator[None]:
    # The lock is the session's, not a transaction's: it spans the transactions of all files. Were it taken
    # after reading what is applied, two appliers would both find a file pending.
    await connection.execute("SELECT pg_advisory_lock($1)", ADVISORY_LOCK)
    try:
        yield
    finally:
        with suppress(Exception):  # a lost session has let go of it already
            await connection.execute("SELECT pg_advisory_unlock($1)", ADVISORY_LOCK)


async def _create_version_table(connection: Connection) -> None:
    # Looked for first: CREATE SCHEMA IF NOT EXISTS asks for the privilege even where there is nothing to do.
    row = await connection.fetchrow(VERSION_TABLE_EXISTS)
    if row is None or not row["found"]:
        async with connection.transaction():
            await connection.execute(VERSION_TABLE)


def _pending(source: Target, applied: Sequence[Mapping[str, Any]]) -> list[Migration]:
    """Return what is still to run, once all that ran is found to be the beginning of the files, unchanged."""
    for expected, row in enumerate(applied, start=1):
        if row["number"] != expected:
            raise UnknownMigration(
                f"{source.name}: the database lacks migration {expected:03d} but has {row['number']:03d}; "
                "crossfade.schema_version was edited, or the database restored in part"
            )
        if expected > len(source.migrations):
            raise UnknownMigration(
                f"{source.name}: the database has migration {expected:03d} ({row['name']}), which these "
                "files lack; use the version of Crossfade that applied it, or a newer one"
            )
        migration = source.migrations[expected - 1]
        if row["checksum"] != migration.checksum:
            raise SchemaDrift(
                f"{migration.file} was changed after it had been applied; restore its text, and put the "
                "change into a new file with the next number"
            )
    return list(source.migrations[len(applied) :])


async def _run(connection: Connection, migration: Migration) -> None:
    record = (migration.target, migration.number, migration.name, migration.checksum)
    try:
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(RECORD, *record)
    except Exception as error:
        if getattr(error, "sqlstate", None) is None:
            raise
        raise MigrationFailed(migration, error) from None  # a traceback would print that DETAIL


def _line(migration: Migration, error: Exception) -> str:
    position = getattr(error, "position", None)
    return "" if position is None else f":{migration.sql.count(chr(10), 0, int(position) - 1) + 1}"
