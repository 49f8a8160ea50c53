"""What went back: what Kafka lost on the way, and which documents that came are equal on both sides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import aclosing
from typing import NamedTuple
from uuid import UUID

from topics import key_to_id
from worker.cutover.compared import Compared
from worker.cutover.ground import Ground
from worker.errors import Transient
from worker.mongo import reverse
from worker.postgres import barriers, sent
from worker.postgres.outbox import ALL
from worker.reconcile.judge import Identity
from worker.reconcile.recheck import look_at

_LOST_AT_ONCE = 50_000


class Looked(NamedTuple):
    """How many documents were looked at, and those that do not fit, as text."""

    at: int
    unfit: list[str]


class Returned:
    """Looks at what went back of some tenants, and each time again at what did not fit."""

    def __init__(self, ground: Ground, tenants: Sequence[UUID]) -> None:
        self._ground, self._tenants = ground, tenants
        self._unfit: dict[tuple[str, bytes], reverse.Known] = {}
        self._lost: list[sent.Sent] = []
        self.above = -1
        """Versions up to here were looked at, and none comes that is not above."""
        self.fits = Compared()
        self.gone: set[tuple[str, UUID]] = set()
        """Documents that are gone in MongoDB alone, by a TTL index."""

    async def look(self, most: int) -> Looked:
        """Look at what came with versions above ``above``; `Transient` where that is too much."""
        ground, wanted = self._ground, dict(self._unfit)
        for tenant in self._tenants:
            async for written in reverse.written(ground.client, tenant, self.above):
                wanted[written.namespace, written.key] = written
                if len(wanted) > most:
                    raise Transient(
                        f"more than {most:,} documents were written since its cutover",
                        remedy="try again where few writes go on; if never: docs/cutover.md, Limits",
                    )
        places: dict[tuple[str, UUID], reverse.Known] = {}
        identities: list[Identity] = []
        for written in wanted.values():
            if (identity := self._identity(written)) is not None:
                places[identity.collection, identity.row_id] = written
                identities.append(identity)
        looks = [look for look, _ in await look_at(ground.sides, ground.reader, identities, ())]
        expired = await self._expired(look.identity for look in looks if look.kind == "extra")
        unfit: dict[tuple[str, bytes], reverse.Known] = {}
        told: list[str] = []
        for look in looks:
            place = look.identity.collection, look.identity.row_id
            if look.kind is None:
                self.fits.note(look)
            elif place in expired:
                self.gone.add(place)
            elif not look.tenants or not look.tenants.isdisjoint(self._tenants):
                # Else it has moved to another tenant since, at home.
                unfit[places[place].namespace, places[place].key] = places[place]
                told.append(f"{place[0]} {place[1]} ({look.kind})")
        self._unfit = unfit
        return Looked(len(looks), told)

    async def find_lost(self, upto: int = ALL) -> int:
        """Find what PostgreSQL has sent, and MongoDB has neither so nor newer; return how many documents, of
        very many not all.

        ``upto``: a version up to which, and from ``above`` on, all that was sent must have come: then Kafka
        has lost it.
        """
        self._lost = []
        for tenant in self._tenants:
            async with aclosing(sent.remembered(self._ground.reader, tenant, self.above, upto)) as remembered:
                async for some in remembered:
                    places = [(one.namespace, one.key) for one in some]
                    known = await reverse.versions(self._ground.client, places)
                    self._lost += [
                        one
                        for one, place in zip(some, places, strict=True)
                        if known.get(place, -1) < one.version
                    ]
                    if len(self._lost) >= _LOST_AT_ONCE:
                        break
        return len(self._lost)

    async def send_again(self) -> None:
        """Have sent again what was found to be lost."""
        await sent.again(self._ground.control, self._lost)

    def _identity(self, written: reverse.Known) -> Identity | None:
        """Return how both sides know a document; None where its collection is no longer mapped."""
        sides = self._ground.sides
        if (planned := sides.planned(written.namespace)) is None:
            return None
        id_ = key_to_id(written.key)
        return sides.source(written.namespace).identity(planned.plan.row_id(id_), id_)

    async def _expired(self, extra: Iterable[Identity]) -> set[tuple[str, UUID]]:
        """Return which of these documents, gone in MongoDB, a TTL index deleted: their rows go at home."""
        sources, documents = self._ground.mapping.sources(), list[tuple[str, str, UUID]]()
        for one in extra:
            if (source := sources.find(one.collection)) is not None:
                documents.append((one.collection, str(source.logical), one.row_id))
        return await barriers.expired(self._ground.reader, self._tenants, documents)
