"""The command `mf`: its commands, mistakes, and what they import."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import mf
from mf import __main__ as cli
from mf.sample import write_sample
from pipelines import __main__ as pipelines

Run = Callable[..., tuple[int, str, str]]
# None of the light commands needs one of these; each takes a tenth of a second or more.
HEAVY = {"torch", "sklearn", "scipy", "pandas", "numpy", "pyarrow", "matplotlib", "kfp", "google.cloud"}
NAMES = "train, evaluate, recommend, schema, runs, local"
SLOWER = {"supabase"}  # which `runs` needs


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    for name in [name for name in os.environ if name.startswith("SUPABASE_")]:
        monkeypatch.delenv(name)

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mf", *argv])
        try:
            cli.run()
            status: int | str | None = 0
        except SystemExit as ended:
            status = ended.code or 0
        return status, *capsys.readouterr()  # type: ignore[return-value]

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample, its titles, a tenth of it in ``test.csv`` and a model of the rest in ``model``."""
    folder = tmp_path_factory.mktemp("command")
    sample = write_sample(folder / "sample")
    header, *lines = sample.ratings_csv.read_text().splitlines(keepends=True)
    sample.ratings_csv.write_text(header + "".join(lines[1100:]))
    (folder / "test.csv").write_text(header + "".join(lines[:1100]))
    mf.fit(sample.ratings_csv, factors=4, epochs=3, ranking_options={"factors": 8}).save(folder / "model")
    return folder


def imported(*argv: str, call: str = "run()") -> set[str]:
    """The modules that a command has imported at its end."""
    program = (
        f"import atexit, sys; sys.argv = {['mf', *argv]!r}\n"
        "before = {*sys.modules}  # a .pth file of the environment imports, too\n"
        "atexit.register(lambda: print('\\n'.join(['MODULES', *({*sys.modules} - before)])))\n"
        f"from mf.__main__ import main, run; {call}"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SUPABASE_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=Path(mf.__file__).parents[1],
        capture_output=True,
        text=True,
    )
    return set(done.stdout.partition("MODULES\n")[2].split())


@pytest.mark.parametrize(
    ("argv", "unwanted"),
    [
        (["--help"], HEAVY | SLOWER),
        (["--version"], HEAVY | SLOWER),
        (["schema"], HEAVY | SLOWER),
        (["schema", "--help"], HEAVY | SLOWER),
        (["train", "--help"], HEAVY | SLOWER),
        (["runs", "--help"], HEAVY),
        (["runs", "list"], HEAVY),
        (["recommend", "--help"], HEAVY | SLOWER),
        (["evaluate", "--help"], HEAVY | SLOWER),
    ],
)
def test_a_light_command_imports_nothing_heavy(argv: list[str], unwanted: set[str]) -> None:
    modules = imported(*argv)
    assert "mf.cli" in modules
    assert modules & unwanted == set()


def test_the_original_trainers_help_imports_nothing_heavy() -> None:
    assert imported(call="main(['--help'])") & (HEAVY | SLOWER) == set()


