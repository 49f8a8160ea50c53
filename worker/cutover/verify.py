"""Verification of the rest: what changed since the last clean generation is looked at on both sides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from uuid import UUID

from topics import Collection
from worker.cutover.compared import Compared
from worker.postgres.barriers import Touched
from worker.postgres.connect import Connection
from worker.publish.real_collections import RealCollections
from worker.reconcile.judge import Identity
from worker.reconcile.recheck import look_at
from worker.reconcile.sides import Sides

_Key = tuple[str, UUID]


class Verification:
    """Which documents were seen to fit (``fits``), as of which version of the ledger.

    A document that was seen to fit need not be looked at again while the ledger has it unchanged: only apply
    writes its rows, and never without the ledger.
    """

    def __init__(self, sides: Sides, real: RealCollections, logical: Mapping[str, Collection]) -> None:
        self._sides, self._real, self._logical = sides, real, logical
        self.fits = Compared()
        self.unfit: dict[_Key, Touched] = {}
        """Documents that did not fit when they were looked at last, or whose collection cannot be told."""

    async def look(self, reader: Connection, touched: Iterable[Touched]) -> None:
        """Look at those that are not known to fit as they are, and again at what did not fit."""
        wanted = dict(self.unfit)
        for one in touched:
            key = one.namespace, one.row_id
            if self.fits.version(key) != one.version:
                wanted[key] = one
        self.unfit = {}
        identities: list[Identity] = []
        for namespace in sorted({one.namespace for one in wanted.values()}):
            some = [one for one in wanted.values() if one.namespace == namespace]
            if (collection := self._logical.get(namespace)) is None:
                continue  # a collection that is no longer mapped
            found, lost = await self._real.find(collection, some)
            self.unfit |= {(one.namespace, one.row_id): one for one in lost}
            for real, them in found.items():
                source = self._sides.source(str(real))
                identities += [source.nameless(one.row_id) for one in them]
        for look, _ in await look_at(self._sides, reader, identities, ()):
            if look.kind is None and look.version is not None:
                self.fits.note(look)
            else:
                self.unfit[look.key] = wanted[look.key]
