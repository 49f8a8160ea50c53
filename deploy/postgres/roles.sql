-- The sync role as docker-compose.yml uses it: with a password, which `crossfade schema apply` never sets. It
-- keeps a role that is there. A demo password, known to everyone.

DO $$
BEGIN
    IF to_regrole('crossfade_sync') IS NULL THEN
        CREATE ROLE crossfade_sync LOGIN NOSUPERUSER NOBYPASSRLS;
    END IF;
END
$$;
ALTER ROLE crossfade_sync PASSWORD 'demo-sync-password';
