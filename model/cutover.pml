/* Tenants leave MongoDB: fence documents, the validator that two tenants share, PostgreSQL's phases; controllers
 * that die, or stand still and are succeeded; elections that undo what no majority had; databases that go away.
 *
 * Promises: never do both databases accept a tenant's writes; and when nothing more can happen, every tenant
 * whose home is up can write. Each WITHOUT_x takes one rule of docs/protocol.md out; then a promise must break.
 *
 * Assumed, as docs/protocol.md says: between the check of its lock and the sending of a collMod a controller does
 * not stand still for longer than its lease and the collMod's maxTimeMS (here both are one step).
 */

#ifndef MOVES
#define MOVES 2		/* moves of tenant 0, begun by either of its two controllers; tenant 1 moves once */
#endif
#ifndef FAULTS
#define FAULTS 2	/* deaths, elections, and databases that go away, together */
#endif

mtype = { HOME, DRAINING, LEFT, ABORTING }	/* of a fence document, which decides */
mtype = { P_MONGO, P_DRAINING, P_POSTGRES }	/* a phase in PostgreSQL, which follows */

byte faults;

/* MongoDB: what the primary has, and what a majority has */
bool mongo_up = true;
mtype fence[2] = HOME, major_fence[2] = HOME;
byte fence_epoch[2], major_epoch[2];
byte validator, major_validator;	/* bits: tenants that it refuses */
byte lock;				/* the controller that has the collection's lock, + 1 */
byte sent;				/* bits: controllers whose collMod has not happened yet */
byte list[3];				/* what each would set */

/* PostgreSQL */
bool postgres_up = true;
mtype phase[2] = P_MONGO;
byte epoch[2];

byte moves[2];
byte alive = 7;				/* bits: controllers */

#define REFUSES(t) ((validator >> (t)) & 1)
#define MAJORITY(t) (fence[t] == major_fence[t] && fence_epoch[t] == major_epoch[t])
#define BIT(x) (1 << (x))
#define DEAD ((alive & BIT(me)) == 0)

#ifdef WITHOUT_D1
#define D1_COUNTS(t) true
#else
#define D1_COUNTS(t) (mongo_up && MAJORITY(t))
#endif
#ifdef WITHOUT_D6
#define D6_EPOCH(t, e) true
#else
#define D6_EPOCH(t, e) (fence_epoch[t] == (e))
#endif
#ifdef WITHOUT_D4
#define D4_MAY_ABORT postgres_up
#else
#define D4_MAY_ABORT true
#endif
#ifdef WITHOUT_LOCK
#define HAS_LOCK true
#else
#define HAS_LOCK (lock == me + 1)
#endif
#ifdef WITHOUT_READ_BACK_MAJORITY
#define READ_BACK true
#else
#define READ_BACK (validator == major_validator)	/* read at the primary, and then a majority had it */
#endif

inline one_writer(t) { assert(!(phase[t] == P_POSTGRES && !REFUSES(t))) }

/* A collMod of a list that is computed from all fence documents, sent, and read back. `wanted`: whether the
 * tenant is to be refused afterwards. */
inline collmod(t, wanted)
{
	do
	:: atomic { mongo_up ->		/* the lock, though another may seem to have it */
		lock = me + 1;
#ifndef WITHOUT_D5
		sent = sent & BIT(me);	/* what a predecessor has sent is killed */
#endif
		mine = 0;
		if
		:: major_fence[0] == DRAINING || major_fence[0] == LEFT -> mine = mine | 1
		:: else
		fi;
		if
		:: major_fence[1] == DRAINING || major_fence[1] == LEFT -> mine = mine | 2
		:: else
		fi;
#ifdef WITHOUT_ABORT_DECIDED
		if
		:: wanted
		:: else -> mine = mine & ~BIT(t)
		fi;
#endif
		skip }
		if
		:: atomic { mongo_up && HAS_LOCK -> list[me] = mine; sent = sent | BIT(me); mine = 0 }
			if
			:: atomic { mongo_up && !(sent & BIT(me)) ->
				list[me] = 0;
				if
				:: READ_BACK && REFUSES(t) == wanted -> break
				:: else
				fi }
			:: atomic { !mongo_up -> list[me] = 0 }
			:: DEAD -> goto dead
			fi
		:: atomic { !HAS_LOCK || !mongo_up -> mine = 0 }
		fi
	od
}

