/* One document of one tenant on its way there and back, and there again: the application, rogue deletes, the
 * forward way with a repair whose record is late, the cutover, the reverse way with two publishers, the rollback.
 * Kafka is a set of records each way: any may be applied at any time, and again.
 *
 * Promises: the database that is the tenant's home has the application's last acknowledged write, always; never
 * do both accept writes; and when all is settled both have the same. Each WITHOUT_x takes one rule of
 * docs/protocol.md out; then a promise must break.
 */

#ifndef WRITES
#define WRITES 3	/* of the application, in either database */
#endif
#ifndef MOVES
#define MOVES 2		/* cutovers that are begun */
#endif
#ifndef ROGUES
#define ROGUES 1	/* deletes by others in MongoDB while the tenant's home is PostgreSQL */
#endif
#ifndef KILLS
#define KILLS 1		/* of a reverse publisher */
#endif
#define EVENTS 14
#define ABSENT 0

mtype = { MONGO, DRAINING, POSTGRES, ROLLING_BACK, OPENING }	/* phases */
mtype = { NOTHING, WRITE, ECHO, BARRIER }			/* events */

/* MongoDB */
byte document;
byte now;			/* clusterTime; event n happened at n */
mtype kind[EVENTS];
byte state[EVENTS];
bool fenced;
byte reverse_version;		/* the greatest that was applied */

/* Forward: publish sends in order, Kafka and apply keep none */
byte published;
short pending;			/* bits: events sent and not applied */
byte repair_time, repair_state;
byte repairs;			/* 0: none, 1: read, 2: its record is in Kafka */

/* PostgreSQL */
mtype phase = MONGO;
byte row;
byte ledger;			/* a version: twice the clusterTime, one more for a snapshot read */
bool known;			/* the document's tenant, by the ledger */
byte floor;
bool waiting;			/* outbox rows that nobody holds */
bool held[2];			/* outbox rows that a publisher's transaction deletes */
byte sequence;

/* Reverse */
byte reverse_state[10];
short reverse_pending;
byte late;			/* a record, + 1, that a killed publisher's broker gets later */

byte wanted;			/* the application's last acknowledged write */
byte writes, moves, rogues, kills;
bool verified;			/* a rollback has read its snapshot */

#define VALUE (writes)
#define ALL_BEFORE(n) ((1 << ((n) + 1)) - 1)

inline promises()
{
	assert(fenced || phase != POSTGRES);
	assert(phase != POSTGRES || row == wanted);
	assert(fenced || document == wanted)
}

inline happens(what, value)
{
	assert(now < EVENTS - 1);
	now++;
	kind[now] = what;
	state[now] = value
}

#ifdef WITHOUT_R1
#define R1_NOTED skip;
#else
#define R1_NOTED waiting = true;
#endif

proctype Application()
{
end:	do
	:: d_step { writes < WRITES && !fenced ->
		writes++; document = VALUE; wanted = document; happens(WRITE, document); promises() }
	:: d_step { writes < WRITES && !fenced && document != ABSENT ->
		writes++; document = ABSENT; wanted = document; happens(WRITE, document); promises() }
	:: d_step { writes < WRITES && phase == POSTGRES ->
		writes++; row = VALUE; wanted = row; R1_NOTED promises() }
	:: d_step { writes < WRITES && phase == POSTGRES && row != ABSENT ->
		writes++; row = ABSENT; wanted = row; R1_NOTED promises() }
	:: d_step { rogues < ROGUES && fenced && phase != DRAINING && document != ABSENT ->
		/* a delete, which no validator sees (in `draining` it is done at home, before the switch or rogue) */
		rogues++; document = ABSENT; happens(WRITE, ABSENT);
		if
		:: verified -> wanted = ABSENT		/* later than the snapshot: as if done at home */
		:: else
		fi }
	od
}

#define MAY_APPLY (phase == MONGO || phase == DRAINING || phase == OPENING)
#ifdef WITHOUT_A4_FLOOR
#define A4_FLOOR(version) true
#else
#define A4_FLOOR(version) ((version) > 2 * floor + 1)
#endif
#ifdef WITHOUT_A4_PHASE
#define A4_PHASE true
#else
#define A4_PHASE MAY_APPLY
#endif

inline write_row(version, value)
{
	if
	:: value == ABSENT && !known -> ledger = version	/* of no tenant that is known: no row is seen */
	:: else -> row = value; known = true; ledger = version; promises()
	fi
}

proctype Forward()
{
	byte n;

end:	do
	:: d_step { published < now -> published++; pending = pending | (1 << published) }
	:: atomic { pending ->
		n = 0;
		do
		:: n < published -> n++
		:: (pending >> n) & 1 -> break
		:: else -> n = 0; break
		od;
		if
		:: n == 0
		:: n && kind[n] == BARRIER -> pending = pending & ~(1 << n)
		:: n && kind[n] != BARRIER && 2 * n <= ledger ->
#ifndef WITHOUT_A6_LATE
			if	/* a tombstone that knew no tenant learns it */
			:: kind[n] == ECHO && !known -> known = true; row = ABSENT; promises()
			:: else
			fi;
#endif
			pending = pending & ~(1 << n)
		:: n && kind[n] == ECHO && 2 * n > ledger ->
#ifndef WITHOUT_A6
			ledger = 2 * n; known = true;
#endif
			if
			:: pending = pending & ~(1 << n)
			:: true
			fi
		:: n && kind[n] == WRITE && 2 * n > ledger && MAY_APPLY ->
			if
			:: A4_FLOOR(2 * n) -> write_row(2 * n, state[n])
			:: else
			fi;
			if
			:: pending = pending & ~(1 << n)
			:: true
			fi
#ifdef WITHOUT_A5
		:: n && kind[n] == WRITE && 2 * n > ledger && phase == POSTGRES -> write_row(2 * n, state[n]);
#else
		:: n && kind[n] == WRITE && 2 * n > ledger && phase == POSTGRES -> waiting = true;	/* rogue */
#endif
			pending = pending & ~(1 << n)
		:: n && kind[n] == WRITE && 2 * n > ledger && phase == ROLLING_BACK ->
#ifdef WITHOUT_A7
			waiting = true; pending = pending & ~(1 << n)
#else
			skip					/* parked */
#endif
		fi;
		n = 0 }
	od
}

