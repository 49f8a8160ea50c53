"""Keeps the metrics of moves up to date: whoever makes a move, its rows in PostgreSQL tell of it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from worker import metrics
from worker.errors import CrossfadeError
from worker.postgres import phases
from worker.postgres.connect import Connection, connect
from worker.postgres.faults import FAULTS
from worker.postgres.move_standing import read_moves
from worker.postgres.shadow_reads import read_shadow_reads
from worker.retry import pause
from worker.settings import Settings

_EVERY = 2.0  # seconds
_ANSWER_WITHIN = 10.0


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Look until ``stop`` is set. While PostgreSQL is away nothing changes but the age of the last look."""
    assert settings.postgres_control_dsn is not None
    dsn = settings.postgres_control_dsn.get_secret_value()
    metrics.CONTROL_LOOKED_AGE.since({(): time.time()})
    while not stop.is_set():
        with suppress(CrossfadeError, *FAULTS):
            connection = await connect(dsn, "control metrics", statement_timeout=_ANSWER_WITHIN)
            try:
                while not stop.is_set():
                    await look(connection)
                    await pause(stop, _EVERY)
            finally:
                connection.terminate()
        await pause(stop, _EVERY)


async def look(connection: Connection) -> None:
    """Read once, and set the metrics."""
    tenants, moves = await phases.count(connection), await read_moves(connection, 0)
    shadows = await read_shadow_reads(connection, 0)
    now = time.time()
    metrics.TENANTS.set_to({(phase,): count for phase, count in tenants.items()})
    metrics.MOVING_AGE.since({(phase,): now - seconds for phase, seconds in moves.oldest.items()})
    metrics.MOVES.set_to(dict(moves.ended))
    metrics.PAUSES.set_to(moves.pauses)
    metrics.ROGUE.set_to({(): moves.rogue})
    metrics.SHADOW_READS.set_to({(outcome,): count for outcome, count in shadows.counts.items()})
    metrics.CONTROL_LOOKED_AGE.since({(): now})
