from pathlib import Path

import pytest

from mf.errors import ConfigError, reported
from mf.files import directory_written_aside, written_aside


def break_off(file: Path) -> None:
    file.write_text("ne")
    raise RuntimeError("halfway")


def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    for text in ("old", "new"):
        with written_aside(path) as aside:
            aside.write_text(text)
            assert path.exists() is (text == "new")
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_block_that_raises_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="halfway"), written_aside(path) as aside:
        break_off(aside)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_replaces_an_older_one_completely(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for name in ("old", "new"):
        with written_aside(path) as aside:
            aside.mkdir()
            (aside / name).touch()
    assert [file.name for file in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_files_of_a_directory_replace_those_of_the_same_name_and_keep_others(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for text in ("old", "new"):
        with directory_written_aside(tmp_path, seal="seal") as aside:
            for name in ("a", "seal", "z"):
                (aside / name).write_text(text)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "mine": "mine", "a": "new", "seal": "new", "z": "new"
    }  # fmt: skip


def test_a_block_that_raises_leaves_the_directory_as_it_was(tmp_path: Path) -> None:
    for directory in (tmp_path / "new", tmp_path):
        before = sorted(tmp_path.iterdir())
        with (
            pytest.raises(RuntimeError, match="halfway"),
            directory_written_aside(directory, seal="seal") as aside,
        ):
            break_off(aside / "seal")
        assert sorted(tmp_path.iterdir()) == before


def test_the_seal_is_absent_while_old_and_new_files_are_mixed(tmp_path: Path) -> None:
    def write() -> None:
        with directory_written_aside(tmp_path, seal="a seal") as aside:
            for name in ("a seal", "b"):
                (aside / name).touch()

    write()
    (tmp_path / "b").unlink()
    (tmp_path / "b").mkdir()  # no file can take its place
    with pytest.raises(IsADirectoryError):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_link_and_the_working_directory_can_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written beside the directory, which for a mounted volume is another file system."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "volume")
    monkeypatch.chdir(tmp_path / "volume")
    for path, name in ((tmp_path / "link", "seal"), (Path(), "other")):
        with directory_written_aside(path, seal=name) as aside:
            (aside / name).touch()
            assert {entry.name for entry in tmp_path.iterdir()} == {"volume", "link"}
    assert {entry.name for entry in (tmp_path / "volume").iterdir()} == {"seal", "other"}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigError("no file a\nb.csv,\texpected one"), "error: no file a b.csv,\\texpected one\n"),
        (PermissionError(13, "Permission denied", "x.csv"), "error: [Errno 13] Permission denied: 'x.csv'\n"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_status_2(
    capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    with pytest.raises(SystemExit) as ended, reported():
        raise error
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", said)


def test_a_defect_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), reported():
        _ = 1 / 0


def test_a_file_does_not_replace_a_directory_with_files_in_it(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mine").write_text("mine")
    with (
        pytest.raises(IsADirectoryError, match="expected the name of a file"),
        written_aside(tmp_path / "results") as to,
    ):
        to.write_text("new")
    assert (tmp_path / "results" / "mine").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
