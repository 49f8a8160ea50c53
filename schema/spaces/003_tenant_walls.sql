-- The application sees and writes one tenant: app.current_tenant_id. With none set it sees nothing. The
-- sub-select makes PostgreSQL read the setting once per statement and use the index; the nullif is for
-- pooled connections, where a setting that was once LOCAL is '' ever after.
--
-- FORCE binds the tables' owner too. Foreign keys are checked past all walls, by PostgreSQL itself.

DO $$
DECLARE
    walled text;
BEGIN
    FOREACH walled IN ARRAY ARRAY[
        'tenants', 'users', 'user_passwords', 'pages', 'form_configs', 'leads', 'lead_activities'
    ] LOOP
        EXECUTE format('ALTER TABLE public.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', walled);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON public.%I TO application_role', walled);
    END LOOP;
END
$$;

GRANT USAGE ON SCHEMA public TO application_role, crossfade_lookup;

CREATE POLICY current_tenant ON public.tenants TO application_role
    USING (id = (SELECT nullif(current_setting('app.current_tenant_id', true), '')::uuid));

CREATE POLICY current_tenant ON public.users TO application_role
    USING (tenant_id = (SELECT nullif(current_setting('app.current_tenant_id', true), '')::uuid));

-- A password goes with its user: both must be the tenant's.
CREATE POLICY current_tenant ON public.user_passwords TO application_role
    USING (
        tenant_id = (SELECT nullif(current_setting('app.current_tenant_id', true), '')::uuid)
        AND EXISTS (SELECT FROM public.users WHERE users.id = user_passwords.user_id)
    );

CREATE POLICY current_tenant ON public.pages TO application_role
    USING (tenant_id = (SELECT nullif(current_setting('app.current_tenant_id', true), '')::uuid));

CREATE POLICY current_tenant ON public.form_configs TO application_role
    USING (tenant_id = (SELECT nullif(current_setting('app.current_tenant_id', true), '')::uuid));

CREATE POLICY current_tenant ON public.leads TO application_role
    USING (tenant_id = (SELECT nullif(current_setting('app.current_tenant_id', true), '')::uuid));

-- The primary key is (lead_id, position): an activity of one's own under another tenant's lead would take
-- that tenant's next position. Reading needs no look at the lead.
CREATE POLICY current_tenant ON public.lead_activities TO application_role
    USING (tenant_id = (SELECT nullif(current_setting('app.current_tenant_id', true), '')::uuid))
    WITH CHECK (
        tenant_id = (SELECT nullif(current_setting('app.current_tenant_id', true), '')::uuid)
        AND EXISTS (SELECT FROM public.leads WHERE leads.id = lead_activities.lead_id)
    );

-- The login knows a subdomain and not yet a tenant. This function is the only way past the wall: its owner
-- sees two columns of one table and can do nothing else.
CREATE POLICY login_lookup ON public.tenants FOR SELECT TO crossfade_lookup USING (true);
GRANT SELECT (id, subdomain) ON public.tenants TO crossfade_lookup;

CREATE FUNCTION public.tenant_by_subdomain(wanted text) RETURNS uuid
    LANGUAGE sql STABLE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT id FROM public.tenants WHERE subdomain = wanted;
END;
REVOKE ALL ON FUNCTION public.tenant_by_subdomain(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.tenant_by_subdomain(text) TO application_role;

-- A function's owner must have been able to make it: so, for this one statement, it may.
GRANT CREATE ON SCHEMA public TO crossfade_lookup;
ALTER FUNCTION public.tenant_by_subdomain(text) OWNER TO crossfade_lookup;
REVOKE CREATE ON SCHEMA public FROM crossfade_lookup;
