-- The app's own tables, with the grants and policies for its users. `python -m mf schema` prints the model's tables.
drop table if exists public.ratings, public.movies;

create table public.movies (
  movie_id bigint primary key,
  title text not null,
  genres text[] not null default '{}'
);
create table public.ratings (
  user_id uuid not null, -- auth.users.id, in a project with Supabase Auth
  movie_id bigint not null references public.movies, -- lets the API return a rating with the movie's title
  rating real not null,
  rated_at timestamptz not null default now(),
  primary key (user_id, movie_id)
);

-- Projects created before 30 October 2026 grant a new table to everybody, later ones to nobody; this makes both alike.
revoke all on public.movies, public.ratings from anon, authenticated, service_role;
alter table public.movies enable row level security;
alter table public.ratings enable row level security;

-- Everybody may read titles.
grant select on public.movies to anon, authenticated;
create policy "everybody reads the movies" on public.movies for select to anon, authenticated using (true);

-- A user may read their own ratings. The select around auth.uid() evaluates it once per query instead of once per row.
grant select on public.ratings to authenticated;
create policy "users read their own ratings" on public.ratings for select to authenticated
  using (user_id = (select auth.uid()));

-- The training pipeline reads the ratings.
grant select on public.ratings to service_role;