def test_train_takes_the_best_solver_and_keeps_the_ratings_for_recommend(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    flags = ("--ratings_csv", str(trained / "sample" / "ratings.csv"), "--output_dir", str(tmp_path / "m"))
    status, out, _ = run("train", *flags, "--factors", "4", "--ranking_options", '{"factors": 8}')
    assert status == 0
    model = mf.load(tmp_path / "m")
    assert (model.trained.solver, len(model.ratings)) == ("vb", 9900)
    status, out, err = run("recommend", model.users[0].as_py(), "--model", str(tmp_path / "m"))
    assert (status, out.count("\n"), err) == (0, 10, "")
    status, out, _ = run("train", *flags, "--factors", "4", "--lr", "0.01", "--epochs", "1", "--ranking", "none")
    assert (status, out.splitlines()[0]) == (0, "solver adam, since lr is set")


def test_help_names_every_command_and_version_the_version(run: Run) -> None:
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    assert re.findall(r"^  (\w+) ", out, re.MULTILINE) == NAMES.split(", ")
    assert run() == run("help") == (0, out, "")
    assert run("runs", "--help")[1].startswith("usage: mf runs ")
    assert run("--version") == (0, f"mf {mf.__version__}\n", "")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["recomend", "1"], f"found recomend, expected one of {NAMES}; did you mean recommend?"),
        (["--ratings_csv=x"], f"found --ratings_csv, expected one of {NAMES}; mf train takes flags"),
        (["recommend"], "the following arguments are required: USER (see mf recommend --help)"),
        (["recommend", "1", "--modle", "m"], "unknown flag --modle; did you mean --model? (see mf recommend --help)"),
        (["recommend", "1", "--model", "nowhere"], "nowhere is not a model directory: "),
        (["evaluate"], "expected --test_csv and a file of test ratings, found none (see mf evaluate --help)"),
        (
            ["evaluate", __file__],
            f"found the file {__file__} without a flag, expected --ratings_csv or --test_csv before",
        ),
        (["recommend", "1", "--n", "3"], "unknown flag --n; did you mean --k?"),
        (
            ["recommend", "1", "--titles_csv", "no.csv"],
            "--titles_csv no.csv: no such file, expected a file of movie titles",
        ),
        (["train", "--leaning_rate", "1"], "unknown flag --leaning_rate; did you mean --lr?"),
        (["train", "--solver", "gibs"], "argument --solver: invalid choice: 'gibs' (choose from "),
        (["runs", "lst"], "argument list|rollback|prune: invalid choice: 'lst' (choose from "),
        (["schema", "--user-type", "uuid"], "unknown flag --user-type; did you mean --user_id_type? (see mf schema"),
    ],
)
def test_a_mistake_is_one_line(run: Run, argv: list[str], said: str) -> None:
    status, out, err = run(*argv)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {said}")
    if "invalid choice" in said:
        assert re.search(r"\); did you mean (gibbs|list)\? \(see mf \w+ --help\)$", err.rstrip())


def test_recommend_prints_titles_and_reasons(run: Run, trained: Path) -> None:
    model = mf.load(trained / "model")
    user = model.users[0].as_py()
    titles = dict(line.split(",")[:2] for line in (trained / "sample" / "movies.csv").read_text().splitlines())
    status, out, err = run("recommend", user, "--model", str(trained / "model"), "-k=3")
    assert (status, err.startswith("error: unknown flag -k")) == (2, True)
    status, out, err = run("recommend", user, "--model", str(trained / "model"), "--k", "3")
    expected = "".join(
        f"  {one.predicted_rating:.2f}  {titles[str(one.movie_id)]}  (because of {titles[str(one.because)]})\n"
        for one in model.recommend(user, k=3)
    )
    assert (status, out, err) == (0, expected, "")
    status, out, _ = run("recommend", "nobody", "--model", str(trained / "model"))
    assert out.startswith("user nobody is unknown to the model: the list is the one of a new user\n")


def test_evaluate_prints_every_metric_beside_its_baseline(run: Run, trained: Path) -> None:
    model = ("--model", str(trained / "model"))
    status, out, err = run("evaluate", *model, "--test_csv", str(trained / "test.csv"))
    assert (status, err) == (0, "")
    assert re.search(r"RMSE 0\.\d{4} \(user \+ movie biases 0\.\d{4}\)", out)
    renamed = pd.read_csv(trained / "test.csv").rename(columns={"userId": "who", "movieId": "what"})
    renamed.to_csv(trained / "renamed.csv", index=False)
    columns = ("--user_column", "who", "--movie_column", "what")
    assert run("evaluate", *model, "--test_csv", str(trained / "renamed.csv"), *columns) == (0, out, "")
    status, _, err = run("evaluate", *model, "--test_csv", str(trained / "sample" / "ratings.csv"))
    said = "9,900 of 9,900 test ratings are among those that the model knows: the metrics are wrong"
    assert (status, err) == (0, f"warning: {said}\n")


def test_the_pipelines_command_has_help_and_suggests_commands(capsys: pytest.CaptureFixture[str]) -> None:
    pipelines.main(["--help"])
    out = capsys.readouterr().out
    assert set(re.findall(r"^  ([\w-]+) ", out, re.MULTILINE)) == set(pipelines.COMMANDS)
    with pytest.raises(SystemExit, match="2"):
        pipelines.main(["sumbit"])
    assert capsys.readouterr().err.endswith("; did you mean submit?\n")
