"""What must hold before apply writes its first row."""

from __future__ import annotations

import structlog

from worker.mapping import Mapping
from worker.postgres.connect import Connection
from worker.postgres.migration_log import offsets
from worker.postgres.tables import require_tables

_log = structlog.get_logger()


async def require(connection: Connection, mapping: Mapping) -> None:
    """Raise a `SchemaError` where the tables do not fit; warn of what cannot be fenced later."""
    await offsets(connection)  # without our own schema, that is the error, not each table
    await require_tables(connection, mapping)
    for name, reason in mapping.unfenceable().items():
        _log.warning(
            "MongoDB cannot refuse this collection's writes by tenant", collection=name, reason=reason
        )