/* Reads the document in a snapshot, and its record may be late by any time. */
proctype Repair()
{
	byte version;

	if
	:: d_step { !fenced && phase == MONGO && now > 0 -> repair_time = now; repair_state = document; repairs = 1 }
	:: goto done
	fi;
	repairs = 2;
end:	do
	:: atomic { repairs == 2 && 2 * repair_time + 1 > ledger && A4_PHASE && A4_FLOOR(2 * repair_time + 1) ->
		version = 2 * repair_time + 1;
#ifndef WITHOUT_A3
		write_row(version, repair_state)
#endif
		}
#ifdef WITHOUT_A3
		d_step { write_row(version, repair_state) }
#endif
	od;
done:	skip
}

proctype Reverse(byte me)
{
	byte n, value;

end:	do
	:: d_step { waiting -> waiting = false; held[me] = true };
#ifdef WITHOUT_R2_READ
		value = row;
		d_step { sequence++; n = sequence };
#else
		d_step { sequence++; n = sequence };
		value = row;
#endif
		assert(n < 10);
#ifdef WITHOUT_R2_ACKNOWLEDGED
		held[me] = false;
#endif
		if
		:: d_step { reverse_state[n] = value; reverse_pending = reverse_pending | (1 << n); held[me] = false }
		:: d_step { kills < KILLS ->	/* its transaction ends, its record may come later, or never */
			kills++;
			if
			:: held[me] -> waiting = true
			:: else
			fi;
			held[me] = false; reverse_state[n] = value; late = n + 1 }
		:: atomic { kills < KILLS ->
			kills++;
			if
			:: held[me] -> waiting = true
			:: else
			fi;
			held[me] = false }
		fi;
		d_step { n = 0; value = 0 }
	:: d_step { me == 0 && late -> reverse_pending = reverse_pending | (1 << (late - 1)); late = 0 }
	od
}

#ifdef WITHOUT_REVERSE_LEDGER
#define NEWER(n) (now < EVENTS - 1)
#else
#define NEWER(n) ((n) > reverse_version)
#endif

proctype ReverseApply()
{
	byte n;

end:	do
	:: atomic { reverse_pending ->
		n = 0;
		do
		:: n < sequence -> n++
		:: (reverse_pending >> n) & 1 ->
			if
			:: NEWER(n) ->
				reverse_version = n;
				if
				:: document != reverse_state[n] ->
					document = reverse_state[n]; happens(ECHO, document); promises()
				:: else
				fi
			:: else
			fi;
			if
			:: reverse_pending = reverse_pending & ~(1 << n)
			:: true
			fi;
			break
		:: else -> break
		od;
		n = 0 }
	od
}

#ifdef WITHOUT_BARRIER_IN_STREAM
#define ARRIVED (!(pending & ALL_BEFORE(published)))
#else
#define ARRIVED (published >= barrier && !(pending & ALL_BEFORE(barrier)))
#endif
#ifdef WITHOUT_R3
#define DRAINED (!waiting)
#else
#define DRAINED (!waiting && !held[0] && !held[1])
#endif

proctype Control()
{
	byte barrier;

home:
end:	atomic { moves < MOVES && phase == MONGO -> moves++; phase = DRAINING };
#ifdef WITHOUT_FENCE_BEFORE_BARRIER
	d_step { happens(BARRIER, 0); barrier = now };
	fenced = true;
#else
	fenced = true;
	d_step { happens(BARRIER, 0); barrier = now };
#endif
	if
	:: ARRIVED -> barrier = 0
	:: d_step { barrier = 0; fenced = false };	/* the deadline */
		phase = MONGO;
		goto home
	fi;
	d_step { phase = POSTGRES; promises() };

away:
end2:	atomic { phase == POSTGRES -> phase = ROLLING_BACK };
	if
	:: DRAINED
	:: phase = POSTGRES; goto away
	fi;
	barrier = sequence;
	if
	:: !(reverse_pending & ALL_BEFORE(barrier)) -> barrier = 0
	:: barrier = 0; phase = POSTGRES; goto away
	fi;
	if
	:: d_step { document == row -> floor = now; verified = true }
	:: document != row -> phase = POSTGRES; goto away
	fi;
	phase = OPENING;
	d_step { fenced = false; verified = false;
#ifdef WITHOUT_R4
		reverse_version = 0;
#endif
		promises() };
	phase = MONGO;
	goto home
}

proctype Settled()
{
end:	d_step {
		published == now && !pending && repairs != 1 && !waiting && !held[0] && !held[1] &&
		!reverse_pending && !late && (phase == POSTGRES || (phase == MONGO && !fenced)) ->
#ifdef NEVER_SETTLED
		assert(phase != POSTGRES || moves < MOVES);
#endif
		assert(row == document)
	}
}

init {
	atomic {
		run Application(); run Forward(); run Repair(); run Reverse(0); run Reverse(1);
		run ReverseApply(); run Control(); run Settled()
	}
}
