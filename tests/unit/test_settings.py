from pathlib import Path

import pytest

from mf.errors import ConfigError
from pipelines import settings
from pipelines.settings import DEFAULT_FILE, Settings


def refusal(file: Path) -> str:
    with pytest.raises(ConfigError) as error:
        Settings.load(file)
    return str(error.value)


def test_the_settings_that_come_with_the_code_can_be_read_and_show_every_field() -> None:
    Settings.load()
    assert [line.partition(" =")[0] for line in DEFAULT_FILE.read_text().splitlines() if " = " in line] == [
        *Settings.model_fields
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('projct = "p"', "projct: Extra inputs are not permitted"),
        ("project = 7", "project: Input should be a valid string (given: 7)"),
        ('pipeline_root = "bucket"', "pipeline_root: String should match pattern '^(gs://"),
        ('image_tag = "a b"', "image_tag: String should match pattern"),
        ('image_repository = ""', "image_repository: String should have at least 1 character (given: '')"),
        ('supabase_key_secret = "sb_secret"', "supabase_key_secret: String should match pattern"),
        (
            'supabase_url = "https://u:sb_secret@h.co"',
            "supabase_url: an address of the form https://PROJECT.supabase.co",
        ),
        ("project = p", "is no TOML: Invalid value (at line 1, column 11)"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line_with_the_file_and_the_name(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    message = refusal(file)
    assert message.startswith(f"{file}")
    assert said in message
    assert "\n" not in message


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "none.toml"
    assert refusal(file) == f"{file}: No such file or directory, expected a settings file"


def test_an_image_bears_the_tag_of_the_settings_else_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "git_sha", lambda: "0123abc")
    assert Settings(image_repository="r/mf", image_tag="v1").image("gpu") == "r/mf/mf-python-gpu:v1"
    assert Settings(image_repository="r/mf").image("cpu") == "r/mf/mf-python-cpu:0123abc"
