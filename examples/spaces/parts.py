"""The nested objects and arrays inside the documents of the reference application."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from bson import Decimal128

from examples.spaces import words

if TYPE_CHECKING:
    from examples.spaces.shapes import Shapes

FEATURES = ("booking", "crm", "pages", "sso", "audit", "api", "webhooks")
THEMES = ("light", "dark", "solarized", "high-contrast")
LOCALES = ("en", "nb", "ja", "ar", "he", "pt-BR", "uk")
ACTIVITIES = ("email", "call", "note", "meeting", "visit")


def tenant_settings(make: Shapes) -> dict[str, Any]:
    """Return a tenant's ``settings``."""
    count = int(make.rng.random() * len(FEATURES))
    return {"theme": make.pick(THEMES), "locale": make.pick(LOCALES), "features": list(FEATURES[:count])}


def profile(make: Shapes) -> dict[str, Any]:
    """Return a user's ``profile``; some keep a date in it, which JSON has no word for."""
    chance = make.rng.random()
    value: dict[str, Any] = {
        "bio": make.sentence(),
        "avatar": None if chance < 0.3 else f"https://cdn.example/{make.pick(words.WORDS)}.png",
        "social": {"mastodon": f"@{make.pick(words.WORDS)}"} if chance < 0.5 else {},
        "tags": [make.pick(words.WORDS) for _ in range(int(chance * 4))],
    }
    if chance < 0.1:
        value["birthday"] = make.moment()
    return value


def form_fields(make: Shapes) -> list[dict[str, Any]]:
    """Return a form's ``fields``."""
    kinds = ("text", "email", "number", "select")
    return [
        {
            "key": f"{make.pick(words.WORDS)}_{position}",
            "kind": (kind := make.pick(kinds)),
            "required": position == 0,
            "options": [make.pick(words.PLACES), "…"] if kind == "select" else None,
        }
        for position in range(1 + int(make.rng.random() * 4))
    ]


def lead_data(make: Shapes) -> dict[str, Any]:
    """Return a lead's ``data``: free answers of any type."""
    chance = make.rng.random()
    value: dict[str, Any] = {
        "city": make.pick(words.PLACES),
        "people": int(chance * 40),
        "budget": float(int(chance * 9000)),
        "utm": {"source": make.pick(words.WORDS), "campaign": None},
    }
    if chance < 0.15:
        value["visitedAt"] = make.moment()
    elif chance < 0.2:
        value["quote"] = Decimal128(f"{int(chance * 90000)}.50")
    elif chance < 0.25:
        value["session"] = make.uuid()
    elif chance < 0.3:
        value["history"] = [{"at": make.moment(), "ref": make.object_id(make.moment())}, {"at": None}]
    return value


def activity(make: Shapes, users: Sequence[UUID]) -> dict[str, Any]:
    """Return one element of a lead's ``activities``."""
    chance = make.rng.random()
    value: dict[str, Any] = {"type": make.pick(ACTIVITIES), "at": make.moment()}
    if users and chance < 0.8:
        value["by"] = make.pick(users)
    if chance < 0.5:
        value["note"] = make.sentence()
    elif chance < 0.55:
        value["note"] = None
    if chance > 0.3:
        value["meta"] = {"minutes": int(chance * 60), "via": make.pick(words.WORDS)}
    if chance > 0.95:
        value["meta"]["until"] = make.moment()
        value["imported"] = True
    return value


def activities(make: Shapes, users: Sequence[UUID]) -> list[dict[str, Any]]:
    """Return a lead's ``activities``: none to six, few more often than many."""
    chance = make.rng.random()
    return [activity(make, users) for _ in range(int(chance * chance * 7))]
