"""What is known of the tenants that were asked for: kept in bounds, refreshed, and waited for."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from uuid import UUID

from crossfade_client.phases import State
from crossfade_client.sources import Away, Heard, Source

_NOT_AGAIN_WITHIN = 0.25  # seconds after a failure, in which nobody else is made to wait for another one
_ASK_WHEN_TOLD = 0.25  # seconds between questions while a tenant's move is waited for
_ASK_WHEN_NOT_TOLD = 0.05


class Known:
    """The last known states of at most ``remember`` tenants; those waited for stay beyond that."""

    def __init__(self, source: Source, *, poll_every: float, remember: int) -> None:
        self._source, self._poll_every, self._remember = source, poll_every, remember
        self._states: OrderedDict[UUID, State] = OrderedDict()
        self._waiting: dict[UUID, tuple[asyncio.Event, int]] = {}
        self._wanted: set[UUID] = set()
        self._asking = asyncio.Lock()
        self._failed_from = self._failed_until = 0.0
        self._reason = ""
        self._missed = asyncio.Event()
        source.hear, source.anew = self._heard, self._missed.set

    def get(self, tenant: UUID) -> State | None:
        """Return what was last heard, at once."""
        if tenant in self._states:
            self._states.move_to_end(tenant)
        return self._states.get(tenant)

    async def refresh(self, tenant: UUID) -> State:
        """Return a state that is not older than this call; `Away` without an answer."""
        asked = time.monotonic()
        if asked < self._failed_until:
            raise Away(self._reason)
        self._wanted.add(tenant)
        await self._ask(asked, {tenant})
        return self._states[tenant]

    async def changed(self, tenant: UUID, since: State, within: float) -> State:
        """Return the tenant's state once it is another than ``since``.

        `TimeoutError` when it still is the same after ``within`` seconds; `Away` as soon as nobody answers.
        """
        event, waiters = self._waiting.get(tenant, (asyncio.Event(), 0))
        self._waiting[tenant] = (event, waiters + 1)
        until = time.monotonic() + within
        try:
            while True:
                state = self._states.get(tenant)
                if state is not None and not state.same_as(since):
                    return state
                if (left := until - time.monotonic()) <= 0:
                    raise TimeoutError
                event.clear()
                every = _ASK_WHEN_TOLD if self._source.tells else _ASK_WHEN_NOT_TOLD
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left, every)):
                        await event.wait()
                        continue
                await self.refresh(tenant)
        finally:
            event, waiters = self._waiting.pop(tenant)
            if waiters > 1:
                self._waiting[tenant] = (event, waiters - 1)

    async def follow(self) -> None:
        """Ask for all known tenants every ``poll_every`` seconds, and whenever changes may have been
        missed."""
        while True:
            self._missed.clear()
            if self._states:
                with suppress(Away):
                    self._wanted |= self._states.keys()
                    await self._ask(time.monotonic(), set(self._states))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_every):
                    await self._missed.wait()
            if time.monotonic() < self._failed_until:
                await asyncio.sleep(_NOT_AGAIN_WITHIN)

    async def _ask(self, asked: float, tenants: set[UUID]) -> None:
        """Ask for whatever is wanted, once for all who do at this moment; no answer may be older than
        ``asked``."""
        async with self._asking:
            if self._failed_from >= asked:
                raise Away(self._reason)
            if all(tenant in self._states and self._states[tenant].as_of >= asked for tenant in tenants):
                return
            wanted, self._wanted = self._wanted | tenants, set()
            began = time.monotonic()
            try:
                found = await self._source.fetch(wanted)
            except Away as error:
                self._failed_from, self._failed_until = began, time.monotonic() + _NOT_AGAIN_WITHIN
                self._reason = str(error)
                raise
            phases = {one.tenant: one for one in found}
            for tenant in wanted:  # a tenant without a row has never been on the move
                self._learn(phases.get(tenant) or Heard(tenant, "mongo", 0), began)
            self._forget(tenants)

    def _heard(self, heard: Heard) -> None:
        if heard.tenant in self._states:
            self._learn(heard, time.monotonic())

    def _learn(self, heard: Heard, as_of: float) -> None:
        """Take what was heard, unless a change was told since its question was sent: that is newer."""
        before = self._states.get(heard.tenant)
        if before is not None and before.as_of > as_of:
            return
        now = State(heard.phase, heard.epoch, as_of)
        self._states[heard.tenant] = now
        if heard.tenant in self._waiting and (before is None or not now.same_as(before)):
            self._waiting[heard.tenant][0].set()

    def _forget(self, needed: Iterable[UUID]) -> None:
        if len(self._states) <= self._remember:
            return
        kept = {*needed, *self._waiting}
        for tenant in [one for one in self._states if one not in kept][: len(self._states) - self._remember]:
            del self._states[tenant]
