-- The roles that docker-compose.yml's processes use, with passwords, which `crossfade schema apply` never sets. It keeps a
-- role that is there. Demo passwords, known to everyone.

DO $$
DECLARE
    wanted name;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['crossfade_sync', 'crossfade_reader', 'crossfade_control'] LOOP
        IF to_regrole(wanted::text) IS NULL THEN
            EXECUTE format('CREATE ROLE %I LOGIN NOSUPERUSER NOBYPASSRLS', wanted);
        END IF;
    END LOOP;
END
$$;
ALTER ROLE crossfade_sync PASSWORD 'demo-sync-password';
ALTER ROLE crossfade_reader PASSWORD 'demo-reader-password';
ALTER ROLE crossfade_control PASSWORD 'demo-control-password';
