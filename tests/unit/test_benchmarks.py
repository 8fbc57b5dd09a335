"""The benchmarks' own arithmetic, without the libraries that they compare with."""

import hashlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from benchmarks import (
    data,
    gpu,
    limits,
    lists,
    naive,
    peers,
    planted,
    processes,
    rankers,
    report,
    sampled,
    solvers,
    speed,
    whole,
)
from benchmarks.apart import apart
from benchmarks.bars import Bar, bars, quotient
from mf.ranking import Interactions
from mf.sample import write_sample


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(data, "CACHE", tmp_path)
    return tmp_path


def digest(made: planted.Planted) -> str:
    joined = b"".join(column.tobytes() for column in (made.users, made.movies, made.ratings))
    return hashlib.blake2b(joined, digest_size=8).hexdigest()


def test_planted_ratings_are_the_same_numbers_for_the_same_seed() -> None:
    assert digest(planted.generate(5000, 0)) == "c1d4c8eed1cbbb22"
    assert digest(planted.generate(5000, 1)) == "3a8e53b71dfb6403"


def test_too_few_planted_ratings_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        planted.main(["4999", "nowhere"])
    assert exit_.value.code == 2
    assert "found 4,999, expected 5,000" in capsys.readouterr().err
    assert not Path("nowhere").exists()


def test_planted_ratings_are_half_stars_for_pairs_that_occur_once() -> None:
    made = planted.generate(20_000, 5)
    pairs = made.users.astype(np.int64) * made.n_movies + made.movies
    assert len(np.unique(pairs)) == len(made.ratings) == 20_000
    assert set(np.unique(made.ratings * 2)) == set(range(1, 11))
    assert made.users.max() < made.n_users
    assert made.movies.max() < made.n_movies
    assert np.all(np.bincount(made.users) <= 2 * 0.12 * made.n_movies)


def test_several_processes_are_measured_beside_one(cache: Path) -> None:
    for case in ("sgd", processes.LISTS):
        one, two = (processes.measure("planted:6000:0", case, n) for n in (1, 2))
        assert all(0 < result["pass_s"] <= result["total_s"] for result in (one, two))
        assert one.get("rmse") == two.get("rmse")


def test_the_floor_is_the_rmse_of_the_clipped_true_scores() -> None:
    ids, ratings, scores = np.arange(4, dtype=np.int32), np.float32([3.5, 4.5, 1.0, 2.0]), np.float32([3, 5.6, 0, 2])
    by_hand = math.sqrt((0.5**2 + 0.5**2 + 0.5**2 + 0) / 4)
    assert planted.Planted(ids, ids, ratings, scores, 4, 4).floor_linear == pytest.approx(by_hand)


def test_the_floor_of_planted_ratings_is_their_noise_and_the_rounding() -> None:
    made = planted.generate(50_000, 0)
    inside = (made.scores > 2) & (made.scores < 4)  # where next to nothing is clipped
    error = (made.scores - made.ratings)[inside]
    assert error.std() == pytest.approx(math.sqrt(planted.NOISE**2 + 0.5**2 / 12), rel=0.02)
    assert 0.66 < made.floor_linear < 0.70


def test_planted_ratings_are_written_as_csv_or_as_arrays(tmp_path: Path) -> None:
    made = planted.generate(5000, 2)
    planted.main(["5e3", str(tmp_path / "ratings.csv"), "--seed", "2"])
    planted.main(["5000", str(tmp_path / "arrays"), "--seed", "2"])
    table = pd.read_csv(tmp_path / "ratings.csv")
    assert list(table) == ["userId", "movieId", "rating"]
    for name, column, expected in zip(
        ("user", "movie", "rating"), table, (made.users, made.movies, made.ratings), strict=True
    ):
        assert np.array_equal(table[column], expected)
        assert np.array_equal(np.load(tmp_path / "arrays" / f"{name}.npy"), expected)
    assert json.loads((tmp_path / "arrays/meta.json").read_text())["floor_linear"] == made.floor_linear


def test_the_first_tenth_of_planted_ratings_is_the_test_part(cache: Path) -> None:
    made, split = planted.generate(6000, 3), data.load("planted:6000:3")
    assert np.array_equal(split.test.ratings, made.ratings[:600])
    assert np.array_equal(split.train.users, made.users[600:])
    assert data.floor("planted:6000:3") == made.floor_linear


