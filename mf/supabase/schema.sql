{% set id = movie_id_type %}
{# Ties are ordered by id; text ids by code point, whatever the collation of the database. #}
{% set id_order = 'collate pg_catalog."C"' if movie_id_type == "text" else "" %}
{% set ratings = "public." ~ (ratings_table | identifier) %}
{% set items = "public." ~ (items_table | identifier) %}
{# Arguments that all lists have; those of the filters have their columns' names and types. #}
{% set choice = "without_ids " ~ id ~ "[], only_ids " ~ id ~ "[], skip integer, of_run text" %}
{% macro ids_defaults() -%}
without_ids {{ id }}[] default '{}', only_ids {{ id }}[] default null
{%- endmacro %}
{% macro choice_defaults() -%}
{{ ids_defaults() }}, skip integer default 0, of_run text default null{{ filter_arguments() }}
{%- endmacro %}
{% macro filter_arguments() -%}
{% for column in filters %}, {{ column | identifier }} {{ items }}.{{ column | identifier }}%type default null{% endfor %}
{%- endmacro %}
{% macro filter_values(function) -%}
array[{% for column in filters %}{{ function }}.{{ column | identifier }}::text{{ ", " if not loop.last }}{% endfor %}]::text[]
{%- endmacro %}
{# Columns of the three kinds of rows. With an items table they are those of views: see mf_list. #}
{% macro rows(view, columns) -%}
{{ "SETOF public." ~ view if items_table else "TABLE(" ~ columns ~ ")" }}
{%- endmacro %}
{% set list_columns = "movie_id " ~ id ~ ", score double precision, predicted_rating double precision, because " ~ id
  ~ ", run_id text" %}
{% set list = rows("mf_list", list_columns) %}
{% set similar = rows("mf_similar", "movie_id " ~ id ~ ", similarity double precision, run_id text") %}
{% set popular = rows("mf_popular", "movie_id " ~ id ~ ", ratings bigint, run_id text") %}
{# The column of movie ids of the items table and its type. #}
{% macro items_key(into) -%}
select a.attname as col, format_type(a.atttypid, null) as has into {{ into }}
from pg_attribute a
left join pg_index x on x.indrelid = a.attrelid and x.indisprimary and x.indnkeyatts = 1 and x.indkey[0] = a.attnum
where a.attrelid = {{ items | literal }}::regclass and a.attnum > 0 and not a.attisdropped
{% if items_column %}
  and a.attname = {{ items_column | literal }}
{% else %}
  and (a.attname in ('movie_id', 'id') or x.indrelid is not null)
{% endif %}
order by a.attname = 'movie_id' desc, a.attname = 'id' desc limit 1
{%- endmacro %}
{# Whether a rating counts: it is in the range of the run's ratings, and none of those that training ignored. #}
{% macro counts(star) -%}
case when run.mu is null then true
        when {{ star }} between -1e30 and 1e30 then {{ star }}::real between run.rating_min::real and run.rating_max::real
          and {{ star }}::real <> all (run.ignore_ratings)
        else false end
{%- endmacro %}
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
    from (values ('mf_user_embeddings', 'user_id', '{{ user_id_type }}'),
                 ('mf_movie_embeddings', 'movie_id', '{{ movie_id_type }}')) asked (tab, col, type)
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
      and c.relname in ({{ movie_export_table | literal }}, {{ user_export_table | literal }})
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
      and p.proname in ('recommend_movies', 'similar_movies', 'popular_movies', 'recommend_from_ratings'{{ ", 'recommend_for_me'" if user_id_type == "uuid" }})
  loop
    raise exception 'your function public.% has the name of a function of this migration; run: '
      'alter function public.%(%) rename to %_old', found.name, found.name, found.arguments, found.name;
  end loop;
{% if ratings_table %}

  if to_regclass({{ ratings | literal }}) is null then
    raise exception 'there is no table public.%: give --ratings_table the name of the table that holds the ratings',
      {{ ratings_table | literal }};
  end if;
  for found in
    select asked.flag, asked.col, asked.type, asked.holds, format_type(a.atttypid, a.atttypmod) as has
    from (values ('user', {{ user_column | literal }}, '{{ user_id_type }}', 'user ids'),
{% if rating_column != "none" %}
                 ('rating', {{ rating_column | literal }}, 'double precision', 'ratings'),
{% endif %}
{% for column in ([time_column] if time_column else times) if column != "none" %}
                 ('time', {{ column | literal }}, '', 'times'),
{% endfor %}
                 ('movie', {{ movie_column | literal }}, '{{ movie_id_type }}', 'movie ids'))
      asked (flag, col, type, holds)
    left join pg_attribute a on a.attrelid = {{ ratings | literal }}::regclass
      and a.attname = asked.col and a.attnum > 0 and not a.attisdropped
    order by array_position('{user,movie,rating,time}'::text[], asked.flag)
  loop
    -- Those that were not named are taken where the table has them.
    continue when found.has is null and found.flag in ({{ "'rating'" if rating_column == "rating" else "''" }}, {{ "''" if time_column else "'time'" }});
    if found.has is null then
      raise exception 'the table public.% has no column %: give --%_column the name of its column of %',
        {{ ratings_table | literal }}, found.col, found.flag,
        found.holds || case when found.flag in ('rating', 'time') then ', or none' else '' end;
    end if;
    begin
      execute case found.flag when 'time' then format('select null::%s < null::%1$s', found.has)
        else format('select null::%s = null::%s', found.has, found.type) end;
    exception when undefined_function or ambiguous_function then
      if found.flag = 'time' then
        raise exception 'public.%.% is %, whose values have no order: give --time_column another column, or none',
          {{ ratings_table | literal }}, found.col, found.has;
      end if;
      raise exception 'public.%.% is %, which cannot be compared with % of type %: give --%_column another column, or %',
        {{ ratings_table | literal }}, found.col, found.has, found.holds, found.type, found.flag, case found.flag
          when 'rating' then 'none' else 'print the migration with another --user_id_type or --movie_id_type' end;
    end;
  end loop;
{% endif %}
{% if items_table %}

  if to_regclass({{ items | literal }}) is null then
    raise exception 'there is no table public.%: give --items_table the name of the table that holds the movies',
      {{ items_table | literal }};
  end if;
  for found in
    select asked.name as col, format_type(a.atttypid, null) as has from unnest({{ filters | array }}) asked (name)
    left join pg_attribute a on a.attrelid = {{ items | literal }}::regclass and a.attname = asked.name
      and a.attnum > 0 and not a.attisdropped
  loop
    if found.has is null then
      raise exception 'the table public.% has no column %: give --items_filter names of its columns',
        {{ items_table | literal }}, found.col;
    end if;
    begin
      execute format('select null::%s = null::%1$s', found.has);
    exception when undefined_function then
      raise exception 'public.%.% is %, whose values cannot be compared with =: give --items_filter other columns, or '
        '--items_table a view that casts it', {{ items_table | literal }}, found.col, found.has;
    end;
  end loop;
  {{ items_key("found") | indent(2) }};
  if found.col is null then
    raise exception 'the table public.% has no column %: give --items_column the name of its column of movie ids',
      {{ items_table | literal }}, {{ (items_column or "movie_id or id, and no primary key of one column") | literal }};
  end if;
  begin
    execute format('select null::%s = null::{{ id }}', found.has);
  exception when undefined_function or ambiguous_function then
    raise exception 'public.%.% is %, which cannot be compared with movie ids of type {{ id }}: give --items_column '
      'another column, or print the migration with another --movie_id_type',
      {{ items_table | literal }}, found.col, found.has;
  end;
{% endif %}
{% for table, flag in ((ratings_table, "ratings"), (items_table, "items")) if table %}

  -- The functions read it for users who cannot, as the owner of this migration.
  if not has_table_privilege({{ ("public." ~ (table | identifier)) | literal }}::regclass, 'select')
      or row_security_active({{ ("public." ~ (table | identifier)) | literal }}::regclass) then
    raise exception 'the role % cannot read all rows of public.%: % and the lists would be wrong; apply the migration as '
      'the owner of the table (without force row level security) or a role with bypassrls, as Supabase''s postgres is',
      current_user, {{ table | literal }}, case
        when has_table_privilege({{ ("public." ~ (table | identifier)) | literal }}::regclass, 'select')
        then 'row-level security applies to it' else 'it lacks the right to select' end;
  end if;
{% endfor %}
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
  user_id {{ user_id_type }} not null,
  bias real, -- null, as the embedding, in a run of clicks
  embedding extensions.vector,
  primary key (run_id, user_id)
);
create table if not exists public.mf_movie_embeddings (
  run_id text not null,
  movie_id {{ movie_id_type }} not null,
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
  movie_id {{ movie_id_type }} not null,
  vector extensions.vector not null,
  primary key (run_id, movie_id)
);
alter table public.mf_movie_ranking alter column vector set storage plain;
-- What a rating of the movie adds to a user's vector: history + rho (rating - mu) / sd * liking.
create table if not exists public.mf_movie_history (
  run_id text not null,
  movie_id {{ movie_id_type }} not null,
  history extensions.vector not null,
  liking extensions.vector not null,
  primary key (run_id, movie_id)
);
-- p of users, for lists where the migration does not know the table of ratings.
create table if not exists public.mf_user_ranking (
  run_id text not null,
  user_id {{ user_id_type }} not null,
  vector extensions.vector not null,
  primary key (run_id, user_id)
);
-- Ratings per movie that the run was trained on.
create table if not exists public.mf_movie_counts (
  run_id text not null,
  movie_id {{ movie_id_type }} not null,
  n integer not null,
  primary key (run_id, movie_id)
);
-- Users whom mf_forget_user has removed: no export brings them back.
create table if not exists public.mf_forgotten (
  user_id {{ user_id_type }} primary key,
  forgotten_at timestamptz not null default now()
);
-- Rows of forgotten users that a run that is loading lacks.
create table if not exists public.mf_withheld (
  run_id text not null references public.mf_runs on delete cascade,
  lacks text not null,
  user_id {{ user_id_type }} not null,
  primary key (run_id, lacks, user_id)
);
{% macro rank_by_stars(runs) %}
insert into public.mf_movie_ranking (run_id, movie_id, vector)
  select e.run_id, e.movie_id, e.embedding operator(extensions.||) array[e.bias]::extensions.vector
  from public.mf_movie_embeddings e join public.mf_runs r on r.run_id = e.run_id
  where r.ranking is null and {{ runs }}
  on conflict do nothing{% endmacro %}
-- Runs of earlier migrations
{{ rank_by_stars("r.status <> 'loading'") }};

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

create or replace view public.{{ user_export_table | identifier }} with (security_invoker = true) as
  select e.user_id, e.bias, e.embedding, e.run_id from public.mf_user_embeddings e
  where e.run_id = (select r.run_id from public.mf_runs r where r.status = 'published');
create or replace view public.{{ movie_export_table | identifier }} with (security_invoker = true) as
  select e.movie_id, e.bias, e.embedding, e.run_id from public.mf_movie_embeddings e
  where e.run_id = (select r.run_id from public.mf_runs r where r.status = 'published');

{% if items_table %}
-- Rows of lists. Views without rows, since PostgREST embeds other tables in a function's rows only where their type is
-- that of a table or view.
do $mf$
declare
  other record;
begin
  for other in
    select c.relname as name from pg_attribute a join pg_class c on c.oid = a.attrelid
    where c.oid in (to_regclass('public.mf_list'), to_regclass('public.mf_similar'), to_regclass('public.mf_popular'))
      and a.attname = 'movie_id' and format_type(a.atttypid, a.atttypmod) <> '{{ id }}'
  loop
    -- With it go the functions below that return its rows.
    execute format('drop view public.%I cascade', other.name);
  end loop;
end
$mf$;
create or replace view public.mf_list with (security_invoker = true) as
  select null::{{ id }} as movie_id, null::double precision as score, null::double precision as predicted_rating,
    null::{{ id }} as because, null::text as run_id where false;
create or replace view public.mf_similar with (security_invoker = true) as
  select null::{{ id }} as movie_id, null::double precision as similarity, null::text as run_id where false;
create or replace view public.mf_popular with (security_invoker = true) as
  select null::{{ id }} as movie_id, null::bigint as ratings, null::text as run_id where false;

{% endif %}
-- PostgREST cannot choose between overloads, and `create or replace` cannot change a result type: drop functions with
-- another signature.
do $mf$
declare
  stale regprocedure;
  filters text := '';
begin
{% if filters %}
  select string_agg(format(', %I %s', a.attname, format_type(a.atttypid, null)), '' order by asked.place) into filters
  from unnest({{ filters | array }}) with ordinality asked (name, place)
  join pg_attribute a on a.attrelid = {{ items | literal }}::regclass and a.attname = asked.name;
{% endif %}
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
        ('recommend_movies', 'for_user {{ user_id_type }}, k integer, exclude_rated boolean, {{ choice }}' || filters,
         '{{ list }}'),
        ('similar_movies', 'for_movie {{ id }}, k integer, without_ids {{ id }}[], only_ids {{ id }}[]' || filters,
         '{{ similar }}'),
        ('popular_movies', 'k integer, skip integer' || filters, '{{ popular }}'),
{% if user_id_type == "uuid" %}
        ('recommend_for_me', 'k integer, exclude_rated boolean, {{ choice }}' || filters, '{{ list }}'),
{% endif %}
        ('recommend_from_ratings', 'ratings jsonb, k integer, {{ choice }}' || filters, '{{ list }}'),
        ('mf_nearest',
         'of_run text, vectors text, target extensions.vector, k integer, '
         'without_ids {{ id }}[], only_ids {{ id }}[], filters text[]',
         'TABLE(movie_id {{ id }}, distance double precision)'),
        ('mf_run', 'of_run text', 'public.mf_runs'),
{% if ratings_table %}
        ('mf_own_ratings', 'of_user {{ user_id_type }}',
         'TABLE(movie_id {{ id }}, star double precision, rated boolean, place bigint)'),
{% endif %}
        ('mf_fold_in', 'of_run text, rated {{ id }}[], stars double precision[]', 'double precision[]'),
        ('mf_recommend',
         'of_run text, stored extensions.vector, star_vector extensions.vector, star_base double precision, '
         'rated {{ id }}[], stars double precision[], places bigint[], k integer, '
         'without_ids {{ id }}[], only_ids {{ id }}[], skip integer, filters text[]',
         'TABLE({{ list_columns }})'),
        ('mf_check_list', 'k integer, without_ids {{ id }}[], only_ids {{ id }}[], skip integer', 'void'),
        ('mf_schema', '', 'jsonb'),
        ('mf_register', 'run jsonb', 'jsonb'),
        ('mf_load_users', 'run text, content text, ids {{ user_id_type }}[], biases real[], embeddings text[]', 'void'),
        ('mf_load_movies', 'run text, content text, ids {{ id }}[], biases real[], embeddings text[]', 'void'),
        ('mf_load_user_ranking', 'run text, content text, ids {{ user_id_type }}[], vectors text[]', 'void'),
        ('mf_load_movie_ranking', 'run text, content text, ids {{ id }}[], vectors text[]', 'void'),
        ('mf_load_movie_history', 'run text, content text, ids {{ id }}[], histories text[], likings text[]', 'void'),
        ('mf_load_movie_counts', 'run text, content text, ids {{ id }}[], counts integer[]', 'void'),
        ('mf_index', 'run text', 'jsonb'),
        ('mf_drop_indexes', 'run text', 'void'),
        ('mf_publish', 'run text', 'jsonb'),
        ('mf_list_runs', '', 'SETOF public.mf_runs'),
        ('mf_rollback', 'run text', 'jsonb'),
        ('mf_prune', 'keep integer', 'jsonb'),
        ('mf_forget_user', 'forget {{ user_id_type }}', 'jsonb'))
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
{% if items_table %}

-- The movies that may be recommended: those of the items table that fulfil items_where, with the columns to filter by.
-- A view, so that the names in items_where are looked up once, here. Volatile functions are refused, which may change
-- data or answer differently for each row, and so are other tables.
drop view if exists public.mf_items;
do $mf$
declare
  items constant regclass := {{ items | literal }}::regclass;
  condition text := {{ (items_where or "true") | literal }};
  key record;
  rule record;
  found record;
begin
  {{ items_key("key") | indent(2) }};
{% if id == "bigint" %}
  if key.has in ('numeric', 'real', 'double precision') then
    condition := format('(%s) and abs(item.%I) < 9e18', condition, key.col); -- ids that fit into bigint
  end if;
{% endif %}
  -- for functions and types that items_where names without a schema
  set local search_path = pg_catalog, public, extensions, pg_temp;
  begin
    execute format('create view public.mf_items with (security_invoker = true) as select item.%I as movie_id%s '
      'from %s item where (%s)', key.col, {{ filter_columns | literal }}, items, condition);
  exception when others then
    raise exception 'items_where is %, expected a condition on columns of public.%: %',
      {{ items_where | literal }}, {{ items_table | literal }}, sqlerrm;
  end;
  set local search_path = pg_catalog, pg_temp;
  select r.oid, r.ev_action::text as tree into rule
  from pg_rewrite r where r.ev_class = 'public.mf_items'::regclass;
  if strpos(rule.tree, '{SUBLINK') > 0 then
    raise exception 'items_where has a subquery, expected a condition on columns of public.%: give --items_table a view '
      'that joins the other tables', {{ items_table | literal }};
  end if;
  for found in
    -- pg_depend lists the functions and operators of users and extensions, the parsed rule those of PostgreSQL itself.
    select concat_ws('.', p.pronamespace::regnamespace, quote_ident(p.proname)) as name from pg_proc p
    where p.provolatile = 'v' and p.oid in (
      select case d.refclassid when 'pg_proc'::regclass then d.refobjid else o.oprcode end
      from pg_depend d left join pg_operator o on o.oid = d.refobjid
      where d.classid = 'pg_rewrite'::regclass and d.objid = rule.oid
        and d.refclassid in ('pg_proc'::regclass, 'pg_operator'::regclass)
      union all
      select each.id[1]::oid from regexp_matches(rule.tree, ':(?:funcid|opfuncid) (\d+)', 'g') each (id))
  loop
    raise exception 'items_where calls %, which is volatile: use stable or immutable functions', found.name;
  end loop;
{% if public_read == "movies" %}
  select string_agg(distinct quote_ident(a.attname), ', ') as cols into found
  from pg_depend d join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
  where d.classid = 'pg_rewrite'::regclass and d.objid = rule.oid and d.refobjid = items and d.refobjsubid > 0
    and not has_column_privilege('anon', items, a.attnum, 'select');
  if found.cols is not null then
    raise exception 'with --public_read movies everybody needs to read the columns by which similar_movies and '
      'popular_movies choose: grant select (%) on public.% to anon, authenticated; and give them a policy',
      found.cols, quote_ident({{ items_table | literal }});
  end if;
  select string_agg(asked.role, ', ') as roles into found from (values ('anon'), ('authenticated')) asked (role)
  where (select c.relrowsecurity from pg_class c where c.oid = items) and not exists (
    select from pg_policy p, unnest(p.polroles) holder
    where p.polrelid = items and p.polpermissive and p.polcmd in ('r', '*')
      and case when holder = 0 then true else pg_has_role(asked.role, holder, 'usage') end);
  if found.roles is not null then
    raise exception 'with --public_read movies everybody needs to read public.%, and its row-level security has no policy '
      'for %, who would get empty lists; run: create policy "movies are public" on public.% for select '
      'to anon, authenticated using (true);', quote_ident({{ items_table | literal }}), found.roles,
      quote_ident({{ items_table | literal }});
  end if;
{% endif %}

  -- The row of the items table, which the API embeds in lists: select=predicted_rating,movies(title), and that of the
  -- movie in `because`: because_of(title). They run with the caller's rights.
{% for view, name, column in embedded %}
  execute format($q$create function public.%I(public.{{ view }}) returns setof %s rows 1
    language sql stable security invoker set search_path = pg_catalog, pg_temp as
    'select item.* from %2$s item where item.%3$I = $1.{{ column }} limit 1'$q$, {{ name | literal }}, items, key.col);
{% endfor %}
end
$mf$;
{% else %}
drop view if exists public.mf_items, public.mf_list, public.mf_similar, public.mf_popular;
{% endif %}

-- The movies of a run whose vectors are nearest to `target`, nearest first, ties by id. `vectors` says which: `ranking`
-- by inner product (distance = its negative), `history` and `embedding` by cosine (distance = 1 - cosine; 1 for a zero
-- vector). Movies of without_ids are left out; with only_ids, and where the filters leave few, the movies are read by
-- key. Otherwise it takes some more movies than wanted, from the run's index (mf_index) or from a scan of all vectors,
-- and leaves out those that must not be recommended; if too few remain, it joins all vectors with the movies that may.
-- So there are never fewer than k while there are k. Used by the functions below; other callers can read with it only
-- what their rights and the policies allow anyway.
create or replace function public.mf_nearest(
  of_run text, vectors text, target extensions.vector, k integer, without_ids {{ id }}[],
  only_ids {{ id }}[] default null, filters text[] default '{}'
) returns table (movie_id {{ id }}, distance double precision)
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
  left_out constant {{ id }}[] := array_remove(mf_nearest.without_ids, null);
  many constant boolean := cardinality(left_out) > 2000; -- too many to sort with the others
  -- pgvector 0.8; the setting is there once the library is loaded, which vector_dims did
  iterative constant boolean := current_setting('hnsw.iterative_scan', true) is not null;
  candidates {{ id }}[] := mf_nearest.only_ids;
  allowed text := 'true'; -- whether the movie %s may be recommended, for one movie
  allowed_all text := 'true'; -- the same for many
  wanted integer := 2 * (mf_nearest.k + case when iterative then 0 else cardinality(left_out) end);
  indexed constant boolean := wanted between 1 and 1000
    and to_regclass('public.mf_hnsw_' || mf_nearest.vectors || '_' || md5(mf_nearest.of_run)) is not null;
  ways text[];
  way text;
  ids {{ id }}[];
  distances double precision[];
begin
{% if items_table %}
  declare
    chosen text := '';
    -- The most movies to read by key: up to a hundredth of a large catalogue that would be scanned otherwise.
    few integer := case when indexed then 3000 else greatest(3000, least(20000, (
      select c.reltuples / 100 from pg_class c where c.oid = to_regclass({{ items | literal }})))) end;
  begin
{% for column in filters %}
    if mf_nearest.filters[{{ loop.index }}] is not null then
      chosen := chosen || format(' and item.%I = %L', {{ column | literal }}, mf_nearest.filters[{{ loop.index }}]);
    end if;
{% endfor %}
    if candidates is null and chosen <> '' then
      execute 'select array_agg(few.movie_id::{{ id }}) from (select item.movie_id from public.mf_items item where true'
        || chosen || format(' limit %s) few', few + 1) into candidates;
      candidates := case when cardinality(candidates) > few then null else coalesce(candidates, '{}') end;
    end if;
    -- A subquery with a limit, which the planner cannot turn into a join with all movies.
    allowed := '(select true from public.mf_items item where item.movie_id = %s.movie_id' || replace(chosen, '%', '%%')
      || ' limit 1)';
    allowed_all := 'e.movie_id in (select item.movie_id from public.mf_items item where true' || chosen || ')';
  end;
{% endif %}
  if candidates is not null then
    ways := '{key}';
  elsif indexed then
    ways := '{index,all}';
    -- until the end of the transaction, which for the API is this call
    perform set_config('hnsw.ef_search', greatest(wanted, {{ ef_search }})::text, true);
    if iterative then
      perform set_config('hnsw.iterative_scan', 'strict_order', true);
    end if;
  else
    ways := '{scan,all}';
  end if;
  foreach way in array ways loop
    -- Only the index gives the order without sorting; without this, statistics of a new run may mislead the planner.
    perform set_config('enable_sort', case when way = 'index' then 'off' else 'on' end, true);
    execute 'select array_agg(near.movie_id order by near.distance, near.movie_id {{ id_order }}), '
      'array_agg(near.distance order by near.distance, near.movie_id {{ id_order }}) from (select * from ('
      || case way
        when 'key' then format('select e.movie_id, %s as distance from (select distinct unnest($4) as id) given '
          'cross join lateral (select m.movie_id, m.%I from %s m where m.run_id = %L and m.movie_id = given.id limit 1) e '
          'where e.movie_id <> all ($2) and %s order by distance, movie_id {{ id_order }} limit $3',
          by_all, col, tab, mf_nearest.of_run, format(allowed, 'e'))
        -- In a scan of all vectors `is true`, which no index serves: where the statistics do not know the run yet, the
        -- planner would fetch its rows one by one.
        -- Some more, since the index orders by distances with other rounding. PostgreSQL before 17 takes it for no
        -- other order than its own.
        when 'index' then format('select e.movie_id, %1$s as distance from %2$s e where e.run_id = %3$L%4$s '
          'order by %1$s limit %5$s', by_index, tab, mf_nearest.of_run,
          case when iterative then ' and e.movie_id <> all ($2) and ' || format(allowed, 'e') else '' end,
          case when iterative then mf_nearest.k + 10 else greatest(wanted, {{ ef_search }}) end)
        when 'scan' then format('select e.movie_id, %1$s as distance from %2$s e where (e.run_id = %3$L) is true'
          || case when many then ' and e.movie_id <> all ($2)' else '' end
          || ' order by %1$s, e.movie_id {{ id_order }} limit %4$s', by_all, tab, mf_nearest.of_run,
          case when many then 0 else cardinality(left_out) end + {{ "2 * mf_nearest.k + 20" if items_table else "mf_nearest.k" }})
        else format('select e.movie_id, %1$s as distance from %2$s e where (e.run_id = %3$L) is true '
          'and e.movie_id <> all ($2) and %4$s order by %1$s, e.movie_id {{ id_order }} limit $3', by_all, tab, mf_nearest.of_run, allowed_all)
      end || ') chosen where chosen.movie_id <> all ($2) and ' || case when way in ('scan', 'index') and not (
        way = 'index' and iterative) then format(allowed, 'chosen') else 'true' end
      -- Stops at the kth, so that few movies are looked up in the items table.
      || ' order by chosen.distance, chosen.movie_id {{ id_order }} limit $3) near'
    into ids, distances using mf_nearest.target, left_out, mf_nearest.k, candidates;
{% if not items_table %}
    exit when way = 'scan';
{% endif %}
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

-- Raises an error for arguments of a list that are out of range{{ ", and where mf_items is gone" if items_table }}.
create or replace function public.mf_check_list(
  k integer, without_ids {{ id }}[], only_ids {{ id }}[], skip integer
) returns void
language plpgsql {{ "stable" if items_table else "immutable" }} security invoker set search_path = pg_catalog, pg_temp as $mf$
begin
{% if items_table %}
  if to_regclass('public.mf_items') is null then
    raise exception 'the view mf_items, of the movies to choose from, was dropped: apply the migration again';
  end if;
{% endif %}
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
{% if ratings_table %}

-- The ratings of a user as the ratings table has them now, the newest first (place 1). Of several for one movie the
-- newest counts or, without times, the highest. `rated` is false for a row that lacks its rating, which leaves the movie
-- out of lists and says nothing else. A numeric column may hold more than double precision and bigint can.
-- Where the table has no column of ratings, or of times, all rows count, and alike.
do $mf$
declare
  ratings constant regclass := {{ ratings | literal }}::regclass;
  has constant jsonb := (
    select jsonb_object_agg(a.attname, coalesce(nullif(t.typbasetype, 0), t.oid)::regtype::text)
    from pg_attribute a join pg_type t on t.oid = a.atttypid
    where a.attrelid = ratings and a.attnum > 0 and not a.attisdropped);
  movie constant text := format(
{% if id == "bigint" %}
    case when has ->> {{ movie_column | literal }} in ('numeric', 'real', 'double precision')
      then 'case when abs(given.%1$I) < 9e18 and trunc(given.%1$I) = given.%1$I then given.%1$I::bigint end'
      else 'given.%I::bigint' end,
{% else %}
    'given.%I::{{ id }}',
{% endif %}
    {{ movie_column | literal }});
  star text := 'null';
  rated text := 'true';
  newest text := '';
begin
  if has ? {{ rating_column | literal }} then
    rated := format('given.%I is not null', {{ rating_column | literal }});
    star := format(case has ->> {{ rating_column | literal }} when 'numeric'
      then 'case when given.%1$I not between -1e30 and 1e30 then ''NaN'' else round(given.%1$I, 20) end'
      else 'given.%I' end, {{ rating_column | literal }});
  end if;
  select format('given.%I desc nulls last', asked.col) into newest
  from unnest({{ ([time_column] if time_column else times) | array }}) with ordinality asked (col, place)
  where has ? asked.col order by asked.place limit 1;
  execute format($q$
create or replace function public.mf_own_ratings(
  of_user {{ user_id_type }}
) returns table (movie_id {{ id }}, star double precision, rated boolean, place bigint)
language plpgsql stable security invoker set search_path = pg_catalog, pg_temp set jit = off as $body$
begin
  return query
    select own.movie_id, own.star, own.rated, rank() over (order by own.recent)
    from (
      select distinct on (given.%1$I) %6$s as movie_id, (%2$s)::double precision as star,
        %3$s as rated, rank() over (%4$s) as recent
      from {{ ratings | replace("%", "%%") }} given
      where given.%5$I = mf_own_ratings.of_user and (%6$s) is not null
      order by given.%1$I, recent, star desc nulls last
    ) own
    order by 4;
end
$body$ $q$, {{ movie_column | literal }}, star, rated, coalesce('order by ' || newest, ''), {{ user_column | literal }},
    movie);
end
$mf$;
{% endif %}

-- w = [p ; b_u] of a user with these ratings, for the predicted rating: the maximum a posteriori estimate for the run's
-- prior C (mf_priors) and ratings mu + b_m + w.x + noise, x = [q ; 1]: it minimises sum (r - mu - b_m - w.x)^2
-- + w' inverse(C) w, as mf.fold_in does. Movies unknown to the run are ignored; of more than 1000 ratings the first 1000
-- count, the newest where times are known, which bounds the work.
-- It solves (inverse(C) + X'X) w = X'y by conjugate gradients with the preconditioner C. The directions d = C s are kept
-- with their s, so that C need not be inverted. pgvector multiplies, with vectors as rows of a matrix.
create or replace function public.mf_fold_in(
  of_run text, rated {{ id }}[], stars double precision[]
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
  rated {{ id }}[], stars double precision[], places bigint[], k integer, without_ids {{ id }}[],
  only_ids {{ id }}[], skip integer, filters text[]
) returns table ({{ list_columns }})
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
          + known.likes * (known.liking operator(extensions.<#>) wanted.q)), known.movie_id {{ id_order }}
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
-- predicted rating. {{ "The ratings are those of the ratings table as it is now." if ratings_table
  else "The vectors are those of the run; a user unknown to it gets the order of the movies' biases." }}
-- exclude_rated leaves out the movies that the user has rated; by default where the migration knows the ratings table.
-- `without_ids` are left out, `only_ids` are ranked alone; `skip` and `of_run` are for the next page of the same run.
create or replace function public.recommend_movies(
  for_user {{ user_id_type }}, k integer default 10, exclude_rated boolean default null,
  {{ choice_defaults() }}
) returns {{ list }}
language plpgsql stable security invoker set search_path = pg_catalog, pg_temp set jit = off as $mf$
declare
  run constant public.mf_runs := public.mf_run(recommend_movies.of_run);
  leave_out constant boolean := coalesce(recommend_movies.exclude_rated, {{ "true" if ratings_table else "false" }});
  star_bias double precision;
  star_vector extensions.vector;
  stored extensions.vector;
  seen {{ id }}[] := '{}';
  rated {{ id }}[] := '{}';
  stars double precision[] := '{}';
  places bigint[] := '{}';
begin
  if recommend_movies.for_user is null then
    raise exception 'for_user is null, expected the id of a user';
  end if;
  perform public.mf_check_list(recommend_movies.k, recommend_movies.without_ids, recommend_movies.only_ids,
    recommend_movies.skip);
{% if not ratings_table %}
  if leave_out then
    raise exception 'exclude_rated needs to know the table of ratings: '
      'apply what `python -m mf schema --ratings_table NAME` prints';
  end if;
{% endif %}
  if run.run_id is null then
    return;
  end if;
  select u.bias, u.embedding into star_bias, star_vector
  from public.mf_user_embeddings u where u.run_id = run.run_id and u.user_id = recommend_movies.for_user;
{% if ratings_table %}
  begin
    if row_security_active({{ ratings | literal }}::regclass) then
      raise exception 'row-level security of public.% applies to the role %, who cannot read all ratings: let the owner '
        'of the table or a role with bypassrls call this function', {{ ratings_table | literal }}, current_user;
    end if;
    select coalesce(array_agg(own.movie_id), '{}'), coalesce(array_agg(own.movie_id) filter (where own.used), '{}'),
      coalesce(array_agg(own.star) filter (where own.used), '{}'),
      coalesce(array_agg(own.place) filter (where own.used), '{}') into seen, rated, stars, places
    from (
      select o.movie_id, o.star, o.place, case when o.rated and o.star is null then true
          when not o.rated and run.mu is not null then false
          else {{ counts("o.star") | indent(2) }} end as used
      from public.mf_own_ratings(recommend_movies.for_user) o
    ) own;
  exception when undefined_table or undefined_column or undefined_function or cannot_coerce or invalid_text_representation
  then
    raise exception 'the table of ratings is no longer the public.% that the migration was applied to (%): apply it again',
      {{ ratings_table | literal }}, sqlerrm;
  end;
{% else %}
  if run.ranking is not null then
    stored := coalesce(
      (select u.vector from public.mf_user_ranking u
       where u.run_id = run.run_id and u.user_id = recommend_movies.for_user),
      array_fill(0::real, array[(run.ranking ->> 'factors')::integer])::extensions.vector);
  end if;
{% endif %}
  return query select best.* from public.mf_recommend(
    run.run_id, stored, star_vector, run.mu + star_bias, rated, stars, places, recommend_movies.k,
    case when leave_out then recommend_movies.without_ids || seen else recommend_movies.without_ids end,
    recommend_movies.only_ids, recommend_movies.skip, {{ filter_values("recommend_movies") }}) best;
end
$mf$;

-- The k movies with the highest cosine similarity to for_movie, of the ranking model's history vectors, or of the
-- embeddings of a run without one; it is 0 for a zero vector.
create or replace function public.similar_movies(
  for_movie {{ id }}, k integer default 10, {{ ids_defaults() }}{{ filter_arguments() }}
) returns {{ similar }}
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
      {{ filter_values("similar_movies") }}) near
    where r.status = 'published' and coalesce(h.history, e.embedding) is not null
    order by near.distance, near.movie_id {{ id_order }};
end
$mf$;

-- The movies with the most ratings among those that the published run was trained on.
create or replace function public.popular_movies(
  k integer default 10, skip integer default 0{{ filter_arguments() }}
) returns {{ popular }}
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
{% if items_table %}
      and c.movie_id in (
        select item.movie_id from public.mf_items item
        where true
{% for column in filters %}
          and (popular_movies.{{ column | identifier }} is null
            or item.{{ column | identifier }} = popular_movies.{{ column | identifier }})
{% endfor %}
      )
{% endif %}
    order by c.n desc, c.movie_id {{ id_order }} limit popular_movies.k offset popular_movies.skip;
end
$mf$;

{% set movie = "e.value -> 'movie_id'" %}
{% set star = "(e.value -> 'rating')::numeric" %}
-- The list of a new user with `ratings`, [{"movie_id": …, "rating": …}, …], without the rated movies. The last rating
-- of a repeated movie counts; movies unknown to the run are ignored. It is a security definer so that signed-in users
-- can call it without rights on movies, runs and priors. It reveals no row of a user, and of the movies only what any
-- list of recommendations does.
create or replace function public.recommend_from_ratings(
  ratings jsonb, k integer default 10,
  {{ choice_defaults() }}
) returns {{ list }}
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set jit = off as $mf$
declare
  run constant public.mf_runs := public.mf_run(recommend_from_ratings.of_run);
  wrong record;
  given {{ id }}[];
  rated {{ id }}[];
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
    when jsonb_typeof(e.value) <> 'object' or not coalesce(case jsonb_typeof({{ movie }})
{% if id == "bigint" %}
        when 'number' then case
          when ({{ movie }})::numeric between -9223372036854775808 and 9223372036854775807
          then trunc(({{ movie }})::numeric) = ({{ movie }})::numeric end
        when 'string' then case when e.value ->> 'movie_id' ~ '^\s*[-+]?\d{1,19}\s*$'
          then (e.value ->> 'movie_id')::numeric between -9223372036854775808 and 9223372036854775807 end
{% elif id == "uuid" %}
        when 'string' then e.value ->> 'movie_id' ~* '^\{?[0-9a-f]{4}(-?[0-9a-f]{4}){7}\}?$'
{% else %}
        when 'number' then case when abs(({{ movie }})::numeric) < 1e18 then scale(({{ movie }})::numeric) <= 18 end
        when 'string' then true
{% endif %}
        end, false) then 'entry'
    when run.mu is null and run.run_id is not null and coalesce(jsonb_typeof(e.value -> 'rating'), 'null') = 'null'
      then null
    when jsonb_typeof(e.value -> 'rating') is distinct from 'number' then 'entry'
    when run.mu is null then null
    when {{ star }} not between -1e30 and 1e30 then 'range'
    when round({{ star }}, 20)::real = any (run.ignore_ratings) then null
    when round({{ star }}, 20)::real not between run.rating_min::real and run.rating_max::real then 'range'
    end as fault) judged
  where judged.fault is not null order by e.place limit 1;
  if wrong.fault = 'range' then
    raise exception 'entry % of ratings is %, expected a rating from % to %', wrong.place, wrong.shown,
      run.rating_min::real, run.rating_max::real using errcode = 'invalid_parameter_value';
  elsif found then
    raise exception 'entry % of ratings is %, expected {"movie_id": {{ id }}, "rating": number}', wrong.place, wrong.shown
      using errcode = 'invalid_parameter_value';
  end if;
  if run.run_id is null then
    return;
  end if;
  select coalesce(array_agg(pair.id), '{}'), coalesce(array_agg(pair.id) filter (where pair.used), '{}'),
    coalesce(array_agg(pair.star) filter (where pair.used), '{}') into given, rated, stars
  from (
    select each.id, each.star, {{ counts("each.star") }} as used
    from (
      select distinct on (e.id) e.id, e.star
      from (
        select {% if id == "bigint" %}case jsonb_typeof({{ movie }}) when 'number' then ({{ movie }})::bigint
            else (e.value ->> 'movie_id')::bigint end{% else %}(e.value ->> 'movie_id')::{{ id }}{% endif %} as id,
          case jsonb_typeof(e.value -> 'rating') when 'number' then round({{ star }}, 20)::double precision end as star,
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
    recommend_from_ratings.skip, {{ filter_values("recommend_from_ratings") }}) best;
end
$mf$;
{% if user_id_type == "uuid" %}

-- recommend_movies for the signed-in user. It is a security definer and takes the user from the token alone: a
-- signed-in user gets this result and cannot read the tables, which policies would open to all signed-in users.
create or replace function public.recommend_for_me(
  k integer default 10, exclude_rated boolean default null,
  {{ choice_defaults() }}
) returns {{ list }}
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $mf$
declare
  me uuid;
begin
  begin
    me := auth.uid();
  exception when invalid_text_representation then
    raise exception 'the sub of the access token is no UUID, and recommend_for_me is for users of Supabase Auth: for those '
      'of another service, let a server call recommend_movies' using errcode = 'invalid_parameter_value';
  end;
  if me is null then
    raise exception 'nobody is signed in: send the access token of a user' using errcode = 'insufficient_privilege';
  end if;
  -- one statement, one run of mf_runs
  return query select best.* from public.recommend_movies(me, recommend_for_me.k, recommend_for_me.exclude_rated,
    recommend_for_me.without_ids, recommend_for_me.only_ids, recommend_for_me.skip, recommend_for_me.of_run
{%- for column in filters %}, recommend_for_me.{{ column | identifier }}{% endfor %}) best;
end
$mf$;
{% endif %}

-- The options of this migration, so that an export can check whether it fits.
create or replace function public.mf_schema() returns jsonb
language sql stable security invoker set search_path = pg_catalog, pg_temp as $mf$
  select {{ config | literal }}::jsonb
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
  {{ publish_lock }}
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

{% set star_values = [("biases", "bias", "real"), ("embeddings", "embedding", "text")] %}
{% for function, table, key, id_type, values in [
  ("users", "user_embeddings", "user_id", user_id_type, star_values),
  ("movies", "movie_embeddings", "movie_id", id, star_values),
  ("user_ranking", "user_ranking", "user_id", user_id_type, [("vectors", "vector", "text")]),
  ("movie_ranking", "movie_ranking", "movie_id", id, [("vectors", "vector", "text")]),
  ("movie_history", "movie_history", "movie_id", id,
    [("histories", "history", "text"), ("likings", "liking", "text")]),
  ("movie_counts", "movie_counts", "movie_id", id, [("counts", "n", "integer")])] %}
{% set columns = values | map(attribute=1) | join(", ") %}
-- Writes rows of a loading run; idempotent, and without effect if the same content has been published since. An export
-- whose run name has been taken by another content writes nothing.
create or replace function public.mf_load_{{ function }}(
  run text, content text, ids {{ id_type }}[]
{%- for name, _, type in values %}, {{ name }} {{ type }}[]{{ " default null" if values == star_values }}{% endfor %}

) returns void
language plpgsql security invoker set search_path = pg_catalog, pg_temp as $mf$
declare
  stands text;
begin
  -- The lock does not block a publish; removing the run or taking its name waits until these rows are committed.
  select r.status into stands from public.mf_runs r
  where r.run_id = mf_load_{{ function }}.run and r.content_hash = mf_load_{{ function }}.content for key share;
  if not found then
    raise exception 'the run % is no longer this export''s: another export took its name with another content, or it '
      'was removed; export again, one at a time', mf_load_{{ function }}.run;
  end if;
  if stands = 'loading' then
    insert into public.mf_{{ table }} (run_id, {{ key }}, {{ columns }})
    select mf_load_{{ function }}.run, given.id
{%- for _, column, type in values %}, given.{{ column }}{{ "::extensions.vector" if type == "text" }}{% endfor %}

    from unnest(mf_load_{{ function }}.ids
{%- for name, _, _ in values %}, mf_load_{{ function }}.{{ name }}{% endfor %})
      given (id, {{ columns }})
{% if key == "user_id" %}
    where not exists (select from public.mf_forgotten f where f.user_id = given.id)
{% endif %}
    -- An existing row is identical: rows of another content were deleted when this one took the name.
    on conflict do nothing;
{% if key == "user_id" %}
    insert into public.mf_withheld (run_id, lacks, user_id)
    select mf_load_{{ function }}.run, '{{ table }}', f.user_id
    from public.mf_forgotten f where f.user_id = any (mf_load_{{ function }}.ids)
    on conflict do nothing;
{% endif %}
  end if;
end
$mf$;

{% endfor %}
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
  {{ rank_by_stars("r.run_id = asked.run_id") | indent(2) }};
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
        'with (m = {{ m }}, ef_construction = {{ ef_construction }}) where run_id = %L',
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
  {{ publish_lock }}
  select r.* into asked from public.mf_runs r where r.run_id = mf_publish.run;
  if not found then
    raise exception 'there is no run %: mf_list_runs() lists all runs', coalesce(mf_publish.run, 'null');
  end if;
  if asked.status <> 'loading' then
    return jsonb_build_object('run_id', asked.run_id, 'changed', false,
      'published', (select r.run_id from public.mf_runs r where r.status = 'published'));
  end if;
  {{ rank_by_stars("r.run_id = asked.run_id") | indent(2) }};
  -- From here to the end of the transaction nobody is forgotten. Before any row of mf_runs is locked: mf_forget_user
  -- locks in this order, too.
  lock table public.mf_forgotten in share mode;
{% for table in ("user_embeddings", "user_ranking") %}
  with gone as (
    delete from public.mf_{{ table }} e using public.mf_forgotten f
    where e.run_id = asked.run_id and e.user_id = f.user_id returning e.user_id
  )
  insert into public.mf_withheld (run_id, lacks, user_id)
  select asked.run_id, '{{ table }}', gone.user_id from gone on conflict do nothing;
{% endfor %}
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
  {{ publish_lock }}
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
  {{ publish_lock }}
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
create or replace function public.mf_forget_user(forget {{ user_id_type }}) returns jsonb
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
{% for table, change in (
  ("user_embeddings", "n_users = r.n_users - 1"),
  ("user_ranking", "ranking = jsonb_set(r.ranking, '{users}', to_jsonb((r.ranking ->> 'users')::bigint - 1))")) %}
  with gone as (
    delete from public.mf_{{ table }} e
    where e.run_id in (select r.run_id from public.mf_runs r) and e.user_id = mf_forget_user.forget returning e.run_id
  ), fewer as (
    update public.mf_runs r set {{ change }} from gone where r.run_id = gone.run_id and r.status <> 'loading'
  ), withheld as (
    insert into public.mf_withheld (run_id, lacks, user_id)
    select r.run_id, '{{ table }}', mf_forget_user.forget
    from gone join public.mf_runs r on r.run_id = gone.run_id where r.status = 'loading'
    on conflict do nothing
  )
  select count(*) into of_table from gone;
  removed := removed + of_table;
{% endfor %}
  return jsonb_build_object('user_id', mf_forget_user.forget, 'rows', removed);
end
$mf$;

-- Supabase projects from before November 2026 grant new objects to everyone, later ones to nobody: revoke, then grant.
revoke all on public.mf_runs, public.mf_priors, public.mf_user_embeddings, public.mf_movie_embeddings,
  public.mf_movie_ranking, public.mf_movie_history, public.mf_user_ranking, public.mf_movie_counts,
  public.mf_forgotten, public.mf_withheld,
  public.{{ user_export_table | identifier }}, public.{{ movie_export_table | identifier }}
  from public, anon, authenticated;
{% set functions = ["recommend_movies", "similar_movies", "popular_movies", "recommend_from_ratings", "mf_nearest",
  "mf_run", "mf_fold_in", "mf_recommend", "mf_check_list", "mf_schema", "mf_register", "mf_load_users",
  "mf_load_movies", "mf_load_user_ranking", "mf_load_movie_ranking", "mf_load_movie_history", "mf_load_movie_counts",
  "mf_index", "mf_drop_indexes", "mf_publish", "mf_list_runs", "mf_rollback", "mf_prune", "mf_forget_user"] %}
{% if ratings_table %}
{% set functions = functions + ["mf_own_ratings"] %}
{% endif %}
revoke all on function public.{{ functions | join(", public.") }}, public.mf_drop_rows
  from public, anon, authenticated;
grant select, insert, update, delete
  on public.mf_runs, public.mf_priors, public.mf_user_embeddings, public.mf_movie_embeddings, public.mf_movie_ranking,
    public.mf_movie_history, public.mf_user_ranking, public.mf_movie_counts, public.mf_forgotten, public.mf_withheld
  to service_role;
grant select on public.{{ user_export_table | identifier }}, public.{{ movie_export_table | identifier }}
  to service_role;
grant execute on function public.{{ functions | join(", public.") }} to service_role;
grant execute on function public.recommend_from_ratings to authenticated;
{% if user_id_type == "uuid" %}
revoke all on function public.recommend_for_me from public, anon, authenticated, service_role;
grant execute on function public.recommend_for_me to authenticated;
{% endif %}
{% if ratings_table %}
do $mf$
begin
  execute (
    select format('grant select (%s) on {{ ratings | replace("'", "''") | replace("%", "%%") }} to service_role',
      string_agg(quote_ident(a.attname), ', '))
    from pg_attribute a
    where a.attrelid = {{ ratings | literal }}::regclass and a.attnum > 0 and not a.attisdropped
      and a.attname in ({{ user_column | literal }}, {{ movie_column | literal }}, {{ rating_column | literal }},
        {{ ([time_column] if time_column else times) | map("literal") | join(", ") }}));
end
$mf$;
{% endif %}
{% if items_table %}
revoke all on public.mf_items, public.mf_list, public.mf_similar, public.mf_popular from public, anon, authenticated;
revoke all on function {{ embeddings | join(", ") }} from public, anon, authenticated;
grant select on {{ items }}, public.mf_items to service_role;
grant execute on function {{ embeddings | join(", ") }} to service_role, authenticated{{ ", anon" if public_read == "movies" }};
{% endif %}

-- Public read access: none by default.
drop policy if exists mf_public_read on public.mf_runs;
drop policy if exists mf_public_read on public.mf_movie_embeddings;
drop policy if exists mf_public_read on public.mf_movie_history;
drop policy if exists mf_public_read on public.mf_movie_counts;
{% if public_read == "movies" %}
-- The view and similar_movies run with the caller's rights; of the tables the public sees the published run's movies,
-- and of the run its name.
create policy mf_public_read on public.mf_runs for select to anon, authenticated using (status = 'published');
create policy mf_public_read on public.mf_movie_embeddings for select to anon, authenticated
  using (run_id = (select r.run_id from public.mf_runs r where r.status = 'published'));
create policy mf_public_read on public.mf_movie_history for select to anon, authenticated
  using (run_id = (select r.run_id from public.mf_runs r where r.status = 'published'));
create policy mf_public_read on public.mf_movie_counts for select to anon, authenticated
  using (run_id = (select r.run_id from public.mf_runs r where r.status = 'published'));
grant select (run_id, status) on public.mf_runs to anon, authenticated;
grant select (run_id, movie_id, bias, embedding) on public.mf_movie_embeddings to anon, authenticated;
grant select (run_id, movie_id, history) on public.mf_movie_history to anon, authenticated;
grant select on public.{{ movie_export_table | identifier }} to anon, authenticated;
grant select (run_id, movie_id, n) on public.mf_movie_counts to anon, authenticated;
grant execute on function public.similar_movies, public.popular_movies, public.mf_nearest, public.mf_check_list
  to anon, authenticated;
{% if items_table %}
grant select on public.mf_items to anon, authenticated;
{% endif %}
{% endif %}

notify pgrst, 'reload schema';
commit;
