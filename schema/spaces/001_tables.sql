-- The tables of the Spaces platform. mapping.yaml says which document fields fill them.
--
-- `rest` holds, at its path, what no other column can say; it belongs to the application and stays.
--
-- created_at and updated_at are nullable though every document of today has them: the sync writes what the
-- document says, NULL where it says nothing, and a document without a date is no reason to refuse it. Rows
-- born here get the default.
--
-- Foreign keys do nothing on delete: a cascade would remove rows whose documents still exist.

CREATE TABLE public.tenants (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name text NOT NULL,
    subdomain text NOT NULL,
    plan text,
    status text,
    settings jsonb,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    rest jsonb,
    CONSTRAINT unique_subdomain UNIQUE (subdomain) DEFERRABLE
);

CREATE TABLE public.users (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id uuid NOT NULL REFERENCES public.tenants,
    email text NOT NULL,
    name text,
    role text,
    profile jsonb,
    is_active boolean,
    login_count integer,
    last_login_at timestamptz,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    rest jsonb,
    CONSTRAINT unique_email_per_tenant UNIQUE (tenant_id, email) DEFERRABLE
);
CREATE INDEX users_tenant ON public.users (tenant_id);
CREATE INDEX users_email ON public.users (email);
CREATE INDEX users_role ON public.users (role);
CREATE INDEX users_profile ON public.users USING gin (profile);

CREATE TABLE public.user_passwords (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id uuid NOT NULL REFERENCES public.tenants,
    user_id uuid NOT NULL REFERENCES public.users,
    password_hash text NOT NULL,
    algorithm text,
    changed_at timestamptz,
    rest jsonb
);
CREATE INDEX user_passwords_tenant ON public.user_passwords (tenant_id);
CREATE INDEX user_passwords_user ON public.user_passwords (user_id);

CREATE TABLE public.pages (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id uuid NOT NULL REFERENCES public.tenants,
    author_id uuid REFERENCES public.users,
    title text NOT NULL,
    slug text NOT NULL,
    status text,
    content jsonb,
    seo jsonb,
    published_at timestamptz,
    version integer,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    rest jsonb
);
CREATE INDEX pages_tenant_slug ON public.pages (tenant_id, slug);

CREATE TABLE public.form_configs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id uuid NOT NULL REFERENCES public.tenants,
    name text NOT NULL,
    slug text NOT NULL,
    fields jsonb,
    settings jsonb,
    is_active boolean,
    submit_count integer,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    rest jsonb
);
CREATE INDEX form_configs_tenant_slug ON public.form_configs (tenant_id, slug);

CREATE TABLE public.leads (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id uuid NOT NULL REFERENCES public.tenants,
    form_id uuid REFERENCES public.form_configs,
    assigned_to uuid REFERENCES public.users,
    email text,
    name text,
    phone text,
    status text,
    score double precision,
    source text,
    data jsonb,
    search_vector tsvector,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    rest jsonb
);
CREATE INDEX leads_tenant ON public.leads (tenant_id);
CREATE INDEX leads_email ON public.leads (email);
CREATE INDEX leads_status ON public.leads (status);
CREATE INDEX leads_search ON public.leads USING gin (search_vector);

-- actor_id is no foreign key: a history keeps the name of who acted after that user is gone.
CREATE TABLE public.lead_activities (
    lead_id uuid NOT NULL REFERENCES public.leads,
    tenant_id uuid NOT NULL REFERENCES public.tenants,
    position integer NOT NULL,
    type text,
    occurred_at timestamptz,
    actor_id uuid,
    note text,
    meta jsonb,
    rest jsonb,
    PRIMARY KEY (lead_id, position)
);
CREATE INDEX lead_activities_tenant ON public.lead_activities (tenant_id);
