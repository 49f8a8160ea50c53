"""Whether retention took records before they were applied: looked for, since nothing may follow that tells.

What arrives behind such a gap tells of it too (continuity.py). But a topic that has lost all its records, as
a copy's may, delivers nothing any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from worker.apply.continuity import Continuity
from worker.broker.access import Access
from worker.broker.admin import existing_topics
from worker.broker.offsets import begin_offsets
from worker.errors import CrossfadeError
from worker.postgres.connect import connect
from worker.postgres.faults import FAULTS

LOOK_EVERY = 60.0  # seconds


async def watch(kafka: Access, dsn: str, namespaces: Mapping[str, str], continuity: Continuity) -> None:
    """Look until cancelled. ``namespaces``: the collection of each topic.

    A record that retention takes while apply holds it, not yet committed, counts as lost: that costs a copy.
    """
    while True:
        # Who needs Kafka and PostgreSQL more tells of their absence.
        with suppress(CrossfadeError, *FAULTS):
            await _look(kafka, dsn, namespaces, continuity)
        await asyncio.sleep(LOOK_EVERY)


async def _look(kafka: Access, dsn: str, namespaces: Mapping[str, str], continuity: Continuity) -> None:
    begins = await begin_offsets(kafka, await existing_topics(kafka, namespaces))
    connection = await connect(dsn, "apply retention")
    try:
        await continuity.passed_over(connection, begins)
    finally:
        connection.terminate()
