-- Embeddings in Supabase: versioned by run, one run published at a time, for the service role only.
-- Printed by `python -m mf schema`. One transaction; running it again changes nothing.
begin;
-- Nothing here depends on the session's search path.
set local search_path = '';
set local client_min_messages = warning;

create extension if not exists vector with schema extensions;

-- Refuse what cannot be brought up to date, before anything is changed.
do $mf$
declare
  found record;
begin
  select n.nspname as home into found
  from pg_extension e join pg_namespace n on n.oid = e.extnamespace where e.extname = 'vector';
  if found.home <> 'extensions' then
    raise exception 'the extension vector is in schema %, expected in schema extensions; run: '
      'alter extension vector set schema extensions;', found.home;
  end if;

  for found in
    select asked.tab, asked.col, asked.type, format_type(a.atttypid, a.atttypmod) as has
    from (values ('mf_user_embeddings', 'user_id', 'bigint'),
                 ('mf_movie_embeddings', 'movie_id', 'bigint')) asked (tab, col, type)
    join pg_attribute a on a.attrelid = to_regclass('public.' || asked.tab) and a.attname = asked.col
  loop
    if found.has <> found.type then
      raise exception 'public.%.% is %, and this migration is for %: print it with `python -m mf schema --%_type %`, '
        'or, to give up the runs that are there, first run: '
        'drop table public.mf_user_embeddings, public.mf_movie_embeddings, public.mf_runs cascade;',
        found.tab, found.col, found.has, found.type, found.col, found.has;
    end if;
  end loop;

  for found in
    select c.relname as name,
      case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'S' then 'sequence'
                     when 'i' then 'index' when 'c' then 'type' else 'table' end as kind
    from pg_class c
    where c.relnamespace = 'public'::regnamespace
      and c.relname in ('movie_embeddings', 'user_embeddings')
      and (c.relkind <> 'v' or strpos(pg_get_viewdef(c.oid), 'mf_runs') = 0)
  loop
    raise exception 'a % of yours bears the name public.% that a view of this migration takes; run: '
      'alter % public.% rename to %; or choose other names with '
      '`python -m mf schema --movie_export_table … --user_export_table …`',
      found.kind, found.name, found.kind, quote_ident(found.name), quote_ident(left(found.name, 50) || '_old');
  end loop;

  for found in
    select p.proname as name, pg_get_function_identity_arguments(p.oid) as arguments
    from pg_proc p
    where p.pronamespace = 'public'::regnamespace and p.proname in ('recommend_movies', 'similar_movies')
      and strpos(p.prosrc, 'mf_runs') = 0
  loop
    raise exception 'a function of yours bears the name public.% that one of this migration takes; run: '
      'alter function public.%(%) rename to %_old', found.name, found.name, found.arguments, found.name;
  end loop;
end
$mf$;

create table if not exists public.mf_runs (
  run_id text primary key check (run_id <> ''),
  status text not null default 'loading' check (status in ('loading', 'published', 'retired')),
  content_hash text not null,
  factors integer not null check (factors > 0),
  mu double precision not null check (mu <> 'NaN'),
  rating_min double precision not null,
  rating_max double precision not null check (rating_max >= rating_min),
  n_users bigint not null check (n_users > 0),
  n_movies bigint not null check (n_movies > 0),
  created_at timestamptz not null default now(),
  published_at timestamptz
);
create unique index if not exists mf_runs_one_published on public.mf_runs ((true)) where status = 'published';

-- The vectors have no fixed dimension, so that the next run may have more factors. An index on them is a partial
-- expression index of one run, on (augmented::extensions.vector(n)).
create table if not exists public.mf_user_embeddings (
  run_id text not null references public.mf_runs on delete cascade,
  user_id bigint not null,
  bias real not null,
  embedding extensions.vector not null,
  primary key (run_id, user_id)
);
create table if not exists public.mf_movie_embeddings (
  run_id text not null references public.mf_runs on delete cascade,
  movie_id bigint not null,
  bias real not null,
  embedding extensions.vector not null,
  -- [q ; b_m]: its inner product with [p ; 1] is p.q + b_m, so that one operator ranks by the predicted rating
  augmented extensions.vector generated always as
    (embedding operator(extensions.||) array[bias]::extensions.vector) stored,
  primary key (run_id, movie_id)
);

