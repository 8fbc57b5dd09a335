-- Embeddings in Supabase: versioned by run, one run published at a time. Grants and policies are at the end.
-- Printed by `python -m mf schema`. One idempotent transaction.
begin;
-- All names are qualified: nothing depends on the session's search path.
set local search_path = pg_catalog, pg_temp;
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
        'drop table if exists public.mf_user_embeddings, public.mf_movie_embeddings, public.mf_user_ranking, '
        'public.mf_movie_ranking, public.mf_movie_history, public.mf_movie_counts, public.mf_priors, '
        'public.mf_forgotten, public.mf_withheld, public.mf_runs cascade;',
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
      and p.proname in ('recommend_movies', 'similar_movies', 'popular_movies', 'recommend_from_ratings')
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
  mu double precision check (mu <> 'NaN'), -- null, as the next two, for a run of clicks: it has no star model
  rating_min double precision,
  rating_max double precision check (rating_max >= rating_min),
  n_users bigint not null check (n_users > 0),
  n_movies bigint not null check (n_movies > 0),
  created_at timestamptz not null default now(),
  published_at timestamptz
);
-- The ratings that the model was trained on (source, columns, content_hash, until), so that the next model can be
-- compared with it where both have the same source; null for runs of earlier migrations.
alter table public.mf_runs add column if not exists trained_on jsonb;
-- The numbers of the ranking model: factors, users, movies, mu, sd, rho, recency, …; null for a run without one.
alter table public.mf_runs add column if not exists ranking jsonb;
-- How the run was judged before it was published: forced, reasons and, of a model fitted to all ratings after it was
-- accepted, run_id and place of the one that was judged; null where it was not recorded.
alter table public.mf_runs add column if not exists judged jsonb;
alter table public.mf_runs alter column mu drop not null, alter column rating_min drop not null,
  alter column rating_max drop not null; -- earlier migrations
-- Ratings that training ignored, such as -1 for "not rated".
alter table public.mf_runs add column if not exists ignore_ratings real[] not null default '{}';
-- Rows of mf_movie_counts; null for runs of earlier migrations, which have none.
alter table public.mf_runs add column if not exists n_counts bigint;
-- 0 after mf_forget_user of the last one.
alter table public.mf_runs drop constraint if exists mf_runs_n_users_check,
  add constraint mf_runs_n_users_check check (n_users >= 0);
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
  bias real, -- null, as the embedding, in a run of clicks
  embedding extensions.vector,
  primary key (run_id, user_id)
);
create table if not exists public.mf_movie_embeddings (
  run_id text not null,
  movie_id bigint not null,
  bias real,
  embedding extensions.vector,
  primary key (run_id, movie_id)
);
-- Earlier migrations searched this column.
alter table public.mf_movie_embeddings drop column if exists augmented;
alter table public.mf_user_embeddings alter column bias drop not null, alter column embedding drop not null;
alter table public.mf_movie_embeddings alter column bias drop not null, alter column embedding drop not null;

-- The vectors of lists. A search scans mf_movie_ranking alone, whose rows are therefore short: 18 MB for 59,000 movies
-- of 64 factors. Its vector is [q ; b_m]: the inner product with [p ; 1] is the score p.q + b_m. Of a run without a
-- ranking model q and b_m are the embedding and bias of the predicted rating, and the other two tables have no rows.
create table if not exists public.mf_movie_ranking (
  run_id text not null,
  movie_id bigint not null,
  vector extensions.vector not null,
  primary key (run_id, movie_id)
);
alter table public.mf_movie_ranking alter column vector set storage plain;
-- What a rating of the movie adds to a user's vector: history + rho (rating - mu) / sd * liking.
create table if not exists public.mf_movie_history (
  run_id text not null,
  movie_id bigint not null,
  history extensions.vector not null,
  liking extensions.vector not null,
  primary key (run_id, movie_id)
);
-- p of users, for lists where the migration does not know the table of ratings.
create table if not exists public.mf_user_ranking (
  run_id text not null,
  user_id bigint not null,
  vector extensions.vector not null,
  primary key (run_id, user_id)
);
-- Ratings per movie that the run was trained on.
create table if not exists public.mf_movie_counts (
  run_id text not null,
  movie_id bigint not null,
  n integer not null,
  primary key (run_id, movie_id)
);
-- Users whom mf_forget_user has removed: no export brings them back.
create table if not exists public.mf_forgotten (
  user_id bigint primary key,
  forgotten_at timestamptz not null default now()
);
-- Rows of forgotten users that a run that is loading lacks.
create table if not exists public.mf_withheld (
  run_id text not null references public.mf_runs on delete cascade,
  lacks text not null,
  user_id bigint not null,
  primary key (run_id, lacks, user_id)
);
-- Runs of earlier migrations
insert into public.mf_movie_ranking (run_id, movie_id, vector)
  select e.run_id, e.movie_id, e.embedding operator(extensions.||) array[e.bias]::extensions.vector
  from public.mf_movie_embeddings e join public.mf_runs r on r.run_id = e.run_id
  where r.ranking is null and r.status <> 'loading'
  on conflict do nothing;

-- Deleting a run deletes its rows. A trigger does so, not a foreign key, which would look up the run for every row of a
-- load and take longer than the load itself (2.1 s instead of 0.8 s for 219,000 rows of 64 factors). Writers of rows
-- lock their run.
alter table public.mf_user_embeddings drop constraint if exists mf_user_embeddings_run_id_fkey;
alter table public.mf_movie_embeddings drop constraint if exists mf_movie_embeddings_run_id_fkey;
create or replace function public.mf_drop_rows() returns trigger
language plpgsql security invoker set search_path = pg_catalog, pg_temp as $mf$
begin
  if tg_op = 'TRUNCATE' then
    truncate public.mf_user_embeddings, public.mf_movie_embeddings, public.mf_movie_ranking, public.mf_movie_history,
      public.mf_user_ranking, public.mf_movie_counts;
  else
    delete from public.mf_user_embeddings e where e.run_id = old.run_id;
    delete from public.mf_movie_embeddings e where e.run_id = old.run_id;
    delete from public.mf_movie_ranking e where e.run_id = old.run_id;
    delete from public.mf_movie_history e where e.run_id = old.run_id;
    delete from public.mf_user_ranking e where e.run_id = old.run_id;
    delete from public.mf_movie_counts e where e.run_id = old.run_id;
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
alter table public.mf_movie_ranking enable row level security;
alter table public.mf_movie_history enable row level security;
alter table public.mf_user_ranking enable row level security;
alter table public.mf_movie_counts enable row level security;
alter table public.mf_forgotten enable row level security;
alter table public.mf_withheld enable row level security;

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
  filters text := '';
