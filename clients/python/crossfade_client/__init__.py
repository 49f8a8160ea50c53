"""Where each tenant's data is while Crossfade moves it; docs/client.md says how an application uses this.

Depends on nothing of Crossfade's own program, and on no driver but asyncpg.
"""

from crossfade_client.errors import (
    Fenced,
    Moved,
    PartlyDone,
    PauseTooLong,
    PhaseUnknown,
    RouterError,
    TooStale,
)
from crossfade_client.mongo import delete
from crossfade_client.phases import Phase, Reading, Side
from crossfade_client.router import Router
from crossfade_client.shadow import Difference, Shadows, differing_paths

__all__ = [
    "Difference",
    "Fenced",
    "Moved",
    "PartlyDone",
    "PauseTooLong",
    "Phase",
    "PhaseUnknown",
    "Reading",
    "Router",
    "RouterError",
    "Shadows",
    "Side",
    "TooStale",
    "delete",
    "differing_paths",
]
