-- Embeddings in Supabase: versioned by run, one run published at a time. Grants and policies are at the end.
-- Printed by `python -m mf schema`. One idempotent transaction.
begin;
-- All names are qualified: nothing depends on the session's search path.
set local search_path = '';
set local client_min_messages = warning;

create extension if not exists vector with schema extensions;

-- Before any change, refuse what cannot be upgraded.
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
        'or, to delete the existing runs, first run: '
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
    raise exception 'your % public.% has the name of a view of this migration; run: '
      'alter % public.% rename to %; or choose other names with '
      '`python -m mf schema --movie_export_table … --user_export_table …`',
      found.kind, found.name, found.kind, quote_ident(found.name), quote_ident(left(found.name, 50) || '_old');
  end loop;

  for found in
    select p.proname as name, pg_get_function_identity_arguments(p.oid) as arguments
    from pg_proc p
    where p.pronamespace = 'public'::regnamespace and strpos(p.prosrc, 'mf_runs') = 0
      and p.proname in ('recommend_movies', 'similar_movies', 'recommend_from_ratings')
  loop
    raise exception 'your function public.% has the name of a function of this migration; run: '
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
-- The ratings that the model was trained on (source, columns, content_hash, until), so that the next model can be
-- compared with it where both have the same source; null for runs of earlier migrations.
alter table public.mf_runs add column if not exists trained_on jsonb;
create unique index if not exists mf_runs_one_published on public.mf_runs ((true)) where status = 'published';