begin
  for stale in
    select p.oid from pg_proc p
    where p.pronamespace = 'public'::regnamespace
      and p.proname in ('recommend_movies', 'similar_movies', 'popular_movies', 'recommend_for_me',
                        'recommend_from_ratings', 'mf_nearest', 'mf_run', 'mf_own_ratings', 'mf_user_vector',
                        'mf_fold_in', 'mf_recommend', 'mf_check_list', 'mf_schema', 'mf_register', 'mf_load_users',
                        'mf_load_movies', 'mf_load_user_ranking', 'mf_load_movie_ranking', 'mf_load_movie_history',
                        'mf_load_movie_counts', 'mf_index', 'mf_drop_indexes', 'mf_publish', 'mf_list_runs',
                        'mf_rollback', 'mf_prune', 'mf_forget_user')
      -- where user ids are not UUIDs it may be the user's own function
      and (p.proname <> 'recommend_for_me' or strpos(p.prosrc, 'mf_runs') > 0)
      and (p.proname, pg_get_function_identity_arguments(p.oid), pg_get_function_result(p.oid)) not in (values
        ('recommend_movies', 'for_user bigint, k integer, exclude_rated boolean, without_ids bigint[], only_ids bigint[], skip integer, of_run text' || filters,
         'TABLE(movie_id bigint, score double precision, predicted_rating double precision, because bigint, run_id text)'),
        ('similar_movies', 'for_movie bigint, k integer, without_ids bigint[], only_ids bigint[]' || filters,
         'TABLE(movie_id bigint, similarity double precision, run_id text)'),
        ('popular_movies', 'k integer, skip integer' || filters, 'TABLE(movie_id bigint, ratings bigint, run_id text)'),
        ('recommend_from_ratings', 'ratings jsonb, k integer, without_ids bigint[], only_ids bigint[], skip integer, of_run text' || filters, 'TABLE(movie_id bigint, score double precision, predicted_rating double precision, because bigint, run_id text)'),
        ('mf_nearest',
         'of_run text, vectors text, target extensions.vector, k integer, '
         'without_ids bigint[], only_ids bigint[], filters text[]',
         'TABLE(movie_id bigint, distance double precision)'),
        ('mf_run', 'of_run text', 'public.mf_runs'),
        ('mf_fold_in', 'of_run text, rated bigint[], stars double precision[]', 'double precision[]'),
        ('mf_recommend',
         'of_run text, stored extensions.vector, star_vector extensions.vector, star_base double precision, '
         'rated bigint[], stars double precision[], places bigint[], k integer, '
         'without_ids bigint[], only_ids bigint[], skip integer, filters text[]',
         'TABLE(movie_id bigint, score double precision, predicted_rating double precision, because bigint, run_id text)'),
        ('mf_check_list', 'k integer, without_ids bigint[], only_ids bigint[], skip integer', 'void'),
        ('mf_schema', '', 'jsonb'),
        ('mf_register', 'run jsonb', 'jsonb'),
        ('mf_load_users', 'run text, content text, ids bigint[], biases real[], embeddings text[]', 'void'),
        ('mf_load_movies', 'run text, content text, ids bigint[], biases real[], embeddings text[]', 'void'),
        ('mf_load_user_ranking', 'run text, content text, ids bigint[], vectors text[]', 'void'),
        ('mf_load_movie_ranking', 'run text, content text, ids bigint[], vectors text[]', 'void'),
        ('mf_load_movie_history', 'run text, content text, ids bigint[], histories text[], likings text[]', 'void'),
        ('mf_load_movie_counts', 'run text, content text, ids bigint[], counts integer[]', 'void'),
        ('mf_index', 'run text', 'jsonb'),
        ('mf_drop_indexes', 'run text', 'void'),
        ('mf_publish', 'run text', 'jsonb'),
        ('mf_list_runs', '', 'SETOF public.mf_runs'),
        ('mf_rollback', 'run text', 'jsonb'),
        ('mf_prune', 'keep integer', 'jsonb'),
        ('mf_forget_user', 'forget bigint', 'jsonb'))
    union all
    -- Those that embed rows of an items table, which may be another one now
    select p.oid from pg_proc p
    where p.pronamespace = 'public'::regnamespace and p.pronargs = 1 and p.proargtypes[0] in (
      select c.reltype from pg_class c
      where c.oid in (to_regclass('public.mf_list'), to_regclass('public.mf_similar'), to_regclass('public.mf_popular')))
  loop
    execute format('drop function %s', stale);
  end loop;
end
$mf$;
drop view if exists public.mf_items, public.mf_list, public.mf_similar, public.mf_popular;

-- The movies of a run whose vectors are nearest to `target`, nearest first, ties by id. `vectors` says which: `ranking`
-- by inner product (distance = its negative), `history` and `embedding` by cosine (distance = 1 - cosine; 1 for a zero
-- vector). Movies of without_ids are left out; with only_ids, and where the filters leave few, the movies are read by
-- key. Otherwise it takes some more movies than wanted, from the run's index (mf_index) or from a scan of all vectors,
-- and leaves out those that must not be recommended; if too few remain, it joins all vectors with the movies that may.
-- So there are never fewer than k while there are k. Used by the functions below; other callers can read with it only
-- what their rights and the policies allow anyway.
create or replace function public.mf_nearest(
  of_run text, vectors text, target extensions.vector, k integer, without_ids bigint[],
  only_ids bigint[] default null, filters text[] default '{}'
) returns table (movie_id bigint, distance double precision)
-- enable_sort: set here so that it is restored when the function ends
language plpgsql stable security invoker
set search_path = pg_catalog, pg_temp set jit = off set enable_sort = on as $mf$
declare
  cosine constant boolean := mf_nearest.vectors <> 'ranking';
  -- table and column
  tab constant text := 'public.mf_movie_' || case mf_nearest.vectors when 'ranking' then 'ranking'
    when 'history' then 'history' else 'embeddings' end;
  col constant text := case mf_nearest.vectors when 'ranking' then 'vector' when 'history' then 'history'
    else 'embedding' end;
  -- With the cast it is the index's expression, which the planner matches when the run is a literal.
  by_index constant text := format('e.%I::extensions.vector(%s) operator(extensions.%s) $1', col,
    extensions.vector_dims(mf_nearest.target), case when cosine then '<=>' else '<#>' end);
  -- pgvector's distance to a zero vector is NaN
  by_all constant text := format(case when cosine then 'coalesce(nullif(e.%I operator(extensions.<=>) $1, ''NaN''), 1)'
    else 'e.%I operator(extensions.<#>) $1' end, col);
  left_out constant bigint[] := array_remove(mf_nearest.without_ids, null);
  many constant boolean := cardinality(left_out) > 2000; -- too many to sort with the others
  -- pgvector 0.8; the setting is there once the library is loaded, which vector_dims did
  iterative constant boolean := current_setting('hnsw.iterative_scan', true) is not null;
  candidates bigint[] := mf_nearest.only_ids;
  allowed text := 'true'; -- whether the movie %s may be recommended, for one movie
  allowed_all text := 'true'; -- the same for many
  wanted integer := 2 * (mf_nearest.k + case when iterative then 0 else cardinality(left_out) end);
  indexed constant boolean := wanted between 1 and 1000
    and to_regclass('public.mf_hnsw_' || mf_nearest.vectors || '_' || md5(mf_nearest.of_run)) is not null;
  ways text[];
  way text;
  ids bigint[];
  distances double precision[];
