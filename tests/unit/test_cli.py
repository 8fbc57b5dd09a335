"""`python -m mf` as a person at the keyboard sees it: lines, files, exit status."""

import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mf
from mf.__main__ import main
from mf.checkpoint import CheckpointFile
from mf.flags import choices, default_text, plain_type, shared_fields
from mf.model_directory import TrainedModel, read_model
from mf.solvers import SOLVERS
from mf.solvers.config import ORIGINAL, AdamConfig
from mf.supabase.config import SchemaConfig
from mf.supabase.schema import migration

KEY = "sb_secret_0123456789"
HEADER = "userId,movieId,rating\n"
MODEL_FILES = {
    "model.pt", "model.json", "rejects.csv",
    "user_embeddings.parquet", "movie_embeddings.parquet",
}  # fmt: skip
RANKING_FILES = {"user_ranking.parquet", "movie_ranking.parquet"}
Run = Callable[..., tuple[int, str, str]]

# As the README and, for the solver adam, the original trainer have them.
DEFAULTS = {
    "solver": "adam", "ratings_csv": "data/ratings.csv", "val_size": "0.1", "batch_size": "2048", "epochs": "1",
    "factors": "64", "lr": "0.001", "weight_decay": "1e-06", "dropout": "0.0", "clip_grad": "none", "use_cuda": "off",
    "supabase_url": "SUPABASE_URL", "supabase_key": "SUPABASE_KEY", "import_table": "ratings", "publish": "off",
    "movie_export_table": "movie_embeddings", "user_export_table": "user_embeddings", "test_csv": "none",
    "output_dir": "output", "processes": "1", "checkpoint": "none", "init_from": "none", "ranking": "ease",
    "ranking_options": "none", "seed": "0", "l2": "0.0", "bias_damping": "3.0",
    "schedule": "constant", "patience": "0", "init_std": "0.01", "block_users": "0", "columns": "none",
    "user_column": "none", "movie_column": "none", "rating_column": "none", "timestamp_column": "none",
    "max_reject_fraction": "0.01", "ignore_ratings": "none", "key_columns": "none", "rated_since": "none",
    "rated_before": "none", "hnsw_index": "off", "max_regression": "0.01", "max_ndcg_regression": "0.01",
    "max_rmse": "0", "min_rows": "1000", "min_users": "20", "min_movies": "20", "force_publish": "off", "trials": "0",
    "trial_minutes": "0", "trial_objective": "rmse",
}  # fmt: skip


def integer(kind: str, i: int) -> str:
    return str(i + 1)


def text(kind: str, i: int) -> str:
    return f"{kind} é{i:03}"


