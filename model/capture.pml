/* Capture and apply, seen from one document: transactions, a stream that is killed, and that may lose its
 * place once; the copy; the removal of what is gone; topics deleted by hand; a batch that is rolled back;
 * PostgreSQL put back to an older state. Kafka is a set of records: any may be applied at any time, and again.
 *
 * Promises: when all is settled the row shows the document; and a row never goes back to an older version.
 * Each WITHOUT_x takes one rule of docs/protocol.md out; then a promise must break.
 */

#ifndef COMMITS
#define COMMITS 3	/* transactions that write the document, of one or two changes each */
#endif
#ifndef CHANGES
#define CHANGES 4	/* changes of the document at most */
#endif
#ifndef FAULTS
#define FAULTS 2	/* kills, lost places, deleted topics, batches rolled back, restores: together */
#endif
#define RECORDS 9	/* different records at most; more would be told by an assertion */
#define MAX 7		/* the order of a snapshot read */
#define ABSENT 0

/* MongoDB. A state is the number of the change that wrote it, or ABSENT. */
byte now;			/* clusterTime */
byte changes;
byte faults;
byte change_time[CHANGES + 1];
byte change_state[CHANGES + 1];
bool application_done;

/* publish; `saved`, `began`, `copied` and what follows them outlive a kill */
byte position = 1;		/* the next change to send */
byte saved = 1;			/* where a stream goes on */
bool token;			/* whether a token was ever saved */
byte began;			/* S: the clusterTime at which this incarnation of the stream began */
byte incarnation;		/* 0: not begun */
byte flying;			/* a record that is sent and not acknowledged: its number + 1 */
byte last_time, order;		/* of the change sent last by this process */
bool copied;
byte removal;			/* 0: none wanted, 1: wanted, 2: read and found absent */
byte removal_time;
bool copying;
byte copy_began;		/* the clusterTime at which the copy began */

/* Kafka */
typedef Record { byte time; byte order; byte state };
Record record[RECORDS];
byte records;
int acknowledged;		/* bits: the broker has them */

/* PostgreSQL */
int pending;			/* bits: records that apply has not read */
byte row;
byte ledger_time, ledger_order;
bool known, refetch;
byte asked;			/* now + 1 when what was rolled back was read again last */
byte top_time, top_order;	/* the greatest version that the row ever showed */

bool rolled_back;
byte restores;			/* 0: none yet, 1: a backup exists, 2: it was put back */
int kept_pending, kept_acknowledged;
byte kept_row, kept_time, kept_order, kept_top_time, kept_top_order;
bool kept_known, kept_refetch;

byte found;			/* of the macros and inlines below */

#define NEWER(t1, o1, t2, o2) ((t1) > (t2) || ((t1) == (t2) && (o1) > (o2)))

/* The state at a clusterTime, left in `found`. */
inline read_at(when, i)
{
	found = ABSENT;
	i = 1;
	do
	:: i <= changes && change_time[i] <= when -> found = change_state[i]; i++
	:: else -> break
	od;
	i = 0
}

/* A record with these contents, its number left in `found`. */
inline make(t, o, s, i)
{
	i = 0;
	do
	:: i < records && !(record[i].time == t && record[i].order == o && record[i].state == s) -> i++
	:: else -> break
	od;
	if
	:: i == records ->
		assert(records < RECORDS);
		record[i].time = t; record[i].order = o; record[i].state = s;
		records++
	:: else
	fi;
	found = i;
	i = 0
}

inline deliver(number) { pending = pending | (1 << (number)); acknowledged = acknowledged | (1 << (number)) }

#ifdef WITHOUT_C1
#define C1_BETWEEN_CLUSTERTIMES true
#else
#define C1_BETWEEN_CLUSTERTIMES (position > changes || change_time[position] != change_time[position - 1])
#endif
#ifdef WITHOUT_C6
#define C6_ACKNOWLEDGED true
#else
#define C6_ACKNOWLEDGED (!flying)
#endif
#ifdef WITHOUT_C7_BARRIER
#define C7_BEHIND_A_BARRIER true
#else
#define C7_BEHIND_A_BARRIER (!pending)
#endif
#ifdef WITHOUT_A1_REFETCH
#define A1_AS_NEW(n) false
#else
#define A1_AS_NEW(n) (refetch && record[n].time == ledger_time && record[n].order == ledger_order)
#endif

