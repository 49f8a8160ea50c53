"""What a document of each collection looks like."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, TypeVar
from uuid import UUID

import bson
from bson import Decimal128, Int64, ObjectId
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions

from examples.spaces import parts, words

Document = dict[str, Any]
T = TypeVar("T")

CODEC: CodecOptions[Document] = CodecOptions(uuid_representation=UuidRepresentation.STANDARD, tz_aware=True)
EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
YEAR_MS = 365 * 24 * 3600 * 1000
PLANS = ("free", "team", "business", "enterprise")
ROLES = ("owner", "admin", "editor", "viewer")
LEAD_STATUS = ("new", "contacted", "qualified", "won", "lost")
PAGE_STATUS = ("draft", "review", "published", "archived")
_PAGE_BYTES = (960, 1090)


class Shapes:
    """Makes documents. ``content`` decides what they say, ``ids`` what they are called.

    A document is fully decided by the two generators' states, so equal seeds make equal documents. Emails,
    slugs and subdomains carry a tag drawn from ``ids``: as unique as the ids are.
    """

    def __init__(self, content: Random, ids: Random) -> None:
        self.rng = content
        self._ids = ids
        pools = Random(7)
        self._names = words.full_names(pools, 512)
        self._sentences = words.sentences(pools, 256)
        self._fill = words.ascii_text(pools, 4096)

    def reseed(self, rng: Random) -> None:
        """Draw everything from ``rng`` from now on."""
        self.rng = self._ids = rng

    def uuid(self) -> UUID:
        """Return a new UUID of version 4."""
        return UUID(int=self._ids.getrandbits(128), version=4)

    def object_id(self, at: datetime) -> ObjectId:
        """Return a new ObjectId of the second ``at``."""
        return ObjectId(int(at.timestamp()).to_bytes(4, "big") + self._ids.getrandbits(64).to_bytes(8, "big"))

    def tag(self) -> str:
        """Return 12 hexadecimal digits that no other document carries."""
        return f"{self._ids.getrandbits(48):012x}"

    def pick(self, pool: Sequence[T]) -> T:
        """Return one of ``pool``."""
        return pool[int(self.rng.random() * len(pool))]

    def moment(self) -> datetime:
        """Return a time of the past year, in milliseconds."""
        return EPOCH + timedelta(milliseconds=int(self.rng.random() * YEAR_MS))

    def name(self) -> str:
        """Return a person's name."""
        return self.pick(self._names)

    def sentence(self) -> str:
        """Return a sentence."""
        return self.pick(self._sentences)

    def email(self) -> str:
        """Return an email address that no other document has."""
        return f"{self.pick(words.WORDS)}.{self.tag()}@{self.pick(words.WORDS)}.example"

    def _stamp(self, document: Document, created: datetime) -> Document:
        document["createdAt"] = created
        document["updatedAt"] = created + timedelta(milliseconds=int(self.rng.random() * YEAR_MS))
        if self.rng.random() < 0.12:
            self._add_unmapped(document)
        return document

    def _add_unmapped(self, document: Document) -> None:
        """Give a document some of the fields that grew over the years and that no column holds."""
        chance = self.rng.random
        if chance() < 0.6:
            document["legacyId"] = Int64(self._ids.getrandbits(40))
        if chance() < 0.4:
            document["tags"] = [self.pick(words.WORDS) for _ in range(int(chance() * 4))]
        if chance() < 0.4:
            document["customFields"] = {
                "renewsOn": self.moment(),
                "budget": Decimal128(f"{int(chance() * 90000)}.{int(chance() * 100):02d}"),
                "nested": {"owner": None, "ratio": chance(), "flags": [True, False, None]},
            }

    def tenant(self) -> Document:
        """Return a document of ``tenants``."""
        word = self.pick(words.WORDS)
        document: Document = {
            "_id": self.uuid(),
            "name": f"{word.title()} {self.pick(words.PLACES)}",
            "subdomain": f"{word}-{self.tag()}",
            "plan": self.pick(PLANS),
            "status": "active",
            "settings": parts.tenant_settings(self),
        }
        return self._stamp(document, self.moment())

    def user(self, tenant: UUID, role: str | None = None) -> Document:
        """Return a document of ``users``."""
        chance, created = self.rng.random(), self.moment()
        document: Document = {
            "_id": self.uuid(),
            "tenantId": tenant,
            "email": self.email(),
            "name": self.name(),
            "role": role or self.pick(ROLES),
            "profile": parts.profile(self),
            "isActive": chance < 0.9,
            "loginCount": int(chance * 400),
        }
        if chance < 0.7:
            document["lastLoginAt"] = self.moment()
        elif chance < 0.85:
            document["lastLoginAt"] = None
        return self._stamp(document, created)

    def password(self, tenant: UUID, user: UUID) -> Document:
        """Return a document of ``passwords``."""
        at = self.moment()
        return {
            "_id": self.object_id(at),
            "tenantId": tenant,
            "userId": user,
            "hash": f"$argon2id$v=19$m=65536$made-up-{self.tag()}{self.tag()}",
            "algorithm": "argon2id",
            "changedAt": at,
        }

    def form(self, tenant: UUID, slug: str = "form") -> Document:
        """Return a document of ``forms``; ``slug`` begins its slug."""
        created = self.moment()
        document: Document = {
            "_id": self.object_id(created),
            "tenantId": tenant,
            "name": f"{self.pick(words.WORDS).title()} enquiry",
            "slug": f"{slug}-{self.tag()}",
            "fields": parts.form_fields(self),
            "settings": {"notify": [self.email()], "captcha": self.rng.random() < 0.5, "redirect": None},
            "isActive": self.rng.random() < 0.8,
            "submitCount": int(self.rng.random() * 500),
        }
        return self._stamp(document, created)

    def page(self, tenant: UUID, author: UUID | None) -> Document:
        """Return a document of ``pages``, 900 to 1150 bytes of BSON."""
        chance, created = self.rng.random(), self.moment()
        filler = {"type": "text", "text": ""}
        document: Document = {
            "_id": self.object_id(created),
            "tenantId": tenant,
            "title": self.sentence(),
            "slug": f"{self.pick(words.WORDS)}-{self.tag()}",
            "status": self.pick(PAGE_STATUS),
            "content": {
                "blocks": [{"type": "heading", "level": 1 + int(chance * 3), "text": self.sentence()}, filler]
            },
            "seo": {"title": self.pick(words.WORDS), "noindex": chance < 0.1, "priority": round(chance, 2)},
            "version": 1 + int(chance * 30),
        }
        if author is not None and chance < 0.85:
            document["authorId"] = author
        if chance < 0.6:
            document["publishedAt"] = self.moment()
        elif chance < 0.8:
            document["publishedAt"] = None
        if chance < 0.1:
            document["content"]["embargo"] = {"until": self.moment()}
        self._stamp(document, created)
        low, high = _PAGE_BYTES
        missing = (
            low + int(self.rng.random() * (high - low)) - len(bson.encode(document, codec_options=CODEC))
        )
        start = int(self.rng.random() * 2048)
        filler["text"] = self._fill[start : start + max(missing, 0)]
        return document

    def lead(self, tenant: UUID, form: ObjectId | None, users: Sequence[UUID]) -> Document:
        """Return a document of ``leads``; ``users`` may be assigned and act."""
        chance, created = self.rng.random(), self.moment()
        document: Document = {
            "_id": self.uuid(),
            "tenantId": tenant,
            "email": self.email(),
            "name": self.name(),
            "status": self.pick(LEAD_STATUS),
            "score": round(chance * 100, 2),
            "source": self.pick(words.WORDS),
            "data": parts.lead_data(self),
        }
        if chance < 0.9:
            document["formId"] = form
        if users and chance > 0.3:
            document["assignedTo"] = self.pick(users)
        if chance < 0.5:
            document["phone"] = f"+47 {int(chance * 1e8):08d}"
        elif chance < 0.7:
            document["phone"] = None
        if chance < 0.94:
            document["activities"] = parts.activities(self, users)
        elif chance < 0.97:
            document["activities"] = None
        return self._stamp(document, created)
