"""Corruptions of every kind are planted, found, and told as they are; `make corruption` is the long proof."""

from __future__ import annotations

from pathlib import Path

from tests.corruption.kinds import KINDS, every_type
from tests.corruption.run import corrupted
from worker.embedded import Services


async def test_what_is_corrupted_is_found_with_its_kind_and_field_and_nothing_else(
    services: Services, tmp_path: Path
) -> None:
    async with corrupted(services, tmp_path, 1500, seed=1) as c:
        assert every_type(c.world.mapping)
        planted = await c.plant(2 * len(KINDS))
        await c.once()
        verdict = await c.verdict(planted)
        assert verdict.perfect, (verdict.missed, verdict.wrong, verdict.false)
        touched = await c.touched(len(KINDS))
        assert touched.perfect, (touched.missed, touched.wrong, touched.false)
        assert touched.seconds < 10
        untouched = await c.untouched(len(KINDS))
        assert untouched.perfect, (untouched.missed, untouched.wrong, untouched.false)
