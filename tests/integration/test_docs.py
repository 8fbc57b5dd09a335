"""Pages of docs/ whose code blocks are run as they stand."""

import json

import pytest
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
