"""Kafka's jars: fetched once by Maven, into a cache of the user's that every clone shares."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from pathlib import Path

import psutil

from worker.embedded import prerequisites
from worker.embedded.processes import kill, run, strays
from worker.embedded.state import Report, exclusive

POM = Path(__file__).parent / "kafka" / "pom.xml"


def cache() -> Path:
    """Return where this pom's jars are kept. A changed pom has another name, and is fetched anew."""
    content = POM.read_bytes()
    version = re.search(rb"<artifactId>kafka_2\.13</artifactId>\s*<version>([^<]+)", content)
    assert version is not None
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "crossfade" / f"kafka-{version[1].decode()}-{hashlib.sha256(content).hexdigest()[:8]}"


async def jars(report: Report) -> Path:
    """Return the folder of the jars: fetched beside and renamed, so that a half one is never seen."""
    kept = cache()
    if kept.is_dir():
        return kept
    maven = await prerequisites.maven(report)
    async with exclusive(kept.parent / "lock", report, "Kafka's jars"):
        # Under the lock nobody fetches but a Maven that outlived a killed `up`.
        await kill(strays(_is_fetching))
        for attempt in kept.parent.glob("fetching-*"):
            shutil.rmtree(attempt, ignore_errors=True)
        if not kept.is_dir():  # else another process fetched it while this one waited
            await _fetch(maven, kept, report)
    return kept


def _is_fetching(process: psutil.Process) -> bool:
    begun = f"{cache().parent}/fetching-"
    return process.name() == "java" and any(begun in argument for argument in process.cmdline())


async def _fetch(maven: str, kept: Path, report: Report) -> None:
    report(f"kafka: fetching its jars into {kept}")
    fresh = kept.parent / f"fetching-{secrets.token_hex(4)}"
    fresh.mkdir()
    # A copy of the pom: Maven would make a folder beside the original, which may be read-only.
    shutil.copy(POM, fresh / "pom.xml")
    await run(
        [
            *(maven, "-q", "-B", "-f", str(fresh / "pom.xml"), "dependency:copy-dependencies"),
            *("-DincludeScope=runtime", f"-DoutputDirectory={fresh / 'jars'}"),
        ],
        what="fetching Kafka's jars with Maven",
        directory=fresh,
    )
    (fresh / "jars").rename(kept)
    shutil.rmtree(fresh, ignore_errors=True)