def test_a_csv_file_is_split_by_the_permutation_of_the_seed(tmp_path: Path) -> None:
    ratings = [0.5 * (1 + i % 9) for i in range(20)]
    path = tmp_path / "ratings.csv"
    pd.DataFrame({"userId": range(100, 120), "movieId": 7, "rating": ratings, "timestamp": 0}).to_csv(path, index=False)
    split, order = data.load(f"csv:{path}:4"), np.random.default_rng(4).permutation(20)
    assert split.test.users.tolist() == order[:2].tolist()
    assert split.train.ratings.tolist() == [ratings[row] for row in order[2:]]
    assert (split.n_users, split.n_movies) == (20, 1)


def test_predictions_are_clipped_and_a_missing_one_is_the_mean() -> None:
    ids = np.zeros(3, np.int32)
    train, test = (data.Ratings(ids, ids, np.float32(values)) for values in ([1, 3, 5], [5, 4, 2]))
    by_hand = math.sqrt((0**2 + 1**2 + 1**2) / 3)
    assert data.Split(train, test, 1, 1).rmse(np.array([9.0, np.nan, 3.0])) == pytest.approx(by_hand)


def test_a_measurement_in_a_process_of_its_own_gives_what_the_function_gives(tmp_path: Path) -> None:
    measured = apart(planted.write, rows=5000, seed=0, path=str(tmp_path / "made"))
    assert measured["floor_linear"] == planted.generate(5000, 0).floor_linear
    assert measured["peak_mb"] > 20
    assert measured["cpu_seconds"] > 0


def test_a_failing_measurement_is_reported_and_not_fatal() -> None:
    assert apart(peers.measure, data="planted:5000:0", name="nobody") == {"error": "KeyError: 'nobody'"}


def test_a_peer_that_is_not_installed_is_reported_and_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = peers.Peer("no-library-of-this-name", peers.cornac_mf, {})
    monkeypatch.setitem(peers.PEERS, "absent", absent)
    results = {"absent": peers.measure("planted:5000:0", "absent")}
    assert results == {"absent": {"error": "no-library-of-this-name is not installed"}}
    assert report.failures(results) == "- absent was not measured: no-library-of-this-name is not installed"
    assert speed.peers_table(results).splitlines()[2].split("|")[1:4] == [" absent ", "       – ", "             – "]


def test_what_a_library_calls_its_rows_is_found_and_unseen_ones_add_nothing() -> None:
    users = peers._rows({4: 0, 2: 1}, np.int32([2, 4, 3]), 5)
    assert users.tolist() == [1, 0, -1]
    predictions = peers._biased(
        3.0,
        np.array([0.5, -0.5]),
        np.array([0.25]),
        np.array([[1.0, 2.0], [3.0, 4.0]]),
        np.array([[0.1, 0.1]]),
        users,
        np.array([0, -1, 0]),
    )
    assert predictions.tolist() == pytest.approx([3 - 0.5 + 0.25 + 0.7, 3 + 0.5, 3 + 0.25])


@pytest.mark.parametrize("loop", naive.LOOPS)
def test_a_loops_epoch_is_its_steps_times_the_time_of_one(cache: Path, loop: str) -> None:
    measured = naive.measure("planted:50000:0", loop)
    steps = math.ceil(45_000 / naive.BATCH)
    assert measured["steps"] == steps - naive.WARM_UP
    assert measured["epoch_s"] == pytest.approx(steps * measured["step_s"])


def test_our_solvers_are_measured_beside_the_floor_of_planted_ratings(cache: Path) -> None:
    options = {"factors": 8, "epochs": 3}
    measured = solvers.measure("planted:50000:0", "adam", options, validates=True)
    assert 1.05 < measured["rmse"] / data.floor("planted:50000:0") < 1.35
    assert min(measured["curve"]) == pytest.approx(measured["rmse"], abs=1e-5)
    assert measured["epochs"] == len(measured["curve"]) == 3
    assert 0 < measured["preparation_s"] < measured["total_s"]


def test_seconds_to_an_rmse_count_all_that_is_not_an_epoch() -> None:
    fit, curve = {"total_s": 10.0, "epochs": 4, "epoch_s": 2.0}, [0.9, 0.8, 0.7, 0.71]
    assert speed.seconds_to(0.8, fit, curve) == 6.0
    assert speed.seconds_to(0.7, fit, curve) == 8.0
    assert speed.seconds_to(0.6, fit, curve) is None
    beside = speed.against_peers({"sgd": fit}, {"sgd": {"curve": curve}}, {"cornac MF": {"rmse": 0.8, "total_s": 33.0}})
    assert beside.splitlines()[2].replace(" ", "") == "|sgd|6.0|5.5|"
    assert "8.0 s 0.7000" in speed.over_time({"sgd": fit}, {"sgd": {"curve": curve}})


