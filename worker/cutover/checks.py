"""What must be true before a tenant moves: each check by name, with its reason and what to do.

A check changes nothing. Some can be overruled with ``--force``, which is noted; the others cannot, because
without them the move could not succeed, or would not be safe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from topics import TopicNames
from worker.cutover import canary
from worker.cutover.ground import Ground
from worker.errors import CrossfadeError
from worker.mapping import Plans
from worker.mongo import in_the_way
from worker.mongo.bypass import bypassers
from worker.mongo.client import FAULTS as MONGO_FAULTS
from worker.mongo.client import describe as describe_mongo
from worker.mongo.fence_documents import State
from worker.mongo.objectids import with_objectids
from worker.postgres import barriers, capture, fences, id_defaults, mismatches, outbox, phases, transactions
from worker.postgres.batches import count_held
from worker.postgres.faults import FAULTS, describe
from worker.postgres.orphans import find_orphans
from worker.postgres.standing import read_standing

LONG = 1.0
"""Seconds after which an open transaction is in the way."""
_LAG = 3.0
_SEARCH_WITHIN = 10.0  # seconds for the orphans of one reference
_FRESH = 24 * 3600.0
_TOLD = 5


@dataclass(frozen=True, slots=True)
class Check:
    """One precondition. ``forcible``: a person may go on without it."""

    name: str
    ok: bool
    reason: str
    remedy: str = ""
    forcible: bool = False


_Answer = tuple[bool, str, str]
_Ask = Callable[[Ground, Sequence[UUID]], Awaitable[_Answer]]


async def run(ground: Ground, tenants: Sequence[UUID]) -> list[Check]:
    """Make every check for these tenants; one that cannot be made is not ok, and says why."""
    return [await _made(name, ask, forcible, ground, tenants) for name, (ask, forcible) in _CHECKS.items()]


async def _made(name: str, ask: _Ask, forcible: bool, ground: Ground, tenants: Sequence[UUID]) -> Check:
    try:
        async with asyncio.timeout(ground.patience + 10):
            ok, reason, remedy = await ask(ground, tenants)
    except CrossfadeError as error:
        return Check(name, False, error.message, error.remedy, forcible)
    except MONGO_FAULTS as error:
        return Check(name, False, f"MongoDB does not tell ({describe_mongo(error)})", "try again", forcible)
    except TimeoutError:
        return Check(name, False, "it took too long", "try again", forcible)
    except FAULTS as error:
        return Check(name, False, f"PostgreSQL does not tell ({describe(error)})", "try again", forcible)
    return Check(name, ok, reason, "" if ok else remedy, forcible)


async def _phase(ground: Ground, tenants: Sequence[UUID]) -> _Answer:
    known = await phases.read(ground.control, tenants)
    wrong = [
        f"{one} is in {known[one].phase}" for one in tenants if one in known and known[one].phase != "mongo"
    ]
    wrong += [f"{one} is not known" for one in tenants if one not in known]
    return not wrong, "; ".join(wrong[:_TOLD]) or "at home in MongoDB", "see `crossfade tenants`"


async def _decision(ground: Ground, tenants: Sequence[UUID]) -> _Answer:
    found = await ground.fences.read()
    wrong = [
        f"{one}: {found[one].state}" for one in tenants if one in found and found[one].state != State.HOME
    ]
    told = "; ".join(wrong[:_TOLD]) or "MongoDB's fence documents say so too"
    return not wrong, told, "let `crossfade control` run: it ends what a dead controller left"


async def _copied(ground: Ground, tenants: Sequence[UUID]) -> _Answer:
    await ground.copies()
    return True, "all collections", ""


async def _lag(ground: Ground, tenants: Sequence[UUID]) -> _Answer:
    standing = await read_standing(ground.control)
    read = TopicNames(ground.settings.topic_prefix).namespaces(ground.logical().values())
    beats = [one.heartbeat_at for one in standing.beating(read) if one.heartbeat_at]
    if not beats:
        return False, "no heartbeat has come through", "start `crossfade run`"
    seconds = (standing.at - min(beats)).total_seconds()
    told = f"{seconds:.1f} s behind, by heartbeats"
    return seconds <= _LAG, told, "see that publish and apply run; `crossfade status` tells more"


async def _clean(ground: Ground, tenants: Sequence[UUID]) -> _Answer:
    found = await ground.clean(tenants)
    if found is None:
        remedy = "let `crossfade reconcile` run; `crossfade mismatches list` tells what is open"
        return False, "no clean generation stands for it", remedy
    wrong = 0
    for tenant in tenants:
        known = await mismatches.counts(ground.reader, tenant)
        wrong += sum(number for state, _, number, _ in known if state == "real")
    if wrong:  # seen since: the generation still says what was so at its end
        told = "`crossfade mismatches list --state real`, then `crossfade repair`"
        return False, f"{wrong} documents of it do not fit for certain", told
    age = (datetime.now(UTC) - found.ended_at).total_seconds()
    told = f"generation {found.generation}, {age:.0f} s old"
    return age <= _FRESH, told, "let `crossfade reconcile` run"


async def _letters(ground: Ground, tenants: Sequence[UUID]) -> _Answer:
    count = await barriers.letters(ground.control, tenants)
    return (
        not count,
        f"{count} stand of it, or of nobody known",
        "`crossfade dead-letters list` tells what to do",
    )


async def _orphans(ground: Ground, tenants: Sequence[UUID]) -> _Answer:
    found = await find_orphans(
        ground.reader, ground.mapping, limit=_TOLD, seconds=_SEARCH_WITHIN, tenants=tenants
    )
    wrong = [f"{one.count} of {one.reference}: {', '.join(one.rows)}" for one in found.orphans]
    told = "; ".join([*wrong, *found.not_looked_at]) or f"none by {found.looked_at} references"
    remedy = "mend that in MongoDB, or see that the application can live with it, then --force orphans"
    return not wrong and not found.not_looked_at, told, remedy


async def _held(ground: Ground, tenants: Sequence[UUID]) -> _Answer:
    count = await count_held(ground.control)
    return not count, f"{count} documents wait to be fetched again", "crossfade batches refetch"


async def _fences(ground: Ground, tenants: Sequence[UUID]) -> _Answer:
    found = await fences.tables(ground.control, ground.mapping)
    wrong = [f"{one.qualified} lacks {', '.join(one.missing)}" for one in found if one.missing]
    told = "; ".join(wrong[:_TOLD]) or f"on {len(found)} tables"
    return not wrong, told, "crossfade cutover prepare"


async def _way_back(ground: Ground, tenants: Sequence[UUID]) -> _Answer:
    wrong = await capture.capture_faults(ground.control, ground.mapping)
    if wrong:
        return False, "; ".join(wrong[:_TOLD]), "crossfade cutover prepare"
    for tenant in tenants:
        if broken := await outbox.faults(ground.control, tenant):
            told = "; ".join(f"{one.namespace} {one.subject}: {one.reason}" for one in broken[:_TOLD])
            return False, told, "see docs/way_back.md"
    # It goes through all that every write of the application will: outbox, Kafka, MongoDB, and round again.
    if lost := await canary.goes_round(ground):
        remedy = "see that publish, apply and `crossfade reverse` run, and read their logs"
        return False, f"{lost} within {canary.within(ground):g} s", remedy
    return True, "proven by a canary, both ways", ""


async def _ids(ground: Ground, tenants: Sequence[UUID]) -> _Answer:
    mapped = [ground.mapping.collections[one] for one in await with_objectids(ground.client, ground.mapping)]
    found = await id_defaults.columns(ground.control, [(one.table, one.id) for one in mapped])
    wrong = [f"{one.table}.{one.column} has no default" for one in found if one.default is None]
    # Such an id goes back as it is; whether the application's code for MongoDB likes that, it must know.
    other = [
        f"{one.table}.{one.column} has default {one.default}: what is born there has no ObjectId"
        for one in found
        if one.default is not None and not one.ours
    ]
    told = "; ".join([*wrong, *other][:_TOLD]) or "rows born in PostgreSQL get ids such as MongoDB's have"
    return not wrong, told, "crossfade cutover prepare"


async def _validators(ground: Ground, tenants: Sequence[UUID]) -> _Answer:
    wrong = {
        name: why
        for name, why in ground.mapping.unfenceable().items()
        if ground.mapping.collections[name].tenant is not None
    }
    told = "; ".join(f"{name}: {why}" for name, why in wrong.items()) or "MongoDB can refuse it everywhere"
    return not wrong, told, "stop the application's writes to these collections yourself while it moves"


async def _mongo_transactions(ground: Ground, tenants: Sequence[UUID]) -> _Answer:
    found = await in_the_way.open_transactions(ground.client, LONG)
    told = "; ".join(map(str, found[:_TOLD])) or f"none older than {LONG:g} s"
    return not found, told, f"end it: {found[0].kill}" if found else ""


async def _bypass(ground: Ground, tenants: Sequence[UUID]) -> _Answer:
    found = await bypassers(ground.client, await ground.existing())
    wrong = [f"{one.user} ({', '.join(one.roles)})" for one in found.users]
    nobody = "nobody but ours"
    if found.nobody_logs_in:
        nobody = "MongoDB lets in everybody without a password, and whoever asks for it passes validators"
    remedy = "see that nobody writes as these with bypassDocumentValidation, then --force bypass-validation"
    return not wrong, "; ".join(wrong) or nobody, remedy


async def _index_builds(ground: Ground, tenants: Sequence[UUID]) -> _Answer:
    found = await in_the_way.index_builds(ground.client, ground.maps)
    told = ", ".join(one.namespace for one in found) or "none"
    return not found, told, "wait until they are done: MongoDB changes no validator meanwhile"


async def _ttl(ground: Ground, tenants: Sequence[UUID]) -> _Answer:
    found = await in_the_way.ttl_indexes(ground.client, await ground.existing())
    told = ", ".join(f"{one.namespace} {one.name}" for one in found) or "none"
    remedy = "see that somebody deletes such rows in PostgreSQL, then --force ttl-indexes"
    return not found, told, remedy


async def _transactions(ground: Ground, tenants: Sequence[UUID]) -> _Answer:
    found = await transactions.open_transactions(ground.control, LONG)
    wrong = [f"{one.name} ({one.role} {one.application}, {one.seconds:.0f} s)" for one in found]
    told = "; ".join(wrong[:_TOLD]) or f"none older than {LONG:g} s"
    return not wrong, told, "end it: SELECT pg_terminate_backend(pid), or ROLLBACK PREPARED"


async def _roles(ground: Ground, tenants: Sequence[UUID]) -> _Answer:
    found = await fences.writers(ground.control, ground.mapping)
    past = [one.role for one in found if one.kind == fences.PAST]
    kinds: dict[str, list[str]] = {}
    for one in found:
        kinds.setdefault(one.kind, []).append(one.role)
    told = "; ".join(f"{kind}: {', '.join(roles)}" for kind, roles in kinds.items() if roles)
    return not past, told, "see that nobody writes as these meanwhile, then --force roles"


async def _analysed(ground: Ground, tenants: Sequence[UUID]) -> _Answer:
    names = [plan.table for plan in Plans(ground.mapping).tables()]
    found = await transactions.unanalysed(ground.control, names)
    return not found, ", ".join(found) or "all tables are", "ANALYZE them"


_CHECKS: dict[str, tuple[_Ask, bool]] = {
    "phase": (_phase, False),
    "decision": (_decision, False),
    "copied": (_copied, False),
    "lag": (_lag, False),
    "clean": (_clean, False),
    "dead-letters": (_letters, False),
    "held": (_held, False),
    "orphans": (_orphans, True),
    "fences": (_fences, False),
    "way-back": (_way_back, True),
    "ids": (_ids, True),
    "validators": (_validators, True),
    "open-transactions-mongodb": (_mongo_transactions, True),
    "open-transactions-postgresql": (_transactions, True),
    "bypass-validation": (_bypass, True),
    "index-builds": (_index_builds, False),
    "ttl-indexes": (_ttl, True),
    "roles": (_roles, True),
    "analysed": (_analysed, True),
}
NAMES = tuple(_CHECKS)
FORCIBLE = tuple(name for name, (_, forcible) in _CHECKS.items() if forcible)
