"""What must hold before apply writes its first row, and from then on."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from worker.errors import Fatal, SchemaError, ServiceUnavailable
from worker.mapping import Mapping
from worker.postgres.connect import Connection, connect
from worker.postgres.faults import FAULTS
from worker.postgres.migration_log import offsets
from worker.postgres.tables import require_tables
from worker.postgres.triggers import Disabled, disabled, enable

_log = structlog.get_logger()
LOOK_EVERY = 5.0  # seconds between looks at the live tables
_ANSWER_WITHIN = 10.0  # seconds


async def require(connection: Connection, mapping: Mapping) -> None:
    """Raise a `SchemaError` where the tables do not fit; warn of what cannot be fenced later."""
    await offsets(connection)  # without our own schema, that is the error, not each table
    await require_tables(connection, mapping)
    for name, reason in mapping.unfenceable().items():
        _log.warning(
            "MongoDB cannot refuse this collection's writes by tenant", collection=name, reason=reason
        )


async def require_still(connection: Connection, mapping: Mapping) -> None:
    """Raise `Fatal` where tables that fitted at the start no longer do; the next start waits for them."""
    try:
        await require_tables(connection, mapping)
    except SchemaError as error:
        raise Fatal(error.message, remedy=error.remedy) from None


async def watch(dsn: str, mapping: Mapping) -> None:
    """Look at the live tables again and again; raise `Fatal` when they no longer fit.

    Most changes of a table stop a batch. But a type that rounds would change values, and a column that no
    document fills make a dead letter of every event.
    """
    told: set[Disabled] = set()
    while True:
        with suppress(ServiceUnavailable, *FAULTS):  # the writer tells of these
            connection = await connect(dsn, "apply tables", statement_timeout=_ANSWER_WITHIN)
            try:
                while True:
                    await require_still(connection, mapping)
                    told = _tell(set(await disabled(connection, mapping)), told)
                    await asyncio.sleep(LOOK_EVERY)
            finally:
                connection.terminate()
        await asyncio.sleep(LOOK_EVERY)


def _tell(found: set[Disabled], told: set[Disabled]) -> set[Disabled]:
    for one in sorted(found - told):
        _log.error(
            "a trigger is disabled: rows lack what it makes",
            table=one.table,
            trigger=one.trigger,
            remedy=f"{enable(one)}; then copy the collection again",
        )
    for one in sorted(told - found):
        _log.info("a trigger is enabled again", table=one.table, trigger=one.trigger)
    return found
