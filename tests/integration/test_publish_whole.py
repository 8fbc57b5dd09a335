"""Every statement of a reader sees one complete run, also when exporters are killed."""

import pytest
from planted import planted
from targets import api, direct, rest

from benchmarks.publish import disturbed
from benchmarks.sampled import servers_cpu_s
from mf.supabase.client import call
from mf.supabase.config import ExportConfig
from mf.supabase.recommend import published_run


def test_readers_see_whole_runs_through_fifty_publishes_kills_and_lost_connections(database, tmp_path):
    saw = disturbed(database, tmp_path, 50)
    assert saw["examples"] == []
    assert saw["wrong"] == 0
    assert saw["publishes"] == 50
    assert saw["killed"] >= 5
    assert saw["cut"] >= 1
    assert saw["runs"] >= 25
    assert saw["reads"] >= 200
    with database.connect() as connection:
        runs = connection.execute("select run_id, status from public.mf_runs order by published_at").fetchall()
    assert runs == [("r49", "retired"), ("r50", "published")]


def test_the_cpu_seconds_of_the_servers_count_backends_that_have_ended(database):
    before, slow = servers_cpu_s(), "select count(*) from generate_series(1, 1500000)"
    with database.connect() as connection:
        connection.execute(slow)
    first = servers_cpu_s() - before
    with database.connect() as connection:
        connection.execute(slow)
        connection.execute(slow)
    assert 0.03 < first < servers_cpu_s() - before - first


@pytest.mark.parametrize("connection", [direct, rest])
def test_a_paging_reader_keeps_its_run_until_the_publish_after_the_next(database, tmp_path, connection):
    models = [planted(f"r{seed}", seed=seed) for seed in range(3)]

    def publish(model):
        directory = model.write(tmp_path / model.run_id)
        connection(database).export(directory, ExportConfig())

    def page(after):
        rows = client.table("mf_user_embeddings").select("user_id,bias").eq("run_id", run).order("user_id").limit(25)
        return call(rows.gt("user_id", after), "read a page")

    with api(database) as client:
        publish(models[0])
        run = published_run(client)["run_id"]
        read = page(0)
        publish(models[1])
        assert call(client.rpc("mf_prune"), "prune") == {"removed": []}
        while rows := page(read[-1]["user_id"]):
            read += rows
        expected = sorted(zip(models[0].user_ids, models[0].user_bias.tolist(), strict=True))
        assert [row["user_id"] for row in read] == [user for user, _ in expected]
        assert [row["bias"] for row in read] == pytest.approx([bias for _, bias in expected], rel=1e-6)
        publish(models[2])
        assert page(0) == []
