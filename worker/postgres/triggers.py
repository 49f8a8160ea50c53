"""Triggers of the target's tables that are switched off: apply's rows lack what they make."""

from __future__ import annotations

from typing import NamedTuple

from worker.mapping import Mapping
from worker.postgres.connect import Connection
from worker.postgres.target import quoted


class Disabled(NamedTuple):
    """A trigger that fires for nobody."""

    table: str
    trigger: str

    def __str__(self) -> str:
        return f"{self.trigger} of {self.table}"


# Ours, which fences and captures, are switched on and off by the phases of tenants.
_DISABLED = """
SELECT t.name, g.tgname::text
FROM unnest($1::text[]) AS t(name)
JOIN pg_catalog.pg_trigger g ON g.tgrelid = to_regclass(quote_ident(t.name))
JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid
WHERE g.tgenabled = 'D' AND p.pronamespace IS DISTINCT FROM to_regnamespace('crossfade')
ORDER BY 1, 2
"""


async def disabled(connection: Connection, mapping: Mapping) -> list[Disabled]:
    """Return the disabled triggers of the mapped tables, those of constraints too."""
    names = [table for one in mapping.collections.values() for table, _ in one.tables()]
    return [Disabled(*row) for row in await connection.fetch(_DISABLED, names)]


def enable(found: Disabled) -> str:
    """Return what to run: ALWAYS, so that it sees a replica session's rows too."""
    return f"ALTER TABLE {quoted(found.table)} ENABLE ALWAYS TRIGGER {quoted(found.trigger)}"
