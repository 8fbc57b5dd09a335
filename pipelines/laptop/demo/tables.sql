-- The app's own tables, beside what `python -m mf schema` makes: what its users may read of them stands here.
drop table if exists public.ratings, public.movies;

create table public.movies (
  movie_id bigint primary key,
  title text not null
);
create table public.ratings (
  user_id uuid not null, -- auth.users.id, in a project with Supabase Auth
  movie_id bigint not null references public.movies, -- lets the API give a rating with its movie's title
  rating real not null,
  rated_at timestamptz not null default now(),
  primary key (user_id, movie_id)
);

-- Projects made before 30 October 2026 open a new table to everybody, later ones to nobody: from here on both are alike.
revoke all on public.movies, public.ratings from anon, authenticated, service_role;
alter table public.movies enable row level security;
alter table public.ratings enable row level security;

-- Titles are for everybody.
grant select on public.movies to anon, authenticated;
create policy "everybody reads the movies" on public.movies for select to anon, authenticated using (true);

-- A rating is for who gave it. The select around auth.uid() has it evaluated once a query, not once a row.
grant select on public.ratings to authenticated;
create policy "users read their own ratings" on public.ratings for select to authenticated
  using (user_id = (select auth.uid()));

-- What a training reads: the pipeline's import.
grant select on public.ratings to service_role;
