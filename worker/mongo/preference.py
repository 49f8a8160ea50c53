"""Which members of the replica set serve reads that need not go to the primary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pymongo.read_preferences import make_read_preference, read_pref_mode_from_name

ReadPreference = Any
"""pymongo names none: `Primary`, `Secondary` and the others have no common public class."""


def read_preference(mode: str, tag_sets: Sequence[Mapping[str, str]]) -> ReadPreference:
    """Return pymongo's read preference; the first of the tag sets that any member has counts."""
    return make_read_preference(read_pref_mode_from_name(mode), [dict(tags) for tags in tag_sets] or None)
