"""What is said when PostgreSQL does not let something begin."""

from __future__ import annotations

import asyncpg
import pytest

from worker.postgres.faults import not_begun

NOW = "begin now"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (asyncpg.InterfaceError("connection is closed"), NOW),
        (asyncpg.CannotConnectNowError("starting up"), NOW),
        (TimeoutError(), NOW),
        (asyncpg.ReadOnlySQLTransactionError("a standby"), NOW),
        (asyncpg.TooManyConnectionsError("too many"), NOW),
        (asyncpg.UndefinedTableError("no such table"), "crossfade schema apply"),
        (asyncpg.InsufficientPrivilegeError("no"), "crossfade schema apply"),
    ],
)
def test_what_passes_is_told_from_what_a_person_must_mend(error: Exception, told: str) -> None:
    if isinstance(error, asyncpg.PostgresError):
        error.sqlstate = type(error).sqlstate
    found = not_begun("the way back", error)
    assert told in f"{found.message} {found.remedy}"
    assert ("schema apply" in str(found.remedy)) is (told != NOW)
