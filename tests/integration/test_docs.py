"""Pages of docs/ whose code blocks are run as they stand."""

import json

from walk import walk


def test_every_block_of_the_page_on_supabase_runs_in_order_in_one_database(fresh_stack, browser, tmp_path):
    database = fresh_stack(legacy_grants=False)  # as new projects have
    ran = list[str]()
    for block, reader in walk("supabase.md", database, tmp_path, browser):
        ran.append(block.language)
        if block.language == "js":
            mine, fresh = json.loads(reader.output)
            assert (len(mine), len(fresh)) == (5, 5)
            assert not {50, 81} & {row["movie_id"] for row in mine + fresh}
    assert {"sql", "sh", "python", "js"} <= set(ran)
    with database.connect() as connection:
        assert len(connection.execute("select * from mf_list_runs()").fetchall()) == 2