begin
  if candidates is not null then
    ways := '{key}';
  elsif indexed then
    ways := '{index,all}';
    -- until the end of the transaction, which for the API is this call
    perform set_config('hnsw.ef_search', greatest(wanted, 400)::text, true);
    if iterative then
      perform set_config('hnsw.iterative_scan', 'strict_order', true);
    end if;
  else
    ways := '{scan,all}';
  end if;
  foreach way in array ways loop
    -- Only the index gives the order without sorting; without this, statistics of a new run may mislead the planner.
    perform set_config('enable_sort', case when way = 'index' then 'off' else 'on' end, true);
    execute 'select array_agg(near.movie_id order by near.distance, near.movie_id ), '
      'array_agg(near.distance order by near.distance, near.movie_id ) from (select * from ('
      || case way
        when 'key' then format('select e.movie_id, %s as distance from (select distinct unnest($4) as id) given '
          'cross join lateral (select m.movie_id, m.%I from %s m where m.run_id = %L and m.movie_id = given.id limit 1) e '
          'where e.movie_id <> all ($2) and %s order by distance, movie_id  limit $3',
          by_all, col, tab, mf_nearest.of_run, format(allowed, 'e'))
        -- In a scan of all vectors `is true`, which no index serves: where the statistics do not know the run yet, the
        -- planner would fetch its rows one by one.
        -- Some more, since the index orders by distances with other rounding. PostgreSQL before 17 takes it for no
        -- other order than its own.
        when 'index' then format('select e.movie_id, %1$s as distance from %2$s e where e.run_id = %3$L%4$s '
          'order by %1$s limit %5$s', by_index, tab, mf_nearest.of_run,
          case when iterative then ' and e.movie_id <> all ($2) and ' || format(allowed, 'e') else '' end,
          case when iterative then mf_nearest.k + 10 else greatest(wanted, 400) end)
        when 'scan' then format('select e.movie_id, %1$s as distance from %2$s e where (e.run_id = %3$L) is true'
          || case when many then ' and e.movie_id <> all ($2)' else '' end
          || ' order by %1$s, e.movie_id  limit %4$s', by_all, tab, mf_nearest.of_run,
          case when many then 0 else cardinality(left_out) end + mf_nearest.k)
        else format('select e.movie_id, %1$s as distance from %2$s e where (e.run_id = %3$L) is true '
          'and e.movie_id <> all ($2) and %4$s order by %1$s, e.movie_id  limit $3', by_all, tab, mf_nearest.of_run, allowed_all)
      end || ') chosen where chosen.movie_id <> all ($2) and ' || case when way in ('scan', 'index') and not (
        way = 'index' and iterative) then format(allowed, 'chosen') else 'true' end
      -- Stops at the kth, so that few movies are looked up in the items table.
      || ' order by chosen.distance, chosen.movie_id  limit $3) near'
    into ids, distances using mf_nearest.target, left_out, mf_nearest.k, candidates;
    exit when way = 'scan';
    -- A cosine index does not contain zero vectors.
    exit when cardinality(ids) >= mf_nearest.k and not (way = 'index' and cosine and distances[mf_nearest.k] >= 1);
  end loop;
  return query select found.id, found.far
    from unnest(ids[:mf_nearest.k], distances[:mf_nearest.k]) with ordinality found (id, far, place)
    order by found.place;
end
$mf$;

-- The run to read: the published one (null if there is none), or the run that is named. This function and those below
-- are stable: all their statements see the snapshot of the calling statement, and so one complete run. They read rows of
-- single movies by `lateral (… limit 1)`, by key: a join would scan all movies where the statistics do not know the run.
create or replace function public.mf_run(of_run text) returns public.mf_runs
language plpgsql stable security invoker set search_path = pg_catalog, pg_temp as $mf$
declare
  run public.mf_runs;
begin
  select r.* into run from public.mf_runs r
  where case when mf_run.of_run is null then r.status = 'published'
    else r.run_id = mf_run.of_run and r.status <> 'loading' end;
  if not found and mf_run.of_run is not null then
    raise exception 'there is no run %, or no longer: leave out of_run for the published one',
      coalesce(nullif(left(mf_run.of_run, 100), ''), '""');
  end if;
  return run;
end
$mf$;

-- Raises an error for arguments of a list that are out of range.
create or replace function public.mf_check_list(
  k integer, without_ids bigint[], only_ids bigint[], skip integer
) returns void
language plpgsql immutable security invoker set search_path = pg_catalog, pg_temp as $mf$
begin
  if mf_check_list.k is null or mf_check_list.k not between 0 and 1000 then
    raise exception 'k is %, expected a number of movies from 0 to 1000', coalesce(mf_check_list.k::text, 'null');
  elsif mf_check_list.skip is null or mf_check_list.skip not between 0 and 1000 - mf_check_list.k then
    raise exception 'skip is %, expected a number from 0 to % (k + skip is at most 1000)',
      coalesce(mf_check_list.skip::text, 'null'), 1000 - mf_check_list.k;
  elsif mf_check_list.without_ids is null then
    raise exception 'without_ids is null, expected an array of movie ids';
  elsif array_ndims(mf_check_list.without_ids) > 1 or array_ndims(mf_check_list.only_ids) > 1 then
    raise exception '% is an array of arrays, expected an array of movie ids',
      case when array_ndims(mf_check_list.without_ids) > 1 then 'without_ids' else 'only_ids' end;
  elsif cardinality(mf_check_list.without_ids) > 10000 then
    raise exception 'without_ids has % entries, expected 10000 at most', cardinality(mf_check_list.without_ids);
  elsif cardinality(mf_check_list.only_ids) > 10000 then
    raise exception 'only_ids has % entries, expected 10000 at most', cardinality(mf_check_list.only_ids);
  end if;
end
$mf$;