proctype Control(byte t; byte me)
{
	byte e;
	byte mine;

look:
	e = 0;
end:	if
	:: atomic { postgres_up && mongo_up && phase[t] == P_MONGO && moves[t] < (t == 0 -> MOVES : 1) ->
		moves[t]++; epoch[t]++; e = epoch[t]; phase[t] = P_DRAINING }
		goto leave
	:: atomic { postgres_up && mongo_up && phase[t] == P_DRAINING && major_fence[t] != LEFT -> e = epoch[t] }
		if
		:: major_fence[t] == DRAINING || major_fence[t] == HOME -> goto leave
		:: goto abort
		fi
	:: atomic { mongo_up && (major_fence[t] == DRAINING || major_fence[t] == ABORTING) -> e = major_epoch[t] }
		goto abort
	:: atomic { mongo_up && major_fence[t] == LEFT && phase[t] == P_DRAINING -> e = major_epoch[t] }
		goto open
	:: DEAD -> goto dead
	fi;

leave:
	if
	:: atomic { mongo_up && fence[t] == HOME && fence_epoch[t] < e -> fence[t] = DRAINING; fence_epoch[t] = e }
	:: atomic { mongo_up && fence[t] == DRAINING && fence_epoch[t] == e }	/* a predecessor's */
#ifdef WITHOUT_D6_FENCE_AGAIN
		goto decide
#endif
	:: atomic { !mongo_up || fence[t] == LEFT || fence[t] == ABORTING || fence_epoch[t] > e ||
		(fence[t] == HOME && fence_epoch[t] == e) -> goto look }
	:: DEAD -> goto dead
	:: goto abort
	fi;
	if
	:: D1_COUNTS(t) && fence[t] == DRAINING && fence_epoch[t] == e
	:: DEAD -> goto dead
	:: atomic { !mongo_up || fence[t] != DRAINING || fence_epoch[t] != e -> goto look }
	fi;
	collmod(t, true);

decide:
	if
	:: DEAD -> goto dead
	:: goto abort			/* the deadline, a barrier that does not arrive, a document that differs */
#ifdef WITHOUT_D3
	:: atomic { postgres_up && mongo_up && phase[t] == P_DRAINING && epoch[t] == e ->
		phase[t] = P_POSTGRES; one_writer(t) }
		if
		:: atomic { mongo_up && fence[t] == DRAINING && D6_EPOCH(t, e) -> fence[t] = LEFT }
		:: else
		fi;
		goto look
#else
	:: atomic { mongo_up && fence[t] == DRAINING && D6_EPOCH(t, e) -> fence[t] = LEFT }
#endif
	:: atomic { !mongo_up || fence[t] != DRAINING || !D6_EPOCH(t, e) -> goto look }
	fi;
	if
	:: atomic { D1_COUNTS(t) && fence[t] == LEFT -> e = fence_epoch[t] }
	:: DEAD -> goto dead
	:: atomic { !mongo_up || fence[t] != LEFT -> goto look }
	fi;

open:
	if
	:: atomic { postgres_up && phase[t] == P_DRAINING && epoch[t] == e -> phase[t] = P_POSTGRES; one_writer(t) }
	:: atomic { postgres_up && !(phase[t] == P_DRAINING && epoch[t] == e) }
	:: DEAD -> goto dead
	fi;
	goto look;

abort:
#ifdef WITHOUT_ABORT_DECIDED
	collmod(t, false);
#endif
	if
#ifdef WITHOUT_D2
	:: atomic { postgres_up && mongo_up && major_fence[t] == HOME && phase[t] == P_DRAINING && epoch[t] == e ->
		phase[t] = P_MONGO }
		goto look
#else
	:: atomic { mongo_up && D4_MAY_ABORT && fence[t] == HOME && fence_epoch[t] < e ->
		fence[t] = ABORTING; fence_epoch[t] = e }
#endif
	:: atomic { mongo_up && D4_MAY_ABORT && fence[t] == DRAINING && fence_epoch[t] == e -> fence[t] = ABORTING }
	:: atomic { mongo_up && fence[t] == ABORTING && fence_epoch[t] == e }
	:: atomic { mongo_up && fence[t] == HOME && fence_epoch[t] == e -> goto aborted }
	:: atomic { !mongo_up || fence[t] == LEFT || fence_epoch[t] > e ||
		(fence[t] != HOME && fence_epoch[t] != e) -> goto look }
	:: DEAD -> goto dead
	fi;
	if
	:: D1_COUNTS(t) && fence[t] == ABORTING && fence_epoch[t] == e
	:: DEAD -> goto dead
	:: atomic { !mongo_up || fence[t] != ABORTING || fence_epoch[t] != e -> goto look }
	fi;
	collmod(t, false);
	if
	:: atomic { mongo_up && fence[t] == ABORTING && fence_epoch[t] == e -> fence[t] = HOME }
	:: DEAD -> goto dead
	:: atomic { !mongo_up || fence[t] != ABORTING || fence_epoch[t] != e -> goto look }
	fi;

aborted:
	if
	:: D1_COUNTS(t) && fence[t] == HOME && fence_epoch[t] == e
	:: DEAD -> goto dead
	:: atomic { !mongo_up || fence[t] != HOME || fence_epoch[t] != e -> goto look }
	fi;
	if
	:: atomic { postgres_up && phase[t] == P_DRAINING && epoch[t] == e -> phase[t] = P_MONGO }
	:: atomic { postgres_up && !(phase[t] == P_DRAINING && epoch[t] == e) }
#ifndef WITHOUT_D4_LOOKING
	:: !postgres_up	/* its phase follows later; the tenant's next move may need this controller before that */
#endif
	:: DEAD -> goto dead
	fi;
	goto look;

dead:
	skip
}