def test_the_speed_table_holds_ratios_to_the_naive_loop_and_shares_of_the_machine() -> None:
    fit = {"epoch_s": 0.5, "epochs": 2, "total_s": 1.25, "rmse": 0.71, "rank": 64, "peak_mb": 2048.0}
    machine = {"copy_all": 4 * limits.cost("sgd", 64).bytes * 1e6, "gemm_all": 8 * limits.cost("sgd", 64).flops * 1e6}
    fit |= {"epoch_cpu_s": 0.75, "total_cpu_s": 2.0, "again": {"epoch_s": 0.51, "epoch_cpu_s": 0.9, "total_s": 1.25}}
    loops = {"naive loop": {"epoch_s": 600.0, "epoch_cpu_s": 900.0, "peak_mb": 512.0}}
    fits = {"sgd": fit, "vb": {"error": "no"}}
    naive_line, sgd, vb = speed.throughput(1_000_000, loops, fits, machine).splitlines()[2:]
    assert naive_line.replace(" ", "") == "|naiveloop|600|900|1,667|1|–|–|–|–|–|–|0.50|"
    # The second run has the same seconds per epoch, and other CPU seconds.
    assert sgd.replace(" ", "") == "|sgd|0.50|0.75–0.90|2,000,000|1,200|2|1.2|2.0|0.7100|50.0%|25.0%|2.00|"
    assert vb.replace(" ", "") == "|vb|–|–|–|–|–|–|–|–|–|–|–|"
    loops["naive loop"]["again"] = {"epoch_s": 600.0}
    fits = {"sgd": fit | {"again": {"epoch_s": 1.0}}}
    _, sgd = speed.throughput(1_000_000, loops, fits, machine).splitlines()[2:]
    assert sgd.replace(" ", "").startswith("|sgd|0.50–1.00|0.75|1,000,000–2,000,000|600–1,200|2|")


def test_a_cost_counts_what_is_read_written_and_computed() -> None:
    assert limits.cost("sgd", 64).bytes == 12 + 4 * 64 * 4  # two rows read, two written
    assert limits.cost("adam", 64).bytes == 12 + 12 * 64 * 4  # with two moments beside each
    triangle, mean_and_product = 17 * 18 // 2, 2 * 17
    assert limits.cost("vb", 16).flops == 2 * (triangle + mean_and_product)


def test_a_ratio_has_three_digits_or_is_a_dash() -> None:
    assert report.ratio(2026, 1.74) == "1,164"
    assert report.ratio(3, 2) == "1.5"
    assert report.ratio(10, 30) == "0.333"
    assert report.ratio(None, 2) == report.ratio(2, None) == "–"


def test_a_bar_is_met_at_its_bound_and_never_by_what_was_not_measured() -> None:
    said = bars(
        [
            Bar("time / Arrow's", quotient(5, 2), at_most=2.5),
            Bar("time / Arrow's", quotient(5.1, 2), at_most=2.5),
            Bar("rows/s", 25_000, at_least=25_000, digits=0),
            Bar("rows/s", quotient(1, None), at_least=25_000, digits=0),
        ]
    )
    assert [" ".join(line.split()) for line in said.splitlines()[2:]] == [
        "| time / Arrow's | at most 2.50 | 2.50 | met |",
        "| time / Arrow's | at most 2.50 | 2.55 | NOT MET |",
        "| rows/s | at least 25,000 | 25,000 | met |",
        "| rows/s | at least 25,000 | – | NOT MET |",
    ]


def test_a_table_is_aligned_markdown() -> None:
    assert report.table(("", "RMSE"), [("sgd", 0.85), ("a peer", "–")]).splitlines() == [
        "|        | RMSE |",
        "|--------|-----:|",
        "| sgd    | 0.85 |",
        "| a peer |    – |",
    ]


