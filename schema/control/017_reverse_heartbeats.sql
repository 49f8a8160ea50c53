-- The way back's lag, by heartbeats as the way there; and nobody else attaches our functions to tables of their own.

SET LOCAL ROLE crossfade_owner;

-- The newest heartbeat of the way back that has come through each partition of the reverse topics. Its time is
-- that up to which everything was sent: when the first row waited in the outbox, else when it was asked.
CREATE TABLE crossfade.reverse_progress (
    topic text NOT NULL,
    partition integer NOT NULL,
    heartbeat_at timestamptz NOT NULL,
    PRIMARY KEY (topic, partition)
);

GRANT SELECT ON crossfade.reverse_progress TO crossfade_sync, crossfade_reader, crossfade_control;
GRANT INSERT, DELETE ON crossfade.reverse_progress TO crossfade_sync;
GRANT UPDATE (heartbeat_at) ON crossfade.reverse_progress TO crossfade_sync;

-- They do what they do as their owner, with whatever rows a trigger has: on a temporary table of an application
-- that would be another tenant's. Those that were installed for tables too.
DO $$
DECLARE
    ours regprocedure;
BEGIN
    FOR ours IN SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'crossfade'::regnamespace AND prosecdef AND prorettype = 'trigger'::regtype
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', ours);
    END LOOP;
END
$$;

RESET ROLE;
