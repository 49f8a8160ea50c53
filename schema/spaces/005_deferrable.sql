-- The sync applies rows that only fit together (a user goes, another takes its email, and what referred to the
-- one refers to the other) in one transaction, and has them checked at its end. The application's own
-- statements are checked as before: none is INITIALLY DEFERRED.
DO $$
DECLARE
    reference record;
BEGIN
    FOR reference IN
        SELECT conname, conrelid::regclass AS child FROM pg_constraint
        WHERE contype = 'f' AND NOT condeferrable AND conrelid IN (
            'public.users'::regclass, 'public.user_passwords'::regclass, 'public.pages'::regclass,
            'public.form_configs'::regclass, 'public.leads'::regclass, 'public.lead_activities'::regclass
        )
    LOOP
        EXECUTE format('ALTER TABLE %s ALTER CONSTRAINT %I DEFERRABLE', reference.child, reference.conname);
    END LOOP;
END
$$;

-- A deferrable unique constraint is checked by a trigger of PostgreSQL's own, which a session with
-- session_replication_role = replica skips: duplicates would get in, silently. ALWAYS: it does not. Only a
-- superuser may say so; where there is none, apply finds out and does without being a replica.
DO $$
DECLARE
    skipped record;
BEGIN
    FOR skipped IN
        SELECT t.tgname, t.tgrelid::regclass AS name
        FROM pg_trigger t JOIN pg_constraint c ON c.oid = t.tgconstraint
        WHERE c.contype = 'u' AND c.condeferrable AND t.tgenabled = 'O'
            AND c.conrelid IN ('public.tenants'::regclass, 'public.users'::regclass)
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', skipped.name, skipped.tgname);
    END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'only a superuser may have deferrable unique constraints checked in replica sessions';
END
$$;