alter table public.mf_runs enable row level security;
alter table public.mf_user_embeddings enable row level security;
alter table public.mf_movie_embeddings enable row level security;

create or replace view public."user_embeddings" with (security_invoker = true) as
  select e.user_id, e.bias, e.embedding, e.run_id from public.mf_user_embeddings e
  where e.run_id = (select r.run_id from public.mf_runs r where r.status = 'published');
create or replace view public."movie_embeddings" with (security_invoker = true) as
  select e.movie_id, e.bias, e.embedding, e.run_id from public.mf_movie_embeddings e
  where e.run_id = (select r.run_id from public.mf_runs r where r.status = 'published');

-- The API cannot choose between overloads, and a result type cannot be replaced: functions of another form go.
do $mf$
declare
  stale regprocedure;
begin
  for stale in
    select p.oid from pg_proc p
    where p.pronamespace = 'public'::regnamespace
      and p.proname in ('recommend_movies', 'similar_movies', 'mf_schema', 'mf_register', 'mf_publish', 'mf_list_runs',
                        'mf_rollback', 'mf_prune')
      and (p.proname, pg_get_function_identity_arguments(p.oid), pg_get_function_result(p.oid)) not in (values
        ('recommend_movies', 'for_user bigint, k integer, exclude_rated boolean',
         'TABLE(movie_id bigint, predicted_rating double precision)'),
        ('similar_movies', 'for_movie bigint, k integer',
         'TABLE(movie_id bigint, similarity double precision)'),
        ('mf_schema', '', 'jsonb'),
        ('mf_register', 'run jsonb', 'jsonb'),
        ('mf_publish', 'run text', 'jsonb'),
        ('mf_list_runs', '', 'SETOF public.mf_runs'),
        ('mf_rollback', 'run text', 'jsonb'),
        ('mf_prune', 'keep integer', 'jsonb'))
  loop
    execute format('drop function %s', stale);
  end loop;
end
$mf$;

