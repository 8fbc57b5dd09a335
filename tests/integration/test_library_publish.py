"""`Model.publish`: judged, and SQL answers what the library answers."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import SecretStr
from supabase import Client

import mf
from mf.local import LocalSupabase
from mf.sample import write_sample
from mf.supabase.client import connect
from mf.supabase.config import SchemaConfig
from mf.supabase.credentials import Credentials
from mf.supabase.recommend import published_run, recommend_from_ratings, recommend_movies, similar_movies
from mf.supabase.schema import migration


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, pd.DataFrame]:
    ratings = pd.read_csv(write_sample(tmp_path_factory.mktemp("sample") / "sample").ratings_csv)
    test = ratings.sample(frac=0.1, random_state=0)
    return ratings.drop(test.index), test


@pytest.fixture(scope="module")
def model(parts: tuple[pd.DataFrame, pd.DataFrame]) -> mf.Model:
    return mf.fit(parts[0], factors=8, epochs=20)


@pytest.fixture(scope="module")
def project(fresh_stack: Callable[..., LocalSupabase]) -> LocalSupabase:
    project = fresh_stack()
    project.migrate(migration(SchemaConfig(user_id_type="uuid")))
    return project


@pytest.fixture(scope="module")
def client(project: LocalSupabase) -> Any:
    with connect(Credentials(project.url, SecretStr(project.secret_key))) as client:
        yield client


def test_only_a_judged_model_is_published_and_sql_gives_its_lists(
    model: mf.Model, parts: tuple[pd.DataFrame, pd.DataFrame], project: LocalSupabase, client: Client, tmp_path: Path
) -> None:
    where: dict[str, Any] = {"target": project.url, "key": project.secret_key}
    with pytest.warns(UserWarning, match="not published: no ratings were held out"):
        assert model.publish(**where).export is None
    with pytest.raises(mf.DataError, match=r"found 9,900 of 9,900 test ratings among those that the model knows"):
        model.publish(**where, test=parts[0])
    with pytest.raises(mf.ConfigError, match=r"unknown option max_rsme; did you mean max_rmse\?"):
        model.publish(**where, test=parts[1], max_rsme=1.0)
    assert published_run(client) is None

    outcome = model.publish(**where, test=parts[1], directory=tmp_path / "published")
    assert outcome.export
    assert outcome.export.run_id == model.trained.run_id
    assert (tmp_path / "published" / "report.html").exists()

    user = model.users[7].as_py()
    for ours, theirs in (
        (model.recommend(user, exclude_seen=False), recommend_movies(client, user, exclude_rated=False)),
        (model.recommend({1: 5.0, 2: 1.0, 9: 4.0}), recommend_from_ratings(client, {1: 5.0, 2: 1.0, 9: 4.0})),
    ):
        assert [one.movie_id for one in ours] == [one.movie_id for one in theirs]
        assert [one.score for one in ours] == pytest.approx([one.score for one in theirs], abs=1e-5)
        assert [one.predicted_rating for one in ours] == pytest.approx(
            [one.predicted_rating for one in theirs], abs=1e-4
        )
    assert [one.because for one in ours] == [one.because for one in theirs]
    ours_, theirs_ = model.similar(5), similar_movies(client, 5)
    assert [one.movie_id for one in ours_] == [one.movie_id for one in theirs_]
    assert [one.similarity for one in ours_] == pytest.approx([one.similarity for one in theirs_], abs=1e-5)


def test_a_model_of_noise_is_refused_and_the_published_run_stays(
    parts: tuple[pd.DataFrame, pd.DataFrame], project: LocalSupabase, client: Client
) -> None:
    before = published_run(client)
    stars = parts[0]["rating"].tolist()
    random.Random(0).shuffle(stars)
    noise = mf.fit(parts[0].assign(rating=stars), solver="sgd", factors=8, epochs=5, ranking="none")
    with pytest.warns(UserWarning, match="not published: RMSE"):
        assert noise.publish(project.url, parts[1], key=project.secret_key).export is None
    assert published_run(client) == before
    forced = noise.publish(project.url, parts[1], force=True, key=project.secret_key)
    assert forced.export
    assert published_run(client)["run_id"] == noise.trained.run_id  # type: ignore[index]