def test_a_section_is_written_in_place_of_its_last_text_and_leaves_the_others(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    report.write_section(page, "limits", "old limits")
    report.write_section(page, "speed", "fast")
    report.write_section(page, "limits", "new limits")
    text = page.read_text()
    assert text.startswith("# Benchmarks")
    assert "old limits" not in text
    assert text.index("new limits") < text.index("<!-- limits: end -->") < text.index("fast")
    assert text.count("commit ") == 2


def test_the_gpu_benchmark_runs_every_measurement_at_a_tiny_size_on_a_cpu(tmp_path: Path) -> None:
    bench = gpu.Bench(torch.device("cpu"), budget_s=0, tiny=True, output=tmp_path / "gpu.json")
    bench.sizes = {"small": 6000, "full": 8000, "huge": 6000}
    results = bench.run()
    values = [value for result in results.values() for value in (result, *result.values()) if isinstance(value, dict)]
    assert [value["error"] for value in values if "error" in value] == []
    assert {name for name, result in results.items() if "skipped" in result} == {"waits"}
    assert results["same as the CPU"].keys() == {*gpu.SAME, "ranking model", "section_s"}
    assert all(results["same as the CPU"][label]["same_bits_twice"] for label in gpu.SAME)
    assert results["lists"]["lists_equal_cpu"] == 1
    assert results["ranking model"]["same_bits_twice"]
    assert results["same as the CPU"]["ranking model"]["rms"] == 0
    assert json.loads((tmp_path / "gpu.json").read_text()).keys() == results.keys()
    assert "| adam, batch 65,536" in gpu.markdown(results)


def test_the_gpu_benchmark_skips_what_its_budget_does_not_allow(tmp_path: Path) -> None:
    bench = gpu.Bench(torch.device("cpu"), budget_s=0, output=tmp_path / "gpu.json")
    bench.section("slow", 5, lambda: {"value": 1})
    assert bench.results["slow"]["skipped"].endswith("0 s left, needs about 5 s")


@pytest.fixture(scope="module")
def sample_csv(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_sample(tmp_path_factory.mktemp("sample")).ratings_csv)


def toy(pairs: list[tuple[int, int]], users: int, movies: int) -> Interactions:
    rows = torch.tensor(pairs)
    return Interactions(rows[:, 0], rows[:, 1], torch.ones(len(pairs)), users, movies)


def test_ease_solves_its_equations_with_a_zero_diagonal() -> None:
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 2), (2, 3), (3, 0), (3, 3)]
    x = rankers.rated(toy(pairs, 4, 4)).toarray().astype(np.float64)
    scores = rankers.ease(toy(pairs, 4, 4), {"l2": 0.5})(np.arange(4))
    for movie in range(4):
        others = [m for m in range(4) if m != movie]
        own = x[:, others]
        weights = np.linalg.solve(own.T @ own + 0.5 * np.eye(3), own.T @ x[:, movie])
        np.testing.assert_allclose(scores[:, movie], own @ weights, atol=1e-5)


def test_item_knn_adds_up_the_cosines_of_the_nearest_rated_movies() -> None:
    data = toy([(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)], 3, 3)
    scores = rankers.item_knn(data, {"k": 1})(np.array([0, 1]))
    near, far = 2 / math.sqrt(3 * 2), 1 / math.sqrt(2)  # of movies 0 and 1, and of 1 and 2
    assert scores[0].tolist() == pytest.approx([0, near, 0])
    assert scores[1].tolist() == pytest.approx([near, near, far])


def test_a_list_holds_the_highest_scores_without_the_known_movies() -> None:
    scores = np.float32([np.arange(12)])
    known = lists.one_row(np.array([11, 3, 4]), 12)
    assert lists.best(scores, known).tolist() == [[10, 9, 8, 7, 6, 5, 2, 1, 0, -1]]


@pytest.mark.parametrize("name", ["item-kNN", "EASE^R", "ELSA, best of grid", lists.DEFAULT])
def test_rankers_beat_popularity_on_the_sample(sample_csv: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rankers, "HEAD", 240)
    popular, found = (lists.measure(sample_csv, one)[lists.BOTH]["ndcg"] for one in ("popularity", name))
    assert found > 1.1 * popular


