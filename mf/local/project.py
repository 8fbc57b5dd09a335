"""SQL that sets up a PostgreSQL cluster and its databases like a Supabase project."""

# Roles and time limits: https://supabase.com/docs/guides/database/postgres/roles and …/postgres/timeouts.
# service_role has no limit of its own and inherits that of authenticator, the role that PostgREST connects as.
ROLES = """
create role anon nologin noinherit;
create role authenticated nologin noinherit;
create role service_role nologin noinherit bypassrls;
create role authenticator login noinherit;
grant anon, authenticated, service_role to authenticator;
alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';
alter role authenticator set statement_timeout = '8s';
alter role authenticator set lock_timeout = '8s';
"""

# Run in template1, from which every database is copied.
TEMPLATE = """
create schema extensions;
create extension vector with schema extensions;
create schema auth;
create function auth.uid() returns uuid language sql stable as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
  )::uuid
$$;
create function auth.role() returns text language sql stable as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim.role', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role'
  )::text
$$;
create function auth.jwt() returns jsonb language sql stable as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')
  )::jsonb
$$;
grant usage on schema public, extensions, auth to anon, authenticated, service_role;
"""


def default_privileges(legacy: bool) -> str:
    """Default privileges of schema public. Projects created before 2026-10-30 grant every new table, sequence and
    function to the API's roles; later ones grant nothing, not even to service_role."""
    verb, preposition = ("grant", "to") if legacy else ("revoke", "from")
    return "".join(
        f"alter default privileges for role postgres in schema public "
        f"{verb} all on {what} {preposition} anon, authenticated, service_role;\n"
        for what in ("tables", "sequences", "functions")
    )
