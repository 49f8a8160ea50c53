-- A tenant moves: who may change its phase, what is written of it, the fence in PostgreSQL, the barrier.

DO $$
BEGIN
    IF to_regrole('crossfade_control') IS NULL THEN
        BEGIN
            CREATE ROLE crossfade_control LOGIN NOSUPERUSER NOBYPASSRLS;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;  -- another database's migration made it in this moment
        END;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'crossfade_control' AND (rolsuper OR rolbypassrls)) THEN
        RAISE insufficient_privilege USING
            MESSAGE = 'the role crossfade_control would walk through every tenant wall',
            HINT = 'ALTER ROLE crossfade_control NOSUPERUSER NOBYPASSRLS';
    END IF;
END
$$;

SET LOCAL ROLE crossfade_owner;

-- Every change of a phase: from what, to what, who, when, why, and what both sides had. Nobody changes or
-- removes a row.
CREATE TABLE crossfade.transition (
    transition_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id uuid NOT NULL,
    from_phase crossfade.phase NOT NULL,
    to_phase crossfade.phase NOT NULL,
    epoch bigint NOT NULL,                    -- after it
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    database_user name NOT NULL DEFAULT session_user,
    os_user text NOT NULL,                    -- as the command found it: advice, no proof
    reason text NOT NULL,
    evidence jsonb NOT NULL DEFAULT '{}'      -- counts, hashes, times; never a value of a row
);
CREATE INDEX ON crossfade.transition (tenant_id, transition_id);

-- A barrier's arrival in a partition of a stream topic, in the transaction of all that came before it there.
CREATE TABLE crossfade.barrier (
    barrier_id uuid NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    partitions integer NOT NULL,              -- to which its publisher sent it
    incarnation uuid NOT NULL,
    arrived_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (barrier_id, topic, partition)
);

-- Documents that apply changed while a tenant of theirs was `draining`: what is left to be verified.
CREATE TABLE crossfade.draining_document (
    tenant_id uuid NOT NULL,
    epoch bigint NOT NULL,
    collection_id smallint NOT NULL,
    row_id uuid NOT NULL,
    PRIMARY KEY (tenant_id, epoch, collection_id, row_id)
);

-- Clients hear of a phase when its change is committed.
CREATE FUNCTION crossfade.tell_phase() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('crossfade_phase', json_build_object(
        'tenant', NEW.tenant_id, 'phase', NEW.phase, 'epoch', NEW.epoch)::text);
    RETURN NULL;
END
$$;
CREATE TRIGGER tell_phase AFTER UPDATE OF phase, epoch ON crossfade.tenant
    FOR EACH ROW WHEN (OLD.phase <> NEW.phase OR OLD.epoch <> NEW.epoch) EXECUTE FUNCTION crossfade.tell_phase();

-- The lock between a tenant's writers, who share it, and who closes PostgreSQL to them. Two tenants with one
-- number wait for each other sometimes, and that is all.
CREATE FUNCTION crossfade.tenant_lock(tenant uuid) RETURNS bigint
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN hashtextextended(tenant::text, 0x63726f7373);

-- The fence: before each statement of the application that writes a table of its tenants. The lock is a
-- statement of its own, so that the phase is read as it is after whatever the lock has waited for; above READ
-- COMMITTED, where the snapshot stays, the row is locked, which fails if it has changed since (40001).
CREATE FUNCTION crossfade.fence() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    tenant uuid := nullif(current_setting('app.current_tenant_id', true), '');
    found crossfade.phase;
BEGIN
    IF tenant IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'XF001', TABLE = TG_TABLE_NAME,
            MESSAGE = format('%s is fenced: this transaction names no tenant', TG_TABLE_NAME),
            HINT = 'set app.current_tenant_id first';
    END IF;
    PERFORM pg_advisory_xact_lock_shared(crossfade.tenant_lock(tenant));
    IF current_setting('transaction_isolation') IN ('read committed', 'read uncommitted') THEN
        SELECT phase INTO found FROM crossfade.tenant t WHERE t.tenant_id = tenant;
    ELSE
        SELECT phase INTO found FROM crossfade.tenant t WHERE t.tenant_id = tenant FOR SHARE;
    END IF;
    IF found IS NULL OR found NOT IN ('postgres', 'complete') THEN
        RAISE EXCEPTION USING ERRCODE = 'XF001', TABLE = TG_TABLE_NAME,
            MESSAGE = format('tenant %s does not write in PostgreSQL now (%s)', tenant, coalesce(found, 'mongo')),
            HINT = 'ask for its phase again, and do the whole unit of work where that says';
    END IF;
    RETURN NULL;
END
$$;

-- What no tenant can be told of: TRUNCATE, and roles to which the walls between tenants do not apply.
CREATE FUNCTION crossfade.fence_all() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'XF001', TABLE = TG_TABLE_NAME,
        MESSAGE = format('%s is fenced: %s is of rows of every tenant', TG_TABLE_NAME,
            CASE TG_OP WHEN 'TRUNCATE' THEN 'TRUNCATE' ELSE 'what ' || session_user || ' writes' END),
        HINT = 'write as a role that row-level security binds, one tenant at a time';
END
$$;

RESET ROLE;
SET LOCAL ROLE crossfade_owner;

GRANT SELECT ON crossfade.transition, crossfade.barrier, crossfade.draining_document
    TO crossfade_sync, crossfade_reader;
GRANT INSERT ON crossfade.barrier, crossfade.draining_document TO crossfade_sync;

GRANT USAGE ON SCHEMA crossfade TO crossfade_control, application_role;
GRANT SELECT ON ALL TABLES IN SCHEMA crossfade TO crossfade_control;
GRANT EXECUTE ON FUNCTION crossfade.tenant_lock(uuid) TO crossfade_control;
GRANT UPDATE (phase, epoch, floor, changed_at) ON crossfade.tenant TO crossfade_control;
GRANT INSERT (tenant_id, from_phase, to_phase, epoch, os_user, reason, evidence) ON crossfade.transition
    TO crossfade_control;
GRANT DELETE ON crossfade.barrier, crossfade.draining_document TO crossfade_control;
GRANT INSERT (os_user, action, subject, reason) ON crossfade.audit TO crossfade_control;
-- The flag: where a tenant's writes go. Advice; the fences are the law.
GRANT SELECT (tenant_id, phase, epoch) ON crossfade.tenant TO application_role;

RESET ROLE;
