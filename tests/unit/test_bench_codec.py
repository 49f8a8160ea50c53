from __future__ import annotations

from bench.codec import figures


def test_the_codec_is_fast_enough_on_one_core() -> None:
    for kind in figures(5).values():
        assert kind["rows_per_second"] >= 15_000
        assert kind["rebuilt_per_second"] >= 15_000
