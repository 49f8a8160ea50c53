"""What `status` and `copy status` tell of copies, and of what holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from topics import Collection, TopicNames
from worker.postgres.standing import CopyStanding, PublisherStanding, Standing

_SILENT = 10.0  # seconds without a word of a publisher that tells every second: it does not run


def collections(
    standing: Standing, names: TopicNames, mapping: Mapping[str, str] | None
) -> list[dict[str, Any]]:
    """Return each collection's copy. ``mapping``: the file's hashes by namespace, where there is a file."""
    arrived: dict[str, int] = {}
    for one in standing.partitions:
        arrived[one.topic] = arrived.get(one.topic, 0) + one.records
    return [
        _collection(one, arrived.get(names.copy(Collection.parse(one.namespace)), 0), mapping)
        for one in standing.copies
    ]


def _collection(copy: CopyStanding, arrived: int, mapping: Mapping[str, str] | None) -> dict[str, Any]:
    rate = eta = None
    if copy.state in ("removing", "copied"):
        rate = copy.copied / copy.seconds if copy.seconds else None
        eta = 0.0 if copy.state == "copied" else None
    elif copy.state == "copying" and copy.rate:
        rate, left = copy.rate, copy.estimated - copy.copied
        if left > 0 and not copy.paused:  # below 0: the estimate was too low, and nothing is known
            eta = round(left / rate, 1)
    return {
        "collection": copy.namespace,
        "state": copy.state,
        "paused": copy.paused,
        "copies": copy.copies,
        "mapping": _mapping(copy, mapping),
        "copied": copy.copied,
        "estimated": copy.estimated,
        "arrived": arrived,
        "rate_per_second": None if rate is None else round(rate, 1),
        "eta_seconds": eta,
        "started_at": copy.started_at and copy.started_at.isoformat(),
        "finished_at": copy.finished_at and copy.finished_at.isoformat(),
    }


def _mapping(copy: CopyStanding, mapping: Mapping[str, str] | None) -> str | None:
    if mapping is None:
        return None
    if copy.namespace not in mapping:
        return "unmapped"
    return "same" if mapping[copy.namespace] == copy.mapping_hash else "differs"


def throttle(one: PublisherStanding, at: datetime) -> dict[str, Any] | None:
    """Return what a publisher's copy goes by, as it told last; None when it never did."""
    if one.copy is None or one.copy_at is None:
        return None
    told, age = one.copy, max(0.0, round((at - one.copy_at).total_seconds(), 1))
    return {
        "running": age < _SILENT,
        "enabled": told["enabled"],
        "held_by": told["held_by"] if age < _SILENT else None,
        "rate": told["rate"],
        "max_lag_seconds": told["max_lag"],
        "max_replication_lag_seconds": told["max_replication_lag"],
        "lag_seconds": None if told["lag"] is None else max(0.0, round(told["lag"], 3)),
        "replication_lag_seconds": told["replication_lag"],
        "replication_lag_unknown": told["replication_lag_unknown"],
        "told_age_seconds": age,
    }


def table(told: Sequence[dict[str, Any]]) -> list[str]:
    """Return the collections' copies for people, aligned."""
    return _aligned(
        ("collection", "copy", "copied", "of about", "docs/s", "ETA", "arrived"),
        [
            (
                one["collection"],
                _state(one),
                f"{one['copied']:,}",
                f"{one['estimated']:,}",
                "-" if one["rate_per_second"] is None else f"{one['rate_per_second']:,.0f}",
                "-" if one["state"] != "copying" else span(one["eta_seconds"]),
                f"{one['arrived']:,}",
            )
            for one in told
        ],
    )


def held(copy: Mapping[str, Any]) -> str:
    """Return in words what holds a copy now."""
    if not copy["running"]:
        return f"publish does not run: its last word is {span(copy['told_age_seconds'])} old"
    if not copy["enabled"]:
        return "switched off by CROSSFADE_COPY_ENABLED"
    reason = copy["held_by"]
    if reason is None:
        return "not held"
    detail = {
        "pause": "crossfade copy resume",
        "apply lag": f"{span(copy['lag_seconds'])}, at most {span(copy['max_lag_seconds'])}",
        "replication lag": f"{span(copy['replication_lag_seconds'])}, "
        f"at most {span(copy['max_replication_lag_seconds'])}",
        "rate": f"{copy['rate'] or 0:,.0f} documents/s",
    }
    return f"held by {reason} ({detail[reason]})"


def limits(copy: Mapping[str, Any]) -> list[str]:
    """Return a copy's limits in words, each with how things are."""
    rate, lag, replication = copy["rate"], copy["max_lag_seconds"], copy["max_replication_lag_seconds"]
    now = copy["replication_lag_unknown"] or span(copy["replication_lag_seconds"])
    return [
        f"rate at most {rate:,.0f} documents/s" if rate else "any rate",
        f"apply lag at most {span(lag)}, now {span(copy['lag_seconds'])}" if lag else "any apply lag",
        f"replication lag at most {span(replication)}, now {now}" if replication else "any replication lag",
    ]


def _state(one: dict[str, Any]) -> str:
    """Return a copy's state, with whether rows of an earlier copy are there."""
    if one["paused"] and one["state"] != "copied":
        return "paused" if one["state"] != "pending" else "pending, paused"
    if one["state"] == "copying" and one["copies"] > 1:
        return "re-copying"
    if one["state"] == "pending" and one["copies"]:
        return "re-copy pending"
    return one["state"]


def _aligned(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            f"{cell:<{width}}" if place < 2 else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]


def span(seconds: float | None) -> str:
    """Return a length of time in the unit that a person would say it in."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
