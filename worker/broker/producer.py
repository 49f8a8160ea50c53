"""The idempotent producer: whole batches of records, one acknowledgement each."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from topics.declared import LARGEST_RECORD
from worker.broker.admin import unreachable
from worker.errors import Fatal

Record = tuple[bytes, bytes]
"""Key and value."""

_BATCH_BYTES = 1024 * 1024
_DELIVERY_MS = 60_000
_STOP_SECONDS = 3.0


class Producer:
    """Sends records in order within each partition; a failed send is `Fatal`, never skipped."""

    def __init__(self, bootstrap: str, role: str) -> None:
        self._bootstrap = bootstrap
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap,
            client_id=f"crossfade {role}",
            acks="all",
            enable_idempotence=True,
            max_batch_size=_BATCH_BYTES,
            max_request_size=LARGEST_RECORD + _BATCH_BYTES,
            request_timeout_ms=_DELIVERY_MS,
        )

    async def start(self) -> None:
        """Connect; `ServiceUnavailable` when Kafka cannot be reached."""
        try:
            await self._producer.start()
        except (KafkaError, OSError, TimeoutError) as error:
            await self._producer.stop()
            raise unreachable(self._bootstrap, error) from None

    async def stop(self) -> None:
        """Close the connections. What was not acknowledged is sent again by the next publisher."""
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self._producer.stop()
        except TimeoutError:
            # It waits for acknowledgements without end while Kafka is away.
            if (sender := self._producer._sender) is not None:
                await sender.close()
            await self._producer.client.close()

    async def send(self, topic: str, partition: int, records: Sequence[Record]) -> list[Future[Any]]:
        """Hand records over in order; return one future for each batch, to be given to `acknowledged`."""
        acknowledgements: list[Future[Any]] = []
        batch = self._producer.create_batch()
        try:
            for key, value in records:
                if batch.append(key=key, value=value, timestamp=None) is None:
                    acknowledgements.append(
                        await self._producer.send_batch(batch, topic, partition=partition)
                    )
                    batch = self._producer.create_batch()
                    if batch.append(key=key, value=value, timestamp=None) is None:
                        raise Fatal(f"a record of {len(value)} bytes fits no batch for topic {topic}")
            if batch.record_count():
                acknowledgements.append(await self._producer.send_batch(batch, topic, partition=partition))
        except KafkaError as error:
            raise _failed(topic, error) from None
        return acknowledgements

    async def send_all(self, records: Mapping[tuple[str, int], Sequence[Record]]) -> list[Future[Any]]:
        """Send to many partitions at once; the records of each stay in order."""
        sent = await asyncio.gather(
            *(self.send(topic, partition, some) for (topic, partition), some in records.items())
        )
        return [acknowledgement for some in sent for acknowledgement in some]


async def acknowledged(acknowledgements: Sequence[Future[Any]]) -> None:
    """Return when the broker has acknowledged all; `Fatal` when it refused one."""
    for acknowledgement in acknowledgements:
        if not acknowledgement.done():
            await asyncio.wait([acknowledgement])  # unlike `await`, leaves it alone when we are cancelled
        try:
            acknowledgement.result()
        except KafkaError as error:
            raise _failed("", error) from None


def _failed(topic: str, error: KafkaError) -> Fatal:
    where = f" for topic {topic}" if topic else ""
    return Fatal(
        f"Kafka did not take a batch{where} ({type(error).__name__})",
        remedy="check the brokers; the next start sends it again from the last saved token",
    )
