"""What one statement changes need not fit into the memory of `crossfade reverse`."""

from __future__ import annotations

import re
from pathlib import Path

from tests.e2e.test_way_back import at_rest
from tests.support.way_back import application, assert_both_ways_equal, brought_back
from tests.support.world import World, world
from worker.embedded import Services

DOCUMENTS, SIZE = 500, 1_000_000
_PAGES = """
INSERT INTO pages (id, tenant_id, title, slug)
SELECT gen_random_uuid(), $1, repeat(md5(n::text), $2), 'large ' || n FROM generate_series(1, $3) AS n
"""


def _most(w: World, name: str) -> int:
    """Return the most memory that a process ever had, in bytes."""
    status = Path(f"/proc/{w.processes[name].pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


async def test_large_documents_of_one_statement_are_read_in_parts(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        tenant, _ = await at_rest(w)
        before = _most(w, "reverse")
        async with application(w, tenant) as sql:
            await sql.execute(_PAGES, tenant, SIZE // 32, DOCUMENTS)
        await brought_back(w)
        grown = _most(w, "reverse") - before
        print(f"{DOCUMENTS * SIZE / 1e6:.0f} MB in one statement: {grown / 1e6:.0f} MB more")
        assert grown < DOCUMENTS * SIZE / 2
        await w.settled()
        await assert_both_ways_equal(w)
