"""Pages of docs/ whose code blocks are run as they stand."""

import json
import re

import pytest
from playwright.sync_api import Page, expect
from walk import Walk


@pytest.fixture(scope="module")
def reader(fresh_stack, browser, tmp_path_factory) -> Walk:
    """A reader of the pages, with a database as new projects have it."""
    return Walk(fresh_stack(legacy_grants=False), tmp_path_factory.mktemp("reader"), browser)


def test_every_block_of_the_page_on_supabase_runs_in_order_in_one_database(reader):
    ran = list[str]()
    for block in reader.walk("supabase.md"):
        ran.append(block.language)
        if block.language == "js":
            mine, fresh = json.loads(reader.output)
            assert (len(mine), len(fresh)) == (5, 5)
            assert not {50, 81} & {row["movie_id"] for row in mine + fresh}
    assert {"sql", "sh", "python", "js"} <= set(ran)
    with reader.database.connect() as connection:
        assert len(connection.execute("select * from public.mf_list_runs()").fetchall()) == 2


def test_every_recipe_runs_after_that_page_in_the_same_database(reader):
    if "supabase.md" not in reader.pages:
        assert list(reader.walk("supabase.md"))
    reader.look, looked = look_at_react, 0
    for block in reader.walk("recipes.md"):
        looked += block.language == "jsx"
        if "movies(title)" in block.text and block.language == "sh":
            rows = json.loads(reader.output)
            assert len(rows) == 5
            assert all(re.fullmatch(r"Movie \d+", row["movies"]["title"]) for row in rows)
            if "genre=comedy" in block.text:
                assert all(row["movie_id"] % 2 == 0 and row["movie_id"] != 4 for row in rows)
        if "hidden" in reader.names:
            check_lists(reader.names)
        if "delete_user(" in block.text:
            check_forgotten(reader, reader.names.get("other", reader.names["user"]))
    assert looked == 1


def look_at_react(tab: Page) -> None:
    """The list, its titles and reasons, and its three buttons."""
    rows = tab.locator("li")
    expect(rows).to_have_count(5)
    expect(rows.first).to_have_text(
        re.compile(r"^Movie \d+ \(\w+\), about \d\.\d stars, because you liked Movie [24]hide$")
    )
    hidden = rows.first.inner_text().partition(" (")[0]
    rows.first.get_by_role("button", name="hide").click()
    expect(rows).to_have_count(4)
    tab.get_by_role("button", name="more").click()
    expect(rows).to_have_count(9)
    titles = [text.partition(" (")[0] for text in rows.all_inner_texts()]
    assert len({*titles, hidden, "Movie 2", "Movie 4"}) == 12
    tab.get_by_role("button", name="all genres").click()
    expect(rows).to_have_text([re.compile(r"\(comedy\)")] * 5)


def check_lists(names: dict) -> None:
    ids = {name: {row["movie_id"] for row in names[name]} for name in ("first", "second", "hidden", "dramas")}
    assert {len(found) for found in ids.values()} == {5}
    assert not ids["first"] & (ids["second"] | ids["hidden"])
    assert {row["movies"]["genre"] for row in names["dramas"]} == {"drama"}
    assert all(row["because_of"]["title"].startswith("Movie ") for row in names["first"])
    assert [len(names["popular"]), len(names["similar"])] == [5, 5]
    assert all(row["movies"]["title"] for row in names["popular"] + names["similar"])


def check_forgotten(reader: Walk, user: str) -> None:
    with reader.database.connect() as connection:
        for table in ("auth.users", "public.ratings", "public.mf_user_embeddings", "public.mf_user_ranking"):
            column = "id" if table == "auth.users" else "user_id"
            found = connection.execute(f"select count(*) from {table} where {column} = %s", [user]).fetchone()
            assert found == (0,), table
