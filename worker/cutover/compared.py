"""What a move has compared itself, as evidence for its decision: counts and hashes of both sides."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from topics import Version
from worker.reconcile.judge import Look


class Compared:
    """Documents that were seen to be equal on both sides, each as it was seen last."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, UUID], tuple[Version | None, int | None, int | None]] = {}

    def __len__(self) -> int:
        """How many documents."""
        return len(self._seen)

    def note(self, look: Look) -> None:
        """Note a look at a document that fits."""
        self._seen[look.key] = look.version, look.mongo, look.postgres

    def version(self, key: tuple[str, UUID]) -> Version | None:
        """Return the ledger's version with which a document was seen to fit; None: it was not."""
        return self._seen[key][0] if key in self._seen else None

    def told(self) -> dict[str, Any]:
        """Return it as evidence: by collection, each side's documents and the sum of their digests."""
        return {"looked_at": len(self._seen), "compared": self._sums()}

    def _sums(self) -> dict[str, dict[str, list[int | str]]]:
        told: dict[str, dict[str, tuple[int, int]]] = {}
        for (namespace, _), (_, *digests) in self._seen.items():
            sides = told.setdefault(namespace, {"mongo": (0, 0), "postgres": (0, 0)})
            for side, digest in zip(("mongo", "postgres"), digests, strict=True):
                if digest is not None:
                    count, total = sides[side]
                    sides[side] = count + 1, total + digest
        return {
            namespace: {side: [count, str(total)] for side, (count, total) in sides.items()}
            for namespace, sides in told.items()
        }