proctype Mongod()
{
end:	do
	:: atomic { mongo_up && sent ->			/* one of them happens, or runs into its maxTimeMS */
		if
		:: sent & 1 -> sent = sent & ~1; if :: validator = list[0] :: true fi
		:: sent & 2 -> sent = sent & ~2; if :: validator = list[1] :: true fi
		:: sent & 4 -> sent = sent & ~4; if :: validator = list[2] :: true fi
		fi;
		one_writer(0);
		one_writer(1) }
	:: d_step { mongo_up && !(MAJORITY(0) && MAJORITY(1) && validator == major_validator) ->
		major_fence[0] = fence[0]; major_fence[1] = fence[1];
		major_epoch[0] = fence_epoch[0]; major_epoch[1] = fence_epoch[1];
		major_validator = validator }
	:: d_step { mongo_up && faults < FAULTS && (sent ||
		!(MAJORITY(0) && MAJORITY(1) && validator == major_validator)) ->	/* an election */
		faults++;
		fence[0] = major_fence[0]; fence[1] = major_fence[1];
		fence_epoch[0] = major_epoch[0]; fence_epoch[1] = major_epoch[1];
		validator = major_validator;
		sent = 0;
		one_writer(0);
		one_writer(1) }
	od
}

proctype Misfortune()
{
end:	do
	:: d_step { mongo_up && faults < FAULTS -> faults++; mongo_up = false; sent = 0 }
	:: d_step { !mongo_up -> mongo_up = true }
	:: !mongo_up -> break				/* for good */
	:: d_step { postgres_up && faults < FAULTS -> faults++; postgres_up = false }
	:: d_step { !postgres_up -> postgres_up = true }
	:: !postgres_up -> break
	:: d_step { alive == 7 && faults < FAULTS -> faults++; alive = 6 }
	:: d_step { alive == 7 && faults < FAULTS -> faults++; alive = 5 }
	:: break
	od
}

inline can_write(t)
{
	assert(!mongo_up || (major_fence[t] != LEFT && !REFUSES(t)) ||
		(major_fence[t] == LEFT && (!postgres_up || phase[t] == P_POSTGRES)))
}

proctype Writable()
{
end:	timeout -> d_step {
#ifdef NEVER_SETTLED
		assert(false);
#endif
		can_write(0);
		can_write(1)
	}
}

init {
	atomic {
		run Mongod(); run Misfortune(); run Writable();
		run Control(0, 0); run Control(0, 1); run Control(1, 2)
	}
}
