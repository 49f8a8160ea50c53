-- What clients' shadow reads have found: a proof before a tenant's switch that applications ask for themselves.

SET LOCAL ROLE crossfade_owner;

-- Reads that were done on both sides, by tenant.
CREATE TABLE crossfade.shadow_read (
    tenant_id uuid PRIMARY KEY,
    equal bigint NOT NULL DEFAULT 0,
    different bigint NOT NULL DEFAULT 0,
    unsettled bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    left_out bigint NOT NULL DEFAULT 0,
    first_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Where they differed: an id and a path, never a value.
CREATE TABLE crossfade.shadow_difference (
    tenant_id uuid NOT NULL,
    subject text NOT NULL,
    path text NOT NULL,
    reports bigint NOT NULL DEFAULT 1,        -- that named it
    first_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, subject, path)
);

-- The one way in, for applications: it adds, within bounds, and tells nothing. Known tenants only, a hundred places
-- of each, texts cut; so nobody can fill the disk by it, nor change or read what others have told.
CREATE FUNCTION crossfade.tell_shadow_reads(told jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF told IS NULL OR jsonb_typeof(told) <> 'array' OR pg_column_size(told) > 262144 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'tell_shadow_reads takes a JSON array, of 256 KiB at most';
    END IF;
    INSERT INTO crossfade.shadow_read AS s (tenant_id, equal, different, unsettled, failed, left_out)
    SELECT t.tenant_id, sum(n.equal), sum(n.different), sum(n.unsettled), sum(n.failed), sum(n.left_out)
    FROM jsonb_to_recordset(told) AS one(tenant uuid, equal bigint, different bigint, unsettled bigint,
        failed bigint, left_out bigint)
    JOIN crossfade.tenant t ON t.tenant_id = one.tenant
    CROSS JOIN LATERAL (SELECT  -- a caller's number is no reason to overflow
        least(greatest(coalesce(one.equal, 0), 0), 1000000) AS equal,
        least(greatest(coalesce(one.different, 0), 0), 1000000) AS different,
        least(greatest(coalesce(one.unsettled, 0), 0), 1000000) AS unsettled,
        least(greatest(coalesce(one.failed, 0), 0), 1000000) AS failed,
        least(greatest(coalesce(one.left_out, 0), 0), 1000000) AS left_out) AS n
    GROUP BY t.tenant_id ORDER BY t.tenant_id
    ON CONFLICT (tenant_id) DO UPDATE SET equal = s.equal + EXCLUDED.equal,
        different = s.different + EXCLUDED.different, unsettled = s.unsettled + EXCLUDED.unsettled,
        failed = s.failed + EXCLUDED.failed, left_out = s.left_out + EXCLUDED.left_out,
        last_at = clock_timestamp();
    -- The rows above are locked: nobody else adds places of these tenants before this commits.
    INSERT INTO crossfade.shadow_difference AS d (tenant_id, subject, path)
    SELECT p.tenant, p.subject, p.path FROM (
        SELECT one.tenant, left(place->>0, 200) AS subject, left(place->>1, 200) AS path,
            row_number() OVER (PARTITION BY one.tenant) AS number
        FROM jsonb_to_recordset(told) AS one(tenant uuid, places jsonb)
        JOIN crossfade.tenant t ON t.tenant_id = one.tenant
        CROSS JOIN LATERAL jsonb_array_elements(
            CASE jsonb_typeof(one.places) WHEN 'array' THEN one.places ELSE '[]' END) AS place
        WHERE jsonb_typeof(place) = 'array' AND place->>0 IS NOT NULL AND place->>1 IS NOT NULL
        GROUP BY 1, 2, 3
    ) AS p
    WHERE p.number <= 100 AND ((p.tenant, p.subject, p.path) IN (
            SELECT k.tenant_id, k.subject, k.path FROM crossfade.shadow_difference k)
        OR p.number + (SELECT count(*) FROM crossfade.shadow_difference k WHERE k.tenant_id = p.tenant) <= 100)
    ORDER BY 1, 2, 3
    ON CONFLICT (tenant_id, subject, path) DO UPDATE SET reports = d.reports + 1,
        last_at = clock_timestamp();
END
$$;

REVOKE ALL ON FUNCTION crossfade.tell_shadow_reads(jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION crossfade.tell_shadow_reads(jsonb) TO application_role, crossfade_control;
GRANT SELECT ON crossfade.shadow_read, crossfade.shadow_difference
    TO crossfade_sync, crossfade_reader, crossfade_control;

RESET ROLE;