proctype Application()
{
	byte commits;

	do
	:: d_step { commits < COMMITS && changes < CHANGES ->
		commits++; now++; changes++;
		change_time[changes] = now;
		change_state[changes] = changes }
	:: d_step { commits < COMMITS && changes < CHANGES && changes > 0 && change_state[changes] != ABSENT ->
		commits++; now++; changes++;
		change_time[changes] = now;
		change_state[changes] = ABSENT }
	:: d_step { commits < COMMITS && changes < CHANGES - 1 && changes > 0 && change_state[changes] != ABSENT ->
		/* deleted and inserted in one transaction */
		commits++; now++; changes++;
		change_time[changes] = now;
		change_state[changes] = ABSENT;
		changes++;
		change_time[changes] = now;
		change_state[changes] = changes }
	:: break
	od;
	application_done = true
}

proctype Stream()
{
	byte i, at, s;

end:	do
	:: atomic { incarnation == 0 ->	/* C4: where it begins is saved before anything else */
		incarnation = 1; began = now; position = changes + 1; saved = position }
	:: atomic { incarnation > 0 && position <= changes && !flying ->	/* send the next change */
		if
		:: change_time[position] == last_time -> order++
		:: else -> last_time = change_time[position]; order = 0
		fi;
		if
		:: change_state[position] != ABSENT && position > 1 && change_state[position - 1] != ABSENT ->
			/* C5: an update's document is looked up, and may be newer than the update */
#ifdef WITHOUT_C5
			at = 0;
#else
			at = change_time[position];
#endif
			do
			:: at < now -> at++
			:: break
			od;
			read_at(at, i);
			s = found
		:: else -> s = change_state[position]
		fi;
		if
		:: s == ABSENT && change_state[position] != ABSENT -> skip	/* the delete follows */
		:: else -> make(change_time[position], order, s, i); flying = found + 1
		fi;
		position++; s = 0; at = 0; found = 0 }
	:: d_step { flying -> deliver(flying - 1); flying = 0 }	/* acknowledged */
	:: d_step { incarnation > 0 && saved != position && C6_ACKNOWLEDGED && C1_BETWEEN_CLUSTERTIMES ->
		saved = position; token = true }
	:: atomic { incarnation > 0 && faults < FAULTS ->	/* killed, and started anew */
		faults++; flying = 0; last_time = 0; order = 0;
#ifdef WITHOUT_C4
		if
		:: !token -> began = now; saved = changes + 1
		:: else
		fi;
#endif
		position = saved }
	:: d_step { incarnation == 1 && faults < FAULTS ->	/* C7: the place is lost; a new incarnation */
		faults++; incarnation = 2; began = now; position = changes + 1; saved = position; token = false;
		flying = 0; last_time = 0; order = 0; copied = false; copying = false; removal = 1 }
	od
}

/* Reads in snapshots: the copy, the removal of what is gone, the refetch. */
proctype Snapshots()
{
	byte i, at;

end:	do
	:: d_step { incarnation > 0 && !copied && !copying -> copying = true; copy_began = now }
	:: atomic { copying ->
#ifdef WITHOUT_C3
		at = 0;
#else
#ifdef WITHOUT_C3_COPY
		at = began;
#else
		at = copy_began;
#endif
#endif
		do
		:: at < now -> at++
		:: break
		od;
		read_at(at, i);
		if
		:: found != ABSENT ->
#ifdef WITHOUT_C2
			make(at, 0, found, i);
#else
			make(at, MAX, found, i);
#endif
			deliver(found)
		:: else
		fi;
		copied = true; copying = false; at = 0; found = 0 }
	:: d_step { removal == 1 && copied && C7_BEHIND_A_BARRIER ->
		read_at(now, i);
		removal_time = now;
		if
		:: found == ABSENT && known && ledger_time <= copy_began -> removal = 2
		:: else -> removal = 0
		fi;
		found = 0 }
	:: d_step { removal == 2 ->
#ifdef WITHOUT_C7_VERSION
		removal_time = now;
#endif
		make(removal_time, MAX, ABSENT, i);
		deliver(found);
		removal = 0; removal_time = 0; found = 0 }
	:: d_step { refetch && asked != now + 1 && incarnation > 0 ->	/* its absence is sent as well */
		read_at(now, i);
		make(now, MAX, found, i);
		deliver(found);
		found = 0;
		asked = now + 1 }
	od
}

