from __future__ import annotations

from collections import Counter

from bench.codec import figures

ENOUGH = 15_000  # documents a second, each way


def test_the_codec_is_fast_enough_on_one_core() -> None:
    best: Counter[str] = Counter()
    for _ in range(20):  # what it can do, on a machine that others use as well
        for kind, told in figures(3).items():
            best |= Counter({f"{kind} {way}": told[f"{way}_per_second"] for way in ("rows", "rebuilt")})
        if min(best.values()) >= ENOUGH:
            return
    raise AssertionError(best)
