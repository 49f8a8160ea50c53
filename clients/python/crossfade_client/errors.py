"""What an application may have to handle.

RouterError
├── PauseTooLong    nobody may write for this tenant yet; nothing of the unit was kept
├── Moved           the tenant moved under `Router.writing`; the caller does its unit again
├── PartlyDone      MongoDB refused the rest of a bulk; the application must look what is there
├── PhaseUnknown    nothing was ever heard of this tenant, and nobody answers
├── TooStale        the answer would be older than was asked for
└── Fenced          MongoDB refused a `delete`
"""

from __future__ import annotations

from uuid import UUID


class RouterError(Exception):
    """The router cannot do as it was asked."""


class PauseTooLong(RouterError):
    """A tenant's pause outlasted the wait. ``phase`` and ``epoch``: as last heard, which may be long ago."""

    def __init__(self, tenant: UUID, phase: str, epoch: int, seconds: float) -> None:
        self.tenant, self.phase, self.epoch, self.seconds = tenant, phase, epoch, seconds
        super().__init__(f"tenant {tenant} could not be written for {seconds:g} s; its phase: {phase}")


class Moved(RouterError):
    """A tenant's writes go elsewhere now; what was done in this block was refused: do it again from its
    reads."""

    def __init__(self, tenant: UUID, side: str) -> None:
        self.tenant, self.side = tenant, side
        super().__init__(f"tenant {tenant} moved while it was written in {side}; do the unit of work again")


class PartlyDone(RouterError):
    """MongoDB did some operations of a bulk and refused the others, as the tenant moved.

    Doing the unit again could do the first ones twice. ``write(..., atomic=True)`` says that they were in a
    transaction, which took them back.
    """


class PhaseUnknown(RouterError):
    """Nothing was heard of a tenant so far, and neither PostgreSQL nor the control API answers."""


class TooStale(RouterError):
    """What is known of a tenant is older than was asked for, and nobody answers. ``age`` in seconds."""

    def __init__(self, tenant: UUID, age: float) -> None:
        self.tenant, self.age = tenant, age
        super().__init__(f"the phase of tenant {tenant} was last heard {age:.1f} s ago")


class Fenced(RouterError):
    """A validator of MongoDB (code 121) refused what a `delete` had to change first; nothing was deleted."""
