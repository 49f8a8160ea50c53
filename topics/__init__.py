"""The Kafka contract of Crossfade: topic names, record keys, event envelope and declared topics.

Nothing here imports the application: any program that reads or writes Crossfade's topics can use this
package alone. The records in ``topics/examples`` are decoded and encoded again by the tests.
"""

from topics.declared import Topic, declare, declare_all, declare_reverse
from topics.envelope import (
    EnvelopeError,
    Event,
    Operation,
    Origin,
    Source,
    Version,
    decode,
    encode,
    reference,
    resolved,
)
from topics.keys import document_key, id_to_bson, key_to_id, partition_of
from topics.names import Collection, TopicNames

__all__ = [
    "Collection",
    "EnvelopeError",
    "Event",
    "Operation",
    "Origin",
    "Source",
    "Topic",
    "TopicNames",
    "Version",
    "declare",
    "declare_all",
    "declare_reverse",
    "decode",
    "document_key",
    "encode",
    "id_to_bson",
    "key_to_id",
    "partition_of",
    "reference",
    "resolved",
]
