"""`make roundtrip`, short, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import asyncpg
import pytest

from bench.roundtrip.run import database, roundtrip
from worker.embedded import Services
from worker.mapping import plain

ROOT = Path(__file__).parents[2]


async def test_generated_documents_come_back_equal_or_are_refused_by_name(services: Services) -> None:
    async with database(services.postgres_admin_dsn) as connection:
        judged = await roundtrip(connection, range(2000), seed=20)
    assert judged.differences == []
    assert judged.documents == 2000 == judged.equal + judged.refused.total()
    assert judged.equal > 1500 and judged.rows > 2 * judged.equal
    assert all(": field " in reason for reason in judged.refused)
    admin = await asyncpg.connect(services.postgres_admin_dsn)
    left = await admin.fetchval("SELECT count(*) FROM pg_database WHERE datname LIKE 'roundtrip%'")
    await admin.close()
    assert left == 0


async def test_a_loss_is_found_and_told_by_number(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "_plain_double", lambda value: True)
    async with database(services.postgres_admin_dsn) as connection:
        judged = await roundtrip(connection, range(600), seed=20)
        assert judged.differences
        one = judged.differences[0]
        again = await roundtrip(connection, range(one.number, one.number + 1), seed=20)
    assert again.differences == [one]


async def test_the_command_tells_the_outcome_as_json(services: Services) -> None:
    command = ("-m", "bench.roundtrip", "--dsn", services.postgres_admin_dsn, "--documents", "60", "--json")
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, told = await process.communicate()
    assert process.returncode == 0, told
    outcome = json.loads(output)
    assert outcome["documents"] == 60 and outcome["differences"] == []
    assert b"60 of 60 documents" in told