-- The prior of a new user, for recommend_from_ratings: E[w w'] over the run's users, w = [p ; b_u], divided by the
-- variance of a rating's noise; row-major. Runs of earlier migrations have none.
create table if not exists public.mf_priors (
  run_id text primary key references public.mf_runs on delete cascade,
  covariance double precision[] not null
);

-- The vectors have no fixed dimension, so that the next run may have another number of factors. An index on them is a
-- partial expression index of one run: see mf_index.
create table if not exists public.mf_user_embeddings (
  run_id text not null,
  user_id bigint not null,
  bias real not null,
  embedding extensions.vector not null,
  primary key (run_id, user_id)
);
create table if not exists public.mf_movie_embeddings (
  run_id text not null,
  movie_id bigint not null,
  bias real not null,
  embedding extensions.vector not null,
  -- [q ; b_m]: its inner product with [p ; 1] is p.q + b_m, so that one operator ranks by the predicted rating
  augmented extensions.vector generated always as
    (embedding operator(extensions.||) array[bias]::extensions.vector) stored,
  primary key (run_id, movie_id)
);

-- Deleting a run deletes its rows. A trigger does so, not a foreign key, which would look up the run for every row of a
-- load and take longer than the load itself (2.1 s instead of 0.8 s for 219,000 rows of 64 factors). Writers of rows
-- lock their run.
alter table public.mf_user_embeddings drop constraint if exists mf_user_embeddings_run_id_fkey;
alter table public.mf_movie_embeddings drop constraint if exists mf_movie_embeddings_run_id_fkey;
create or replace function public.mf_drop_rows() returns trigger
language plpgsql security invoker set search_path = '' as $mf$
begin
  if tg_op = 'TRUNCATE' then
    truncate public.mf_user_embeddings, public.mf_movie_embeddings;
  else
    delete from public.mf_user_embeddings e where e.run_id = old.run_id;
    delete from public.mf_movie_embeddings e where e.run_id = old.run_id;
  end if;
  return null;
end
$mf$;
create or replace trigger mf_drop_rows_deleted after delete on public.mf_runs
  for each row execute function public.mf_drop_rows();
create or replace trigger mf_drop_rows_truncated after truncate on public.mf_runs
  for each statement execute function public.mf_drop_rows();

alter table public.mf_runs enable row level security;
alter table public.mf_priors enable row level security;
alter table public.mf_user_embeddings enable row level security;
alter table public.mf_movie_embeddings enable row level security;

create or replace view public."user_embeddings" with (security_invoker = true) as
  select e.user_id, e.bias, e.embedding, e.run_id from public.mf_user_embeddings e
  where e.run_id = (select r.run_id from public.mf_runs r where r.status = 'published');
create or replace view public."movie_embeddings" with (security_invoker = true) as
  select e.movie_id, e.bias, e.embedding, e.run_id from public.mf_movie_embeddings e
  where e.run_id = (select r.run_id from public.mf_runs r where r.status = 'published');

-- PostgREST cannot choose between overloads, and `create or replace` cannot change a result type: drop functions with
-- another signature.
do $mf$
declare
  stale regprocedure;
begin
  for stale in
    select p.oid from pg_proc p
    where p.pronamespace = 'public'::regnamespace
      and p.proname in ('recommend_movies', 'similar_movies', 'recommend_for_me', 'recommend_from_ratings', 'mf_nearest',
                        'mf_schema', 'mf_register', 'mf_load_users', 'mf_load_movies', 'mf_index', 'mf_drop_indexes',
                        'mf_publish', 'mf_list_runs', 'mf_rollback', 'mf_prune')
      -- where user ids are not UUIDs it may be the user's own function
      and (p.proname <> 'recommend_for_me' or strpos(p.prosrc, 'mf_runs') > 0)
      and (p.proname, pg_get_function_identity_arguments(p.oid), pg_get_function_result(p.oid)) not in (values
        ('recommend_movies', 'for_user bigint, k integer, exclude_rated boolean',
         'TABLE(movie_id bigint, predicted_rating double precision)'),
        ('similar_movies', 'for_movie bigint, k integer',
         'TABLE(movie_id bigint, similarity double precision)'),
        ('recommend_from_ratings', 'ratings jsonb, k integer',
         'TABLE(movie_id bigint, predicted_rating double precision)'),
        ('mf_nearest', 'of_run text, vectors text, target extensions.vector, k integer, without bigint[]',
         'TABLE(movie_id bigint, distance double precision)'),
        ('mf_schema', '', 'jsonb'),
        ('mf_register', 'run jsonb', 'jsonb'),
        ('mf_load_users', 'run text, content text, ids bigint[], biases real[], embeddings text[]', 'void'),
        ('mf_load_movies', 'run text, content text, ids bigint[], biases real[], embeddings text[]',
         'void'),
        ('mf_index', 'run text', 'jsonb'),
        ('mf_drop_indexes', 'run text', 'void'),
        ('mf_publish', 'run text', 'jsonb'),
        ('mf_list_runs', '', 'SETOF public.mf_runs'),
        ('mf_rollback', 'run text', 'jsonb'),
        ('mf_prune', 'keep integer', 'jsonb'))
  loop
    execute format('drop function %s', stale);
  end loop;
end
$mf$;

-- The movies of a run whose vectors are nearest to `target`, nearest first, ties by id: `augmented` by inner product
-- (distance = its negative), `embedding` by cosine (distance = 1 - cosine; 1 for a zero vector).
-- It scans all vectors, unless the run has an index (mf_index) and k plus the movies to leave out are at most 500. Then
-- it takes twice as many from the index, so that enough remain after leaving movies out, and sorts them again. If that
-- gives too few, it scans all vectors after all. Used by the functions below; other callers can read with it only what
-- their rights and the policies allow anyway.
create or replace function public.mf_nearest(
  of_run text, vectors text, target extensions.vector, k integer, without bigint[]
) returns table (movie_id bigint, distance double precision)
-- enable_sort: set here so that it is restored when the function ends
language plpgsql stable security invoker set search_path = '' set jit = off set enable_sort = on as $mf$
declare
  cosine constant boolean := mf_nearest.vectors = 'embedding';
  wanted constant integer := 2 * (mf_nearest.k + cardinality(mf_nearest.without));
  indexed boolean := wanted between 1 and 1000
    and to_regclass('public.mf_hnsw_' || mf_nearest.vectors || '_' || md5(mf_nearest.of_run)) is not null;
  -- With the cast it is the index's expression, which the planner matches when the run is a literal.
  by_index constant text := format('e.%I::extensions.vector(%s) operator(extensions.%s) $1', mf_nearest.vectors,
    extensions.vector_dims(mf_nearest.target), case when cosine then '<=>' else '<#>' end);
  -- pgvector's distance to a zero vector is NaN
  by_all constant text := case when cosine then 'coalesce(nullif(e.embedding operator(extensions.<=>) $1, ''NaN''), 1)'
    else 'e.augmented operator(extensions.<#>) $1' end;
  ids bigint[];
  distances double precision[];
begin
  loop
    if indexed then
      -- until the end of the transaction, which for the API is this call
      perform set_config('hnsw.ef_search', greatest(wanted, 400)::text, true);
    end if;
    -- Only the index gives the order without sorting; without this, statistics of a new run may mislead the planner.
    perform set_config('enable_sort', case when indexed then 'off' else 'on' end, true);
    execute format($q$
      select array_agg(near.movie_id order by near.distance, near.movie_id),
        array_agg(near.distance order by near.distance, near.movie_id)
      from (
        select e.movie_id, %1$s as distance from public.mf_movie_embeddings e
        where e.run_id = %2$L and e.movie_id not in (select unnest($2))
        -- some more, since the index orders by distances with other rounding
        order by %1$s, e.movie_id limit $3 + 10
      ) near $q$, case when indexed then by_index else by_all end, mf_nearest.of_run)
    into ids, distances using mf_nearest.target, mf_nearest.without, mf_nearest.k;
    exit when not indexed;
    -- A cosine index does not contain zero vectors.
    exit when cardinality(ids) >= mf_nearest.k and (not cosine or distances[mf_nearest.k] < 1);
    indexed := false;
  end loop;
  return query select found.id, found.far
    from unnest(ids[:mf_nearest.k], distances[:mf_nearest.k]) with ordinality found (id, far, place)
    order by found.place;
end
$mf$;

-- The k movies with the highest mu + b_u + b_m + p.q; an unknown user has bias 0 and a zero vector.
-- This function and those below are stable: all their statements see the snapshot of the calling statement, and so one
-- complete published run.
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
    select near.movie_id,
      greatest(least(r.mu + coalesce(u.bias, 0) - near.distance, r.rating_max), r.rating_min)
    from public.mf_runs r
    left join public.mf_user_embeddings u on u.run_id = r.run_id and u.user_id = recommend_movies.for_user
    cross join lateral public.mf_nearest(
      r.run_id, 'augmented',
      coalesce(u.embedding, array_fill(0::real, array[r.factors])::extensions.vector)
        operator(extensions.||) array[1::real]::extensions.vector,
      least(recommend_movies.k, 1000),
      array[]::bigint[]
    ) near
    where r.status = 'published'
    order by near.distance, near.movie_id;
end
$mf$;

-- The k movies with the highest cosine similarity to for_movie; it is 0 for a zero vector.
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
    select near.movie_id, 1 - near.distance
    from public.mf_runs r
    join public.mf_movie_embeddings chosen on chosen.run_id = r.run_id and chosen.movie_id = similar_movies.for_movie
    cross join lateral public.mf_nearest(
      r.run_id, 'embedding', chosen.embedding, least(similar_movies.k, 1000), array[chosen.movie_id]) near
    where r.status = 'published'
    order by near.distance, near.movie_id;
end
$mf$;

-- The k best movies for a new user with `ratings`, [{"movie_id": …, "rating": …}, …], without the rated movies. The
-- last rating of a repeated movie counts; movies unknown to the run are ignored. The new user's w = [p ; b_u] is the
-- maximum a posteriori estimate for the run's prior (mf_priors) and ratings mu + b_m + w.[q ; 1] + noise: it minimises
-- sum (r - mu - b_m - w.[q ; 1])^2 + w' covariance^-1 w, as mf.fold_in does. The ratings are processed one by one (a
-- Kalman filter with a constant state), which needs no matrix inverse. It is a security definer so that signed-in users
-- can call it without rights on movies, runs and priors. It reveals no row of a user, and of the movies only what any
-- list of recommendations does.
create or replace function public.recommend_from_ratings(ratings jsonb, k integer default 10)
returns table (movie_id bigint, predicted_rating double precision)
language plpgsql stable security definer set search_path = '' as $mf$
declare
  run public.mf_runs;
  entry record;
  ids bigint[] := '{}';
  scores double precision[] := '{}';
  n integer;
  covariance double precision[];
  w double precision[];
  x double precision[];
  gain double precision[];
  error double precision;
  scale double precision;
  total double precision;
