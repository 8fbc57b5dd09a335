"""The page of `make demo` in a real browser, and everything that its key can read."""

import base64
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from browser import accessibility_faults, picture, watch
from faults import Fault
from playwright.sync_api import Browser, Locator, Page, expect
from pydantic import SecretStr
from supabase import Client
from targets import pairs, rest

from mf.ingest import ingest
from mf.local import LocalSupabase, delete_home
from mf.local.gateway import Request
from mf.local.tools import default_cache, supabase_js
from mf.ranking import RankingConfig
from mf.ratings.config import IngestConfig
from mf.ratings.schema import read_ratings
from mf.ratings.titles import movies_beside
from mf.sample import Sample, write_sample
from mf.solvers.adam import AdamConfig
from mf.supabase.client import connect
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.credentials import Credentials
from mf.supabase.recommend import Recommendation, Similar, recommend_from_ratings, recommend_movies, similar_movies
from mf.supabase.schema import migration
from mf.train import train
from pipelines.laptop import demo
from pipelines.laptop.demo import data
from pipelines.laptop.demo.data import sample_data

ROOT = Path(__file__).parents[2]
HTTP = httpx.Client(trust_env=False, verify=False, timeout=300)

# Tables and views with their columns, and functions, of the schema that the API serves.
COLUMNS = """
select c.relname, array_agg(a.attname::text order by a.attnum)
from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f') group by c.relname order by 1
"""
FUNCTIONS = """
select p.proname, coalesce(p.proargnames[1:p.pronargs], '{}'), p.proargtypes::regtype[]::text[]
from pg_proc p where p.pronamespace = 'public'::regnamespace and p.prorettype <> 'trigger'::regtype order by 1
"""
ARGUMENTS: dict[str, Any] = {
    "uuid": "6f0a4c1e-8a53-4f5e-9a51-0d5a5e0a3c11", "bigint": 1, "integer": 5, "boolean": False, "text": "no run",
    "jsonb": [], "vector": "[1]", "uuid[]": [], "bigint[]": [], "real[]": [], "text[]": [],
    "integer[]": [],
    "double precision": 0, "double precision[]": [],
}  # fmt: skip
FOR_ALL = {
    "movies": {"movie_id", "title", "genres"},
    "movie_embeddings": {"movie_id", "bias", "embedding", "run_id"},
    "mf_movie_embeddings": {"movie_id", "bias", "embedding", "run_id"},
    "mf_movie_history": {"movie_id", "history", "run_id"},
    "mf_movie_counts": {"movie_id", "n", "run_id"},
    "mf_runs": {"run_id", "status"},
}
FOR_USERS = FOR_ALL | {"ratings": {"user_id", "movie_id", "rating", "rated_at"}}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return write_sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def runs(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small models of the sample, trained briefly."""
    work = tmp_path_factory.mktemp("runs")
    ingest(IngestConfig(ratings_csv=str(sample.ratings_csv)), work / "ratings.parquet", work / "rejects.csv")
    ratings, _ = read_ratings(work / "ratings.parquet")
    for name in ("earlier", "published"):
        config = AdamConfig(factors=4, epochs=3)
        lists = RankingConfig(factors=4)
        train(ratings, ratings.slice(0, 0), config, device=torch.device("cpu"), ranking=lists).save(work / name)
    return [work / "earlier", work / "published"]


def publish(supabase: LocalSupabase, runs: list[Path]) -> None:
    """The sample's database after a run of the pipeline."""
    supabase.migrate(migration(SchemaConfig(user_id_type="uuid", movie_id_type="bigint")))
    for run in runs:
        rest(supabase).export(run, ExportConfig())


@pytest.fixture(scope="module")
def supabase(fresh_stack: Any, runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> LocalSupabase:
    """The server of `make demo`, with an earlier run beside the published one."""
    supabase = fresh_stack()
    publish(supabase, runs)
    data = sample_data(tmp_path_factory.mktemp("home"))
    demo.prepare(supabase, data.ratings, data.movies)
    supabase.gateway.pages.update(demo.pages(supabase, supabase_js(default_cache()), data.people))
    return supabase


@pytest.fixture(scope="module")
def service(supabase: LocalSupabase) -> Iterator[Client]:
    with connect(Credentials(supabase.url, SecretStr(supabase.secret_key))) as client:
        yield client


@pytest.fixture(scope="module")
def users(supabase: LocalSupabase) -> dict[str, dict[str, Any]]:
    """The users who may sign in, by name."""
    config = HTTP.get(f"{supabase.url}/config.json").json()
    return {user["name"]: user for user in config["users"]}


@pytest.fixture
def page(browser: Browser, supabase: LocalSupabase) -> Iterator[Page]:
    page = browser.new_page()
    seen = watch(page)
    page.goto(supabase.url)
    expect(page.get_by_role("status")).to_contain_text("recommendations")
    yield page
    page.close()
    assert (seen.errors, seen.failed, seen.outside(supabase.url)) == ([], [], [])


def lines(items: Locator, unit: str = "of 5 stars") -> list[tuple[str, str]]:
    """The rows of a list, as (title, figure)."""
    parts = "rows => rows.map(row => ['button', '.number'].map(part => row.querySelector(part).textContent))"
    return [(title, figure.removesuffix(f" {unit}")) for title, figure in items.evaluate_all(parts)]


def shown(sample: Sample, rows: Sequence[Recommendation | Similar]) -> list[tuple[str, str]]:
    return [(sample.titles[movie], f"{value:.2f}") for movie, value in pairs(rows)]


def given_by(supabase: LocalSupabase, user: str) -> list[tuple[int, float]]:
    query = "select movie_id, rating from public.ratings where user_id = %s order by rating desc, rated_at desc"
    with supabase.connect() as connection:
        return connection.execute(query, [user]).fetchall()


def test_users_see_their_own_ratings_and_the_recommendations_that_the_service_role_gets(
    page: Page, supabase: LocalSupabase, service: Client, sample: Sample, users: dict[str, dict[str, Any]]
) -> None:
    for name in ("Ada", "Deniz"):
        user, rated = users[name]["user_id"], given_by(supabase, users[name]["user_id"])
        page.get_by_label("Signed in as").select_option(name)
        expect(page.get_by_role("status")).to_have_text(f"10 recommendations from {len(rated)} ratings of {name}.")
        best = recommend_movies(service, user, 10, exclude_rated=True)
        assert lines(page.locator("#recommended li")) == shown(sample, best)
        page.get_by_role("button", name=f"Show all {len(rated)}").click()
        assert page.locator("#history li").count() == len(rated)
        expect(page.locator("#history li").last).to_be_visible()
        history = [(sample.titles[movie], f"{rating:.1f}") for movie, rating in rated]
        assert lines(page.locator("#history li:nth-child(-n + 12)")) == history[:12]
        assert not {movie for movie, _ in rated} & {row.movie_id for row in best}


def test_a_title_shows_similar_movies_and_the_keyboard_alone_is_enough(
    page: Page, service: Client, sample: Sample
) -> None:
    first = page.locator("#recommended button").first
    ids = {title: movie for movie, title in sample.titles.items()}
    title = first.inner_text()
    first.press("Enter")
    for _ in range(2):  # a similar movie has similar movies too
        expect(page.get_by_role("dialog", name=title)).to_be_visible()
        expect(page.locator("#similar-list li")).to_have_count(6)
        similar = shown(sample, similar_movies(service, ids[title], 6))
        assert lines(page.locator("#similar-list li"), "similarity") == similar
        title = similar[0][0]
        page.get_by_role("dialog").get_by_role("button", name=title, exact=True).press("Enter")
        expect(page.get_by_role("heading", name=title)).to_be_focused()
    assert accessibility_faults(page) == []
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(first).to_be_focused()


def test_somebody_new_rates_a_few_movies_and_gets_recommendations_at_once(
    page: Page, service: Client, sample: Sample
) -> None:
    page.get_by_label("Signed in as").select_option(demo.NEWCOMER)
    expect(page.get_by_text("What most people like")).to_be_visible()
    expect(page.locator("#recommended li:not(.skeleton)")).to_have_count(10)
    rate = page.locator("#rate")
    expect(rate.get_by_role("group")).to_have_count(8)
    assert lines(page.locator("#recommended li")) == shown(sample, recommend_from_ratings(service, {}, 10))

    popular = [one["movie_id"] for one in service.rpc("popular_movies", {"k": 8}).execute().data]
    assert rate.locator("button.title").all_inner_texts() == [sample.titles[movie] for movie in popular]
    ratings: dict[Any, float] = {}
    for place, star in ((1, 5), (0, 1), (6, 4), (0, 3)):  # the last one changes a rating
        movie = popular[place]
        ratings[movie] = star
        choice = rate.get_by_role("group", name=sample.titles[movie]).get_by_role("radio", name=f"{star} star")
        choice.press("Space")
        expect(choice).to_be_checked()
        expect(page.get_by_role("status")).to_contain_text(f" from {len(ratings)} rating")
        expect(page.locator("#recommended[aria-busy]")).to_have_count(0)
        assert lines(page.locator("#recommended li")) == shown(sample, recommend_from_ratings(service, ratings, 10))

    page.get_by_role("button", name="Show more movies").click()
    expect(rate.get_by_role("group")).to_have_count(16)
    expect(rate.get_by_role("radio", checked=True)).to_have_count(3)
    page.get_by_role("button", name="Start over").click()
    expect(page.get_by_text("What most people like")).to_be_visible()
    expect(rate.get_by_role("radio", checked=True)).to_have_count(0)


def test_a_known_user_sees_reasons_and_rates_and_hides_recommended_movies(
    page: Page, supabase: LocalSupabase, service: Client, sample: Sample, users: dict[str, dict[str, Any]]
) -> None:
    rated = given_by(supabase, users["Ada"]["user_id"])
    best = recommend_movies(service, users["Ada"]["user_id"], 10, exclude_rated=True)
    reasons = [f"Because you rated {sample.titles[one.because]}" for one in best if one.because]
    assert len(reasons) > 5
    assert page.locator("#recommended .because").all_inner_texts() == reasons

    first, second = best[0].movie_id, best[1].movie_id
    page.get_by_role("button", name=f"Hide {sample.titles[first]}").press("Enter")
    expect(page.locator("#recommended")).not_to_contain_text(sample.titles[first])
    expect(page.get_by_role("heading", name="Recommended")).to_be_focused()
    without = recommend_movies(service, users["Ada"]["user_id"], 10, exclude_rated=True, without_ids=[first])
    expect(page.locator("#recommended[aria-busy]")).to_have_count(0)
    assert lines(page.locator("#recommended li")) == shown(sample, without)

    group = page.locator("#recommended").get_by_role("group", name=f"Rate {sample.titles[second]}")
    group.get_by_role("radio", name="1 star").press("Space")
    expect(page.get_by_role("status")).to_have_text(f"10 recommendations from {len(rated) + 1} ratings of Ada.")
    new = recommend_from_ratings(service, {**dict(rated), second: 1.0}, 10, without_ids=[first])
    assert lines(page.locator("#recommended li")) == shown(sample, new)
    page.get_by_role("button", name="Show what is hidden").click()
    expect(page.get_by_role("button", name="Show what is hidden")).to_be_hidden()


def test_every_title_of_any_list_can_be_rated_and_hidden(
    page: Page, supabase: LocalSupabase, service: Client, sample: Sample, users: dict[str, dict[str, Any]]
) -> None:
    rated = dict(given_by(supabase, users["Ada"]["user_id"]))
    best, second = list(rated)[:2]
    page.get_by_label("Search titles").fill("train")
    expect(page.get_by_role("region", name="Found")).to_be_visible()
    page.locator("#recommended button").first.press("Enter")
    expect(page.locator("#similar-list li")).to_have_count(6)
    for selector in ("#recommended", "#found", "#history", "#similar-list"):
        movies = page.locator(selector).locator("li:not(.skeleton)")
        titles = page.locator(selector).locator("button.title").all_inner_texts()
        assert len(titles) == movies.count() > 3, selector
        for kind in ("group", "button"):
            named = page.locator(selector).get_by_role(kind, name=re.compile("^(Rate|Hide) "), include_hidden=True)
            assert named.count() == len(titles), selector
    # What is changed in the dialog and in the history counts in the list.
    similar = page.locator("#similar-list button.title").first.inner_text()
    page.locator("#similar-list").get_by_role("button", name=f"Hide {similar}").press("Enter")
    expect(page.locator("#similar-list li")).to_have_count(5)
    page.keyboard.press("Escape")
    history = page.locator("#history")
    history.get_by_role("group", name=f"Rate {sample.titles[best]}").get_by_role("radio", name="1 star").press("Space")
    history.get_by_role("button", name=f"Hide {sample.titles[second]}").press("Enter")
    expect(page.get_by_role("status")).to_have_text(f"10 recommendations from {len(rated) - 1} ratings of Ada.")
    rated = {movie: 1.0 if movie == best else rating for movie, rating in rated.items() if movie != second}
    hidden = [second, next(movie for movie, title in sample.titles.items() if title == similar)]
    new = recommend_from_ratings(service, rated, 10, without_ids=hidden)
    assert lines(page.locator("#recommended li")) == shown(sample, new)
    page.get_by_role("button", name="Show what is hidden").click()
    expect(history).to_contain_text(sample.titles[second])


def test_tiles_have_genres_and_skeletons_stand_where_movies_will_be(
    page: Page, supabase: LocalSupabase, service: Client, sample: Sample, users: dict[str, dict[str, Any]]
) -> None:
    movies = movies_beside(str(sample.ratings_csv))
    best = recommend_movies(service, users["Ada"]["user_id"], 10, exclude_rated=True)
    genres = [" · ".join(movies[str(one.movie_id)].genres) for one in best]
    assert page.locator("#recommended .genres").all_inner_texts() == genres
    assert all(" · " in text for text in genres)

    def waits(request: Request) -> Fault | None:
        return Fault(delay_s=1.0) if request.path.endswith(("recommend_for_me", "ratings")) else None

    supabase.gateway.faults.append(waits)
    try:
        page.get_by_label("Signed in as").select_option("Chloe")
        expect(page.locator("#recommended .skeleton")).to_have_count(10)
        assert accessibility_faults(page) == []
        expect(page.get_by_role("status")).to_contain_text("of Chloe.")
    finally:
        supabase.gateway.faults.clear()
    expect(page.locator(".skeleton")).to_have_count(0)


def test_titles_are_searched_and_wildcards_are_letters(page: Page, sample: Sample) -> None:
    found = sorted(title for title in sample.titles.values() if "train" in title.lower())[:10]
    page.get_by_label("Search titles").fill("TRAIN")
    expect(page.get_by_role("status")).to_have_text(f"{len(found)} titles with “TRAIN”.")
    assert page.locator("#found button.title").all_inner_texts() == found
    assert accessibility_faults(page) == []
    page.get_by_label("Search titles").fill("%")
    expect(page.get_by_role("status")).to_have_text("No title has “%” in it.")
    page.get_by_label("Search titles").fill("")
    expect(page.get_by_role("region", name="Found")).to_be_hidden()


def test_without_a_server_the_page_says_so_and_tries_again(browser: Browser, supabase: LocalSupabase) -> None:
    page = browser.new_page()
    page.goto(supabase.url)
    expect(page.get_by_role("status")).to_contain_text("recommendations")
    page.route("**/rest/**", lambda route: route.abort("connectionrefused"))
    page.get_by_label("Signed in as").select_option("Ben")
    expect(page.get_by_role("status")).to_have_text("The server is not running.", timeout=20_000)
    page.unroute("**/rest/**")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("status")).to_contain_text("of Ben.")
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()
    page.close()


def test_a_late_response_to_an_earlier_request_is_not_shown(
    page: Page, supabase: LocalSupabase, service: Client, sample: Sample, users: dict[str, dict[str, Any]]
) -> None:
    late = iter([True])

    def first_waits(request: Request) -> Fault | None:
        return Fault(delay_s=0.6) if request.path.endswith("recommend_for_me") and next(late, False) else None

    supabase.gateway.faults.append(first_waits)
    try:
        page.get_by_label("Signed in as").select_option("Chloe")
        page.get_by_label("Signed in as").select_option("Ben")
        expect(page.get_by_role("status")).to_contain_text("of Ben.")
        page.wait_for_timeout(1000)
    finally:
        supabase.gateway.faults.clear()
    assert next(late, None) is None
    best = recommend_movies(service, users["Ben"]["user_id"], 10, exclude_rated=True)
    assert lines(page.locator("#recommended li")) == shown(sample, best)
    expect(page.get_by_role("status")).to_contain_text("of Ben.")


def test_an_error_is_shown_as_a_sentence(browser: Browser, supabase: LocalSupabase) -> None:
    def expired(request: Request) -> Fault | None:
        said = b'{"code": "PGRST301", "message": "JWT expired"}'
        return Fault(status=401, body=said, content_type="application/json") if "/rpc/" in request.path else None

    page = browser.new_page()
    supabase.gateway.faults.append(expired)
    try:
        page.goto(supabase.url)
        expect(page.get_by_role("status")).to_have_text("The sign-in has expired: load the page again.")
    finally:
        supabase.gateway.faults.clear()
        page.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_cut_off_too_small_to_touch_or_without_a_name(page: Page, width: int, tmp_path: Path) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    for name, region in (("Ada", "Already rated"), (demo.NEWCOMER, "Rate a few movies")):
        page.get_by_label("Signed in as").select_option(name)
        expect(page.get_by_role("region", name=region)).to_be_visible()
        expect(page.locator("[aria-busy]")).to_have_count(0)
        page.screenshot(path=tmp_path / f"{name}-{width}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert accessibility_faults(page) == []
        controls = page.locator("button:visible, select:visible, label:has(input):visible")
        sizes = controls.evaluate_all("all => all.map(one => [one.offsetWidth, one.offsetHeight])")
        assert len(sizes) > 10
        assert [size for size in sizes if size[0] < 28 or size[1] < 44] == []
    # A snapshot names a control by what a screen reader says of it; one without a name stands there bare.
    snapshot = page.locator("body").aria_snapshot()
    assert 'combobox "Signed in as"' in snapshot
    assert snapshot.count('radio "') == 5 * (8 + 10)
    assert not re.search(r"- (button|radio|combobox|listitem|heading|region)\s*$", snapshot, re.MULTILINE)


@pytest.mark.parametrize(("width", "height", "scheme"), [(1280, 800, "light"), (390, 844, "dark")])
def test_pictures_of_the_demo(
    browser: Browser, supabase: LocalSupabase, tmp_path: Path, width: int, height: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(supabase.url)
    expect(page.get_by_role("status")).to_contain_text("10 recommendations")
    if width == 390:
        page.get_by_label("Signed in as").select_option(demo.NEWCOMER)
        expect(page.get_by_role("status")).to_contain_text("of Somebody new.")
        tile = page.locator("#recommended li").first.bounding_box()
        assert tile is not None
        assert tile["y"] + tile["height"] < height  # the list of a new user is on a phone's first screen
    expect(page.locator("[aria-busy]")).to_have_count(0)
    assert accessibility_faults(page) == []
    assert picture(page, f"demo-{width}-{scheme}", tmp_path).stat().st_size < 200_000
    page.close()


def test_the_page_sends_only_its_key_and_one_users_token(
    browser: Browser, supabase: LocalSupabase, users: dict[str, dict[str, Any]]
) -> None:
    page = browser.new_page()
    asked: list[Any] = []
    page.on("request", lambda request: asked.append(request) if "/rest/v1/" in request.url else None)
    page.goto(supabase.url)
    expect(page.get_by_role("status")).to_contain_text("10 recommendations")
    assert len(asked) == 3
    for request in asked:
        headers = request.all_headers()
        assert headers["apikey"] == supabase.publishable_key
        claims = headers["authorization"].split(".")[1]
        assert json.loads(base64.urlsafe_b64decode(claims + "==="))["sub"] == users["Ada"]["user_id"]
    page.close()


def test_no_served_file_holds_a_secret(supabase: LocalSupabase) -> None:
    password = re.search(r":([^:@]+)@", supabase.db_url)
    assert password
    secrets = [supabase.secret_key, supabase.service_role_key, supabase.keys.jwt_secret, password[1]]
    assert len(supabase.gateway.pages) == 5
    for path in [*supabase.gateway.pages, "/index.html", "/tables.sql", "/__init__.py", "/../__init__.py"]:
        answer = HTTP.get(f"{supabase.url}{path}")
        assert answer.status_code == (200 if path in supabase.gateway.pages else 404)
        assert answer.content
        assert [secret for secret in secrets if secret.encode() in answer.content] == []
    assert supabase.publishable_key in HTTP.get(f"{supabase.url}/config.json").text


class Caller:
    """Who has the page's key and, when signed in, the token that the page has."""

    def __init__(self, supabase: LocalSupabase, token: str | None) -> None:
        self.url = f"{supabase.url}/rest/v1/"
        self.headers = {
            "apikey": supabase.publishable_key,
            "Authorization": f"Bearer {token or supabase.publishable_key}",
        }

    def ask(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> httpx.Response:
        return HTTP.request(method, f"{self.url}{path}", headers=self.headers | headers, json=body)


@pytest.fixture(params=["nobody signed in", "Ada", demo.NEWCOMER])
def caller(request: pytest.FixtureRequest, supabase: LocalSupabase, users: dict[str, dict[str, Any]]) -> Caller:
    return Caller(supabase, users[request.param]["token"] if request.param in users else None)


def test_the_pages_key_reads_only_the_intended_tables_and_columns(
    caller: Caller, request: pytest.FixtureRequest, supabase: LocalSupabase, users: dict[str, dict[str, Any]]
) -> None:
    who = request.node.callspec.params["caller"]
    with supabase.connect() as connection:
        relations = dict(connection.execute(COLUMNS).fetchall())
        (published,) = (
            connection.execute("select run_id from public.mf_runs where status = 'published'").fetchone() or ()
        )
        (movies,) = connection.execute("select count(*) from public.movies").fetchone() or ()
    assert relations.keys() >= {"ratings", "movies", "user_embeddings", "mf_user_embeddings", "mf_priors"}
    rows: dict[str, list[dict[str, Any]]] = {}
    for relation, columns in relations.items():
        answers = {column: caller.ask(f"{relation}?select={column}") for column in columns}
        assert {answer.status_code for answer in answers.values()} <= {200, 401, 403}
        readable = {column for column, answer in answers.items() if answer.status_code == 200}
        if readable:
            rows[relation] = caller.ask(f"{relation}?select={','.join(sorted(readable))}").json()
            assert readable == FOR_USERS[relation]

    assert set(rows) == set(FOR_ALL if who == "nobody signed in" else FOR_USERS)
    assert len(rows["movies"]) == len(rows["movie_embeddings"]) == len(rows["mf_movie_embeddings"]) == movies
    assert rows["mf_runs"] == [{"run_id": published, "status": "published"}]
    assert {row["run_id"] for row in rows["movie_embeddings"] + rows["mf_movie_embeddings"]} == {published}
    if who in users:
        own = given_by(supabase, users[who]["user_id"])
        assert {(row["movie_id"], row["rating"]) for row in rows["ratings"]} == set(own)
        assert {row["user_id"] for row in rows["ratings"]} == ({users[who]["user_id"]} if own else set())
        assert bool(own) == (who != demo.NEWCOMER)
        # Neither do the ways around: along the foreign key, and by asking for another's rows by name.
        along = caller.ask("movies?select=movie_id,ratings(user_id)").json()
        assert {rating["user_id"] for movie in along for rating in movie["ratings"]} <= {users[who]["user_id"]}
        assert caller.ask(f"ratings?user_id=eq.{users['Ben']['user_id']}").json() == []


def test_the_pages_key_calls_only_the_intended_functions(
    caller: Caller, request: pytest.FixtureRequest, supabase: LocalSupabase
) -> None:
    with supabase.connect() as connection:
        functions = connection.execute(FUNCTIONS).fetchall()
        earlier, published = (
            run for (run,) in connection.execute("select run_id from public.mf_runs order by published_at").fetchall()
        )
    assert {name for name, _, _ in functions} >= {"recommend_movies", "mf_load_users", "mf_publish", "mf_prune"}
    called, movies = set(), 0
    for name, names, types in functions:
        arguments = {argument: ARGUMENTS[kind] for argument, kind in zip(names, types, strict=True)}
        if name == "mf_nearest":
            arguments |= {"of_run": published, "vectors": "embedding", "target": "[1,0,0,0]"}
        arguments |= {argument: None for argument in arguments if argument == "only_ids"}
        arguments |= {argument: None for argument in arguments if argument == "of_run" and name != "mf_nearest"}
        answer = caller.ask(f"rpc/{name}", "POST", arguments)
        if answer.status_code == 200:
            called.add(name)
            assert all("movie_id" in row and not row.keys() & {"user_id", "embedding"} for row in answer.json())
            movies += len(answer.json())
        elif name == "mf_check_list":
            assert answer.status_code == 204  # reads nothing
        else:
            assert (answer.status_code, answer.json()["code"]) in ((401, "42501"), (403, "42501"))
    for_users = {"recommend_for_me", "recommend_from_ratings"}
    is_user = request.node.callspec.params["caller"] != "nobody signed in"
    assert called == {"similar_movies", "popular_movies", "mf_nearest"} | (for_users if is_user else set())
    assert movies == 5 * len(called)
    nearest = {"vectors": "embedding", "target": "[1,0,0,0]", "k": 5, "without_ids": []}
    assert caller.ask("rpc/mf_nearest", "POST", nearest | {"of_run": earlier}).json() == []


def test_the_pages_key_writes_nothing_and_sees_no_other_schema(caller: Caller, supabase: LocalSupabase) -> None:
    with supabase.connect() as connection:
        relations = dict(connection.execute(COLUMNS).fetchall())
        schemas = [name for (name,) in connection.execute("select nspname from pg_namespace") if name != "public"]
    for relation, (column, *_) in relations.items():
        for method, path in (
            ("POST", relation),
            ("PATCH", f"{relation}?{column}=is.null"),
            ("DELETE", f"{relation}?{column}=is.null"),
        ):
            answer = caller.ask(path, method, None if method == "DELETE" else {column: None})
            assert (answer.status_code, answer.json()["code"]) in ((401, "42501"), (403, "42501")), (method, relation)
    for schema in schemas:
        assert caller.ask("users", **{"Accept-Profile": schema}).status_code == 406


@pytest.fixture
def published_home(tmp_path: Path, runs: list[Path]) -> Iterator[Path]:
    """A home where `make run` has published the sample."""
    home = tmp_path / "home"
    (home / "supabase").mkdir(parents=True)
    with LocalSupabase(home / "supabase", "sample") as supabase:
        publish(supabase, runs[:1])
    yield home
    delete_home(home / "supabase")


def test_make_demo_serves_the_published_run_until_ctrl_c_and_leaves_nothing_running(published_home: Path) -> None:
    command = [sys.executable, "-m", "pipelines", "demo", "--home", str(published_home)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout
            address = next(line.split()[-1] for line in process.stdout if line.startswith("the demo "))
            assert "<title>" in HTTP.get(address).text
            ada = HTTP.get(f"{address}config.json").json()
            headers = {"apikey": ada["key"], "Authorization": f"Bearer {ada['users'][0]['token']}"}
            body = {"k": 3, "exclude_rated": True}
            best = HTTP.post(f"{address}rest/v1/rpc/recommend_for_me", headers=headers, json=body).json()
            assert len(best) == 3
            family = psutil.Process(process.pid).children(recursive=True)
            assert len(family) > 2
            os.killpg(process.pid, signal.SIGINT)  # like a terminal, to the whole foreground group
            said = process.communicate(timeout=30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, said[1]) == (0, "")
    assert [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []


@pytest.fixture
def other(request: pytest.FixtureRequest, fresh_stack: Any, tmp_path: Path) -> LocalSupabase:
    """The server of `make demo RATINGS=…` with ratings of 10 to 100, text ids and hostile titles, or with clicks."""
    rng = random.Random(0)
    pairs = [(user, movie) for user in range(40) for movie in range(60) if rng.random() < 0.3]
    if request.param == "clicks":
        rows = ["userId,itemId", *(f"{user},{movie}" for user, movie in pairs)]
    else:
        rows = ["userId,itemId,rating", *(f"{u},m {m},{10 * rng.randint(1, 10)}" for u, m in pairs)]
        hostile = '"<img src=x onerror=document.title=1>"'
        titles = ["item_id;name;genre;year", *(f"m {movie};{hostile}{movie};<b>war;1999" for movie in range(60))]
        (tmp_path / "movies.csv").write_text("\n".join(titles))
    (tmp_path / "ratings.csv").write_text("\n".join(rows))
    found = data.file_data(tmp_path / "ratings.csv", {}, tmp_path / "home")
    config, lists = AdamConfig(factors=4, epochs=2), RankingConfig(factors=4)
    model = train(found.ratings, found.ratings.slice(0, 0), config, device=torch.device("cpu"), ranking=lists)
    model.save(tmp_path / "model")
    supabase: LocalSupabase = fresh_stack()
    demo.prepare(supabase, found.ratings, found.movies)
    rest(supabase).export(tmp_path / "model", ExportConfig())
    supabase.gateway.pages.update(demo.pages(supabase, supabase_js(default_cache()), found.people))
    return supabase


@pytest.mark.parametrize("other", ["clicks", "ratings"], indirect=True)
def test_ratings_of_another_range_and_clicks_are_shown_too(
    browser: Browser, other: LocalSupabase, request: pytest.FixtureRequest
) -> None:
    clicks = request.node.callspec.params["other"] == "clicks"
    page = browser.new_page(viewport={"width": 390, "height": 844})
    seen = watch(page)
    page.goto(other.url)
    status = page.get_by_role("status")
    expect(status).to_have_text(re.compile(r"10 recommendations from \d+ (ratings|choices) of User \d+\."))
    assert ("choices" in status.inner_text()) == clicks
    before = page.locator("#recommended button.title").all_inner_texts()
    rated = int(re.findall(r"from (\d+)", status.inner_text())[0])
    tile = page.locator("#recommended li").first
    if clicks:
        assert page.locator(".stars, .star, .number").count() == 0
        assert all(re.fullmatch(r"Movie \d+", title) for title in before)
        tile.get_by_role("button", name=f"I like it {before[0]}").press("Enter")
    else:
        assert re.fullmatch(r"<img src=x onerror=document.title=1>\d+ \(1999\)", before[0])
        assert page.locator("#recommended .genres").first.inner_text() == "<b>war"
        figures = [float(text.split()[0]) for text in tile.locator(".number").all_text_contents()]
        assert 10 <= figures[0] <= 100
        assert "from 10 to 100" in (tile.locator(".number").first.text_content() or "")
        assert set(page.locator("#history .number").all_text_contents()) <= {
            f"{10 * n} from 10 to 100" for n in range(1, 11)
        }
        tile.get_by_role("radio", name="5 stars").press("Space")
    unit = "choices" if clicks else "ratings"
    expect(status).to_have_text(re.compile(rf"from {rated + 1} {unit} of"))
    expect(page.locator("#recommended[aria-busy]")).to_have_count(0)
    assert before[0] not in page.locator("#recommended button.title").all_inner_texts()
    page.get_by_label("Signed in as").select_option(demo.NEWCOMER)
    expect(status).to_contain_text("of Somebody new.")
    expect(page.locator("[aria-busy]")).to_have_count(0)
    assert page.locator("#rate li").count() == 8
    assert accessibility_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert (seen.errors, seen.failed) == ([], [])
    page.close()
