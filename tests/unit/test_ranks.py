"""Several processes train what one does: by gloo, on small data; and how much they send."""

from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import torch.multiprocessing as mp
from ranked import CPU, LISTS, MOVIES, RATINGS, SOLVERS, USERS, arrays, edges_of, interactions, planted, run, share

from mf.checkpoint import CheckpointFile
from mf.errors import ConfigError, DataError
from mf.ranking.fit import fit as fit_ranking
from mf.ranking.teacher import PANEL
from mf.ranks import LANES, Ranks, lane_count
from mf.ratings.schema import ROW_GROUP, Provenance, write_ratings
from mf.ratings.share import ShareOfUsers
from mf.solvers import EpochReport, configure, fit, for_processes
from mf.solvers.base import Share


class StopError(Exception):
    """The plug is pulled."""


def stop_after_two(report: EpochReport) -> None:
    if report.epoch == 2:
        raise StopError


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each of 2 and of 4 processes found; the two resume checkpoints that one process left after two epochs."""
    found = {}
    for world in (2, 4):
        folder = tmp_path_factory.mktemp(f"ranks-{world}")
        if world == 2:
            for solver, options in SOLVERS.items():
                file = CheckpointFile(folder / f"{solver}.checkpoint")
                with pytest.raises(StopError):
                    fit(*planted(), configure(solver, options), CPU, [stop_after_two], file)
        mp.start_processes(run, (world, folder), world, start_method="spawn")
        found[world] = [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)]
    return found


@cache
def alone(solver: str) -> tuple[dict[str, torch.Tensor], list[float | None]]:
    reports: list[EpochReport] = []
    model = fit(*planted(), configure(solver, SOLVERS[solver]), CPU, [reports.append])
    return model.state_dict(), [r.validation_rmse for r in reports]


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_adam_and_sgd_have_the_same_bits_with_any_number_of_processes(
    solver: str, world: int, together: dict[int, list[dict[str, Any]]]
) -> None:
    """Two of them went on from a checkpoint of one process, which is in none of the bits."""
    model, errors = alone(solver)
    parts = [each[solver] for each in together[world]]
    for name in ("user_factors.weight", "user_bias.weight"):
        assert torch.equal(torch.cat([part["model"][name] for part in parts]), model[name]), name
    for part in parts:
        assert part["rmse"] == errors
        for name in ("movie_factors.weight", "movie_bias.weight"):
            assert torch.equal(part["model"][name], model[name]), name


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(("solver", "within"), [("vb", 1e-6), ("gibbs", 1e-6)])
def test_vb_and_gibbs_have_the_same_rmse_up_to_rounding_errors(
    solver: str, within: float, world: int, together: dict[int, list[dict[str, Any]]]
) -> None:
    """A chain of gibbs carries rounding errors on."""
    for part in together[world]:
        assert part[solver]["rmse"] == pytest.approx(alone(solver)[1], abs=within)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(("solver", "numbers"), [("sgd", 6 + 1), ("adam", 3 * 6 + 5)])
def test_an_epoch_sends_each_movie_once_round_the_ring_and_to_all_for_the_validation(
    solver: str, numbers: int, world: int, together: dict[int, list[dict[str, Any]]]
) -> None:
    """``numbers``: of a movie: its vector and bias; adam has two moments of each, and when it moved them last."""
    sharing = (world - 1) * MOVIES * (SOLVERS[solver]["factors"] + 1)
    saving = (world - 1) * MOVIES * numbers if world == 2 else 0  # these write a checkpoint
    parts = [part[solver] for part in together[world]]
    sent = sum(part["rows"][2] - part["rows"][1] for part in parts)
    assert sent == 4 * (world * MOVIES * numbers + sharing + saving)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(("solver", "fits"), [("vb", 2), ("gibbs", 1)])
def test_a_sweep_sends_the_sums_of_normal_equations(
    solver: str, fits: int, world: int, together: dict[int, list[dict[str, Any]]]
) -> None:
    """A block of movies is summed on one process, which sends the others what it made of them; gibbs sums two
    projections on the who-rated-what basis too, which has a vector per movie here. ``fits``: factors / rank of vb."""
    d = SOLVERS[solver]["rank"] + 1
    of_movies = fits * MOVIES * (d * (d + 3) // 2 + 1) + (MOVIES * 2 * d if solver == "gibbs" else 0)
    parts = [part[solver] for part in together[world]]
    sent = sum(part["rows"][3] - part["rows"][2] for part in parts)
    assert sent == pytest.approx(2 * (world - 1) * of_movies * 4, abs=8 * world)


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranking_model_is_the_same_up_to_rounding_errors(
    world: int, together: dict[int, list[dict[str, Any]]]
) -> None:
    train = interactions(planted()[0])
    model = fit_ranking(train, LISTS, CPU)
    expected, vectors = arrays(model), torch.from_numpy(model.user_vectors(train))
    assert expected["liking"].abs().max() > 0
    parts = [each["lists"] for each in together[world]]
    # Rows of the cut are unique up to signs, which scores do not show.
    scores = vectors @ expected["embedding"].T + expected["bias"]
    for part in parts:
        assert part["numbers"] == pytest.approx(expected["numbers"], rel=1e-5)
        assert torch.equal(part["embedding"], parts[0]["embedding"])
    found = torch.cat([part["vectors"] for part in parts]) @ parts[0]["embedding"].T + parts[0]["bias"]
    assert (found - scores).abs().max() < 2e-4 * scores.std()
    assert (found - scores).square().mean().sqrt() < 5e-5 * scores.std()


def test_the_ranking_model_sends_the_bytes_of_the_formula(together: dict[int, list[dict[str, Any]]]) -> None:
    """Per direction of the teacher the sums of two channels for all movies, and of the targets for a rank's own; for
    its own alone per direction of the last panel and of the student. Each user's vector, mean and length."""
    k, rank = LISTS.factors, LISTS.teacher_rank
    assert rank
    last = rank % PANEL
    for world, parts in together.items():
        users = edges_of(planted()[0], world)
        for r, part in enumerate(parts):
            movies, others = MOVIES * (r + 1) // world - MOVIES * r // world, world - 1
            whole = 2 * others * MOVIES * (2 * (rank - last) + 1 + k) // world
            own = (MOVIES - movies) * (rank - last + 3 * last + 2 * 4 * k)
            gathered = others * (movies * 3 * k + (users[r + 1] - users[r] + (r == others)) * (k + 2))
            assert part["lists"]["rows"] == 4 * (whole + own + gathered)
            assert part["lists"]["rest"] < 8 * (3 * rank * rank + 8 * rank * PANEL) * 2 + 20_000
        raters = sum(part["lists"]["raters"] for part in parts)
        assert raters == pytest.approx(4 * (world - 1) * USERS + 8 * RATINGS * (world - 1) / world, rel=0.1)