begin
  if recommend_from_ratings.k is null or recommend_from_ratings.k < 0 then
    raise exception 'k is %, expected a number of movies from 0 to 1000',
      coalesce(recommend_from_ratings.k::text, 'null');
  end if;
  if jsonb_typeof(recommend_from_ratings.ratings) is distinct from 'array' then
    raise exception 'ratings is %, expected a JSON array [{"movie_id": …, "rating": …}, …]',
      coalesce(jsonb_typeof(recommend_from_ratings.ratings), 'null');
  end if;
  if jsonb_array_length(recommend_from_ratings.ratings) > 1000 then
    raise exception 'ratings has % entries, expected 1000 at most', jsonb_array_length(recommend_from_ratings.ratings);
  end if;
  for entry in
    select e.value, e.place from jsonb_array_elements(recommend_from_ratings.ratings) with ordinality e (value, place)
  loop
    begin
      if (entry.value ->> 'movie_id') is null or jsonb_typeof(entry.value -> 'rating') is distinct from 'number' then
        raise invalid_text_representation;
      end if;
      ids := ids || (entry.value ->> 'movie_id')::bigint;
      scores := scores || (entry.value ->> 'rating')::double precision;
    exception when invalid_text_representation or numeric_value_out_of_range then
      raise exception 'entry % of ratings is %, expected {"movie_id": bigint, "rating": number}',
        entry.place, left(entry.value::text, 200) using errcode = 'invalid_parameter_value';
    end;
  end loop;

  select r.* into run from public.mf_runs r where r.status = 'published';
  if not found then
    return;
  end if;
  select p.covariance into covariance from public.mf_priors p where p.run_id = run.run_id;
  if not found then
    raise exception 'the run % was exported without what recommend_from_ratings needs: export it again', run.run_id;
  end if;
  n := run.factors + 1;
  w := array_fill(0::double precision, array[n]);
  gain := w;
  for x, error in
    select array_append(e.embedding::real[], 1)::double precision[], given.rating - run.mu - e.bias
    from (
      select distinct on (pair.id) pair.id, pair.rating
      from unnest(ids, scores) with ordinality pair (id, rating, place) order by pair.id, pair.place desc
    ) given
    join public.mf_movie_embeddings e on e.run_id = run.run_id and e.movie_id = given.id
  loop
    scale := 1;
    for i in 1..n loop
      total := 0;
      for j in 1..n loop
        total := total + covariance[(i - 1) * n + j] * x[j];
      end loop;
      gain[i] := total;
      scale := scale + total * x[i];
      error := error - w[i] * x[i];
    end loop;
    for i in 1..n loop
      w[i] := w[i] + gain[i] * error / scale;
      total := gain[i] / scale;
      for j in 1..n loop
        covariance[(i - 1) * n + j] := covariance[(i - 1) * n + j] - total * gain[j];
      end loop;
    end loop;
  end loop;

  return query
    select near.movie_id, greatest(least(run.mu + w[n] - near.distance, run.rating_max), run.rating_min)
    from public.mf_nearest(run.run_id, 'augmented',
      (w[:run.factors] || 1::double precision)::real[]::extensions.vector,
      least(recommend_from_ratings.k, 1000), ids) near
    order by near.distance, near.movie_id;
