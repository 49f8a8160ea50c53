-- What a TTL index deletes in MongoDB of a tenant that has left it: it stands in nobody's way, and counts when
-- the tenant is home again.

SET LOCAL ROLE crossfade_owner;

CREATE INDEX ON crossfade.dead_letter (tenant_id, row_id) WHERE kind = 'expired' AND state = 'discarded';

-- At home MongoDB decides again what there is: apply takes such deletes then, each unless its document has come
-- back since. As the table's owner, for whoever changes phases may not touch letters.
CREATE FUNCTION crossfade.expired_at_home() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE crossfade.dead_letter SET state = 'parked', next_attempt_at = now(), parked_at = now()
    WHERE tenant_id = NEW.tenant_id AND kind = 'expired' AND state = 'discarded';
    RETURN NULL;
END
$$;
CREATE TRIGGER expired_at_home AFTER UPDATE OF phase ON crossfade.tenant
    FOR EACH ROW WHEN (NEW.phase = 'mongo' AND OLD.phase <> 'mongo') EXECUTE FUNCTION crossfade.expired_at_home();

RESET ROLE;