-- w = [p ; b_u] of a user with these ratings, for the predicted rating: the maximum a posteriori estimate for the run's
-- prior C (mf_priors) and ratings mu + b_m + w.x + noise, x = [q ; 1]: it minimises sum (r - mu - b_m - w.x)^2
-- + w' inverse(C) w, as mf.fold_in does. Movies unknown to the run are ignored; of more than 1000 ratings the first 1000
-- count, the newest where times are known, which bounds the work.
-- It solves (inverse(C) + X'X) w = X'y by conjugate gradients with the preconditioner C. The directions d = C s are kept
-- with their s, so that C need not be inverted. pgvector multiplies, with vectors as rows of a matrix.
create or replace function public.mf_fold_in(
  of_run text, rated bigint[], stars double precision[]
) returns double precision[]
language plpgsql stable security invoker set search_path = pg_catalog, pg_temp set jit = off as $mf$
declare
  run constant public.mf_runs := public.mf_run(mf_fold_in.of_run);
  n constant integer := run.factors + 1;
  flat double precision[]; -- C, row-major
  c extensions.vector[]; -- rows of C
  x real[]; -- a row per rating
  y extensions.vector;
  columns extensions.vector[]; -- of x
  gram extensions.vector[]; -- rows of X'X
  w double precision[] := array_fill(0::double precision, array[n]);
  r double precision[]; -- X'y - (inverse(C) + X'X) w
  z double precision[]; -- C r
  d double precision[];
  s double precision[];
  image double precision[]; -- (inverse(C) + X'X) d
  rz double precision;
  before double precision;
  first double precision;
  step double precision;
begin
  select p.covariance into flat from public.mf_priors p where p.run_id = run.run_id;
  if not found then
    raise exception 'the run % was exported without what recommend_from_ratings needs: export it again', run.run_id;
  end if;
  select array_agg(array_append(e.embedding::real[], 1::real)),
    array_agg(given.star - run.mu - e.bias)::extensions.vector into x, y
  from unnest(mf_fold_in.rated[:1000], mf_fold_in.stars[:1000]) given (id, star)
  cross join lateral (select m.embedding, m.bias from public.mf_movie_embeddings m
    where m.run_id = run.run_id and m.movie_id = given.id limit 1) e
  where given.star is not null;
  if x is null then
    return w;
  end if;
  c := array(select flat[(i - 1) * n + 1 : i * n]::extensions.vector from generate_series(1, n) i);
  columns := array(
    select array(select unnest(x[:][i:i]))::extensions.vector from generate_series(1, n) i);
  gram := array(
    select array(select -(a.col operator(extensions.<#>) b.col) from unnest(columns) b (col))::extensions.vector
    from unnest(columns) a (col));
  r := array(select -(a.col operator(extensions.<#>) y) from unnest(columns) a (col));
  s := r;
  z := array(select -(a.line operator(extensions.<#>) r::extensions.vector) from unnest(c) a (line));
  d := z;
  rz := (select sum(a.r * a.z) from unnest(r, z) a (r, z));
  first := rz;
  for i in 1 .. 2 * n loop
    exit when rz <= 1e-14 * first;
    image := array(
      select a.s - (a.line operator(extensions.<#>) d::extensions.vector) from unnest(s, gram) a (s, line));
    step := rz / (select sum(a.d * a.image) from unnest(d, image) a (d, image));
    w := array(select a.w + step * a.d from unnest(w, d) a (w, d));
    r := array(select a.r - step * a.image from unnest(r, image) a (r, image));
    z := array(select -(a.line operator(extensions.<#>) r::extensions.vector) from unnest(c) a (line));
    before := rz;
    rz := (select sum(a.r * a.z) from unnest(r, z) a (r, z));
    d := array(select a.z + rz / before * a.d from unnest(z, d) a (z, d));
    s := array(select a.r + rz / before * a.s from unnest(r, s) a (r, s));
  end loop;
  return w;
end
$mf$;

-- The list of one user, movies `skip` + 1 to `skip` + k by score. The score is that of the ranking model, of the vector
-- `stored` or, without one, of the sum over the ratings of weight * (history + rho (rating - mu) / sd * liking), as
-- mf.ranking computes it; movies unknown to the run add nothing. Of a run without a ranking model it is the predicted rating
-- before clipping. That is star_base + b_m + star_vector.q or, where the star model does not know the user
-- (star_vector is null), by the fold-in; null for a run without a star model; an unseen movie has bias 0 and a zero
-- vector. `places` order the ratings, the newest first, for models that weight by recency. `because`: the movie, among
-- those rated at or above the ranking model's mu, whose term of the score is the largest.
create or replace function public.mf_recommend(
  of_run text, stored extensions.vector, star_vector extensions.vector, star_base double precision,
  rated bigint[], stars double precision[], places bigint[], k integer, without_ids bigint[],
  only_ids bigint[], skip integer, filters text[]
) returns table (movie_id bigint, score double precision, predicted_rating double precision, because bigint, run_id text)
language plpgsql stable security invoker set search_path = pg_catalog, pg_temp set jit = off as $mf$
declare
  run constant public.mf_runs := public.mf_run(mf_recommend.of_run);
  factors constant integer := coalesce((run.ranking ->> 'factors')::integer, run.factors);
  mu constant double precision := (run.ranking ->> 'mu')::double precision;
  slope constant double precision :=
    coalesce((run.ranking ->> 'rho')::double precision / (run.ranking ->> 'sd')::double precision, 0);
  weights double precision[];
  w double precision[];
begin
  if star_vector is null and run.mu is not null then
    star_base := run.mu;
    star_vector := array_fill(0::real, array[run.factors])::extensions.vector;
    if cardinality(mf_recommend.rated) > 0
        and exists (select from public.mf_priors p where p.run_id = run.run_id) then
      w := public.mf_fold_in(run.run_id, mf_recommend.rated, mf_recommend.stars);
      star_base := run.mu + w[run.factors + 1];
      star_vector := w[:run.factors]::real[]::extensions.vector;
    end if;
  end if;
  if (run.ranking -> 'recency')::text = 'true' then
    -- 0.25 or more, halving every ten ratings, of the ratings whose movies the run knows
    select array_agg(case when aged.known then greatest(0.25, power(2, -(aged.rank - 1) / 10.0)) else 0 end
      order by aged.at) into weights
    from (
      select each.at, h.known is not null as known, rank() over (partition by h.known order by each.place) as rank
      from unnest(mf_recommend.rated, mf_recommend.places) with ordinality each (id, place, at)
      left join lateral (select true as known from public.mf_movie_history e
        where e.run_id = run.run_id and e.movie_id = each.id limit 1) h on true
    ) aged;
  end if;
  return query
    with known as materialized (
      select h.movie_id, h.history, h.liking, coalesce(each.weight, 1) as weight,
        coalesce(slope * (each.star - mu), 0) as likes, mu is null or each.star >= mu as liked
      from unnest(mf_recommend.rated, mf_recommend.stars, weights) each (id, star, weight)
      cross join lateral (select e.movie_id, e.history, e.liking from public.mf_movie_history e
        where e.run_id = run.run_id and e.movie_id = each.id limit 1) h
    ), sums as (
      -- Grouped, so that each pair of a rating and a weight is multiplied once. pgvector's avg adds in double precision, its
      -- sum does not.
      select each.likes, each.weight * count(*) as n, extensions.avg(each.history) as history,
        extensions.avg(each.liking) as liking
      from known each group by each.likes, each.weight
    ), coordinates as (
      select part.place, sum(sums.n * (part.history + sums.likes * part.liking)) as total
      from sums cross join lateral unnest(sums.history::real[], sums.liking::real[]) with ordinality
        part (history, liking, place)
      group by part.place
    ), near as materialized (
      select n.movie_id, case when run.ranking is null then star_base else 0 end - n.distance as score, n.place
      from public.mf_nearest(run.run_id, 'ranking', case when run.ranking is null then star_vector else coalesce(
          mf_recommend.stored, (select array_agg(c.total order by c.place)::real[]::extensions.vector from coordinates c),
          array_fill(0::real, array[factors])::extensions.vector) end
          operator(extensions.||) array[1::real]::extensions.vector,
        mf_recommend.k + mf_recommend.skip, mf_recommend.without_ids, mf_recommend.only_ids,
        mf_recommend.filters) with ordinality n (movie_id, distance, place)
      where n.place > mf_recommend.skip
    ), wanted as materialized (
      select near.movie_id, extensions.subvector(m.vector, 1, factors) as q
      from near cross join lateral (select e.vector from public.mf_movie_ranking e
        where e.run_id = run.run_id and e.movie_id = near.movie_id limit 1) m
      where run.ranking is not null
    ), reasons as (
      -- <#> is the negative inner product
      select wanted.movie_id, most.movie_id as rated
      from wanted cross join lateral (
        select known.movie_id from known where known.liked
        order by known.weight * ((known.history operator(extensions.<#>) wanted.q)
          + known.likes * (known.liking operator(extensions.<#>) wanted.q)), known.movie_id 
        limit 1
      ) most
    )
    select near.movie_id, near.score,
      greatest(least(star_base + coalesce(e.bias - (e.embedding operator(extensions.<#>) star_vector), 0),
        run.rating_max), run.rating_min),
      reasons.rated, run.run_id
    from near
    left join lateral (select m.bias, m.embedding from public.mf_movie_embeddings m
      where m.run_id = run.run_id and m.movie_id = near.movie_id limit 1) e on true
    left join reasons on reasons.movie_id = near.movie_id
    order by near.place;
end
$mf$;

-- The list of a user: the k movies with the highest ranking score, or, of a run without a ranking model, the highest
-- predicted rating. The vectors are those of the run; a user unknown to it gets the order of the movies' biases.
-- exclude_rated leaves out the movies that the user has rated; by default where the migration knows the ratings table.
-- `without_ids` are left out, `only_ids` are ranked alone; `skip` and `of_run` are for the next page of the same run.
create or replace function public.recommend_movies(
  for_user bigint, k integer default 10, exclude_rated boolean default null,
  without_ids bigint[] default '{}', only_ids bigint[] default null, skip integer default 0, of_run text default null
) returns TABLE(movie_id bigint, score double precision, predicted_rating double precision, because bigint, run_id text)
language plpgsql stable security invoker set search_path = pg_catalog, pg_temp set jit = off as $mf$
declare
  run constant public.mf_runs := public.mf_run(recommend_movies.of_run);
  leave_out constant boolean := coalesce(recommend_movies.exclude_rated, false);
  star_bias double precision;
  star_vector extensions.vector;
  stored extensions.vector;
  seen bigint[] := '{}';
  rated bigint[] := '{}';
  stars double precision[] := '{}';
  places bigint[] := '{}';
begin
  if recommend_movies.for_user is null then
    raise exception 'for_user is null, expected the id of a user';
  end if;
  perform public.mf_check_list(recommend_movies.k, recommend_movies.without_ids, recommend_movies.only_ids,
    recommend_movies.skip);
  if leave_out then
    raise exception 'exclude_rated needs to know the table of ratings: '
      'apply what `python -m mf schema --ratings_table NAME` prints';
  end if;
  if run.run_id is null then
    return;
  end if;
  select u.bias, u.embedding into star_bias, star_vector
  from public.mf_user_embeddings u where u.run_id = run.run_id and u.user_id = recommend_movies.for_user;
  if run.ranking is not null then
    stored := coalesce(
      (select u.vector from public.mf_user_ranking u
       where u.run_id = run.run_id and u.user_id = recommend_movies.for_user),
      array_fill(0::real, array[(run.ranking ->> 'factors')::integer])::extensions.vector);
  end if;
  return query select best.* from public.mf_recommend(
    run.run_id, stored, star_vector, run.mu + star_bias, rated, stars, places, recommend_movies.k,
    case when leave_out then recommend_movies.without_ids || seen else recommend_movies.without_ids end,
    recommend_movies.only_ids, recommend_movies.skip, array[]::text[]) best;
end
$mf$;

-- The k movies with the highest cosine similarity to for_movie, of the ranking model's history vectors, or of the
-- embeddings of a run without one; it is 0 for a zero vector.
create or replace function public.similar_movies(
  for_movie bigint, k integer default 10, without_ids bigint[] default '{}', only_ids bigint[] default null
) returns TABLE(movie_id bigint, similarity double precision, run_id text)
language plpgsql stable security invoker set search_path = pg_catalog, pg_temp as $mf$
begin
  if similar_movies.for_movie is null then
    raise exception 'for_movie is null, expected the id of a movie';
  end if;
  perform public.mf_check_list(similar_movies.k, similar_movies.without_ids, similar_movies.only_ids, 0);
  return query
    select near.movie_id, 1 - near.distance, r.run_id
    from public.mf_runs r
    left join public.mf_movie_history h on h.run_id = r.run_id and h.movie_id = similar_movies.for_movie
    left join public.mf_movie_embeddings e on e.run_id = r.run_id and e.movie_id = similar_movies.for_movie
    cross join lateral public.mf_nearest(
      r.run_id, case when h.history is null then 'embedding' else 'history' end, coalesce(h.history, e.embedding),
      similar_movies.k, similar_movies.without_ids || similar_movies.for_movie, similar_movies.only_ids,
      array[]::text[]) near
    where r.status = 'published' and coalesce(h.history, e.embedding) is not null
    order by near.distance, near.movie_id ;
end
$mf$;

-- The movies with the most ratings among those that the published run was trained on.
create or replace function public.popular_movies(
  k integer default 10, skip integer default 0
) returns TABLE(movie_id bigint, ratings bigint, run_id text)
language plpgsql stable security invoker set search_path = pg_catalog, pg_temp as $mf$
declare
  run constant text := (select r.run_id from public.mf_runs r where r.status = 'published');
begin
  perform public.mf_check_list(popular_movies.k, '{}', null, popular_movies.skip);
  if not exists (select from public.mf_movie_counts c where c.run_id = run) and run is not null then
    raise exception 'the run % was exported without the numbers of ratings that popular_movies needs: '
      'publish a new run', run;
  end if;
  return query
    select c.movie_id, c.n::bigint, c.run_id
    from public.mf_movie_counts c
    where c.run_id = run
    order by c.n desc, c.movie_id  limit popular_movies.k offset popular_movies.skip;
end
$mf$;

-- The list of a new user with `ratings`, [{"movie_id": …, "rating": …}, …], without the rated movies. The last rating
-- of a repeated movie counts; movies unknown to the run are ignored. It is a security definer so that signed-in users
-- can call it without rights on movies, runs and priors. It reveals no row of a user, and of the movies only what any
-- list of recommendations does.
create or replace function public.recommend_from_ratings(
  ratings jsonb, k integer default 10,
  without_ids bigint[] default '{}', only_ids bigint[] default null, skip integer default 0, of_run text default null
) returns TABLE(movie_id bigint, score double precision, predicted_rating double precision, because bigint, run_id text)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set jit = off as $mf$
declare
  run constant public.mf_runs := public.mf_run(recommend_from_ratings.of_run);
  wrong record;
  given bigint[];
  rated bigint[];
  stars double precision[];
begin
  perform public.mf_check_list(recommend_from_ratings.k, recommend_from_ratings.without_ids,
    recommend_from_ratings.only_ids, recommend_from_ratings.skip);
  if jsonb_typeof(recommend_from_ratings.ratings) is distinct from 'array' then
    raise exception 'ratings is %, expected a JSON array [{"movie_id": …, "rating": …}, …]',
      coalesce(jsonb_typeof(recommend_from_ratings.ratings), 'null');
  elsif jsonb_array_length(recommend_from_ratings.ratings) > 1000 then
    raise exception 'ratings has % entries, expected 1000 at most', jsonb_array_length(recommend_from_ratings.ratings);
  elsif pg_column_size(recommend_from_ratings.ratings) > 1000000 then
    raise exception 'ratings has % bytes, expected 1000000 at most', pg_column_size(recommend_from_ratings.ratings);
  end if;
  -- Checked before any value becomes text: 1e131000 has as many digits.
  select e.place, judged.fault, case
      when pg_column_size(e.value) <= 300 and not e.value @? '$.** ? (@.type() == "number" && (@ > 1e15 || @ < -1e15))'
      then left(e.value::text, 200) else 'a ' || jsonb_typeof(e.value) end as shown into wrong
  from jsonb_array_elements(recommend_from_ratings.ratings) with ordinality e (value, place)
  cross join lateral (select case
    when jsonb_typeof(e.value) <> 'object' or not coalesce(case jsonb_typeof(e.value -> 'movie_id')
        when 'number' then case
          when (e.value -> 'movie_id')::numeric between -9223372036854775808 and 9223372036854775807
          then trunc((e.value -> 'movie_id')::numeric) = (e.value -> 'movie_id')::numeric end
        when 'string' then case when e.value ->> 'movie_id' ~ '^\s*[-+]?\d{1,19}\s*$'
          then (e.value ->> 'movie_id')::numeric between -9223372036854775808 and 9223372036854775807 end
        end, false) then 'entry'
    when run.mu is null and run.run_id is not null and coalesce(jsonb_typeof(e.value -> 'rating'), 'null') = 'null'
      then null
    when jsonb_typeof(e.value -> 'rating') is distinct from 'number' then 'entry'
    when run.mu is null then null
    when (e.value -> 'rating')::numeric not between -1e30 and 1e30 then 'range'
    when round((e.value -> 'rating')::numeric, 20)::real = any (run.ignore_ratings) then null
    when round((e.value -> 'rating')::numeric, 20)::real not between run.rating_min::real and run.rating_max::real then 'range'
    end as fault) judged
  where judged.fault is not null order by e.place limit 1;
  if wrong.fault = 'range' then
    raise exception 'entry % of ratings is %, expected a rating from % to %', wrong.place, wrong.shown,
      run.rating_min::real, run.rating_max::real using errcode = 'invalid_parameter_value';
  elsif found then
    raise exception 'entry % of ratings is %, expected {"movie_id": bigint, "rating": number}', wrong.place, wrong.shown
      using errcode = 'invalid_parameter_value';
  end if;
  if run.run_id is null then
    return;
  end if;
  select coalesce(array_agg(pair.id), '{}'), coalesce(array_agg(pair.id) filter (where pair.used), '{}'),
    coalesce(array_agg(pair.star) filter (where pair.used), '{}') into given, rated, stars
  from (
    select each.id, each.star, case when run.mu is null then true
        when each.star between -1e30 and 1e30 then each.star::real between run.rating_min::real and run.rating_max::real
          and each.star::real <> all (run.ignore_ratings)
        else false end as used
    from (
      select distinct on (e.id) e.id, e.star
      from (
        select case jsonb_typeof(e.value -> 'movie_id') when 'number' then (e.value -> 'movie_id')::bigint
            else (e.value ->> 'movie_id')::bigint end as id,
          case jsonb_typeof(e.value -> 'rating') when 'number' then round((e.value -> 'rating')::numeric, 20)::double precision end as star,
          e.place
        from jsonb_array_elements(recommend_from_ratings.ratings) with ordinality e (value, place)
      ) e
      order by e.id, e.place desc
    ) each
  ) pair;
  if run.mu is not null and not exists (select from public.mf_priors p where p.run_id = run.run_id) then
    raise exception 'the run % was exported without what recommend_from_ratings needs: export it again', run.run_id;
  end if;
  return query select best.* from public.mf_recommend(
    run.run_id, null, null, null, rated, stars, array_fill(1::bigint, array[cardinality(rated)]),
    recommend_from_ratings.k, recommend_from_ratings.without_ids || given, recommend_from_ratings.only_ids,
    recommend_from_ratings.skip, array[]::text[]) best;
end
$mf$;

-- The options of this migration, so that an export can check whether it fits.
create or replace function public.mf_schema() returns jsonb
language sql stable security invoker set search_path = pg_catalog, pg_temp as $mf$
  select '{"movie_export_table":"movie_embeddings","user_export_table":"user_embeddings","user_id_type":"bigint","movie_id_type":"bigint","public_read":"none","ratings_table":"","user_column":"user_id","movie_column":"movie_id","rating_column":"rating","time_column":"","items_table":"","items_column":"","items_where":"","items_filter":""}'::jsonb
$mf$;

-- Registers a run for loading; idempotent. Rows of another content under the same name are deleted. Whatever changes the
-- runs holds a lock on mf_priors, which only who may write that table can take: an advisory lock anybody could hold.
create or replace function public.mf_register(run jsonb) returns jsonb
language plpgsql security invoker set search_path = pg_catalog, pg_temp set statement_timeout = '5min' as $mf$
declare
  asked public.mf_runs;
  known public.mf_runs;
  prior double precision[];
begin
  lock table public.mf_priors in share row exclusive mode;
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
    trained_on, ranking, judged)
  values (asked.run_id, asked.content_hash, asked.factors, asked.mu, asked.rating_min, asked.rating_max, asked.n_users,
    asked.n_movies, asked.trained_on, nullif(asked.ranking, 'null'), nullif(asked.judged, 'null'))
  on conflict (run_id) do update set created_at = now() where r.status = 'loading';
  update public.mf_runs r set ignore_ratings = coalesce(asked.ignore_ratings, '{}'), n_counts = asked.n_counts
  where r.run_id = asked.run_id and r.status = 'loading';
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

-- Writes rows of a loading run; idempotent, and without effect if the same content has been published since. An export
-- whose run name has been taken by another content writes nothing.
create or replace function public.mf_load_users(
  run text, content text, ids bigint[], biases real[] default null, embeddings text[] default null
) returns void
language plpgsql security invoker set search_path = pg_catalog, pg_temp as $mf$
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
    insert into public.mf_user_embeddings (run_id, user_id, bias, embedding)
    select mf_load_users.run, given.id, given.bias, given.embedding::extensions.vector
    from unnest(mf_load_users.ids, mf_load_users.biases, mf_load_users.embeddings)
      given (id, bias, embedding)
    where not exists (select from public.mf_forgotten f where f.user_id = given.id)
    -- An existing row is identical: rows of another content were deleted when this one took the name.
    on conflict do nothing;
    insert into public.mf_withheld (run_id, lacks, user_id)
    select mf_load_users.run, 'user_embeddings', f.user_id
    from public.mf_forgotten f where f.user_id = any (mf_load_users.ids)
    on conflict do nothing;
  end if;
end
$mf$;

-- Writes rows of a loading run; idempotent, and without effect if the same content has been published since. An export
-- whose run name has been taken by another content writes nothing.
create or replace function public.mf_load_movies(
  run text, content text, ids bigint[], biases real[] default null, embeddings text[] default null
) returns void
language plpgsql security invoker set search_path = pg_catalog, pg_temp as $mf$
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
    insert into public.mf_movie_embeddings (run_id, movie_id, bias, embedding)
    select mf_load_movies.run, given.id, given.bias, given.embedding::extensions.vector
    from unnest(mf_load_movies.ids, mf_load_movies.biases, mf_load_movies.embeddings)
      given (id, bias, embedding)
    -- An existing row is identical: rows of another content were deleted when this one took the name.
    on conflict do nothing;
  end if;
end
$mf$;

-- Writes rows of a loading run; idempotent, and without effect if the same content has been published since. An export
-- whose run name has been taken by another content writes nothing.
create or replace function public.mf_load_user_ranking(
  run text, content text, ids bigint[], vectors text[]
) returns void
language plpgsql security invoker set search_path = pg_catalog, pg_temp as $mf$
declare
  stands text;
begin
  -- The lock does not block a publish; removing the run or taking its name waits until these rows are committed.
  select r.status into stands from public.mf_runs r
  where r.run_id = mf_load_user_ranking.run and r.content_hash = mf_load_user_ranking.content for key share;
  if not found then
    raise exception 'the run % is no longer this export''s: another export took its name with another content, or it '
      'was removed; export again, one at a time', mf_load_user_ranking.run;
  end if;
  if stands = 'loading' then
    insert into public.mf_user_ranking (run_id, user_id, vector)
    select mf_load_user_ranking.run, given.id, given.vector::extensions.vector
    from unnest(mf_load_user_ranking.ids, mf_load_user_ranking.vectors)
      given (id, vector)
    where not exists (select from public.mf_forgotten f where f.user_id = given.id)
    -- An existing row is identical: rows of another content were deleted when this one took the name.
    on conflict do nothing;
    insert into public.mf_withheld (run_id, lacks, user_id)
    select mf_load_user_ranking.run, 'user_ranking', f.user_id
    from public.mf_forgotten f where f.user_id = any (mf_load_user_ranking.ids)
    on conflict do nothing;
  end if;
end
$mf$;

-- Writes rows of a loading run; idempotent, and without effect if the same content has been published since. An export
-- whose run name has been taken by another content writes nothing.
create or replace function public.mf_load_movie_ranking(
  run text, content text, ids bigint[], vectors text[]
) returns void
language plpgsql security invoker set search_path = pg_catalog, pg_temp as $mf$
declare
  stands text;
begin
  -- The lock does not block a publish; removing the run or taking its name waits until these rows are committed.
  select r.status into stands from public.mf_runs r
  where r.run_id = mf_load_movie_ranking.run and r.content_hash = mf_load_movie_ranking.content for key share;
  if not found then
    raise exception 'the run % is no longer this export''s: another export took its name with another content, or it '
      'was removed; export again, one at a time', mf_load_movie_ranking.run;
  end if;
  if stands = 'loading' then
    insert into public.mf_movie_ranking (run_id, movie_id, vector)
    select mf_load_movie_ranking.run, given.id, given.vector::extensions.vector
    from unnest(mf_load_movie_ranking.ids, mf_load_movie_ranking.vectors)
      given (id, vector)
    -- An existing row is identical: rows of another content were deleted when this one took the name.
    on conflict do nothing;
  end if;
end
$mf$;

-- Writes rows of a loading run; idempotent, and without effect if the same content has been published since. An export
-- whose run name has been taken by another content writes nothing.
create or replace function public.mf_load_movie_history(
  run text, content text, ids bigint[], histories text[], likings text[]
) returns void
language plpgsql security invoker set search_path = pg_catalog, pg_temp as $mf$
declare
  stands text;
begin
  -- The lock does not block a publish; removing the run or taking its name waits until these rows are committed.
  select r.status into stands from public.mf_runs r
  where r.run_id = mf_load_movie_history.run and r.content_hash = mf_load_movie_history.content for key share;
  if not found then
    raise exception 'the run % is no longer this export''s: another export took its name with another content, or it '
      'was removed; export again, one at a time', mf_load_movie_history.run;
  end if;
  if stands = 'loading' then
    insert into public.mf_movie_history (run_id, movie_id, history, liking)
    select mf_load_movie_history.run, given.id, given.history::extensions.vector, given.liking::extensions.vector
    from unnest(mf_load_movie_history.ids, mf_load_movie_history.histories, mf_load_movie_history.likings)
      given (id, history, liking)
    -- An existing row is identical: rows of another content were deleted when this one took the name.
    on conflict do nothing;
  end if;
end
$mf$;

-- Writes rows of a loading run; idempotent, and without effect if the same content has been published since. An export
-- whose run name has been taken by another content writes nothing.
create or replace function public.mf_load_movie_counts(
  run text, content text, ids bigint[], counts integer[]
) returns void
language plpgsql security invoker set search_path = pg_catalog, pg_temp as $mf$
declare
  stands text;
begin
  -- The lock does not block a publish; removing the run or taking its name waits until these rows are committed.
  select r.status into stands from public.mf_runs r
  where r.run_id = mf_load_movie_counts.run and r.content_hash = mf_load_movie_counts.content for key share;
  if not found then
    raise exception 'the run % is no longer this export''s: another export took its name with another content, or it '
      'was removed; export again, one at a time', mf_load_movie_counts.run;
  end if;
  if stands = 'loading' then
    insert into public.mf_movie_counts (run_id, movie_id, n)
    select mf_load_movie_counts.run, given.id, given.n
    from unnest(mf_load_movie_counts.ids, mf_load_movie_counts.counts)
      given (id, n)
    -- An existing row is identical: rows of another content were deleted when this one took the name.
    on conflict do nothing;
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
set search_path = pg_catalog, pg_temp set statement_timeout = '15min' set lock_timeout = '45s' as $mf$
declare
  asked public.mf_runs;
  factors integer; -- of the vectors that are searched
  expected bigint;
  movies bigint;
  began constant timestamptz := clock_timestamp();
  changed boolean := false;
  side record;
  build text;
begin
  -- One build at a time; see mf_register for why it is no advisory lock. A client of the API asks again each minute: the
  -- lock's time limit keeps these calls from holding all connections of the API meanwhile.
  lock table public.mf_movie_ranking in share update exclusive mode;
  select r.* into asked from public.mf_runs r where r.run_id = mf_index.run for key share;
  if not found then
    raise exception 'there is no run %: mf_list_runs() lists all runs', coalesce(mf_index.run, 'null');
  end if;
  factors := coalesce((asked.ranking ->> 'factors')::integer, asked.factors);
  if factors >= 2000 then
    raise exception 'the run % has % factors, and an index takes at most 1999: export without one',
      asked.run_id, factors;
  end if;
  insert into public.mf_movie_ranking (run_id, movie_id, vector)
    select e.run_id, e.movie_id, e.embedding operator(extensions.||) array[e.bias]::extensions.vector
    from public.mf_movie_embeddings e join public.mf_runs r on r.run_id = e.run_id
    where r.ranking is null and r.run_id = asked.run_id
    on conflict do nothing;
  select count(*) into movies from public.mf_movie_ranking e where e.run_id = asked.run_id;
  expected := coalesce((asked.ranking ->> 'movies')::bigint, asked.n_movies);
  if movies <> expected then
    raise exception 'the run % is incomplete: % of % movies are there; load it, then index it',
      asked.run_id, movies, expected;
  end if;
  -- Until the end of the transaction. A build whose graph does not fit takes several times as long.
  if pg_size_bytes(current_setting('maintenance_work_mem')) < 256 * 1024 * 1024 then
    perform set_config('maintenance_work_mem', '256MB', true);
  end if;
  -- A parallel build of an earlier pgvector can read beyond its memory (CVE-2026-3172).
  if (select string_to_array(x.extversion, '.')::integer[] < '{0,8,2}' from pg_extension x where x.extname = 'vector')
  then
    perform set_config('max_parallel_maintenance_workers', '0', true);
  end if;
  for side in
    select v.tab, v.col, v.dimensions, v.class, 'mf_hnsw_' || v.name || '_' || md5(asked.run_id) as index
    from (values ('ranking', 'mf_movie_ranking', 'vector', factors + 1, 'vector_ip_ops', true),
                 ('history', 'mf_movie_history', 'history', factors, 'vector_cosine_ops', asked.ranking is not null),
                 ('embedding', 'mf_movie_embeddings', 'embedding', factors, 'vector_cosine_ops', asked.ranking is null))
      v (name, tab, col, dimensions, class, searched)
    where v.searched
  loop
    if to_regclass('public.' || side.index) is null then
      build := format('create index %I on public.%I using hnsw ((%I::extensions.vector(%s)) extensions.%I) '
        'with (m = 16, ef_construction = 100) where run_id = %L',
        side.index, side.tab, side.col, side.dimensions, side.class, asked.run_id);
      begin
        execute build;
      exception when disk_full or out_of_memory then
        -- A parallel build needs shared memory, of which a container often has 64 MB (/dev/shm); one process does not.
        perform set_config('max_parallel_maintenance_workers', '0', true);
        execute build;
      end;
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
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '200ms' as $mf$
declare
  name text;
begin
  for name in
    select i.relname from pg_catalog.pg_index x join pg_catalog.pg_class i on i.oid = x.indexrelid
    where x.indrelid in ('public.mf_movie_ranking'::regclass, 'public.mf_movie_history'::regclass,
        'public.mf_movie_embeddings'::regclass) and starts_with(i.relname, 'mf_hnsw_')
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
language plpgsql security invoker set search_path = pg_catalog, pg_temp set statement_timeout = '60s'
set enable_seqscan = off set enable_indexscan = off set enable_indexonlyscan = off as $mf$
declare
  asked public.mf_runs;
  wrong text; -- numbers of rows
  previous text;
  users bigint; -- rows of forgotten users that the run lacks
  rankings bigint;
begin
  lock table public.mf_priors in share row exclusive mode;
  select r.* into asked from public.mf_runs r where r.run_id = mf_publish.run;
  if not found then
    raise exception 'there is no run %: mf_list_runs() lists all runs', coalesce(mf_publish.run, 'null');
  end if;
  if asked.status <> 'loading' then
    return jsonb_build_object('run_id', asked.run_id, 'changed', false,
      'published', (select r.run_id from public.mf_runs r where r.status = 'published'));
  end if;
  insert into public.mf_movie_ranking (run_id, movie_id, vector)
    select e.run_id, e.movie_id, e.embedding operator(extensions.||) array[e.bias]::extensions.vector
    from public.mf_movie_embeddings e join public.mf_runs r on r.run_id = e.run_id
    where r.ranking is null and r.run_id = asked.run_id
    on conflict do nothing;
  -- From here to the end of the transaction nobody is forgotten. Before any row of mf_runs is locked: mf_forget_user
  -- locks in this order, too.
  lock table public.mf_forgotten in share mode;
  with gone as (
    delete from public.mf_user_embeddings e using public.mf_forgotten f
    where e.run_id = asked.run_id and e.user_id = f.user_id returning e.user_id
  )
  insert into public.mf_withheld (run_id, lacks, user_id)
  select asked.run_id, 'user_embeddings', gone.user_id from gone on conflict do nothing;
  with gone as (
    delete from public.mf_user_ranking e using public.mf_forgotten f
    where e.run_id = asked.run_id and e.user_id = f.user_id returning e.user_id
  )
  insert into public.mf_withheld (run_id, lacks, user_id)
  select asked.run_id, 'user_ranking', gone.user_id from gone on conflict do nothing;
  select count(*) filter (where w.lacks = 'user_embeddings'), count(*) filter (where w.lacks = 'user_ranking')
  into users, rankings from public.mf_withheld w where w.run_id = asked.run_id;
  select string_agg(format('%s of %s %s', counted.n, coalesce(counted.expected, 0), counted.what), ', ') into wrong
  from (values
    ('users', (select count(*) from public.mf_user_embeddings e where e.run_id = asked.run_id),
      asked.n_users - users),
    ('movies', (select count(*) from public.mf_movie_embeddings e where e.run_id = asked.run_id), asked.n_movies),
    ('users of the ranking', (select count(*) from public.mf_user_ranking e where e.run_id = asked.run_id),
      (asked.ranking ->> 'users')::bigint - rankings),
    ('movies of the ranking', (select count(*) from public.mf_movie_ranking e where e.run_id = asked.run_id),
      coalesce((asked.ranking ->> 'movies')::bigint, asked.n_movies)),
    ('histories of the ranking', (select count(*) from public.mf_movie_history e where e.run_id = asked.run_id),
      (asked.ranking ->> 'movies')::bigint),
    ('counts of ratings', (select count(*) from public.mf_movie_counts e where e.run_id = asked.run_id),
      asked.n_counts)) counted (what, n, expected)
  where counted.n <> coalesce(counted.expected, 0);
  if wrong is not null then
    raise exception 'the run % is incomplete: % are there; run its export again', asked.run_id, wrong;
  end if;
  update public.mf_runs r set status = 'retired' where r.status = 'published' returning r.run_id into previous;
  -- clock_timestamp: the order of publishing is the order of the lock, not that of the transactions' start.
  update public.mf_runs r set status = 'published', published_at = clock_timestamp(), n_users = r.n_users - users,
    ranking = case when rankings = 0 then r.ranking
      else jsonb_set(r.ranking, '{users}', to_jsonb((r.ranking ->> 'users')::bigint - rankings)) end
  where r.run_id = asked.run_id;
  delete from public.mf_withheld w where w.run_id = asked.run_id;
  return jsonb_build_object('run_id', asked.run_id, 'changed', true, 'published', asked.run_id, 'previous', previous);
end
$mf$;

create or replace function public.mf_list_runs() returns setof public.mf_runs
language sql stable security invoker set search_path = pg_catalog, pg_temp as $mf$
  select r.* from public.mf_runs r order by r.published_at desc nulls last, r.created_at desc
$mf$;

-- Publishes a retired run again: the run named, else the one published before the present one. Without a name a second
-- call returns to the present one.
create or replace function public.mf_rollback(run text default null) returns jsonb
language plpgsql security invoker set search_path = pg_catalog, pg_temp set statement_timeout = '60s' as $mf$
declare
  target text;
begin
  lock table public.mf_priors in share row exclusive mode;
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
language plpgsql security invoker set search_path = pg_catalog, pg_temp set statement_timeout = '5min' as $mf$
declare
  removed jsonb;
begin
  if mf_prune.keep is null or mf_prune.keep < 0 then
    raise exception 'keep is %, expected a number of earlier runs', coalesce(mf_prune.keep::text, 'null');
  end if;
  lock table public.mf_priors in share row exclusive mode;
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

-- Removes every row of a user from all runs, and keeps exports that are running, or run later, from writing them again.
create or replace function public.mf_forget_user(forget bigint) returns jsonb
language plpgsql security invoker set search_path = pg_catalog, pg_temp set statement_timeout = '60s' as $mf$
declare
  removed bigint := 0;
  of_table bigint;
begin
  if mf_forget_user.forget is null then
    raise exception 'forget is null, expected the id of a user';
  end if;
  -- Waits for a publish that is about to commit.
  insert into public.mf_forgotten (user_id) values (mf_forget_user.forget) on conflict do nothing;
  with gone as (
    delete from public.mf_user_embeddings e
    where e.run_id in (select r.run_id from public.mf_runs r) and e.user_id = mf_forget_user.forget returning e.run_id
  ), fewer as (
    update public.mf_runs r set n_users = r.n_users - 1 from gone where r.run_id = gone.run_id and r.status <> 'loading'
  ), withheld as (
    insert into public.mf_withheld (run_id, lacks, user_id)
    select r.run_id, 'user_embeddings', mf_forget_user.forget
    from gone join public.mf_runs r on r.run_id = gone.run_id where r.status = 'loading'
    on conflict do nothing
  )
  select count(*) into of_table from gone;
  removed := removed + of_table;
  with gone as (
    delete from public.mf_user_ranking e
    where e.run_id in (select r.run_id from public.mf_runs r) and e.user_id = mf_forget_user.forget returning e.run_id
  ), fewer as (
    update public.mf_runs r set ranking = jsonb_set(r.ranking, '{users}', to_jsonb((r.ranking ->> 'users')::bigint - 1)) from gone where r.run_id = gone.run_id and r.status <> 'loading'
  ), withheld as (
    insert into public.mf_withheld (run_id, lacks, user_id)
    select r.run_id, 'user_ranking', mf_forget_user.forget
    from gone join public.mf_runs r on r.run_id = gone.run_id where r.status = 'loading'
    on conflict do nothing
  )
  select count(*) into of_table from gone;
  removed := removed + of_table;
  return jsonb_build_object('user_id', mf_forget_user.forget, 'rows', removed);
end
$mf$;

-- Supabase projects from before November 2026 grant new objects to everyone, later ones to nobody: revoke, then grant.
revoke all on public.mf_runs, public.mf_priors, public.mf_user_embeddings, public.mf_movie_embeddings,
  public.mf_movie_ranking, public.mf_movie_history, public.mf_user_ranking, public.mf_movie_counts,
  public.mf_forgotten, public.mf_withheld,
  public."user_embeddings", public."movie_embeddings"
  from public, anon, authenticated;
revoke all on function public.recommend_movies, public.similar_movies, public.popular_movies, public.recommend_from_ratings, public.mf_nearest, public.mf_run, public.mf_fold_in, public.mf_recommend, public.mf_check_list, public.mf_schema, public.mf_register, public.mf_load_users, public.mf_load_movies, public.mf_load_user_ranking, public.mf_load_movie_ranking, public.mf_load_movie_history, public.mf_load_movie_counts, public.mf_index, public.mf_drop_indexes, public.mf_publish, public.mf_list_runs, public.mf_rollback, public.mf_prune, public.mf_forget_user, public.mf_drop_rows
  from public, anon, authenticated;
grant select, insert, update, delete
  on public.mf_runs, public.mf_priors, public.mf_user_embeddings, public.mf_movie_embeddings, public.mf_movie_ranking,
    public.mf_movie_history, public.mf_user_ranking, public.mf_movie_counts, public.mf_forgotten, public.mf_withheld
  to service_role;
grant select on public."user_embeddings", public."movie_embeddings"
  to service_role;
grant execute on function public.recommend_movies, public.similar_movies, public.popular_movies, public.recommend_from_ratings, public.mf_nearest, public.mf_run, public.mf_fold_in, public.mf_recommend, public.mf_check_list, public.mf_schema, public.mf_register, public.mf_load_users, public.mf_load_movies, public.mf_load_user_ranking, public.mf_load_movie_ranking, public.mf_load_movie_history, public.mf_load_movie_counts, public.mf_index, public.mf_drop_indexes, public.mf_publish, public.mf_list_runs, public.mf_rollback, public.mf_prune, public.mf_forget_user to service_role;
grant execute on function public.recommend_from_ratings to authenticated;

-- Public read access: none by default.
drop policy if exists mf_public_read on public.mf_runs;
drop policy if exists mf_public_read on public.mf_movie_embeddings;
drop policy if exists mf_public_read on public.mf_movie_history;
drop policy if exists mf_public_read on public.mf_movie_counts;

notify pgrst, 'reload schema';
commit;
