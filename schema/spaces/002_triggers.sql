-- ALWAYS: rows that the sync writes as session_replication_role = replica must be found by a search as well.
CREATE TRIGGER search_vector_follows BEFORE INSERT OR UPDATE ON public.leads
    FOR EACH ROW EXECUTE FUNCTION
    tsvector_update_trigger(search_vector, 'pg_catalog.simple', name, email, source);
ALTER TABLE public.leads ENABLE ALWAYS TRIGGER search_vector_follows;

CREATE FUNCTION public.touch_updated_at() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$$;

-- The sync copies updatedAt as the document has it, also where an event leaves it alone. As replica it skips
-- these triggers; where it may not become one, it is told by its name.
DO $$
DECLARE
    changed text;
BEGIN
    FOREACH changed IN ARRAY ARRAY['tenants', 'users', 'pages', 'form_configs', 'leads'] LOOP
        EXECUTE format($trigger$
            CREATE TRIGGER updated_at_follows BEFORE UPDATE ON public.%I
            FOR EACH ROW WHEN (
                session_user <> 'crossfade_sync'
                AND NEW.updated_at IS NOT DISTINCT FROM OLD.updated_at
                AND NEW.* IS DISTINCT FROM OLD.*
            )
            EXECUTE FUNCTION public.touch_updated_at()
        $trigger$, changed);
    END LOOP;
END
$$;