def test_the_grid_is_searched_on_the_validation_part(sample_csv: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = [{"factors": 1, "taste": 0}, {"factors": 64}]
    monkeypatch.setitem(rankers.RANKERS, "ours of a grid", rankers.Ranker(rankers.ours, grid=grid))
    assert lists.measure(sample_csv, "ours of a grid")["options"] == {"factors": 64}


def test_a_ranker_that_is_not_installed_is_reported_and_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = rankers.Ranker(rankers.implicit_als, package="no-library-of-this-name")
    monkeypatch.setitem(rankers.RANKERS, "absent", absent)
    assert lists.measure("nowhere.csv", "absent") == {"error": "no-library-of-this-name is not installed"}


def test_the_cost_of_a_fit_and_of_its_products_is_measured(cache: Path) -> None:
    fitted, products = lists.measure_fit("planted:20000:0"), lists.measure_products("planted:20000:0")
    assert fitted["ratings"] == products["ratings"] == 20_000
    assert fitted["fit_cpu_s"] > 0
    assert fitted["beyond_mb"] >= 0  # the process may have had as much before
    for way in lists.WAYS:
        assert products[way].keys() == {"times", "transposed"}


def test_the_section_of_lists_says_whether_the_bars_are_met(sample_csv: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "run", lambda label, function, **arguments: function(**arguments))
    monkeypatch.setattr(lists, "SUBSETS", (40,))
    chosen = {name: rankers.RANKERS[name] for name in ("popularity", lists.DEFAULT)}
    monkeypatch.setattr(lists, "RANKERS", chosen | {"absent": rankers.Ranker(rankers.ours, package="no-such-library")})
    said = lists.quality(Path(sample_csv))
    rows = {line.split("|")[1].strip(): line for line in said.splitlines() if line.startswith("|")}
    assert rows["NDCG@10 / that of popularity"].split("|")[-2].strip() == "met"
    assert rows["NDCG@10, seed 0"].split("|")[-2].strip() == "NOT MET"  # that of the sample is lower
    assert "- absent was not measured: no-such-library is not installed" in said


def test_a_command_and_what_it_starts_are_sampled_with_their_time_and_memory() -> None:
    child = "import sys, time; held = bytearray(60_000_000); started = time.process_time(); "
    child += "[None for _ in iter(lambda: time.process_time() - started < 0.5, False)]; sys.exit(3)"
    parent = f"import subprocess, sys; print('said'); sys.exit(subprocess.call([sys.executable, '-c', {child!r}]))"
    done = sampled.watch([sys.executable, "-c", parent])
    assert (done.status, done.output) == (3, "said\n")
    (outer,) = [seen for seen in done.processes if seen.words[-1] == parent]
    (inner,) = [seen for seen in done.processes if seen.words[-1] == child]
    assert inner.cpu_s > 0.2 > outer.cpu_s
    assert inner.peak_mb > 60 > outer.peak_mb
    assert outer.started_s == 0 <= inner.started_s < inner.ended_s <= done.seconds + 0.1


def test_a_waterfall_has_a_row_per_step_then_per_server_with_the_fits_beside_them() -> None:
    def seen(command: str, started: float, ended: float, cpu: float, peak: float) -> sampled.Seen:
        return sampled.Seen(psutil.Process(), started, ended, cpu, peak, command.split())

    them = [
        seen("python -m pipelines run --home h", 0, 9, 1, 100),
        seen("postgres -D data", 1, 9, 0.5, 20),
        seen("postgres: worker", 3, 4, 0.25, 30),
        seen("sh -ec python3 --function_to_execute train", 4, 8, 0, 1),
        seen("python3 --function_to_execute train", 4, 8, 3, 500),
        seen("python3 --function_to_execute split", 3, 4, 1, 50),
    ]
    lines = whole.grouped(sampled.Finished(9.5, 0, "", them))
    assert list(lines) == ["split", "train", "command", "PostgreSQL"]
    assert lines["train"] == {"started_s": 4, "seconds": 4, "cpu_s": 3, "peak_mb": 500}
    assert lines["PostgreSQL"] == {"started_s": 1, "seconds": 8, "cpu_s": 0.75, "peak_mb": 30}
    text = whole.waterfall("Run", {"seconds": 9.5, "fits": {"train": (2.0, 0.5)}, "lines": lines})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert rows[3] == ["train", "4.0", "4.0", "2.0", "0.5", "3.0", "500"]
    assert rows[-1] == ["all", "0.0", "9.5", "2.0", "0.5", "5.8", "–"]


def test_the_pipelines_row_fits_both_models_with_the_pipelines_defaults(cache: Path) -> None:
    measured = solvers.measure_pipeline("planted:50000:0")
    assert measured["epochs"] > 1
    assert measured["total_s"] > measured["epochs"] * measured["epoch_s"] * 0.5 > 0
    assert 0.6 < measured["rmse"] < 0.95
