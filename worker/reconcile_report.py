"""What `status` tells of the reconciler's work. Keys: docs/status.md."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from worker.postgres.proof import LastFull, Proof, UnderWay

Span = Callable[[float | None], str]


def told(proof: Proof, at: datetime) -> dict[str, Any]:
    """Return what `--json` prints under ``reconcile``."""
    clean = proof.clean
    return {
        "under_way": proof.under_way and _under_way(proof.under_way, at),
        "last_full": proof.last_full and _last_full(proof.last_full, at),
        "clean": clean
        and {
            "generation": clean.generation,
            "ended_at": clean.ended_at.isoformat(),
            "age_seconds": _age(at, clean.ended_at),
        },
        "mismatches": [
            {"state": state, "kind": kind, "count": count, "oldest_age_seconds": _age(at, first)}
            for state, kind, count, first in proof.open
        ],
    }


def _under_way(one: UnderWay, at: datetime) -> dict[str, Any]:
    return {
        "generation": one.generation,
        "tenant": one.tenant_id and str(one.tenant_id),
        "started_at": one.started_at.isoformat(),
        "documents": one.documents,
        "rows": one.rows,
        "documents_per_second": _rate(one.documents, one.seconds),
        "last_read_age_seconds": _age(at, one.last_read_at),
    }


def _last_full(one: LastFull, at: datetime) -> dict[str, Any]:
    return {
        "generation": one.generation,
        "started_at": one.started_at.isoformat(),
        "ended_at": one.ended_at.isoformat(),
        "age_seconds": _age(at, one.ended_at),
        "documents": one.documents,
        "rows": one.rows,
        "documents_per_second": _rate(one.documents, one.seconds),
        "settling": one.settling,
        "mismatches": one.mismatches,
        "held": one.held,
        "stale": one.stale,
    }


def lines(reconcile: dict[str, Any], span: Span) -> list[str]:
    """Return it for people; ``span`` tells seconds."""
    under_way, last, clean = reconcile["under_way"], reconcile["last_full"], reconcile["clean"]
    if not (under_way or last):
        return ["proof    never was everything compared: crossfade reconcile"]
    shown: list[str] = []
    if clean:
        shown.append(f"proof    all equal {span(clean['age_seconds'])} ago, generation {clean['generation']}")
    elif last and last["stale"]:
        shown.append(f"proof    none any more: {last['stale']}; a full generation begins anew")
    else:
        shown.append("proof    none yet that all is equal")
    if under_way:
        whose = f" of tenant {under_way['tenant']}" if under_way["tenant"] else ""
        silent = under_way["last_read_age_seconds"]
        shown.append(
            f"compare  full generation {under_way['generation']}{whose}: "
            f"{under_way['documents']:,} documents, {under_way['documents_per_second'] or 0:,.0f}/s, "
            f"last read {span(silent)} ago"
        )
    if last:
        found = f"{last['mismatches']:,} mismatches, {last['settling']:,} settling"
        shown.append(
            f"compared {last['documents']:,} documents in full generation {last['generation']}, ended "
            f"{span(last['age_seconds'])} ago: {found}"
        )
    for one in reconcile["mismatches"]:
        shown.append(
            f"differs  {one['count']:,} {one['state']}: {one['kind']}, the oldest for "
            f"{span(one['oldest_age_seconds'])}"
        )
    if any(one["state"] == "real" for one in reconcile["mismatches"]):
        shown.append("         crossfade mismatches list --state real")
    return shown


def _rate(documents: int, seconds: float) -> float | None:
    return round(documents / seconds, 1) if seconds > 0 else None


def _age(at: datetime, moment: datetime | None) -> float | None:
    return None if moment is None else max(0.0, round((at - moment).total_seconds(), 3))
