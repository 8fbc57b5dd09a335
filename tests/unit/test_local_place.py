"""Checks of the embedded Supabase's names and folders."""

import fcntl
import os

import pytest

from mf.errors import ConfigError, SupabaseError
from mf.local import place, postgres
from mf.local.keys import Keys
from mf.local.postgres import checked_name


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setattr(place, "PRIVATE_ROOT", tmp_path)
    return tmp_path / "home"


def test_the_private_folder_is_found_again_and_others_may_only_traverse_it(home):
    folder = place.private_folder(home)
    assert folder == place.private_folder(home)
    assert folder.stat().st_mode & 0o777 == 0o711
    assert folder != place.private_folder(home / "other")


def test_a_private_folder_that_others_may_write_to_is_refused(home):
    place.private_folder(home).chmod(0o777)
    with pytest.raises(SupabaseError, match="expected a folder that only"):
        place.private_folder(home)


def test_a_link_planted_for_the_private_folder_is_refused(home, tmp_path):
    folder = place.private_folder(home)
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(SupabaseError, match="expected a folder that only"):
        place.private_folder(home)


@pytest.fixture
def closed_home(home, monkeypatch):
    home.mkdir()
    monkeypatch.setattr(place, "_reaches", lambda run_as, path: False)
    return home


def test_a_closed_homes_data_are_found_again_but_not_those_of_a_deleted_home(closed_home):
    data = place.data_folder(closed_home, {})
    (data / "PG_VERSION").touch()
    assert place.data_folder(closed_home, {}) == data == (closed_home / "pgdata").resolve()
    assert (data / "PG_VERSION").exists()
    (closed_home / "pgdata").unlink()
    assert list(place.data_folder(closed_home, {}).iterdir()) == []


def test_a_closed_home_that_lost_its_data_is_an_error(closed_home, tmp_path):
    data = place.data_folder(closed_home, {})
    moved = closed_home.rename(tmp_path / "moved")
    with pytest.raises(SupabaseError, match=f"moved was moved: its data are in {data}; move it back"):
        place.data_folder(moved, {})
    moved.rename(closed_home)
    data.rmdir()
    with pytest.raises(SupabaseError, match="are missing; delete"):
        place.data_folder(closed_home, {})


def test_an_open_home_that_was_closed_later_is_an_error(closed_home):
    (closed_home / "pgdata").mkdir()
    with pytest.raises(SupabaseError, match=r"pgdata: the user nobody can no longer enter .*; allow it"):
        place.data_folder(closed_home, {})


@pytest.mark.parametrize("name", ["", "1a", "Sample", "a-b", 'a"; drop', "template1", "postgres", "a" * 64])
def test_an_invalid_database_name_is_refused(name):
    with pytest.raises(ConfigError, match=r"^database '.*': expected"):
        checked_name(name)


def test_keys_are_new_each_time_and_their_repr_hides_them():
    one, two = Keys(), Keys()
    assert one.secret_key != two.secret_key
    assert one.jwt_secret != two.jwt_secret
    assert not any(secret in repr(one) for secret in [one.jwt_secret, *one.tokens()])


def test_a_home_in_use_is_not_deleted(home):
    home.mkdir()
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()
        with pytest.raises(SupabaseError, match="in use by process 4711: end it first"):
            place.delete_home(home)
    assert home.exists()
    place.delete_home(home)
    assert not home.exists()


def test_without_a_free_port_the_search_ends(monkeypatch):
    monkeypatch.setattr(postgres, "PORTS", range(20_000, 20_001))
    monkeypatch.setattr(postgres, "_given_ports", {20_000})
    with pytest.raises(SupabaseError, match=r"all ports of 127\.0\.0\.1 from 20000 to 20000 are taken"):
        postgres.free_port()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_an_entry_in_passwd_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    with pytest.raises(SupabaseError, match="the user with id 54321 has no entry in /etc/passwd"):
        place.place(tmp_path)


def test_a_postgres_of_ones_own_needs_its_server_program(monkeypatch, tmp_path):
    monkeypatch.setenv("MF_POSTGRES", str(tmp_path))
    with pytest.raises(
        SupabaseError, match=r"^MF_POSTGRES=.*: expected a folder of PostgreSQL with bin/postgres in it$"
    ):
        place.find_programs()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "postgres").touch()
    assert place.find_programs() == tmp_path
