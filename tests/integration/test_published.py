"""Reading the published run back over both connections."""

import json
from pathlib import Path

import numpy as np
import pytest
from planted import Planted, planted
from pydantic import SecretStr
from targets import direct, rest

from mf.errors import SupabaseError
from mf.local import LocalSupabase
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.credentials import Credentials
from mf.supabase.database import Database
from mf.supabase.direct_target import DirectTarget
from mf.supabase.rest_target import RestTarget
from mf.supabase.schema import migration
from mf.supabase.target import Target

TRAINED_ON = {"source": "r.csv", "columns": {"rating": "stars"}, "content_hash": "0a", "until": None}


def targets(stack: LocalSupabase) -> list[Target]:
    return [direct(stack), rest(stack)]


def export(target: Target, model: Planted, folder: Path, **fields: object) -> None:
    card = model.write(folder / model.run_id) / "model.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | fields))
    target.export(card.parent, ExportConfig())


@pytest.mark.parametrize("ids", ["bigint", "text", "uuid"])
def test_a_run_is_read_back_exactly_over_both_connections(fresh_stack, tmp_path, ids) -> None:
    stack = fresh_stack(max_rows=50)
    stack.migrate(migration(SchemaConfig(user_id_type=ids, movie_id_type=ids)))
    model = planted("r1", ids=ids)
    export(targets(stack)[0], model, tmp_path, trained_on=TRAINED_ON)
    for target in targets(stack):
        run = target.published_run()
        assert (run.header.run_id, run.header.factors, run.header.mu) == ("r1", 8, 3.5)
        assert (run.header.rating_min, run.header.rating_max) == (0.5, 5.0)
        assert (run.users, run.movies, run.trained_on.source, run.trained_on.until) == (120, 300, "r.csv", None)
        sides = zip(
            target.embeddings(run),
            ((model.user_ids, model.user_bias, model.p), (model.movie_ids, model.movie_bias, model.q)),
            strict=True,
        )
        for found, (ids_sent, bias, vectors) in sides:
            order = np.argsort(ids_sent)
            assert sorted(found.ids.to_pylist()) == sorted(ids_sent)
            mine = np.argsort(found.ids.to_pylist())
            np.testing.assert_array_equal(found.bias[mine], bias[order])
            np.testing.assert_array_equal(found.vectors[mine], vectors[order])
            assert found.vectors.dtype == found.bias.dtype == np.float32


def test_a_project_without_the_migration_or_without_a_run_has_none(fresh_stack) -> None:
    stack = fresh_stack()
    assert [target.published_run() for target in targets(stack)] == [None, None]
    stack.migrate(migration(SchemaConfig()))
    assert [target.published_run() for target in targets(stack)] == [None, None]


def test_the_named_run_is_read_after_another_publish_and_a_removed_one_is_an_error(fresh_stack, tmp_path) -> None:
    stack = fresh_stack()
    stack.migrate(migration(SchemaConfig()))
    over_database, over_api = targets(stack)
    models = [planted(f"r{seed}", seed=seed) for seed in range(3)]
    export(over_database, models[0], tmp_path)
    first = over_database.published_run()
    assert first.trained_on is None
    export(over_database, models[1], tmp_path)
    for target in (over_database, over_api):
        assert sorted(target.embeddings(first)[0].ids.to_pylist()) == sorted(models[0].user_ids)
    export(over_database, models[2], tmp_path)
    for target in (over_database, over_api):
        with pytest.raises(SupabaseError, match=r"^run r0 is not, or no longer, complete in the database: start again"):
            target.embeddings(first)


def test_a_database_that_is_down_or_refuses_is_an_error_not_the_absence_of_a_run(fresh_stack, monkeypatch) -> None:
    monkeypatch.setattr("mf.supabase.client.TRIES", 1)
    stack = fresh_stack()
    stack.migrate(migration(SchemaConfig()))
    elsewhere = RestTarget(Credentials("http://127.0.0.1:9", SecretStr(stack.secret_key)))
    nobody = DirectTarget(Database(SecretStr("postgresql://postgres:x@127.0.0.1:9/postgres")))
    anonymous = RestTarget(Credentials(stack.url, SecretStr(stack.publishable_key)))
    for target in (elsewhere, nobody, anonymous):
        with pytest.raises(SupabaseError):
            target.published_run()