end
$mf$;

-- The options of this migration, so that an export can check whether it fits.
create or replace function public.mf_schema() returns jsonb
language sql stable security invoker set search_path = '' as $mf$
  select '{"movie_export_table":"movie_embeddings","user_export_table":"user_embeddings","user_id_type":"bigint","movie_id_type":"bigint","public_read":"none","ratings_table":"","user_column":"user_id","movie_column":"movie_id"}'::jsonb
$mf$;

-- Registers a run for loading; idempotent. Rows of another content under the same name are deleted.
create or replace function public.mf_register(run jsonb) returns jsonb
language plpgsql security invoker set search_path = '' set statement_timeout = '5min' as $mf$
declare
  asked public.mf_runs;
  known public.mf_runs;
  prior double precision[];
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
  insert into public.mf_runs as r (run_id, content_hash, factors, mu, rating_min, rating_max, n_users, n_movies,
    trained_on)
  values (asked.run_id, asked.content_hash, asked.factors, asked.mu, asked.rating_min, asked.rating_max, asked.n_users,
    asked.n_movies, asked.trained_on)
  on conflict (run_id) do update set created_at = now() where r.status = 'loading';
  if jsonb_typeof(mf_register.run -> 'prior') = 'array' then
    prior := array(select v.value::double precision from jsonb_array_elements_text(mf_register.run -> 'prior') v);
    if cardinality(prior) <> (asked.factors + 1) ^ 2 then
      raise exception 'prior has % values, expected (factors + 1)^2 = %', cardinality(prior), (asked.factors + 1) ^ 2;
    end if;
    insert into public.mf_priors as p (run_id, covariance) values (asked.run_id, prior)
    on conflict (run_id) do update set covariance = excluded.covariance;
  end if;
  return (
    select jsonb_build_object('run_id', r.run_id, 'status', r.status,
      'published', (select p.run_id from public.mf_runs p where p.status = 'published'))
    from public.mf_runs r where r.run_id = asked.run_id);