def uuid_(kind: str, i: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{kind}{i}"))


def ratings(name: Callable[[str, int], str] = integer, users: int = 30, movies: int = 10) -> str:
    rows = (f"{name('u', u)},{name('m', m)},{(u * m) % 5 + 1}\n" for u in range(users) for m in range(movies))
    return HEADER + "".join(rows)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in an empty folder without Supabase and gives exit status, stdout and stderr; whatever happens,
    no temporary file stays behind."""
    folder, temporary = tmp_path / "work", tmp_path / "temporary"
    for path in (folder, temporary):
        path.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    for name in [name for name in os.environ if name.startswith("SUPABASE_")]:
        monkeypatch.delenv(name)

    def run(*argv: str) -> tuple[int, str, str]:
        try:
            main(argv)
            status: Any = 0
        except SystemExit as ended:
            status = ended.code or 0
        assert list(temporary.glob("mf-*")) == []
        return status, *capsys.readouterr()

    return run


def trained(run: Run, *argv: str, directory: str = "output") -> tuple[list[str], dict[str, Any]]:
    """The lines that a run that ends well prints, and its model.json."""
    status, out, err = run(*argv)
    assert (status, err) == (0, "")
    return out.splitlines(), json.loads(Path(directory, "model.json").read_text())


def refused(run: Run, *argv: str) -> str:
    """The one line of a run that a mistake ends; nothing is written."""
    before = sorted(Path().rglob("*"))
    status, _, err = run(*argv)
    assert status == 2
    assert re.fullmatch(r"error: [^\n]+\n", err)
    assert sorted(Path().rglob("*")) == before
    return err.removeprefix("error: ").removesuffix("\n")


def defaults(run: Run, solver: str) -> dict[str, str]:
    """The flags that ``--help`` shows for a solver, and their defaults for it."""
    status, out, _ = run("--help")
    assert status == 0
    shown = {}
    names = "|".join(SOLVERS)
    for flag, rest in re.findall(r"^  --(\w+)(.*(?:\n {10}.*)*)", out, re.MULTILINE):
        default = re.search(r"\(default: (.*)\)$", rest)
        values = default[1] if default else "off"
        groups = re.findall(rf"(?:^|; )((?:{names})(?:, (?:{names}))*) (.*?)(?=; (?:{names})\b|$)", values)
        by_solver = {solver: value for group, value in groups for solver in group.split(", ")}
        if not by_solver or solver in by_solver:
            shown[flag] = by_solver.get(solver, values)
    return shown


def test_every_flag_has_its_documented_default(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    assert defaults(run, "adam") == DEFAULTS


@pytest.mark.parametrize("solver", ["vb", "gibbs"])
def test_a_solver_that_cannot_start_from_a_model_refuses_to(run: Run, solver: str) -> None:
    Path("r.csv").write_text(ratings())
    status, _, err = run("--ratings_csv", "r.csv", "--solver", solver, "--init_from", "output")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: init_from: solver {solver} cannot start from an earlier model")


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_help_shows_each_solver_its_own_options_and_defaults(
    run: Run, monkeypatch: pytest.MonkeyPatch, solver: str
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    everyones = DEFAULTS.keys() - AdamConfig.model_fields.keys()
    config = SOLVERS[solver].config
    own = {
        name: default_text(config.model_fields[name], (ORIGINAL if solver == "adam" else {}).get(name, value))
        for name, value in dict(config()).items()
    }
    shown = defaults(run, solver)
    assert {name: value for name, value in shown.items() if name not in everyones} == own


def test_a_flag_of_several_solvers_takes_the_same_values_for_each() -> None:
    for name, fields in shared_fields({name: solver.config for name, solver in SOLVERS.items()}).items():
        assert len({(plain_type(field), choices(field)) for field in fields.values()}) == 1, name


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--solver", "vb", "--lr", "0.1"], "--lr: not an option of solver vb; its options are --factors, --"),
        (["--burn-in", "3", "--lr=0.1"], "--burn_in: not an option of solver adam; its options are --factors, --"),
        (["--solver=gibbs", "--clipgrad", "1"], "--clip_grad: not an option of solver gibbs; its options are --"),
        (["--solver=sgd", "--rank", "8"], "--rank: not an option of solver sgd; its options are --factors, --"),
    ],
)
def test_an_option_that_the_solver_does_not_use_is_refused_by_name(run: Run, argv: list[str], said: str) -> None:
    Path("r.csv").write_text(ratings())
    assert refused(run, "--ratings_csv", "r.csv", *argv).startswith(said)


def test_a_run_without_options_uses_the_defaults(run: Run) -> None:
    Path("data").mkdir()
    Path("data/ratings.csv").write_text(ratings())
    lines, card = trained(run)
    assert lines[0].startswith("data/ratings.csv: 300 rows read, 0 rejected, 0 replaced")
    assert lines[1] == "training on the CPU"
    assert {path.name for path in Path("output").iterdir()} == MODEL_FILES | RANKING_FILES
    assert (card["solver"], card["rows"], card["factors"]) == ("adam", {"train": 270, "validation": 30}, 64)
    shown = {name: "none" if value is None else str(value) for name, value in card["config"].items()}
    assert shown == {name: DEFAULTS[name] for name in shown}


def test_the_ranking_model_is_trained_on_training_and_validation_part(run: Run) -> None:
    Path("r.csv").write_text(ratings())
    Path("test.csv").write_text(ratings(users=3))
    options = ["--ranking_options", '{"factors": 16.0, "recency": true, "seed": 4}']
    lines, card = trained(run, "--ratings_csv", "r.csv", "--val_size", "0.5", "--test_csv", "test.csv", *options)
    ranking = card["ranking"]
    assert (card["rows"]["train"], ranking["metrics"]["ratings"]) == (150, 300)
    assert (ranking["users"], ranking["movies"], ranking["factors"]) == (30, 10, 16)
    assert (ranking["options"]["seed"], ranking["options"]["factors"], ranking["recency"]) == (4, 16, True)
    assert sum(line.startswith("ranking  ") for line in lines) > 3
    pattern = r"lists     ranking model of 16 factors, teacher rank \d+, \d+\.\d% of the energy beyond it, \d+\.\d s"
    assert re.fullmatch(pattern, lines[-3])
    assert lines[-2].startswith("model ")
    assert lines[-1].startswith("test RMSE ")
    model = TrainedModel.load(Path("output")).ranking
    assert model
    vector = model.model.user_vector(model.movies.rows(pa.array(range(1, 11))), [1] * 10)  # all ratings of user 1
    np.testing.assert_allclose(model.vectors[0], vector, rtol=0, atol=1e-5 * np.abs(vector).max())


def test_without_a_ranking_model_only_the_star_model_is_written_and_it_is_the_same(run: Run) -> None:
    Path("r.csv").write_text(ratings())
    trained(run, "--ratings_csv", "r.csv", "--output_dir", "both", directory="both")
    lines, card = trained(run, "--ratings_csv", "r.csv", "--ranking", "none")
    assert card["ranking"] is None
    assert {path.name for path in Path("output").iterdir()} == MODEL_FILES
    assert Path("output/model.pt").read_bytes() == Path("both/model.pt").read_bytes()
    assert not any(line.startswith(("ranking ", "lists ")) for line in lines)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--ranking_options", "{"], "--ranking_options: expected JSON such as {\"factors\": 32}, found '{'"),
        (["--ranking_options", "[1]"], "--ranking_options: expected JSON such as {\"factors\": 32}, found '[1]'"),
        (
            ["--ranking_options", '{"factors": 16.5}'],
            "ranking_options.factors: Input should be a valid integer, got a number with a fractional part",
        ),
        (
            ["--ranking_options", '{"colour": 1}'],
            "ranking_options.colour: not an option of the ranking model; its options are factors, ",
        ),
        (
            ["--ranking", "none", "--ranking_options", '{"rho": 1}'],
            "ranking_options: found rho, expected none of them with ranking=none",
        ),
        (["--ranking", "best"], "argument --ranking: invalid choice: 'best' (choose from "),
    ],
)
def test_an_invalid_ranking_is_refused_by_name(run: Run, argv: list[str], said: str) -> None:
    Path("r.csv").write_text(ratings())
    assert refused(run, "--ratings_csv", "r.csv", *argv).startswith(said)


@pytest.mark.parametrize(
    "argv",
    [
        ["--ratings_csv", "r.csv", "--val_size", "0", "--batch_size", "64", "--use_cuda", "--output_dir", "o"],
        ["--ratings-csv", "r.csv", "--val-size", "0", "--batch-size", "64", "--use-cuda", "--output-dir", "o"],
        ["--ratingscsv", "r.csv", "--valsize", "0", "--batchsize", "64", "--usecuda", "--outputdir", "o"],
        ["--ratings_csv=r.csv", "--val-size=0", "--batchsize=64", "--usecuda", "--output_dir=o"],
    ],
)
def test_flags_are_spelled_with_underscores_hyphens_or_run_together(run: Run, argv: list[str]) -> None:
    Path("r.csv").write_text(ratings())
    lines, card = trained(run, *argv, directory="o")
    assert (card["config"]["batch_size"], card["rows"]["validation"]) == (64, 0)
    assert re.match(r"training on the (GPU: |CPU: no GPU is available to this PyTorch)", lines[1])


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("adam", {"factors": 3, "batch_size": 50, "epochs": 2, "lr": 0.02, "weight_decay": 0.001, "l2": 0.01,
                  "bias_damping": 2.0, "dropout": 0.1, "clip_grad": 1.5, "schedule": "one_cycle", "patience": 1,
                  "init_std": 0.1, "block_users": 8, "seed": 7}),
        ("sgd", {"factors": 3, "batch_size": 50, "epochs": 2, "lr": 0.02, "l2": 0.01, "bias_damping": 2.0,
                 "row_damping": 0.5, "patience": 1, "init_std": 0.1, "block_users": 8, "seed": 7}),
        ("vb", {"factors": 6, "rank": 2, "fits": 3, "epochs": 2, "seed": 7}),
        ("gibbs", {"factors": 3, "rank": 2, "epochs": 4, "burn_in": 2, "seed": 7}),
    ],
)  # fmt: skip
def test_every_option_of_a_solver_reaches_it(run: Run, solver: str, options: dict[str, Any]) -> None:
    Path("r.csv").write_text(ratings())
    flags = [f"--{name}={value}" for name, value in options.items()]
    lines, card = trained(run, "--ratings_csv", "r.csv", "--solver", solver, *flags)
    assert (card["solver"], card["config"]) == (solver, options)
    assert sum(line.startswith("epoch ") for line in lines) == len(card["metrics"]["epochs"]) <= options["epochs"]


def test_the_seed_chooses_the_ratings_that_are_held_out(run: Run) -> None:
    Path("r.csv").write_text(ratings())
    still = ["--ratings_csv", "r.csv", "--lr", "1e-9", "--init_std", "1e-9", "--val_size", "0.5"]
    means = [trained(run, *still, "--seed", seed)[1]["mu"] for seed in ("0", "1", "1")]
    assert means[0] != means[1] == means[2]


def test_a_run_prints_a_line_per_epoch_and_the_test_rmse_at_the_end(run: Run) -> None:
    Path("r.csv").write_text(ratings())
    Path("test.csv").write_text(HEADER + "1,2,3.5\n2,99,1\n77,3,4.5\n")
    lines, card = trained(run, "--ratings_csv", "r.csv", "--test_csv", "test.csv", "--epochs", "5", "--lr", "0.05")
    epochs = [re.fullmatch(r"epoch (\d)/5  validation RMSE (\d\.\d{4})  train RMSE \d\.\d{4}  .*", x) for x in lines]
    assert [match[1] for match in epochs if match] == ["1", "2", "3", "4", "5"]
    reached = [f"{epoch['validation_rmse']:.4f}" for epoch in card["metrics"]["epochs"]]
    assert [match[2] for match in epochs if match] == reached
    predicted = TrainedModel.load(Path("output")).predict(pa.array([1, 2, 77]), pa.array([2, 99, 3]))
    errors = predicted - np.array([3.5, 1, 4.5])
    assert card["metrics"]["test_rmse"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-6)
    assert lines[-1] == f"test RMSE {card['metrics']['test_rmse']:.4f}"


def stopped_after(epoch: int, monkeypatch: pytest.MonkeyPatch, run: Run, *argv: str) -> None:
    """Runs the command and interrupts it as soon as the state after ``epoch`` is kept."""
    save = CheckpointFile.save

    def last_save(file: CheckpointFile, state: dict[str, Any]) -> None:
        save(file, state)
        if len(state["reports"]) == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFile, "save", last_save)
        with pytest.raises(KeyboardInterrupt):
            run(*argv)


def test_a_run_resumes_from_its_checkpoint_and_deletes_it_at_the_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("r.csv").write_text(ratings())
    argv = ["--ratings_csv", "r.csv", "--epochs", "4", "--lr", "0.05"]
    _, whole = trained(run, *argv, "--output_dir", "whole", directory="whole")
    stopped_after(2, monkeypatch, run, *argv, "--checkpoint", "states/c.pt")
    assert [path.name for path in Path("states").iterdir()] == ["c.pt"]
    assert not Path("output").exists()
    capsys.readouterr()
    lines, card = trained(run, *argv, "--checkpoint", "states/c.pt")
    assert lines[2] == "resuming from states/c.pt at epoch 3/4"
    assert [line[:11] for line in lines[3:5]] == ["epoch 3/4  ", "epoch 4/4  "]
    assert lines[5].startswith("ranking  ")
    assert lines[-1].startswith("model ")
    assert list(Path("states").iterdir()) == []
    for file in ("model.pt", *RANKING_FILES):
        assert Path("output", file).read_bytes() == Path("whole", file).read_bytes()
    assert card["metrics"]["validation_rmse"] == whole["metrics"]["validation_rmse"]
    assert len(card["metrics"]["epochs"]) == 4


def test_a_checkpoint_of_another_training_is_refused_and_kept(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("r.csv").write_text(ratings())
    argv = ["--ratings_csv", "r.csv", "--epochs", "2", "--checkpoint", "c.pt"]
    stopped_after(1, monkeypatch, run, *argv)
    capsys.readouterr()
    said = refused(run, *argv, "--lr", "0.05")
    assert said.startswith("the checkpoint belongs to a training with lr 0.001, this training has lr 0.05: ")
    assert refused(run, *argv, "--solver", "vb").startswith("the checkpoint belongs to a training with ")
    assert trained(run, *argv)[0][2] == "resuming from c.pt at epoch 2/2"


def test_test_ratings_take_nothing_from_the_training(run: Run) -> None:
    Path("r.csv").write_text(ratings())
    Path("test.csv").write_text(ratings(users=3))
    options = ["--ratings_csv", "r.csv", "--epochs", "2", "--lr", "0.05"]
    trained(run, *options, "--output_dir", "without", directory="without")
    _, card = trained(run, *options, "--output_dir", "with", "--test_csv", "test.csv", directory="with")
    assert card["rows"] == {"train": 270, "validation": 30}
    for name in ("user", "movie"):
        tables = [pq.read_table(f"{folder}/{name}_embeddings.parquet") for folder in ("with", "without")]
        assert tables[0].equals(tables[1])


def test_val_size_0_trains_on_everything(run: Run) -> None:
    Path("r.csv").write_text(ratings())
    lines, card = trained(run, "--ratings_csv", "r.csv", "--val_size", "0", "--epochs", "2")
    assert card["rows"] == {"train": 300, "validation": 0}
    assert card["metrics"]["validation_rmse"] is None
    assert [line[:22] for line in lines[2:4]] == ["epoch 1/2  train RMSE ", "epoch 2/2  train RMSE "]


@pytest.mark.parametrize(("name", "kind"), [(integer, "int64"), (text, "string"), (uuid_, "string")])
def test_ids_stay_what_they_were(run: Run, name: Callable[[str, int], str], kind: str) -> None:
    Path("r.csv").write_text(ratings(name))
    Path("test.csv").write_text(HEADER + f"{name('u', 3)},{name('m', 4)},5\n{name('u', 500)},{name('m', 4)},5\n")
    lines, card = trained(run, "--ratings_csv", "r.csv", "--test_csv", "test.csv")
    assert (card["users"], card["movies"]) == (30, 10)
    assert lines[-1].startswith("test RMSE ")
    for side, n in (("user", 30), ("movie", 10)):
        ids = pq.read_table(f"output/{side}_embeddings.parquet")[f"{side}_id"]
        assert str(ids.type) == kind
        assert sorted(map(str, ids.to_pylist())) == sorted(name(side[0], i) for i in range(n))


def test_test_ids_that_only_look_like_integers_are_the_text_ids_of_the_training(run: Run) -> None:
    Path("r.csv").write_text(ratings() + "anna,1,5\n1,film,5\n")
    Path("test.csv").write_text(HEADER + "1,2,3\n7,3,1\n")
    Path("same.csv").write_text(HEADER + "1,2,3\n7,3,1\nnobody,nothing,3\n")
    options = ["--ratings_csv", "r.csv", "--lr", "0.3", "--max_reject_fraction", "0"]
    _, looks = trained(run, *options, "--test_csv", "test.csv")
    _, is_text = trained(run, *options, "--test_csv", "same.csv")
    nobody = 3 * is_text["metrics"]["test_rmse"] ** 2 - 2 * looks["metrics"]["test_rmse"] ** 2
    assert nobody == pytest.approx((is_text["mu"] - 3) ** 2, abs=1e-5)


def test_a_text_id_among_integers_of_a_test_file_is_none_where_the_training_has_text(run: Run) -> None:
    Path("r.csv").write_text(ratings() + ratings(text).removeprefix(HEADER) + "007,m é001,3\n")
    Path("test.csv").write_text(ratings() + "u é001,m é001,4\n007,m é001,4\n")
    lines, _ = trained(run, "--ratings_csv", "r.csv", "--test_csv", "test.csv")
    assert any(line.startswith("test.csv: 302 rows read, 0 rejected, ") for line in lines)


def test_ratings_that_mean_not_rated_are_left_out_of_training_and_test_and_kept_in_the_model(run: Run) -> None:
    Path("r.csv").write_text(ratings() + "1,98,-1\n1,99,0\n")
    Path("test.csv").write_text(HEADER + "1,2,-1\n1,2,3\n")
    options = ["--ratings_csv", "r.csv", "--test_csv", "test.csv", "--ignore_ratings", "-1,0"]
    lines, card = trained(run, *options)
    assert lines[0].startswith("r.csv: 302 rows read, 0 rejected, 2 ignored (rating -1, 0), ")
    assert lines[1].startswith("test.csv: 2 rows read, 0 rejected, 1 ignored ")
    assert (card["ignore_ratings"], card["rating_min"], card["movies"]) == ([-1, 0], 1, 10)
    assert read_model(Path("output")).ignore_ratings == (-1, 0)


def test_a_gzip_file_without_a_header_is_read_with_its_columns_named(run: Run) -> None:
    body = ratings().removeprefix(HEADER).replace(",", "::")
    Path("r.dat").write_bytes(gzip.compress(body.encode()))
    _, card = trained(run, "--ratings_csv", "r.dat", "--columns", "userId,movieId,rating")
    assert (card["users"], card["movies"]) == (30, 10)


def test_bad_rows_below_the_limit_are_listed_beside_the_model(run: Run) -> None:
    Path("r.csv").write_text(ratings() + "1,99,five\n")
    lines, _ = trained(run, "--ratings_csv", "r.csv", "--val_size", "0")
    assert lines[0].startswith("r.csv: 301 rows read, 1 rejected, ")
    assert Path("output/rejects.csv").read_text().splitlines()[1].startswith("line 302,")
    assert "is not a number" in Path("output/rejects.csv").read_text()


def test_an_output_directory_keeps_the_files_of_others(run: Run) -> None:
    Path("r.csv").write_text(ratings())
    trained(run, "--ratings_csv", "r.csv", "--output_dir", ".", directory=".")
    assert {path.name for path in Path().iterdir()} == MODEL_FILES | RANKING_FILES | {"r.csv"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "r.csv: no such file, expected a file of ratings"),
        ("", "r.csv: the file is empty, expected ratings"),
        (HEADER, "r.csv: no ratings found, expected at least one row"),
        (
            "a,b,c\n1,2,3\n",
            r'r\.csv line 1: no column recognised as user_id, found "a, b, c"; name it with --user_column',
        ),
        ("1,2,3\n1,3,4\n", r"r\.csv line 1: expected a header, found .*--columns userId,movieId,rating$"),
        (ratings() + "1,50,five\n" * 9, r'9 of 309 rows are bad \(2\.91%, .*line 302: rating "five" is not a number'),
        (HEADER + "1,2,good\n", r'1 of 1 rows are bad .*line 2: rating "good" is not a number'),
        (HEADER + "1,2,nan\n2,2,inf\n", r'line 2: rating "nan" is not finite; line 3: rating "inf" is not finite'),
        (HEADER + ",2,3\n2,,3\n", "line 2: empty user id; line 3: empty movie id"),
        (HEADER + "1,2,3,4\n1,2\n", "line 2: expected 3 fields, found 4; line 3: expected 3 fields, found 2"),
        (HEADER + "1,2,3\n", "split random: 1 ratings leave none for the validation part with val_size 0.1"),
    ],
)
def test_unusable_ratings_are_a_one_line_error(run: Run, content: str | None, said: str) -> None:
    if content is not None:
        Path("r.csv").write_text(content)
    assert re.search(said, refused(run, "--ratings_csv", "r.csv"))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--val_size", "1"], "val_size: Input should be less than 1 (given: 1.0)"),
        (["--val_size", "nan"], "val_size: Input should be a finite number (given: nan)"),
        (["--val_size", "half"], "argument --val_size: invalid float value: 'half' (see python -m mf --help)"),
        (["--epochs", "0"], "epochs: Input should be greater than or equal to 1 (given: 0)"),
        (["--epochs", "1.5"], "argument --epochs: invalid int value: '1.5' (see python -m mf --help)"),
        (["--lr", "-1"], "lr: Input should be greater than 0 (given: -1.0)"),
        (["--lr", "inf"], "lr: Input should be a finite number (given: inf)"),
        (["--dropout", "1"], "dropout: Input should be less than 1 (given: 1.0)"),
        (["--clip_grad", "0"], "clip_grad: Input should be greater than 0 (given: 0.0)"),
        (["--seed", "-1"], "seed: Input should be greater than or equal to 0 (given: -1)"),
        (["--max_reject_fraction", "2"], "max_reject_fraction: Input should be less than or equal to 1 (given: 2.0)"),
        (
            ["--solver", "magic"],
            "argument --solver: invalid choice: 'magic' (choose from adam, sgd, vb, gibbs)",
        ),
        (["--schedule", "odd"], "argument --schedule: invalid choice: 'odd' (choose from constant, one_cycle)"),
        (["--epochs"], "argument --epochs: expected one argument (see python -m mf --help)"),
        (["--movie_export_table", "mf_x"], "movie_export_table: names that start with mf_ are reserved for the tables"),
        (["--user_export_table", "movie_embeddings"], "movie_export_table and user_export_table are both"),
        (["--output_dir", "r.csv"], "--output_dir r.csv: r.csv is a file, expected a directory"),
        (["--output_dir", "r.csv/model"], "r.csv is a file, expected a directory"),
        (["--checkpoint", "r.csv/c.pt"], "--checkpoint r.csv/c.pt: r.csv is a file, expected a directory"),
        (["--checkpoint", "."], "--checkpoint .: found a directory, expected a file"),
        (["--checkpoint", "/proc/none/c.pt"], "--checkpoint /proc/none/c.pt: cannot write to /proc ("),
        (["--checkpoint", "r.csv"], "r.csv is not a checkpoint: "),
        (["--import_table", "ratings"], "found both --ratings_csv and --import_table, expected one of them"),
        (["--publish"], "no Supabase project: give --supabase_url or set SUPABASE_URL"),
        (["--supabase_url", "https://abc.supabase.co"], "no key for https://abc.supabase.co: set SUPABASE_KEY, or"),
        (["--supabase_url", "abc", "--supabase_key", KEY], "the Supabase URL is not of the form https://PROJECT"),
        (["--test_csv", "none.csv"], "none.csv: no such file, expected a file of ratings"),
        (["--test_csv", "text.csv"], "text.csv: user_id is string, expected int64 as in the training ratings"),
        (["--lr", "1e30"], "epoch 1: the validation RMSE is nan: lower --lr (now 1e+30), or set --clip_grad 1"),
        (["--ratings_csv", "a\nb.csv"], "a b.csv: no such file, expected a file of ratings"),
        (["schema"], "found a value without a flag (see python -m mf --help)"),
    ],
)
def test_an_invalid_flag_is_a_one_line_error(run: Run, argv: list[str], said: str) -> None:
    Path("r.csv").write_text(ratings())
    Path("text.csv").write_text(ratings(text))
    assert said in refused(run, "--ratings_csv", "r.csv", *argv)


def test_a_table_without_supabase_is_a_one_line_error(run: Run) -> None:
    assert refused(run, "--import_table", "ratings") == "no Supabase project: give --supabase_url or set SUPABASE_URL"


def test_without_a_file_and_without_supabase_the_default_file_is_missed(run: Run) -> None:
    assert refused(run) == "data/ratings.csv: no such file, expected a file of ratings"


def test_a_project_in_the_environment_is_read_when_no_file_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPABASE_URL", "https://abc.supabase.co")
    assert refused(run).startswith("no key for https://abc.supabase.co: set SUPABASE_KEY, or SUPABASE_KEY_SECRET")
    Path("r.csv").write_text(ratings())
    lines, _ = trained(run, "--ratings_csv", "r.csv")
    assert lines[-1].startswith("model ")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--supabase_kei", KEY], "unknown flag --supabase_kei; did you mean --supabase_key?"),
        ([f"--supabase_kei={KEY}"], "unknown flag --supabase_kei; did you mean --supabase_key?"),
        (["--supabase_key=", KEY], "found a value without a flag"),
        ([KEY], "found a value without a flag"),
        ([f"--publish={KEY}"], "argument --publish: it takes no value"),
        ([f"--use_cuda={KEY}\nx"], "argument --use_cuda: it takes no value"),
        (["--ratings", "r.csv"], "unknown flag --ratings; did you mean --ratings_csv?"),
        (["--lrr", "0.1"], "unknown flag --lrr; did you mean --lr?"),
        (["--learning-rate=0.1"], "unknown flag --learning-rate; did you mean --lr?"),
        (["--zzz", "red"], "unknown flag --zzz"),
    ],
)
def test_the_value_of_a_wrong_flag_is_not_shown(run: Run, argv: list[str], said: str) -> None:
    assert refused(run, *argv) == f"{said} (see python -m mf --help)"


def test_schema_prints_the_migration(run: Run) -> None:
    assert run("schema") == (0, migration(SchemaConfig()), "")
    argv = [
        "schema",
        "--user-id-type",
        "uuid",
        "--movieidtype=text",
        "--movie_export_table",
        "films",
        "--ratings_table",
        "ratings",
    ]
    config = SchemaConfig(
        user_id_type="uuid", movie_id_type="text", movie_export_table="films", ratings_table="ratings"
    )
    assert run(*argv) == (0, migration(config), "")


def test_schema_refuses_invalid_flags_in_one_line(run: Run) -> None:
    assert refused(run, "schema", "--user_id_type", "int").startswith("argument --user_id_type: invalid choice: 'int'")
    assert refused(run, "schema", "--epochs", "3") == "unknown flag --epochs (see python -m mf schema --help)"


@pytest.mark.parametrize(
    ("argv", "status", "out", "err"),
    [
        (["--ratings_csv", "bad.csv"], 2, "", "error: bad.csv: 1 of 1 rows are bad"),
        (["--ratings_csv", "r.csv", "--factors", "2"], 0, "r.csv: 300 rows read", ""),
    ],
)
def test_it_runs_as_a_program(tmp_path: Path, argv: list[str], status: int, out: str, err: str) -> None:
    (tmp_path / "r.csv").write_text(ratings())
    (tmp_path / "bad.csv").write_text(HEADER + "1,2,x\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SUPABASE_")}
    done = subprocess.run(
        [sys.executable, "-m", "mf", *argv],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(Path(mf.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=900,
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("still running, ")]  # on a busy machine
    assert (done.returncode, len(lines)) == (status, int(status > 0))
    assert done.stdout.startswith(out)
    assert "\n".join(lines).startswith(err)
    assert (tmp_path / "output" / "model.json").exists() is (status == 0)


def test_foreign_text_acts_on_no_terminal_whichever_command_prints_it(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(ratings())
    foreign = "o\x1b]0;title\x07\u202e"
    program = "import sys; from mf.__main__ import run; sys.argv[0] = 'mf'; run()"
    done = subprocess.run(
        [sys.executable, "-c", program, "train", "--ratings_csv=r.csv", "--factors=2", f"--output_dir={foreign}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(mf.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert r"in o\x1b]0;title\x07\u202e/" in done.stdout
    assert not set("\x1b\x07\u202e") & set(done.stdout + done.stderr)
    assert (tmp_path / foreign / "model.json").exists()
