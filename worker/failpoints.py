"""Named places where tests stop the real program; switched on by ``CROSSFADE_FAILPOINTS``.

``CROSSFADE_FAILPOINTS="apply.before_commit=exit:3,publish.after_send=hold:1:2.5"`` exits hard (no clean-up,
as kill -9) when the first place is reached the third time, and at the second's first holds the whole process
for 2.5 seconds; ``raise`` raises. Each takes effect once in a process. Off, a place costs one look into an
empty dictionary.
"""

from __future__ import annotations

import os
import sys
import time
from typing import NamedTuple

from worker.errors import CrossfadeError

PUBLISH_AFTER_SEND = "publish.after_send"
PUBLISH_BEFORE_TOKEN = "publish.before_token"  # noqa: S105 - a name
PUBLISH_AFTER_TOKEN = "publish.after_token"  # noqa: S105 - a name
COPY_BEFORE_READ = "copy.before_read"
COPY_AFTER_CHUNK = "copy.after_chunk"
REMOVAL_AFTER_SEND = "removal.after_send"
APPLY_BEFORE_COMMIT = "apply.before_commit"
APPLY_AFTER_COMMIT = "apply.after_commit"
APPLY_BEFORE_ACKNOWLEDGE = "apply.before_acknowledge"
RECONCILE_BEFORE_COMMIT = "reconcile.before_commit"
RECONCILE_AFTER_CHUNK = "reconcile.after_chunk"
RECONCILE_BEFORE_FINISH = "reconcile.before_finish"
RECONCILE_AFTER_FINISH = "reconcile.after_finish"
RECONCILE_AFTER_LOOK = "reconcile.after_look"
ROLLBACK_BEFORE_COMMIT = "rollback.before_commit"
REPAIR_BEFORE_SEND = "repair.before_send"
CUTOVER_DRAINING = "cutover.draining"
CUTOVER_FENCE_DECIDED = "cutover.fence_decided"
CUTOVER_FENCED = "cutover.fenced"
CUTOVER_VERIFIED = "cutover.verified"
CUTOVER_DECIDED = "cutover.decided"
CUTOVER_ABORTING = "cutover.aborting"
ROLLBACK_CLOSED = "rollback.closed"
ROLLBACK_VERIFIED = "rollback.verified"
ROLLBACK_DECIDED = "rollback.decided"
REVERSE_AFTER_TAKE = "reverse.after_take"
REVERSE_AFTER_READ = "reverse.after_read"
REVERSE_AFTER_SEND = "reverse.after_send"
REVERSE_AFTER_COMMIT = "reverse.after_commit"
REVERSE_AFTER_WRITE = "reverse.after_write"

NAMES = frozenset(
    {
        PUBLISH_AFTER_SEND,
        PUBLISH_BEFORE_TOKEN,
        PUBLISH_AFTER_TOKEN,
        COPY_BEFORE_READ,
        COPY_AFTER_CHUNK,
        REMOVAL_AFTER_SEND,
        APPLY_BEFORE_COMMIT,
        APPLY_AFTER_COMMIT,
        APPLY_BEFORE_ACKNOWLEDGE,
        RECONCILE_BEFORE_COMMIT,
        RECONCILE_AFTER_CHUNK,
        RECONCILE_BEFORE_FINISH,
        RECONCILE_AFTER_FINISH,
        RECONCILE_AFTER_LOOK,
        ROLLBACK_BEFORE_COMMIT,
        REPAIR_BEFORE_SEND,
        CUTOVER_DRAINING,
        CUTOVER_FENCE_DECIDED,
        CUTOVER_FENCED,
        CUTOVER_VERIFIED,
        CUTOVER_DECIDED,
        CUTOVER_ABORTING,
        ROLLBACK_CLOSED,
        ROLLBACK_VERIFIED,
        ROLLBACK_DECIDED,
        REVERSE_AFTER_TAKE,
        REVERSE_AFTER_READ,
        REVERSE_AFTER_SEND,
        REVERSE_AFTER_COMMIT,
        REVERSE_AFTER_WRITE,
    }
)
EXIT_CODE = 86


class FailpointReached(CrossfadeError):
    """A failpoint raised, as its test asked."""


class _Place(NamedTuple):
    kind: str
    left: int
    seconds: float


def _parse(text: str) -> dict[str, _Place]:
    places: dict[str, _Place] = {}
    for item in filter(None, text.split(",")):
        name, _, action = item.partition("=")
        kind, count, seconds = (*action.split(":"), "", "")[:3]
        if name not in NAMES or kind not in ("exit", "raise", "hold"):
            raise CrossfadeError(f"no such failpoint or action: {item}")
        places[name] = _Place(kind, int(count or 1), float(seconds or 1))
    return places


_active = _parse(os.environ.get("CROSSFADE_FAILPOINTS", ""))


def reach(name: str) -> None:
    """Do what is switched on for this place, if anything."""
    if not _active or name not in _active:
        return
    place = _active[name]
    if place.left > 1:
        _active[name] = place._replace(left=place.left - 1)
        return
    del _active[name]
    if place.kind == "exit":
        os._exit(EXIT_CODE)
    if place.kind == "hold":
        print(f"{name} holds", file=sys.stderr, flush=True)
        time.sleep(place.seconds)
        return
    raise FailpointReached(name)
