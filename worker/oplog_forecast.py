"""How long each publisher may stand still before MongoDB's oplog drops its place: `status`'s part of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from worker.errors import ServiceUnavailable
from worker.mongo.client import connect
from worker.mongo.oplog import Oplog, OplogUnknown, forecast, read_oplog
from worker.postgres.standing import PublisherStanding

_WITHIN = 2.0  # seconds for MongoDB to answer
_MB = 1024 * 1024


async def look_at_oplog(uri: str) -> Oplog | str:
    """Return MongoDB's oplog, or in one line why it is not known."""
    try:
        client = await connect(uri, "status", within=_WITHIN)
    except ServiceUnavailable as error:
        return error.message
    try:
        return await read_oplog(client)
    except OplogUnknown as error:
        return str(error)
    finally:
        client.close()


def told_of_oplog(
    oplog: Oplog | str, publishers: Sequence[PublisherStanding], now: float, margin: float
) -> dict[str, Any]:
    """Return what `--json` prints under ``oplog``. ``now``: seconds since 1970; ``margin``: when to warn."""
    if isinstance(oplog, str):
        return {"oplog": {"unknown": oplog, "places": []}}
    return {
        "oplog": {
            "unknown": None,
            "oldest_at": _moment(oplog.oldest >> 32),
            "newest_at": _moment(oplog.newest >> 32),
            "window_seconds": round(oplog.window, 1),
            "megabytes_per_hour": round(oplog.rate * 3600 / _MB, 1) if oplog.size else None,
            "places": [_place(oplog, one, now, margin) for one in publishers],
        }
    }


def _place(oplog: Oplog, one: PublisherStanding, now: float, margin: float) -> dict[str, Any]:
    place = one.started_time if one.token_time is None else one.token_time
    told = forecast(oplog, place, now, margin)
    return {
        "publisher": one.publisher,
        "left_seconds": round(told.left, 1),
        "drops_at": _moment(told.drops_at),
        "lost": told.lost,
        "warning": told.short,
    }


def _moment(seconds: float) -> str:
    # An oplog that has hardly anything in it yet would last for ages.
    return datetime.fromtimestamp(min(seconds, 253402300799), UTC).isoformat()


def lines_of_oplog(told: Mapping[str, Any], span: Callable[[float], str]) -> list[str]:
    """Return lines for people: what the oplog holds, and a warning for each place that it will soon drop.

    ``span`` says a length of time.
    """
    if (oplog := told.get("oplog")) is None:
        return []
    if oplog["unknown"]:
        return [f"oplog    not known how long publish may be down: {oplog['unknown']}"]
    hourly = oplog["megabytes_per_hour"]
    rate = "" if hourly is None else f" at {hourly:,.1f} MB/h"
    shown = [f"oplog    holds {span(oplog['window_seconds'])} of changes{rate}"]
    for one in oplog["places"]:
        if one["lost"]:
            shown.append(
                f"WARNING  {one['publisher']}: MongoDB no longer has the place of its token; publish will "
                "begin anew and copy everything again"
            )
        elif one["warning"]:
            shown.append(
                f"WARNING  {one['publisher']}: in {span(one['left_seconds'])} ({one['drops_at'][:19]}) "
                "MongoDB drops the place of its token, and everything must be copied again: start publish, "
                "or enlarge the oplog"
            )
        else:
            shown[0] += f"; {one['publisher']} may be down for {span(one['left_seconds'])}"
    return shown