-- The k movies with the highest mu + b_u + b_m + p.q, exactly; an unknown user is one with bias 0 and a zero vector.
create or replace function public.recommend_movies(
  for_user bigint, k integer default 10, exclude_rated boolean default false
) returns table (movie_id bigint, predicted_rating double precision)
language plpgsql stable security invoker set search_path = '' as $mf$
begin
  if recommend_movies.for_user is null then
    raise exception 'for_user is null, expected the id of a user';
  end if;
  if recommend_movies.k is null or recommend_movies.k < 0 then
    raise exception 'k is %, expected a number of movies from 0 to 1000', coalesce(recommend_movies.k::text, 'null');
  end if;
  if recommend_movies.exclude_rated then
    raise exception 'exclude_rated needs to know the table of ratings: '
      'apply what `python -m mf schema --ratings_table NAME` prints';
  end if;
  return query
    -- materialized, or the vector would be put together anew for every movie
    with taste as materialized (
      select r.run_id, r.rating_min, r.rating_max, r.mu + coalesce(u.bias, 0) as base,
        coalesce(u.embedding, array_fill(0::real, array[r.factors])::extensions.vector)
          operator(extensions.||) array[1::real]::extensions.vector as vector
      from public.mf_runs r
      left join public.mf_user_embeddings u on u.run_id = r.run_id and u.user_id = recommend_movies.for_user
      where r.status = 'published'
    )
    select best.movie_id, greatest(least(taste.base - best.distance, taste.rating_max), taste.rating_min)
    from taste cross join lateral (
      -- <#> is the negative inner product
      select e.movie_id, e.augmented operator(extensions.<#>) taste.vector as distance
      from public.mf_movie_embeddings e
      where e.run_id = taste.run_id
      order by e.augmented operator(extensions.<#>) taste.vector, e.movie_id
      limit least(recommend_movies.k, 1000)
    ) best
    order by best.distance, best.movie_id;
end
$mf$;

-- The k movies whose vectors have the highest cosine with that of for_movie; with a zero vector it is 0.
create or replace function public.similar_movies(for_movie bigint, k integer default 10)
returns table (movie_id bigint, similarity double precision)
language plpgsql stable security invoker set search_path = '' as $mf$
begin
  if similar_movies.for_movie is null then
    raise exception 'for_movie is null, expected the id of a movie';
  end if;
  if similar_movies.k is null or similar_movies.k < 0 then
    raise exception 'k is %, expected a number of movies from 0 to 1000', coalesce(similar_movies.k::text, 'null');
  end if;
  return query
    select best.movie_id, 1 - best.distance
    from public.mf_runs r
    join public.mf_movie_embeddings chosen on chosen.run_id = r.run_id and chosen.movie_id = similar_movies.for_movie
    cross join lateral (
      select e.movie_id, near.distance
      from public.mf_movie_embeddings e
      -- pgvector's distance to a zero vector is NaN
      cross join lateral (
        select coalesce(nullif(e.embedding operator(extensions.<=>) chosen.embedding, 'NaN'), 1) as distance
      ) near
      where e.run_id = chosen.run_id and e.movie_id <> chosen.movie_id
      order by near.distance, e.movie_id
      limit least(similar_movies.k, 1000)
    ) best
    where r.status = 'published'
    order by best.distance, best.movie_id;
end
$mf$;

-- What this migration was made for, so that an export can tell whether it fits.
create or replace function public.mf_schema() returns jsonb
language sql stable security invoker set search_path = '' as $mf$
  select '{"movie_export_table":"movie_embeddings","user_export_table":"user_embeddings","user_id_type":"bigint","movie_id_type":"bigint","ratings_table":"","user_column":"user_id","movie_column":"movie_id"}'::jsonb
$mf$;

-- Makes a run ready to be loaded; sent twice it changes nothing. Rows that another content left under its name go.
create or replace function public.mf_register(run jsonb) returns jsonb
language plpgsql security invoker set search_path = '' set statement_timeout = '5min' as $mf$
declare
  asked public.mf_runs;
  known public.mf_runs;
begin
  perform pg_advisory_xact_lock(hashtext('mf_runs'));
  asked := jsonb_populate_record(null::public.mf_runs, mf_register.run);
  select r.* into known from public.mf_runs r where r.run_id = asked.run_id;
  if known.content_hash <> asked.content_hash then
    if known.status <> 'loading' then
      raise exception 'the run % is already in the database (%) with another content: '
        'a run is one model, train again to get a new one',
        asked.run_id, known.status;
    end if;
    delete from public.mf_runs r where r.run_id = asked.run_id;
  end if;
  insert into public.mf_runs as r (run_id, content_hash, factors, mu, rating_min, rating_max, n_users, n_movies)
  values (asked.run_id, asked.content_hash, asked.factors, asked.mu, asked.rating_min, asked.rating_max, asked.n_users,
    asked.n_movies)
  on conflict (run_id) do update set created_at = now() where r.status = 'loading';
  return (
    select jsonb_build_object('run_id', r.run_id, 'status', r.status,
      'published', (select p.run_id from public.mf_runs p where p.status = 'published'))
    from public.mf_runs r where r.run_id = asked.run_id);
end
$mf$;

-- Checks that every row of a loading run is there and, in one step, makes it the one that readers see; the run before it
-- is kept. Sent twice it changes nothing, also when another run was published in between: only mf_rollback brings back.
create or replace function public.mf_publish(run text) returns jsonb
language plpgsql security invoker set search_path = '' set statement_timeout = '60s' as $mf$
declare
  asked public.mf_runs;
  users bigint;
  movies bigint;
  previous text;
begin
  perform pg_advisory_xact_lock(hashtext('mf_runs'));
  select r.* into asked from public.mf_runs r where r.run_id = mf_publish.run;
  if not found then
    raise exception 'there is no run %: mf_list_runs() shows those that are there', coalesce(mf_publish.run, 'null');
  end if;
  if asked.status <> 'loading' then
    return jsonb_build_object('run_id', asked.run_id, 'changed', false,
      'published', (select r.run_id from public.mf_runs r where r.status = 'published'));
  end if;
  select count(*) into users from public.mf_user_embeddings e where e.run_id = asked.run_id;
  select count(*) into movies from public.mf_movie_embeddings e where e.run_id = asked.run_id;
  if users <> asked.n_users or movies <> asked.n_movies then
    raise exception 'the run % is incomplete: % of % users and % of % movies are there; run its export again',
      asked.run_id, users, asked.n_users, movies, asked.n_movies;
  end if;
  update public.mf_runs r set status = 'retired' where r.status = 'published' returning r.run_id into previous;
  -- The order of publishing is that of the lock, and not that in which the transactions began.
  update public.mf_runs r set status = 'published', published_at = clock_timestamp() where r.run_id = asked.run_id;
  return jsonb_build_object('run_id', asked.run_id, 'changed', true, 'published', asked.run_id, 'previous', previous);
end
$mf$;

create or replace function public.mf_list_runs() returns setof public.mf_runs
language sql stable security invoker set search_path = '' as $mf$
  select r.* from public.mf_runs r order by r.published_at desc nulls last, r.created_at desc
$mf$;

-- Publishes a retired run again: the one named, else the one that was published before the present one. Without a name
-- a second call goes forward again.
create or replace function public.mf_rollback(run text default null) returns jsonb
language plpgsql security invoker set search_path = '' set statement_timeout = '60s' as $mf$
declare
  target text;
begin
  perform pg_advisory_xact_lock(hashtext('mf_runs'));
  select r.run_id into target from public.mf_runs r
  where r.status <> 'loading'
    and case when mf_rollback.run is null then r.status = 'retired' else r.run_id = mf_rollback.run end
  order by r.published_at desc limit 1;
  if target is null and mf_rollback.run is null then
    raise exception 'there is no earlier run to bring back';
  elsif target is null then
    raise exception 'there is no earlier run % to bring back: mf_list_runs() shows those that are there',
      mf_rollback.run;
  end if;
  update public.mf_runs r set status = 'retired' where r.status = 'published' and r.run_id <> target;
  update public.mf_runs r set status = 'published', published_at = clock_timestamp()
  where r.run_id = target and r.status = 'retired';
  return jsonb_build_object('run_id', target, 'changed', found);
end
$mf$;

-- Removes all but the published run, the `keep` runs published before it, and what began to load within a day.
create or replace function public.mf_prune(keep integer default 1) returns jsonb
language plpgsql security invoker set search_path = '' set statement_timeout = '5min' as $mf$
declare
  removed jsonb;
begin
  if mf_prune.keep is null or mf_prune.keep < 0 then
    raise exception 'keep is %, expected a number of earlier runs', coalesce(mf_prune.keep::text, 'null');
  end if;
  perform pg_advisory_xact_lock(hashtext('mf_runs'));
  with old as (
    (select r.run_id from public.mf_runs r where r.status = 'retired'
     order by r.published_at desc offset mf_prune.keep)
    union all
    select r.run_id from public.mf_runs r where r.status = 'loading' and r.created_at < now() - interval '1 day'
  ), gone as (
    delete from public.mf_runs r using old where r.run_id = old.run_id returning r.run_id
  )
  select coalesce(jsonb_agg(gone.run_id), '[]') into removed from gone;
  return jsonb_build_object('removed', removed);
end
$mf$;

-- Supabase projects of before November 2026 open everything new to everyone, later ones to nobody: both are undone.
revoke all on public.mf_runs, public.mf_user_embeddings, public.mf_movie_embeddings,
  public."user_embeddings", public."movie_embeddings"
  from public, anon, authenticated;
revoke all on function public.recommend_movies, public.similar_movies, public.mf_schema, public.mf_register,
  public.mf_publish, public.mf_list_runs, public.mf_rollback, public.mf_prune
  from public, anon, authenticated;
grant select, insert, update, delete on public.mf_runs, public.mf_user_embeddings, public.mf_movie_embeddings
  to service_role;
grant select on public."user_embeddings", public."movie_embeddings"
  to service_role;
grant execute on function public.recommend_movies, public.similar_movies, public.mf_schema, public.mf_register,
  public.mf_publish, public.mf_list_runs, public.mf_rollback, public.mf_prune
  to service_role;

notify pgrst, 'reload schema';
commit;
