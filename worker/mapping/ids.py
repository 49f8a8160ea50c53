"""Row ids: the UUID primary key that a document id maps to.

A UUID stays itself. An ObjectId becomes a UUIDv8 that holds its 12 bytes in order (so rows sort by time, as
the ObjectIds do) and can be turned back. Anything else becomes a UUIDv5 of its canonical BSON, and the
original must be kept elsewhere.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid5

from bson import ObjectId

from topics import document_key

_NAMESPACE = UUID("6f0c7c0e-7f0b-5d8e-9a53-c3055fade000")
HASHED = 5
"""Version of the UUIDs that are hashes of ids; but a document's own id may be one as well."""
_MARK = 0x78666F  # "xfo": the last three bytes of every row id made from an ObjectId


def row_id(document_id: Any, scope: str | None = None) -> UUID:
    """Return the row id of a document id of any BSON type.

    ``scope`` is the tenant's name where a collection's or database's name tells it: short ids, as 1 or
    "home", are then unique only within it.
    """
    if isinstance(document_id, UUID):
        return document_id
    if isinstance(document_id, ObjectId):
        return objectid_to_uuid(document_id)
    namespace = _NAMESPACE if scope is None else uuid5(_NAMESPACE, scope)
    return uuid5(namespace, document_key(document_id).hex())


def reversible(document_id: Any) -> bool:
    """Whether the row id alone tells the document id."""
    if isinstance(document_id, UUID):
        return uuid_to_objectid(document_id) is None
    return isinstance(document_id, ObjectId)


def objectid_to_uuid(objectid: ObjectId) -> UUID:
    """Return the UUIDv8 of an ObjectId: version and variant between, the mark last."""
    number = int.from_bytes(objectid.binary, "big")
    high, middle, low = number >> 48, (number >> 36) & 0xFFF, number & 0xFFFFFFFFF
    return UUID(int=high << 80 | 8 << 76 | middle << 64 | 0b10 << 62 | low << 26 | _MARK)


def uuid_to_objectid(uuid: UUID) -> ObjectId | None:
    """Return the ObjectId that a row id was made from, or None where it was not."""
    number = uuid.int
    if number & 0x3FFFFFF != _MARK or number >> 76 & 0xF != 8 or number >> 62 & 0b11 != 0b10:
        return None
    value = (number >> 80) << 48 | (number >> 64 & 0xFFF) << 36 | (number >> 26 & 0xFFFFFFFFF)
    return ObjectId(value.to_bytes(12, "big"))
