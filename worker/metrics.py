"""Every metric of Crossfade's processes: type, unit and meaning on its line. No series per tenant.

Counters end in ``_total``; a unit is the last word before it. Each process serves the registry of its own
role only: a publisher has nothing to say of applying, and a zero from it would spoil sums and ages. Whatever
counts documents or events is added once for a batch.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from worker.gauges import Age, Countdown, Counted, Distribution, Known

_LAG_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.3, 2.5, 5, 10, 60, 300, 3600)
_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
_SIZE_BUCKETS = (1, 3, 10, 30, 100, 300, 1000, 2000, 3000, 10_000)


PUBLISH, APPLY, RECONCILE = CollectorRegistry(), CollectorRegistry(), CollectorRegistry()
REVERSE, CONTROL = CollectorRegistry(), CollectorRegistry()
REGISTRIES = {
    "publish": PUBLISH,
    "apply": APPLY,
    "reconcile": RECONCILE,
    "reverse": REVERSE,
    "control": CONTROL,
}
"""What each role serves."""

# counter, events: documents' events given to Kafka, by collection and source (copy, stream)
PUBLISHED = Counter(
    "crossfade_publish_events_total",
    "Events given to Kafka, by source: copy or stream",
    ["collection", "source"],
    registry=PUBLISH,
)
# counter, bytes: record values given to Kafka, by source
PUBLISHED_BYTES = Counter(
    "crossfade_publish_bytes_total", "Bytes of record values given to Kafka", ["source"], registry=PUBLISH
)
# counter, events: updates whose document was gone when looked up; its delete follows
ABSENT = Counter(
    "crossfade_publish_absent_total",
    "Updates whose document was gone when it was looked up; its delete follows",
    ["collection"],
    registry=PUBLISH,
)
# counter, events: given to Kafka without their document, which the topic does not take, by collection
REFERENCES = Counter(
    "crossfade_publish_references_total",
    "Events given to Kafka without their document, which its topic does not take",
    ["collection"],
    registry=PUBLISH,
)
# histogram, seconds: from MongoDB's clock of a fetched batch's newest event to its hand-over to Kafka
PUBLISH_LAG = Histogram(
    "crossfade_publish_lag_seconds",
    "Age of a fetched batch's newest change when it was given to Kafka",
    registry=PUBLISH,
    buckets=_LAG_BUCKETS,
)
# gauge, seconds: age of the saved resume token's clusterTime, computed at the scrape
TOKEN_AGE = Age(
    "crossfade_publish_token_age_seconds",
    "Age of the saved resume token; beyond the oplog's window the stream cannot go on",
    PUBLISH,
)
# gauge, seconds: changes that the oplog holds when full, at the rate of those that it holds
OPLOG_WINDOW = Known(
    "crossfade_publish_oplog_window_seconds",
    "Changes that MongoDB's oplog holds, as time; no sample where MongoDB does not tell",
    PUBLISH,
)
# gauge, seconds: until the oplog drops the place of the saved token, computed at the scrape
OPLOG_LEFT = Countdown(
    "crossfade_publish_oplog_left_seconds",
    "Until MongoDB's oplog drops the place of the saved token, if no newer one is saved",
    PUBLISH,
)
# counter: times that the change stream was interrupted and opened again
STREAM_RESUMED = Counter(
    "crossfade_publish_stream_resumed_total", "Interruptions of the change stream", registry=PUBLISH
)
# counter, incarnations: resume tokens that MongoDB no longer took
TOKENS_LOST = Counter(
    "crossfade_publish_tokens_lost_total",
    "Times that the change stream began anew, and with it every copy",
    registry=PUBLISH,
)
# counter, documents: deleted after a copy because MongoDB no longer had them, by collection
REMOVED = Counter(
    "crossfade_copy_removed_total",
    "Documents that a copy over live rows found to be gone",
    ["collection"],
    registry=PUBLISH,
)
# counter, documents: copied and acknowledged by Kafka, by collection
COPIED = Counter(
    "crossfade_copy_documents_total",
    "Documents copied and acknowledged by Kafka",
    ["collection"],
    registry=PUBLISH,
)
# gauge, documents: what the collection was estimated to hold when its copy began
COPY_ESTIMATED = Gauge(
    "crossfade_copy_estimated_documents",
    "Documents that the collection was estimated to hold when its copy began",
    ["collection"],
    registry=PUBLISH,
)

# counter, events: records read and committed, by collection and outcome; read again, they count again
APPLIED = Counter(
    "crossfade_apply_events_total",
    "Records read and settled by a COMMIT, by what became of them",
    ["collection", "outcome"],
    registry=APPLY,
)
# counter, events: parked events tried again, by collection and outcome
PARKED_RETRIED = Counter(
    "crossfade_apply_parked_retries_total",
    "Parked events tried again, by what became of them",
    ["collection", "outcome"],
    registry=APPLY,
)
# histogram, events: records in one transaction
BATCH_EVENTS = Histogram(
    "crossfade_apply_batch_events", "Records in one transaction", registry=APPLY, buckets=_SIZE_BUCKETS
)
# histogram, seconds: one transaction that was committed, from BEGIN to COMMIT
BATCH_SECONDS = Histogram(
    "crossfade_apply_batch_seconds",
    "Duration of a committed transaction",
    registry=APPLY,
    buckets=_SECONDS_BUCKETS,
)
# counter: transactions begun again, by class of reason (worker/postgres/faults.py)
RETRIES = Counter(
    "crossfade_apply_retries_total",
    "Transactions begun again, by class of reason",
    ["reason"],
    registry=APPLY,
)
# gauge, events: dead letters that stand in PostgreSQL, by state (parked, dead); each worker tells all of them
DEAD_LETTERS = Gauge(
    "crossfade_apply_dead_letters",
    "Dead letters that stand in PostgreSQL, by state: parked or dead; each worker tells all of them",
    ["state"],
    registry=APPLY,
)
# histogram, seconds: from the timestamp of a chunk's last record in Kafka to when apply took it
KAFKA_LAG = Histogram(
    "crossfade_apply_kafka_lag_seconds",
    "Time in Kafka of a fetched chunk's last record",
    registry=APPLY,
    buckets=_LAG_BUCKETS,
)
# histogram, seconds: from MongoDB's clock of a chunk's last live event to its COMMIT in PostgreSQL
APPLY_LAG = Histogram(
    "crossfade_apply_lag_seconds",
    "Age of a chunk's last live event at its COMMIT in PostgreSQL",
    registry=APPLY,
    buckets=_LAG_BUCKETS,
)
# gauge, seconds: age of the newest applied heartbeat, of the collection's oldest partition that this worker
# has; computed at the scrape, up to one heartbeat interval when all is well
END_TO_END_LAG = Age(
    "crossfade_apply_end_to_end_lag_seconds",
    "Age of the newest applied heartbeat, in the furthest behind of the worker's partitions",
    APPLY,
    ["collection"],
)


# counter, documents: given to Kafka on the way back, by collection
REVERSE_SENT = Counter(
    "crossfade_reverse_sent_total",
    "Documents given to Kafka on the way back",
    ["collection"],
    registry=REVERSE,
)
# counter, documents: read from Kafka on the way back, by collection and what became of them
REVERSE_WRITTEN = Counter(
    "crossfade_reverse_written_total",
    "Documents of the way back by outcome: changed, equal, superseded or refused",
    ["collection", "outcome"],
    registry=REVERSE,
)
# histogram, seconds: from the application's write in PostgreSQL, by that clock, to MongoDB's majority
REVERSE_LAG = Histogram(
    "crossfade_reverse_lag_seconds",
    "From a write in PostgreSQL until a majority of MongoDB has it, of each chunk's last document",
    buckets=_LAG_BUCKETS,
    registry=REVERSE,
)
# gauge, seconds: age of the newest heartbeat that came through, of the reverse topics' oldest partition;
# computed at the scrape, up to two heartbeat intervals when all is well
REVERSE_END_TO_END = Age(
    "crossfade_reverse_end_to_end_lag_seconds",
    "Age of the newest heartbeat of the way back, in the partition that is furthest behind",
    REVERSE,
)
# gauge, rows: waiting in the outbox
REVERSE_OUTBOX = Known("crossfade_reverse_outbox_rows", "Rows that wait in the outbox", REVERSE)
# gauge, seconds: how long the first row of the outbox has been waiting; 0: none does
REVERSE_WAITING = Known(
    "crossfade_reverse_waiting_seconds", "How long the first row of the outbox has been waiting", REVERSE
)
# gauge, tenants: whose way back is broken
REVERSE_BROKEN = Known("crossfade_reverse_broken_tenants", "Tenants whose way back is broken", REVERSE)
# counter, events: changes of MongoDB that the way back made, met again by the publisher, by collection
ECHOES = Counter(
    "crossfade_publish_echoes_total",
    "Changes that the way back made, given to Kafka as echoes",
    ["collection"],
    registry=PUBLISH,
)


def reverse_begins(collections: Iterable[str]) -> None:
    """Make the counters of the way back, so that the first event is an increase and not a new series."""
    for collection in collections:
        REVERSE_SENT.labels(collection)
        for outcome in ("changed", "equal", "superseded", "refused"):
            REVERSE_WRITTEN.labels(collection, outcome)


def publish_begins(collections: Iterable[str]) -> None:
    """Make the counters of a publisher, so that the first event is an increase and not a new series."""
    for source in ("copy", "stream"):
        PUBLISHED_BYTES.labels(source)
    for collection in collections:
        ABSENT.labels(collection)
        ECHOES.labels(collection)
        REFERENCES.labels(collection)
        COPIED.labels(collection)
        REMOVED.labels(collection)
        for source in ("copy", "stream"):
            PUBLISHED.labels(collection, source)


def apply_begins(collections: Iterable[str], outcomes: Iterable[str], reasons: Iterable[str]) -> None:
    """Make the counters of an apply worker, so that the first event is an increase and not a new series."""
    for reason in reasons:
        RETRIES.labels(reason)
    for collection in collections:
        for outcome in outcomes:
            APPLIED.labels(collection, outcome)
            PARKED_RETRIED.labels(collection, outcome)


# counter, documents: compared, by why: full (a generation of everything), changes, again (did not fit before)
RECONCILED = Counter(
    "crossfade_reconcile_documents_total",
    "Documents compared, by why: full, changes, or again",
    ["why"],
    registry=RECONCILE,
)
# gauge, documents: that do not fit, by state (settling, real) and kind
MISMATCHES = Known(
    "crossfade_reconcile_mismatches",
    "Documents that do not fit, by state (settling or real) and kind",
    RECONCILE,
    ["state", "kind"],
)
# gauge, seconds: since the oldest of them was first seen, computed at the scrape
MISMATCH_AGE = Age(
    "crossfade_reconcile_mismatch_age_seconds",
    "Since the oldest mismatch was first seen, by state and kind",
    RECONCILE,
    ["state", "kind"],
)
# gauge, seconds: since the end of the last clean generation, computed at the scrape
CLEAN_AGE = Age(
    "crossfade_reconcile_clean_age_seconds",
    "Since the end of the last generation in which everything was equal; no sample where there was none",
    RECONCILE,
)
# gauge, documents: of batches that were rolled back, which wait to be fetched again
HELD = Known(
    "crossfade_reconcile_held_documents",
    "Documents of batches that were rolled back, which wait to be fetched again",
    RECONCILE,
)
# gauge, seconds: since all changes that apply had read were looked at, computed at the scrape
LOOKED_AGE = Age(
    "crossfade_reconcile_looked_age_seconds",
    "Since every change that apply had read was looked at; no sample from a reconciler that stands by",
    RECONCILE,
)
# counter, documents: sent anew by the reconciler itself
REPAIRS = Counter(
    "crossfade_reconcile_repairs_total",
    "Documents that the reconciler sent anew by itself",
    registry=RECONCILE,
)
# gauge: 1 while more is wrong than may be repaired by itself
REPAIR_STOPPED = Gauge(
    "crossfade_reconcile_repair_stopped",
    "1 while more is wrong than may be repaired by itself",
    registry=RECONCILE,
)

# counter, moves that ended, by kind (cutover, rollback, complete) and outcome; each tenant of a group counts
MOVES = Counted(
    "crossfade_control_moves_total",
    "Tenants' moves that have ended, by kind and outcome: done, aborted or rehearsed",
    CONTROL,
    ["kind", "outcome"],
)
# histogram, seconds: in which a move's tenant could write nowhere, by kind and outcome
PAUSES = Distribution(
    "crossfade_control_pause_seconds",
    "How long a move's tenant could write nowhere, of moves that their own command ended",
    CONTROL,
    ["kind", "outcome"],
)
# gauge, tenants: by phase (state)
TENANTS = Known("crossfade_control_tenants", "Tenants by phase", CONTROL, ["state"])
# gauge, seconds: since the tenant that has been longest in a phase of a move came into it, by phase (state)
MOVING_AGE = Age(
    "crossfade_control_moving_age_seconds",
    "Since the tenant longest in a phase of a move came into it, by phase; no sample where there is none",
    CONTROL,
    ["state"],
)
# gauge, events: writes in MongoDB for tenants that had left it, which stand as dead letters
ROGUE = Known(
    "crossfade_control_rogue_letters",
    "Dead letters that stand of writes in MongoDB for tenants that had left it",
    CONTROL,
)
# counter, reads that applications did on both sides, as their clients told it, by outcome
SHADOW_READS = Counted(
    "crossfade_control_shadow_reads_total",
    "Shadow reads of applications by outcome: equal, different, unsettled, failed or left_out",
    CONTROL,
    ["outcome"],
)
# gauge, seconds: since phases were read in PostgreSQL last, computed at the scrape
CONTROL_LOOKED_AGE = Age(
    "crossfade_control_looked_age_seconds", "Since the phases were read in PostgreSQL last", CONTROL
)
# counter, looks that found validators of MongoDB otherwise than the fence documents say, and mended them
VALIDATORS_MENDED = Counter(
    "crossfade_control_validators_mended_total",
    "Times that validators of MongoDB were not what the fences say, and were mended",
    registry=CONTROL,
)
