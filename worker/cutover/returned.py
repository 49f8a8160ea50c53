"""What went back: which documents that PostgreSQL sent, or MongoDB has written, are equal on both sides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

from topics import key_to_id
from worker.cutover.compared import Compared
from worker.cutover.ground import Ground
from worker.errors import Transient
from worker.mongo import reverse
from worker.postgres import barriers, outbox
from worker.reconcile.judge import Identity, Look
from worker.reconcile.recheck import look_at

_AT_ONCE = 5_000  # documents of one statement


class _Sent(NamedTuple):
    """A document: its tenant, its real collection, its key."""

    tenant: UUID
    namespace: str
    key: bytes


class Looked(NamedTuple):
    """How many documents were looked at, and those that do not fit, as text."""

    at: int
    unfit: list[str]


class Returned:
    """Looks at what went back of some tenants, and each time again at what did not fit."""

    def __init__(self, ground: Ground, tenants: Sequence[UUID]) -> None:
        self._ground, self._tenants = ground, tenants
        self.unfit: dict[_Sent, Look] = {}
        """What did not fit when it was looked at last."""
        self.above = -1
        """Versions up to here were looked at, and none comes that is not above."""
        self.fits = Compared()
        self.gone: set[tuple[str, UUID]] = set()
        """Documents that are gone in MongoDB alone, by a TTL index."""

    async def look(self, most: int) -> Looked:
        """Look at what went back with versions above ``above``; `Transient` where that is too much."""
        ground = self._ground
        wanted = {one: self._identity(one) for one in [*self.unfit, *await self._sent(most)]}
        self.unfit = {}
        by_place = {(one.collection, one.row_id): sent for sent, one in wanted.items() if one is not None}
        identities = [one for one in wanted.values() if one is not None]
        looks = [look for look, _ in await look_at(ground.sides, ground.reader, identities, ())]
        expired = await self._expired(look.identity for look in looks if look.kind == "extra")
        told: list[str] = []
        for look in looks:
            place = look.identity.collection, look.identity.row_id
            if look.kind is None:
                self.fits.note(look)
            elif place in expired:
                self.gone.add(place)
            elif not look.tenants or not look.tenants.isdisjoint(self._tenants):
                # Else it has moved to other tenants since it was sent, at home.
                self.unfit[by_place[place]] = look
                told.append(f"{place[0]} {place[1]} ({look.kind})")
        return Looked(len(looks), told)

    async def send_again(self) -> None:
        """Have sent again what did not fit: Kafka may have lost it. What was on its way comes twice.

        But nothing that is another tenant's on either side: who sends for a tenant does not see the others'
        rows, and would take them for gone.
        """
        sources = self._ground.mapping.sources()
        again = [
            (tenant, str(source.logical), look.identity.row_id)
            for look in self.unfit.values()
            for tenant in self._tenants
            if look.tenants == {tenant} and (source := sources.find(look.identity.collection)) is not None
        ]
        for first in range(0, len(again), _AT_ONCE):
            await outbox.send_again(self._ground.control, again[first : first + _AT_ONCE])

    async def _sent(self, most: int) -> set[_Sent]:
        """Return what PostgreSQL has sent, and what MongoDB has written.

        Either may lack some: Kafka can lose what was sent, and PostgreSQL may have been put back.
        """
        ground, found = self._ground, set[_Sent]()
        for tenant in self._tenants:
            async for one in reverse.written(ground.client, tenant, self.above):
                found.add(_Sent(tenant, one.namespace, one.key))
                self._not_too_many(found, most)
            for namespace, key in await outbox.remembered(ground.reader, tenant, self.above, most + 1):
                found.add(_Sent(tenant, namespace, key))
            self._not_too_many(found, most)
        return found

    def _not_too_many(self, found: set[_Sent], most: int) -> None:
        if len(found) + len(self.unfit) > most:
            raise Transient(
                f"more than {most:,} documents were written since its cutover",
                remedy="try again where few writes go on; if never: docs/cutover.md, Limits",
            )

    def _identity(self, sent: _Sent) -> Identity | None:
        """Return how both sides know a document; None where its collection is no longer mapped."""
        sides = self._ground.sides
        if (planned := sides.planned(sent.namespace)) is None:
            return None
        id_ = key_to_id(sent.key)
        return sides.source(sent.namespace).identity(planned.plan.row_id(id_), id_)

    async def _expired(self, extra: Iterable[Identity]) -> set[tuple[str, UUID]]:
        """Return which of these documents, gone in MongoDB, a TTL index deleted: their rows go at home."""
        sources, documents = self._ground.mapping.sources(), list[tuple[str, str, UUID]]()
        for one in extra:
            if (source := sources.find(one.collection)) is not None:
                documents.append((one.collection, str(source.logical), one.row_id))
        return await barriers.expired(self._ground.reader, self._tenants, documents)