end
$mf$;

-- Writes user rows of a loading run; idempotent, and without effect if the same content has been published since.
-- An export whose run name has been taken by another content writes nothing.
create or replace function public.mf_load_users(
  run text, content text, ids bigint[], biases real[], embeddings text[]
) returns void
language plpgsql security invoker set search_path = '' as $mf$
declare
  stands text;
begin
  -- The lock does not block a publish; removing the run or taking its name waits until these rows are committed.
  select r.status into stands from public.mf_runs r
  where r.run_id = mf_load_users.run and r.content_hash = mf_load_users.content for key share;
  if not found then
    raise exception 'the run % is no longer this export''s: another export took its name with another content, or it '
      'was removed; export again, one at a time', mf_load_users.run;
  end if;
  if stands = 'loading' then
    insert into public.mf_user_embeddings as e (run_id, user_id, bias, embedding)
    select mf_load_users.run, given.id, given.bias, given.embedding::extensions.vector
    from unnest(mf_load_users.ids, mf_load_users.biases, mf_load_users.embeddings)
      given (id, bias, embedding)
    -- An existing row is identical: rows of another content were deleted when this one took the name.
    on conflict (run_id, user_id) do nothing;
  end if;
end
$mf$;

-- Writes movie rows of a loading run; idempotent, and without effect if the same content has been published since.
-- An export whose run name has been taken by another content writes nothing.
create or replace function public.mf_load_movies(
  run text, content text, ids bigint[], biases real[], embeddings text[]
) returns void
language plpgsql security invoker set search_path = '' as $mf$
declare
  stands text;
