"""Single changes of documents that may be tried again until their outcome is known.

A lost connection leaves a write's outcome open, and a write that was sent may arrive after the next one.
Therefore every step names the state it starts from, by the document's stamp, and the state it leads to:

- insert: the id must be free. Tried again, it finds its own stamp there and knows that it has happened.
- update, replace, delete: the document must bear the old stamp. Tried again after success, it matches
  nothing, and what is there (the new stamp, or no document) says that it has happened. Arriving late, after a
  later step, it matches nothing either, because no stamp is used twice.

A transaction may change a document several times. Its last step tells whether it was committed, so that one
must lead to a state which the transaction did not find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

from pymongo import ReadPreference, ReturnDocument, WriteConcern
from pymongo.errors import AutoReconnect, DuplicateKeyError, OperationFailure
from pymongo.read_concern import ReadConcern

from examples.spaces.known import DocumentId, Known, stamp_of
from examples.spaces.shapes import CODEC, Document

_VALIDATION_FAILED = 121


class Do(Enum):
    """The kinds of steps."""

    INSERT = "insert"
    UPDATE = "update"
    REPLACE = "replace"
    DELETE = "delete"


class Conflict(Exception):
    """Somebody else has changed the document in the meantime; nothing was written."""


class Refused(Exception):
    """The database refuses writes of this tenant (its validator says so); nothing was written."""


@dataclass(slots=True)
class Step:
    """One change of one document. ``body`` is a document, or update operators, or nothing for a deletion.

    ``expects`` is the stamp it starts from (an insert expects none), ``stamp`` the one it leads to.
    """

    do: Do
    known: Known
    expects: datetime
    stamp: datetime
    body: Document = field(default_factory=dict)

    @property
    def collection(self) -> str:
        """Return the name of the collection."""
        return self.known.collection

    @property
    def id(self) -> DocumentId:
        """Return the document's id."""
        return self.known.id


class Clock:
    """Stamps: the present time in milliseconds, but never one twice."""

    def __init__(self) -> None:
        self._last = datetime.now(UTC).replace(microsecond=0)

    def stamp(self) -> datetime:
        """Return a stamp later than all before it."""
        now = datetime.now(UTC)
        now = now.replace(microsecond=now.microsecond // 1000 * 1000)
        self._last = max(now, self._last + timedelta(milliseconds=1))
        return self._last


class Executor:
    """Runs steps in one database: a single one as it is, several as a transaction."""

    def __init__(self, client: Any, database: str) -> None:
        self._client = client
        self._majority = WriteConcern("majority")
        self._database = client.get_database(
            database,
            codec_options=CODEC,
            write_concern=self._majority,
            read_concern=ReadConcern("majority"),
            read_preference=ReadPreference.PRIMARY,
        )

    async def run(self, steps: Sequence[Step], again: bool = False) -> list[Document | None]:
        """Do all steps or none and return the documents as they are now, None for the deleted.

        After any connection error call it with the same steps and ``again``. Raises ``Conflict`` and
        ``Refused``, and what pymongo raises.
        """
        try:
            if len(steps) == 1:
                return [await self._do(steps[0], None)]
            return await self._transaction(steps, again)
        except OperationFailure as error:
            if error.code == _VALIDATION_FAILED:
                raise Refused from error
            raise

    async def refresh(self, known: Known) -> bool:
        """Take note of the document's present state; False when there is none any more."""
        document = await self._database[known.collection].find_one({"_id": known.id})
        if document is not None:
            known.see(document)
        return document is not None

    async def _transaction(self, steps: Sequence[Step], again: bool) -> list[Document | None]:
        # All or nothing: what the last step leads to tells whether an earlier try was committed.
        if again and _bears(steps[-1], await self._present(steps[-1])):
            return [await self._present(step) for step in steps]
        # One try: the driver's own loop goes on for two minutes, even when the writer has been stopped.
        try:
            async with (
                await self._client.start_session() as session,
                session.start_transaction(read_concern=ReadConcern("snapshot"), write_concern=self._majority),
            ):
                return [await self._do(step, session) for step in steps]
        except Conflict:
            # An earlier try may have been committed just now; an earlier state of a document that it has
            # changed twice is nowhere to be seen.
            if not _bears(steps[-1], await self._present(steps[-1])):
                raise
            return [await self._present(step) for step in steps]

    async def _do(self, step: Step, session: Any) -> Document | None:
        collection = self._database[step.collection]
        guard = {"_id": step.id, stamp_of(step.collection): step.expects}
        if step.do is Do.INSERT:
            return await self._insert(step, session)
        if step.do is Do.DELETE:
            result = await collection.delete_one(guard, session=session)
            return None if result.deleted_count else await self._judge(step, session)
        if step.do is Do.REPLACE:
            found = await collection.find_one_and_replace(
                guard, step.body, return_document=ReturnDocument.AFTER, session=session
            )
        else:
            found = await collection.find_one_and_update(
                guard, step.body, return_document=ReturnDocument.AFTER, session=session
            )
        return found if found is not None else await self._judge(step, session)

    async def _insert(self, step: Step, session: Any) -> Document | None:
        try:
            await self._database[step.collection].insert_one(step.body, session=session)
        except DuplicateKeyError:
            if session is not None:
                # An earlier try of the transaction was committed after all: found when tried again.
                raise AutoReconnect("the transaction may have been committed") from None
            return await self._judge(step, None)
        return step.body

    async def _judge(self, step: Step, session: Any) -> Document | None:
        """Return the state that an earlier try has left, or raise ``Conflict``."""
        document = await self._present(step, session)
        if _bears(step, document):
            return document
        raise Conflict

    async def _present(self, step: Step, session: Any = None) -> Document | None:
        return await self._database[step.collection].find_one({"_id": step.id}, session=session)


def _bears(step: Step, document: Document | None) -> bool:
    """Tell whether ``document`` is what the step leads to."""
    if document is None:
        return step.do is Do.DELETE
    return step.do is not Do.DELETE and document[stamp_of(step.collection)] == step.stamp
