"""What a live writer knows to be true of the database: the last acknowledged state of each document."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import bson

from examples.spaces.known import DocumentId
from examples.spaces.shapes import CODEC, Document

DELETED = b"deleted"
UNKNOWN = b"unknown"


class Wrong(NamedTuple):
    """A document that is not as it was acknowledged: ``lost``, ``stale`` or ``resurrected``."""

    collection: str
    id: DocumentId
    kind: str


def state_of(document: Document) -> bytes:
    """Return a hash of everything a document says, whatever the order of its fields."""
    ordered = {name: document[name] for name in sorted(document)}
    return hashlib.blake2b(bson.encode(ordered, codec_options=CODEC), digest_size=16).digest()


@dataclass(slots=True)
class Ledger:
    """Document ids and hashes of their last acknowledged states. Grows with the number of documents written.

    It is right as long as its writer is the only one that writes the documents in it.
    """

    states: dict[str, dict[DocumentId, bytes]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(states) for states in self.states.values())

    def record(self, collection: str, document_id: DocumentId, document: Document | None) -> None:
        """Take down an acknowledged state; None is a deletion."""
        state = DELETED if document is None else state_of(document)
        self.states.setdefault(collection, {})[document_id] = state

    def record_unknown(self, collection: str, document_id: DocumentId) -> None:
        """Take down that a write was given up without an answer: any state may be right."""
        self.states.setdefault(collection, {})[document_id] = UNKNOWN

    async def compare(self, database: Any) -> list[Wrong]:
        """Return the documents of ``database`` that differ from the ledger; none when all was kept."""
        wrong: list[Wrong] = []
        for collection, states in self.states.items():
            source = database.get_collection(collection, codec_options=CODEC)
            ids = list(states)
            for start in range(0, len(ids), 1000):
                part = ids[start : start + 1000]
                found = {document["_id"]: document async for document in source.find({"_id": {"$in": part}})}
                for key in part:
                    if kind := _judge(states[key], found.get(key)):
                        wrong.append(Wrong(collection, key, kind))
        return wrong


def _judge(state: bytes, document: Document | None) -> str | None:
    if state == UNKNOWN:
        return None
    if document is None:
        return None if state == DELETED else "lost"
    if state == DELETED:
        return "resurrected"
    return None if state_of(document) == state else "stale"