begin
  -- The lock does not block a publish; removing the run or taking its name waits until these rows are committed.
  select r.status into stands from public.mf_runs r
  where r.run_id = mf_load_movies.run and r.content_hash = mf_load_movies.content for key share;
  if not found then
    raise exception 'the run % is no longer this export''s: another export took its name with another content, or it '
      'was removed; export again, one at a time', mf_load_movies.run;
  end if;
  if stands = 'loading' then
    insert into public.mf_movie_embeddings as e (run_id, movie_id, bias, embedding)
    select mf_load_movies.run, given.id, given.bias, given.embedding::extensions.vector
    from unnest(mf_load_movies.ids, mf_load_movies.biases, mf_load_movies.embeddings)
      given (id, bias, embedding)
    -- An existing row is identical: rows of another content were deleted when this one took the name.
    on conflict (run_id, movie_id) do nothing;
  end if;
end
$mf$;

-- Builds the two indexes of a loaded run, for recommendations and for similar movies. Idempotent; a killed build leaves
-- nothing behind. A build blocks writers of the table, not readers.
-- It is a security definer, since only the table's owner may index it, which the service role is not. No identifier in
-- it comes from the caller: the run is a hash in the indexes' names, a literal in their predicates, and a row of
-- mf_runs.
create or replace function public.mf_index(run text) returns jsonb
language plpgsql security definer
set search_path = '' set statement_timeout = '15min' set maintenance_work_mem = '256MB' as $mf$
declare
  asked public.mf_runs;
  movies bigint;
  began constant timestamptz := clock_timestamp();
  changed boolean := false;
  side record;
begin
  perform pg_advisory_xact_lock(hashtext('mf_index'));
  select r.* into asked from public.mf_runs r where r.run_id = mf_index.run for key share;
  if not found then
    raise exception 'there is no run %: mf_list_runs() lists all runs', coalesce(mf_index.run, 'null');
  end if;
  select count(*) into movies from public.mf_movie_embeddings e where e.run_id = asked.run_id;
  if movies <> asked.n_movies then
    raise exception 'the run % is incomplete: % of % movies are there; load it, then index it',
      asked.run_id, movies, asked.n_movies;
  end if;
  if asked.factors >= 2000 then
    raise exception 'the run % has % factors, and an index takes at most 1999: export without one',
      asked.run_id, asked.factors;
  end if;
  for side in
    select v.name, v.dimensions, v.class, 'mf_hnsw_' || v.name || '_' || md5(asked.run_id) as index
    from (values ('augmented', asked.factors + 1, 'vector_ip_ops'), ('embedding', asked.factors, 'vector_cosine_ops'))
      v (name, dimensions, class)
  loop
    if to_regclass('public.' || side.index) is null then
      execute format('create index %I on public.mf_movie_embeddings using hnsw ((%I::extensions.vector(%s)) '
        'extensions.%I) with (m = 16, ef_construction = 100) where run_id = %L',
        side.index, side.name, side.dimensions, side.class, asked.run_id);
      changed := true;
    end if;
  end loop;
  return jsonb_build_object('run_id', asked.run_id, 'changed', changed,
    'seconds', round(extract(epoch from clock_timestamp() - began)::numeric, 1));
end
$mf$;

-- Drops the indexes of one run, and those of deleted runs. A drop needs an exclusive lock for an instant; where it
-- would have to wait for readers it is left for the next call: the index of a deleted run is empty and unused. A
-- security definer, as mf_index.
create or replace function public.mf_drop_indexes(run text default null) returns void
language plpgsql security definer set search_path = '' set lock_timeout = '200ms' as $mf$
declare
  name text;
begin
  for name in
    select i.relname from pg_catalog.pg_index x join pg_catalog.pg_class i on i.oid = x.indexrelid
    where x.indrelid = 'public.mf_movie_embeddings'::regclass and starts_with(i.relname, 'mf_hnsw_')
      and (right(i.relname, 32) = md5(mf_drop_indexes.run)
        or not exists (select from public.mf_runs r where md5(r.run_id) = right(i.relname, 32)))
  loop
    execute format('drop index public.%I', name);
  end loop;
