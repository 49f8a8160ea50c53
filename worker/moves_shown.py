"""How moves stand, as `crossfade status` tells it: those under way, the last ones, and what is in the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from worker.postgres.move_standing import ABORTED, ENDS, MoveStanding
from worker.postgres.shadow_reads import ShadowReads

MOST = 10
"""Of each list."""
_LINES = 3  # of each list; --json has more
_WIDEST = 70


def told(moves: MoveStanding, shadows: ShadowReads) -> dict[str, Any]:
    """Return the parts of what `--json` prints."""
    return {
        "moves": {
            "moving": [
                {
                    "tenant": str(one.tenant),
                    "phase": one.phase,
                    "epoch": one.epoch,
                    "seconds": round(one.seconds, 1),
                }
                for one in moves.moving
            ],
            "moving_tenants": moves.moving_tenants,
            "last": [
                {
                    "tenant": str(one.tenant),
                    "kind": one.kind,
                    "outcome": one.outcome,
                    "at": one.at.isoformat(),
                    "pause_ms": None if one.pause is None else round(one.pause * 1000, 1),
                    "reason": one.reason,
                }
                for one in moves.last
            ],
            "ended": _ended(moves),
            "rogue": moves.rogue,
        },
        "way_back": {
            "outbox_rows": moves.outbox_rows,
            "waiting_seconds": round(moves.outbox_seconds, 1),
            "lag_seconds": None if moves.back_lag is None else round(moves.back_lag, 3),
            "broken_tenants": moves.broken_tenants,
            "faults": [
                {
                    "tenant": str(one.tenant),
                    "kind": one.kind,
                    "collection": one.namespace,
                    "subject": one.subject,
                    "reason": one.reason,
                    "first_seen_at": one.since.isoformat(),
                }
                for one in moves.broken
            ],
        },
        "shadow_reads": {
            "outcomes": dict(shadows.counts),
            "tenants": shadows.tenants,
            "last_at": shadows.last_at and shadows.last_at.isoformat(),
            "different_places": shadows.different_places,
            "places": [
                {
                    "tenant": str(one.tenant),
                    "id": one.subject,
                    "path": one.path,
                    "reports": one.reports,
                    "last_at": one.last_at.isoformat(),
                }
                for one in shadows.places
            ],
        },
    }


def _ended(moves: MoveStanding) -> dict[str, dict[str, int]]:
    kinds = dict.fromkeys(kind for kind, _ in ENDS)
    return {kind: {how: moves.ended[kind, how] for one, how in ENDS if one == kind} for kind in kinds}


def lines(told: Mapping[str, Any], span: Callable[[float | None], str]) -> list[str]:
    """Return what there is to tell for a person; nothing where nothing ever moved."""
    moves, back, shadows = told["moves"], told["way_back"], told["shadow_reads"]
    shown = [
        f"moving   {one['tenant']} in {one['phase']} for {span(one['seconds'])}"
        for one in moves["moving"][:_LINES]
    ]
    if (more := moves["moving_tenants"] - len(shown)) > 0:
        shown.append(f"moving   {more:,} more")
    for one in moves["last"][:_LINES]:
        shown += _moved(one)
    if back["lag_seconds"] is not None or back["outbox_rows"]:
        waits = f", {back['outbox_rows']:,} rows wait" if back["outbox_rows"] else ""
        waits += f", the first for {span(back['waiting_seconds'])}" if waits else ""
        shown.append(f"way back lag {span(back['lag_seconds'])}{waits}")
    for one in back["faults"][:_LINES]:
        shown.append(f"broken   {one['tenant']}: {one['kind']} {one['collection']} {one['subject']}")
        shown.append(f"         {_short(one['reason'])}")
    if back["broken_tenants"]:
        shown.append(f"broken   the way back of {back['broken_tenants']:,} tenants: docs/way_back.md, Broken")
    if moves["rogue"]:
        shown.append(
            f"rogue    {moves['rogue']:,} writes in MongoDB for tenants that had left: "
            "crossfade dead-letters list --kind rogue"
        )
    return shown + _shadows(shadows)


def _moved(one: Mapping[str, Any]) -> list[str]:
    pause = "" if one["pause_ms"] is None else f", {one['pause_ms']:,.0f} ms"
    line = f"moved    {one['at'][:19]}  {one['tenant']} {one['kind']} {one['outcome']}{pause}"
    if one["outcome"] != "aborted":
        return [line]
    why = one["reason"].removeprefix(ABORTED)
    return [line, f"         {_short(why)}"]


def _short(text: str) -> str:
    return f"{text[:_WIDEST]}..." if len(text) > _WIDEST else text


def _shadows(shadows: Mapping[str, Any]) -> list[str]:
    if not shadows["tenants"]:
        return []
    outcomes = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in shadows["outcomes"].items() if n)
    return [
        f"shadow   {outcomes or 'nothing'}: reads of {shadows['tenants']:,} tenants on both sides",
        *(
            f"shadow   {one['tenant']} {one['id'][:40]} {one['path'][:60] or '(the document)'}"
            for one in shadows["places"][:_LINES]
        ),
    ]
