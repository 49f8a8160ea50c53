-- Who moves tenants must see whose transactions are open, and since when: PostgreSQL hides that from others. Some
-- managed services keep the right to give this to themselves: then the check of open transactions says so.
DO $$
BEGIN
    GRANT pg_read_all_stats TO crossfade_control;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'crossfade_control was not granted pg_read_all_stats: it cannot tell open transactions';
END
$$;
