-- Crossfade's own way to the tables; `finish` takes these policies and grants away again.
--
-- The sync writes only the tenants that its transaction declares in crossfade.tenants (comma-separated),
-- so a wrong tenant in an event is an error, not a row in a stranger's data.
--
-- The inner cast makes uuids of the setting once per statement, not once per row; the outer one only tells
-- the grammar that ANY is given an array and not a set of rows. All of it stands in the policy, for a
-- function would have to be inlined whenever a statement is planned (about 5 us).

GRANT USAGE ON SCHEMA public TO crossfade_sync, crossfade_reader;

DO $$
DECLARE
    reached record;
BEGIN
    FOR reached IN
        SELECT * FROM (VALUES
            ('tenants', 'id'),
            ('users', 'tenant_id'),
            ('user_passwords', 'tenant_id'),
            ('pages', 'tenant_id'),
            ('form_configs', 'tenant_id'),
            ('leads', 'tenant_id'),
            ('lead_activities', 'tenant_id')
        ) AS tables (name, tenant)
    LOOP
        EXECUTE format($policy$
            CREATE POLICY crossfade_sync ON public.%I TO crossfade_sync USING (%I = ANY ((
                SELECT string_to_array(nullif(current_setting('crossfade.tenants', true), ''), ',')::uuid[]
            )::uuid[]))
        $policy$, reached.name, reached.tenant);
        EXECUTE format($policy$
            CREATE POLICY crossfade_reader ON public.%I FOR SELECT TO crossfade_reader USING (true)
        $policy$, reached.name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON public.%I TO crossfade_sync', reached.name);
        EXECUTE format('GRANT SELECT ON public.%I TO crossfade_reader', reached.name);
    END LOOP;
END
$$;
