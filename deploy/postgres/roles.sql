-- The sync role and the reader as docker-compose.yml uses them: with passwords, which `crossfade schema apply` never sets. It
-- keeps a role that is there. Demo passwords, known to everyone.

DO $$
BEGIN
    IF to_regrole('crossfade_sync') IS NULL THEN
        CREATE ROLE crossfade_sync LOGIN NOSUPERUSER NOBYPASSRLS;
    END IF;
END
$$;
DO $$
BEGIN
    IF to_regrole('crossfade_reader') IS NULL THEN
        CREATE ROLE crossfade_reader LOGIN NOSUPERUSER NOBYPASSRLS;
    END IF;
END
$$;
ALTER ROLE crossfade_reader PASSWORD 'demo-reader-password';
ALTER ROLE crossfade_sync PASSWORD 'demo-sync-password';
