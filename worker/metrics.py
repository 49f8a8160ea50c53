"""Every metric of Crossfade's processes: type, unit and meaning on its line. No series per tenant.

Counters end in ``_total``; a unit is the last word before it.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_LAG_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.3, 2.5, 5, 10, 60, 300, 3600)

# counter, events: documents' events given to Kafka, by collection and source (copy, stream)
PUBLISHED = Counter("crossfade_publish_events_total", "Events given to Kafka", ["collection", "source"])
# counter, bytes: record values given to Kafka, by source
PUBLISHED_BYTES = Counter(
    "crossfade_publish_bytes_total", "Bytes of record values given to Kafka", ["source"]
)
# counter, events: updates whose document was gone when looked up; its delete follows
ABSENT = Counter(
    "crossfade_publish_absent_total", "Updates whose document was gone when it was looked up", ["collection"]
)
# histogram, seconds: from MongoDB's clock of a fetched batch's newest event to its hand-over to Kafka
PUBLISH_LAG = Histogram(
    "crossfade_publish_lag_seconds", "Age of a batch's newest event when given to Kafka", buckets=_LAG_BUCKETS
)
# gauge, seconds since 1970: clusterTime of the saved resume token; its age is time() minus this
TOKEN_TIME = Gauge("crossfade_publish_token_timestamp_seconds", "clusterTime of the saved resume token")
# counter: times that the change stream was interrupted and opened again
STREAM_RESUMED = Counter("crossfade_publish_stream_resumed_total", "Interruptions of the change stream")
# counter, documents: copied and acknowledged by Kafka, by collection
COPIED = Counter("crossfade_copy_documents_total", "Documents copied and acknowledged", ["collection"])
# gauge, documents: what the collection was estimated to hold when its copy began
COPY_ESTIMATED = Gauge("crossfade_copy_estimated_documents", "Documents expected in the copy", ["collection"])