/* The newest wins, whatever comes, and however often. */
inline apply(n)
{
	if
	:: NEWER(record[n].time, record[n].order, ledger_time, ledger_order) || A1_AS_NEW(n) ->
		assert(!NEWER(top_time, top_order, record[n].time, record[n].order));
		top_time = record[n].time; top_order = record[n].order;
		row = record[n].state;
		known = true; refetch = false;
		ledger_time = record[n].time; ledger_order = record[n].order;
#ifdef WITHOUT_A1_TOMBSTONE
		if
		:: row == ABSENT -> known = false; ledger_time = 0; ledger_order = 0
		:: else
		fi
#endif
	:: else
	fi
}

/* Records are gone that apply may not have read: the collection is copied again, and what is gone removed. */
inline copy_again()
{
#ifdef WITHOUT_C7_FIRST
	if
	:: copied -> removal = 1
	:: else			/* nothing was copied yet, so nothing could be known that is gone */
	fi;
#else
	removal = 1;
#endif
	copied = false; copying = false; asked = 0
}

proctype Apply()
{
	byte n;

end:	do
	:: atomic { pending ->	/* any record; and it may come again */
		n = 0;
		do
		:: n < RECORDS - 1 -> n++
		:: (pending >> n) & 1 ->
			apply(n);
			if
			:: pending = pending & ~(1 << n)
			:: true
			fi;
			break
		:: else -> break
		od;
		n = 0 }
	:: d_step { known && !rolled_back && faults < FAULTS ->	/* the batch that wrote the row last */
		faults++; rolled_back = true; row = ABSENT; refetch = true;
#ifdef WITHOUT_A9
		ledger_time = 0; ledger_order = 0;
#endif
		skip }
	:: d_step { incarnation > 0 && acknowledged && faults < FAULTS ->	/* the topics are deleted by hand */
		faults++;
		acknowledged = 0; pending = 0;
		copy_again() }
	:: d_step { restores == 0 && faults < FAULTS ->	/* a backup, which is put back later */
		faults++; restores = 1;
		kept_pending = pending; kept_acknowledged = acknowledged; kept_row = row;
		kept_time = ledger_time; kept_order = ledger_order;
		kept_known = known; kept_refetch = refetch;
		kept_top_time = top_time; kept_top_order = top_order }
	:: d_step { restores == 1 ->
		restores = 2;
#ifndef WITHOUT_A2
		pending = (kept_pending & acknowledged) | (acknowledged & ~kept_acknowledged);
		if
		:: kept_pending & ~acknowledged -> copy_again()		/* the topics were deleted since */
		:: else
		fi;
#endif
		row = kept_row;
		ledger_time = kept_time; ledger_order = kept_order;
		known = kept_known; refetch = kept_refetch; asked = 0;
		top_time = kept_top_time; top_order = kept_top_order;
		kept_pending = 0; kept_acknowledged = 0; kept_row = 0; kept_time = 0; kept_order = 0;
		kept_known = false; kept_refetch = false;
		kept_top_time = 0; kept_top_order = 0 }
	od
}

/* When all is settled, the row shows the document. */
proctype Settled()
{
	byte i;

end:	d_step {
		application_done && incarnation > 0 && position > changes && !flying && copied && !removal &&
		!pending && (!refetch || asked == now + 1) ->
#ifdef NEVER_SETTLED
		assert(false);
#endif
		read_at(now, i);
		assert(row == found && !refetch)
	}
}

init { atomic { run Application(); run Stream(); run Snapshots(); run Apply(); run Settled() } }
