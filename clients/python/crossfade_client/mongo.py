"""A delete in MongoDB that the fence can refuse. A validator is not asked about deletes, only about
changes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from crossfade_client import refusals
from crossfade_client.errors import Fenced

_TOUCH: Mapping[str, Any] = {"$set": {"crossfadeDeleting": True}}


async def delete(
    collection: Any,
    filter: Mapping[str, Any],
    *,
    many: bool = False,
    touch: Mapping[str, Any] = _TOUCH,
    session: Any = None,
) -> int:
    """Delete one document that fits, or ``many``; return how many. `Fenced` when MongoDB refuses to change
    them.

    Changes the documents first and then deletes them, in one transaction, so nobody ever sees the change.
    ``collection`` is motor's or one of pymongo's asynchronous API. ``session``: with a transaction under way,
    which this joins; otherwise a transaction of its own, begun again as the driver does.

    ``touch`` must change every document that it meets, or the fence is not asked. It sets a field of ours,
    which a validator of the application's without additional properties refuses: give one that it lets
    through then, as ``{"$currentDate": {"updatedAt": True}}``. The filter must fit before and after it alike.
    """

    async def touch_and_delete(within: Any) -> int:
        # Both in one snapshot: what the first finds is what the second deletes.
        if not many:
            found = await collection.find_one_and_update(filter, touch, projection={"_id": 1}, session=within)
            if found is None:
                return 0
            return (await collection.delete_one({"_id": found["_id"]}, session=within)).deleted_count
        await collection.update_many(filter, touch, session=within)
        return (await collection.delete_many(filter, session=within)).deleted_count

    try:
        if session is not None and session.in_transaction:
            return await touch_and_delete(session)
        if session is not None:
            return await session.with_transaction(touch_and_delete)
        started = collection.database.client.start_session()
        async with await started if inspect.isawaitable(started) else started as own:
            return await own.with_transaction(touch_and_delete)
    except Exception as error:
        if refusals.of(error) is None:
            raise
        raise Fenced("MongoDB refuses to change what was to be deleted (code 121)") from error
