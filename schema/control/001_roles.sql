-- The roles of both targets. Roles belong to the cluster, not to the database: another database's migration,
-- or the application long before us, may have made them.

DO $$
DECLARE
    wanted record;
    dangerous text;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
            ('crossfade_owner', 'NOLOGIN'),    -- owns the schema crossfade and its functions
            ('crossfade_lookup', 'NOLOGIN'),   -- owns the one function that sees every tenant's subdomain
            ('crossfade_sync', 'LOGIN'),       -- writes the target, for the tenants its transaction declares
            ('crossfade_reader', 'LOGIN'),     -- reads all of it, to verify
            ('application_role', 'LOGIN')      -- the application, one tenant at a time
        ) AS roles (name, login)
    LOOP
        CONTINUE WHEN to_regrole(wanted.name) IS NOT NULL;
        BEGIN
            EXECUTE format('CREATE ROLE %I %s NOSUPERUSER NOBYPASSRLS', wanted.name, wanted.login::text);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;  -- another database's migration made it in this moment
        END;
    END LOOP;

    SELECT string_agg(rolname, ', ' ORDER BY rolname) INTO dangerous
    FROM pg_roles
    WHERE (rolsuper OR rolbypassrls) AND rolname IN (
        'crossfade_owner', 'crossfade_lookup', 'crossfade_sync', 'crossfade_reader', 'application_role'
    );
    IF dangerous IS NOT NULL THEN
        RAISE insufficient_privilege USING
            MESSAGE = format('these roles would walk through every tenant wall: %s', dangerous),
            HINT = 'ALTER ROLE ... NOSUPERUSER NOBYPASSRLS';
    END IF;
END
$$;

-- A managed service's admin is no superuser: it must be a member of the roles to which it gives objects.
DO $$
DECLARE
    owner name;
BEGIN
    FOREACH owner IN ARRAY ARRAY['crossfade_owner', 'crossfade_lookup'] LOOP
        IF NOT pg_has_role(current_user, owner, 'USAGE') THEN
            EXECUTE format('GRANT %I TO CURRENT_USER', owner);
        END IF;
    END LOOP;
END
$$;

-- With it, foreign keys do not depend on the order of topics, and triggers that capture the application's
-- writes do not see ours. Some managed services keep it to themselves: then violations are parked and
-- retried, and our triggers skip the sync role by name.
DO $$
BEGIN
    IF NOT has_parameter_privilege('crossfade_sync', 'session_replication_role', 'SET') THEN
        GRANT SET ON PARAMETER session_replication_role TO crossfade_sync;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'crossfade_sync may not set session_replication_role: this service does not let us grant it';
END
$$;

ALTER SCHEMA crossfade OWNER TO crossfade_owner;
ALTER TABLE crossfade.schema_version OWNER TO crossfade_owner;
