"""Progress of the migration as the benchmark reads it, and whether anything was lost.

Commit times are PostgreSQL's own (`track_commit_timestamp`): taken when the transaction commits, just before
its WAL is flushed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bench.site import BenchFailed, Site
from topics.envelope import MAX_ORDER
from worker.postgres.migration_log import settled_since


class Mark(NamedTuple):
    """How far the migration log was at some moment."""

    batch_id: int
    events: int


class Batches(NamedTuple):
    """The batches after a mark. Times are seconds since 1970."""

    number: int
    first_started: float
    last_committed: float


async def mark(site: Site) -> Mark:
    """Return how far the migration log is."""
    batch_id: Any = await site.postgres.fetchval("SELECT coalesce(max(batch_id), 0) FROM crossfade.batch")
    return Mark(batch_id, await events(site))


async def events(site: Site) -> int:
    """Return how many documents' events were read and settled, of all topics."""
    return await site.postgres.fetchval(  # pyright: ignore[reportReturnType]
        "SELECT coalesce(sum(records - control), 0)::bigint FROM crossfade.partition_progress"
    )


async def batches(site: Site, since: Mark) -> Batches:
    """Return the batches after a mark."""
    row = await site.postgres.fetchrow(
        "SELECT count(*), extract(epoch FROM min(started_at))::float8, "
        "extract(epoch FROM max(pg_xact_commit_timestamp(xmin)))::float8 "
        "FROM crossfade.batch WHERE batch_id > $1",
        since.batch_id,
    )
    if row is None or not row[0]:
        raise BenchFailed("no batch was applied")
    return Batches(*row)


async def commit_times(site: Site, since: Mark) -> dict[Any, float]:
    """Return when events committed after a mark, by row id: of each document the newest, if a change's.

    A copy's event is no change; its version's order tells it.
    """
    rows = await site.postgres.fetch(
        "SELECT row_id, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 "
        "FROM crossfade.document WHERE batch_id > $1 AND version_order < $2",
        since.batch_id,
        MAX_ORDER,
    )
    return {row[0]: row[1] for row in rows}


async def settle(site: Site) -> None:
    """Wait until whatever was sent before this call is applied."""
    now: Any = await site.postgres.fetchval("SELECT clock_timestamp()")
    await site.until("settling", lambda: settled_since(site.postgres, now), site.patience)


async def nothing_lost(site: Site) -> None:
    """Compare MongoDB's pages with rows and ledger; every update counts, for each adds 1 to a version."""
    summed = [{"$group": {"_id": None, "pages": {"$sum": 1}, "versions": {"$sum": "$version"}}}]
    (documents,) = await site.pages.aggregate(summed).to_list(1)
    row = await site.postgres.fetchrow(
        "SELECT (SELECT count(*) FROM pages) AS rows, (SELECT sum(version) FROM pages) AS versions, "
        "(SELECT count(*) FROM crossfade.document WHERE state = 'live') AS ledger, "
        "(SELECT count(*) FROM crossfade.dead_letter) AS dead_letters"
    )
    assert row is not None
    live = site.live.high - site.live.low
    compared = {
        "documents in MongoDB": (documents["pages"], live),
        "rows": (row["rows"], live),
        "live rows of the ledger": (row["ledger"], live),
        "sum of the rows' versions": (row["versions"], documents["versions"]),
        "dead letters": (row["dead_letters"], 0),
    }
    wrong = [f"{what} {got}, expected {want}" for what, (got, want) in compared.items() if got != want]
    if wrong:
        raise BenchFailed("the counts do not match: " + "; ".join(wrong))
