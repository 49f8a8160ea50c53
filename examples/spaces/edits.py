"""What an application changes in a document, as MongoDB's update operators."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from examples.spaces import parts, words
from examples.spaces.shapes import LEAD_STATUS, PAGE_STATUS, PLANS, Document, Shapes

# Fields that are sometimes null, and fields (or parts of fields) that are sometimes removed.
NULLABLE = {
    "users": ("lastLoginAt",),
    "pages": ("publishedAt",),
    "leads": ("phone", "formId", "activities"),
}
OPTIONAL = {
    "users": ("lastLoginAt", "legacyId", "profile.birthday"),
    "pages": ("publishedAt", "authorId", "seo", "tags", "content.embargo"),
    "leads": ("phone", "assignedTo", "activities", "data.visitedAt", "customFields"),
}
# What a document that moves to another tenant leaves behind: references into the old one.
LEFT_BEHIND = {"pages": ("authorId",), "leads": ("formId", "assignedTo")}
_LONGEST = 6


def assign(make: Shapes, collection: str) -> Document:
    """Return operators that give some fields new values."""
    if collection != "passwords" and make.rng.random() < 0.03:
        return {"$set": {"customFields.renewsOn": make.moment(), "tags": [make.pick(words.WORDS)]}}
    return _ASSIGN[collection](make)


def push(make: Shapes, has_array: bool, users: Sequence[UUID]) -> Document:
    """Return operators that add activities, at the end or in front; where there is no array, one begins."""
    new = [parts.activity(make, users) for _ in range(1 + (make.rng.random() < 0.2))]
    if not has_array:
        return {"$set": {"activities": new}}
    each: Document = {"$each": new, "$slice": -_LONGEST}
    if make.rng.random() < 0.25:
        each |= {"$position": 0, "$slice": _LONGEST}
    return {"$push": {"activities": each}}


def pop(make: Shapes) -> Document:
    """Return operators that remove the first or the last activity."""
    return {"$pop": {"activities": 1 if make.rng.random() < 0.6 else -1}}


def move(collection: str, tenant: UUID) -> Document:
    """Return operators that hand a document to another tenant."""
    return {"$set": {"tenantId": tenant}, "$unset": dict.fromkeys(LEFT_BEHIND[collection], "")}


def _tenant(make: Shapes) -> Document:
    return {"$set": {"plan": make.pick(PLANS), "settings.theme": make.pick(parts.THEMES)}}


def _user(make: Shapes) -> Document:
    chance = make.rng.random()
    if chance < 0.6:
        return {"$set": {"lastLoginAt": make.moment()}, "$inc": {"loginCount": 1}}
    if chance < 0.8:
        return {"$set": {"name": make.name(), "profile.bio": make.sentence()}}
    if chance < 0.9:
        return {"$set": {"email": make.email()}}
    return {"$set": {"isActive": chance < 0.97, "profile.tags": [make.pick(words.WORDS)]}}


def _password(make: Shapes) -> Document:
    return {"$set": {"hash": f"$argon2id$v=19$m=65536$made-up-{make.tag()}{make.tag()}"}}


def _form(make: Shapes) -> Document:
    if make.rng.random() < 0.5:
        return {"$set": {"fields": parts.form_fields(make)}}
    return {"$set": {"isActive": make.rng.random() < 0.8, "settings.redirect": "/thanks"}}


def _page(make: Shapes) -> Document:
    chance = make.rng.random()
    if chance < 0.5:
        return {"$set": {"title": make.sentence()}, "$inc": {"version": 1}}
    if chance < 0.8:
        return {"$set": {"status": make.pick(PAGE_STATUS), "publishedAt": make.moment()}}
    return {"$set": {"content.blocks.0.text": make.sentence(), "seo.noindex": chance < 0.9}}


def _lead(make: Shapes) -> Document:
    chance = make.rng.random()
    if chance < 0.5:
        return {"$set": {"status": make.pick(LEAD_STATUS), "score": round(chance * 150, 2)}}
    if chance < 0.8:
        return {"$set": {"data.people": int(chance * 100), "data.city": make.pick(words.PLACES)}}
    return {"$set": {"name": make.name(), "data.visitedAt": make.moment()}}


_ASSIGN = {
    "tenants": _tenant,
    "users": _user,
    "passwords": _password,
    "forms": _form,
    "pages": _page,
    "leads": _lead,
}
