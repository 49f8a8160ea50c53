/* The controllers of a tenant's way back, and of its next cutover: each may stand still at any step and go on
 * later, whatever others have done meanwhile, and those of the way back may die; `control` ends what it finds.
 * Nobody's hold on a tenant is believed. MongoDB may go away for good at any moment; PostgreSQL's absence is time
 * that passes. How a cutover's controllers die is the business of `cutover`.
 *
 * Promises: never do both databases accept writes; the one that does has the application's last acknowledged
 * write; and when nothing moves any more, the tenant can write, in PostgreSQL also with MongoDB away if nothing was
 * decided. How a document travels is the business of `roundtrip`. Each WITHOUT_x takes one rule of
 * docs/protocol.md out; then a promise must break.
 */

#ifndef WRITES
#define WRITES 3	/* of the application, in either database */
#endif
#ifndef ROLLBACKS
#define ROLLBACKS 2	/* commands */
#endif
#ifndef CUTOVERS
#define CUTOVERS 1	/* that follow */
#endif
#ifndef FAULTS
#define FAULTS 2	/* deaths of commands; MongoDB's, for good */
#endif

mtype = { POSTGRES, ROLLING_BACK, OPENING, MONGO, DRAINING }	/* phases; DRAINING also of the fence document */
mtype = { HOME, LEFT }						/* the fence document */

mtype phase = POSTGRES;
byte epoch = 2;
mtype fence = LEFT;
byte fence_epoch = 1;
bool refused = true;		/* by MongoDB's validators, which are computed from the fence document */

byte row, document, wanted;	/* as each database has it; the last that was acknowledged */
bool outbox;
byte writes, rollbacks, cutovers, faults;
bool mongo_away;

inline promises()
{
	assert(refused || phase != POSTGRES);
	assert(phase != POSTGRES || row == wanted);
	assert(refused || document == wanted)
}

proctype Application()
{
end:	do
	:: d_step { writes < WRITES && phase == POSTGRES -> writes++; row = writes; wanted = row; outbox = true }
	:: d_step { writes < WRITES && !refused && !mongo_away -> writes++; document = writes; wanted = document }
	od
}

proctype Reverse()
{
end:	do
	:: d_step { outbox && !mongo_away && (phase == POSTGRES || phase == ROLLING_BACK) ->
		document = row; outbox = false }
	od
}

/* PostgreSQL's one compare-and-set: `taken` says whether it was done. */
#ifdef WITHOUT_D6
#define STILL(mine) true
#else
#define STILL(mine) (epoch == (mine))
#endif
inline change(before, after, mine, taken)
{
	d_step {
		if
		:: phase == before && STILL(mine) ->
			phase = after; epoch++; taken = true; promises()
		:: else -> taken = false
		fi
	}
}

/* The fence document comes home for a decision of an epoch; then the validators are computed, under their lock. */
#ifdef WITHOUT_D6_HOME
#define OLDER(mine) true
#else
#define OLDER(mine) (fence_epoch < (mine))
#endif
inline open_mongodb(mine, done)
{
	d_step {
		if
		:: !mongo_away && fence == LEFT && OLDER(mine) -> fence = HOME; fence_epoch = mine
		:: else
		fi };
	d_step {
		done = !mongo_away;
		if
#ifdef WITHOUT_VALIDATORS_COMPUTED
		:: done -> refused = false; promises()
#else
		:: done -> refused = (fence != HOME); promises()
#endif
		:: else
		fi }
}

#define DIES :: d_step { faults < FAULTS -> faults++ }; goto dead

proctype Rollback()
{
	byte mine;
	bool taken;

end:	d_step { phase == POSTGRES -> mine = epoch };
	change(POSTGRES, ROLLING_BACK, mine, taken);
	if
	:: taken -> mine++
	:: !taken -> goto dead
	fi;
	if
#ifdef WITHOUT_DRAINED
	:: true
#else
	:: !outbox && document == row && !mongo_away
#endif
	:: change(ROLLING_BACK, POSTGRES, mine, taken); goto dead	/* the deadline, or MongoDB is away */
	DIES
	fi;
#ifdef WITHOUT_ROLLBACK_DECIDED
	mine++; open_mongodb(mine, taken); mine--;
#endif
	change(ROLLING_BACK, OPENING, mine, taken);
	if
	:: taken -> mine++
	:: !taken -> goto dead
	DIES
	fi;
	open_mongodb(mine, taken);
	if
	:: taken
	:: !taken -> goto dead		/* MongoDB is away: `control` goes on */
	DIES
	fi;
	change(OPENING, MONGO, mine, taken);
dead:	mine = 0; taken = false
}

proctype Cutover()
{
	byte mine;
	bool taken;

end:	d_step { phase == MONGO -> mine = epoch };
	change(MONGO, DRAINING, mine, taken);
	if
	:: taken -> mine++
	:: !taken -> goto dead
	fi;
end2:	d_step { !mongo_away && fence == HOME && fence_epoch < mine -> fence = DRAINING; fence_epoch = mine };
end3:	d_step { !mongo_away -> refused = (fence != HOME) };
	d_step { row = document };	/* the barrier */
end4:	d_step { !mongo_away && fence == DRAINING && fence_epoch == mine -> fence = LEFT };
	change(DRAINING, POSTGRES, mine, taken);
dead:	mine = 0; taken = false
}

proctype Keeper()
{
	byte mine;
	bool taken;

#ifndef WITHOUT_SUCCESSOR
end:	do
#ifdef WITHOUT_D4
	:: d_step { phase == ROLLING_BACK && !mongo_away -> mine = epoch };
#else
	:: d_step { phase == ROLLING_BACK -> mine = epoch };
#endif
		change(ROLLING_BACK, POSTGRES, mine, taken);
		mine = 0; taken = false
	:: d_step { phase == OPENING && !mongo_away -> mine = epoch };
#ifdef WITHOUT_ROLLBACK_FINAL
		change(OPENING, POSTGRES, mine, taken);
#else
		open_mongodb(mine, taken);
		if
		:: taken -> change(OPENING, MONGO, mine, taken)
		:: else			/* it waits for MongoDB */
		fi;
#endif
		mine = 0; taken = false
	od
#endif
}

proctype Settled()
{
end:	do
	:: d_step { rollbacks < ROLLBACKS && phase == POSTGRES -> rollbacks++ }; run Rollback()
	:: d_step { cutovers < CUTOVERS && phase == MONGO && !refused && !mongo_away -> cutovers++ }; run Cutover()
	:: d_step { faults < FAULTS && !mongo_away -> faults++; mongo_away = true }
	:: timeout ->
#ifdef NEVER_SETTLED
		assert(phase != MONGO);
#endif
		assert(phase == POSTGRES || mongo_away || (phase == MONGO && !refused));
		assert(phase != ROLLING_BACK);
		break
	od
}

init {
	atomic {
		run Application(); run Reverse(); run Keeper(); run Settled()
	}
}