exception when lock_not_available then
  null;
end
$mf$;

-- Checks that a loading run is complete and publishes it atomically; the previous run is kept. Idempotent, even if
-- another run has been published in between: only mf_rollback publishes a run again. The rows are counted with a bitmap
-- scan: an index scan takes five times as long.
create or replace function public.mf_publish(run text) returns jsonb
language plpgsql security invoker set search_path = '' set statement_timeout = '60s'
set enable_seqscan = off set enable_indexscan = off set enable_indexonlyscan = off as $mf$
declare
  asked public.mf_runs;
  users bigint;
  movies bigint;
  previous text;
begin
  perform pg_advisory_xact_lock(hashtext('mf_runs'));
  select r.* into asked from public.mf_runs r where r.run_id = mf_publish.run;
  if not found then
    raise exception 'there is no run %: mf_list_runs() lists all runs', coalesce(mf_publish.run, 'null');
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
  -- clock_timestamp: the order of publishing is the order of the lock, not that of the transactions' start.
  update public.mf_runs r set status = 'published', published_at = clock_timestamp() where r.run_id = asked.run_id;
  return jsonb_build_object('run_id', asked.run_id, 'changed', true, 'published', asked.run_id, 'previous', previous);
end
$mf$;

create or replace function public.mf_list_runs() returns setof public.mf_runs
language sql stable security invoker set search_path = '' as $mf$
  select r.* from public.mf_runs r order by r.published_at desc nulls last, r.created_at desc
$mf$;

-- Publishes a retired run again: the run named, else the one published before the present one. Without a name a second
-- call returns to the present one.
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
    raise exception 'there is no earlier run to roll back to';
  elsif target is null then
    raise exception 'there is no earlier run % to roll back to: mf_list_runs() lists all runs',
      mf_rollback.run;
  end if;
  update public.mf_runs r set status = 'retired' where r.status = 'published' and r.run_id <> target;
  update public.mf_runs r set status = 'published', published_at = clock_timestamp()
  where r.run_id = target and r.status = 'retired';
  return jsonb_build_object('run_id', target, 'changed', found);
end
$mf$;

-- Removes all runs except the published run, the `keep` runs published before it, and those that started to load within
-- the last day.
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
  perform public.mf_drop_indexes();
  return jsonb_build_object('removed', removed);
end
$mf$;

-- Supabase projects from before November 2026 grant new objects to everyone, later ones to nobody: revoke, then grant.
revoke all on public.mf_runs, public.mf_priors, public.mf_user_embeddings, public.mf_movie_embeddings,
  public."user_embeddings", public."movie_embeddings"
  from public, anon, authenticated;
revoke all on function public.recommend_movies, public.similar_movies, public.recommend_from_ratings, public.mf_nearest,
  public.mf_schema, public.mf_register, public.mf_load_users, public.mf_load_movies, public.mf_index,
  public.mf_drop_indexes, public.mf_publish, public.mf_list_runs, public.mf_rollback, public.mf_prune,
  public.mf_drop_rows
  from public, anon, authenticated;
grant select, insert, update, delete
  on public.mf_runs, public.mf_priors, public.mf_user_embeddings, public.mf_movie_embeddings to service_role;
grant select on public."user_embeddings", public."movie_embeddings"
  to service_role;
grant execute on function public.recommend_movies, public.similar_movies, public.recommend_from_ratings,
  public.mf_nearest, public.mf_schema, public.mf_register, public.mf_load_users, public.mf_load_movies, public.mf_index,
  public.mf_drop_indexes, public.mf_publish, public.mf_list_runs, public.mf_rollback, public.mf_prune
  to service_role;
grant execute on function public.recommend_from_ratings to authenticated;

-- Public read access: none by default.
drop policy if exists mf_public_read on public.mf_runs;
drop policy if exists mf_public_read on public.mf_movie_embeddings;

notify pgrst, 'reload schema';
commit;