def test_one_process_sends_nothing() -> None:
    ranks = Ranks.alone()
    fit(*planted(), configure("sgd", SOLVERS["sgd"]), CPU, ranks=ranks)
    assert ranks.sent == 0


def test_1_2_and_4_processes_share_four_lanes_and_others_have_one_each() -> None:
    assert [lane_count("cpu", world) for world in (1, 2, 3, 4, 8)] == [LANES, LANES, 3, LANES, 8]
    assert [lane_count("cuda", world) for world in (1, 2, 8)] == [1, 2, 8]


@pytest.mark.parametrize("world", [2, 4])
def test_a_rank_has_whole_lanes(world: int) -> None:
    train = planted()[0]
    starts = [lane.start for lane in Share.of(train).users.lanes]
    assert [starts[rank * LANES // world] for rank in range(world)] == edges_of(train, world)[:-1]
    assert sum(len(share(train, rank, world, edges_of(train, world))) for rank in range(world)) == len(train)


def test_what_several_processes_cannot_do_is_refused_or_changed() -> None:
    with pytest.raises(ConfigError, match="clip_grad: found 1 with 2 processes, expected none"):
        for_processes(configure("adam", {"clip_grad": 1.0}), 2)
    assert for_processes(configure("adam", {}), 2).model_dump()["block_users"] == 8192
    assert for_processes(configure("adam", {"clip_grad": 1.0}), 1).model_dump()["block_users"] == 0


# Files


def ratings_file(folder: Path, ids: list[Any], name: str = "ratings.parquet") -> Path:
    """Ratings of users with 0, 1, 2, … + 1 ratings, in row groups of 50."""
    users = [user for n, user in enumerate(ids) for _ in range(n + 1)]
    table = pa.table(
        {"user_id": users, "movie_id": list(range(len(users))), "rating": pa.array([3.5] * len(users), pa.float32())}
    )
    write_ratings(table, folder / name, Provenance("test", len(users), 0, 0, len(users)))
    return folder / name


@pytest.mark.parametrize("ids", [list(range(30)), [f"user {n:02}" for n in range(30)]])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_a_process_reads_the_row_groups_of_its_users_and_no_others(
    ids: list[Any], world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mf.ratings.schema.ROW_GROUP", 50)
    file = ratings_file(tmp_path, ids)
    assert ROW_GROUP > 50
    read: list[list[int]] = []
    parquet = pa.parquet.ParquetFile
    whole = parquet.read_row_groups

    def noted(self: Any, groups: list[int], *args: Any, **options: Any) -> pa.Table:
        read.append(groups)
        return whole(self, groups, *args, **options)

    monkeypatch.setattr(parquet, "read_row_groups", noted)
    shares = [ShareOfUsers.read(file, rank, world) for rank in range(world)]
    assert [user for part in shares for user in part.table["user_id"].unique().to_pylist()] == ids
    if world > 2:
        assert all(0 < len(groups) <= 50 * 10 // 50 // world + 2 for groups in read)
    # Another file has users of every share, and some that are between or beside them.
    others = [-1, *range(60)] if ids[0] == 0 else ["a", *ids, *(f"{user} b" for user in ids), "z"]
    other = ratings_file(tmp_path, sorted(others), "validation.parquet")
    assert [user for part in shares for user in part.of(other)["user_id"].unique().to_pylist()] == sorted(others)


def test_ratings_that_are_not_sorted_by_user_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected ratings sorted by user"):
        ShareOfUsers.read(ratings_file(tmp_path, [3, 1, 2]), 0, 1)


def test_a_process_without_a_user_is_refused_before_it_trains() -> None:
    class Two(Ranks):
        def gather_objects(self, value: Any) -> list[Any]:
            return [value, (0, 0)]

    train = planted()[0]
    with pytest.raises(DataError, match=f"found {USERS} users .* for 2 processes, .*: use fewer --processes"):
        Share.of(train, Two(0, 2))
