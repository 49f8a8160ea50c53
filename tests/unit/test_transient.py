"""Which of MongoDB's errors pass by themselves."""

from __future__ import annotations

import pytest
from pymongo.errors import BulkWriteError

from worker.mongo.client import describe, transient

_DUPLICATE, _STEPPED_DOWN, _NO_MAJORITY = 11000, 189, 64


@pytest.mark.parametrize(
    ("writes", "concerns", "passing"),
    [
        ([_STEPPED_DOWN], [], True),
        ([], [_NO_MAJORITY], True),
        ([_STEPPED_DOWN, _DUPLICATE], [], False),
        ([_DUPLICATE], [_NO_MAJORITY], False),
        ([], [], False),
    ],
)
def test_of_many_writes_each_error_counts(writes: list[int], concerns: list[int], passing: bool) -> None:
    details = {
        "writeErrors": [{"code": one} for one in writes],
        "writeConcernErrors": [{"code": one} for one in concerns],
    }
    error = BulkWriteError(details)
    assert transient(error) is passing
    assert all(str(one) in describe(error) for one in (*writes, *concerns))
