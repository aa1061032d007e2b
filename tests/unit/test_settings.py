"""Settings: layers, every problem at once, unknown keys, and the two files that document them."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from tracker.errors import Code, TrackerError
from tracker.installation import SOCKET_PATH_MAX, Lock, Places, open_secret
from tracker.model.definition import parse_sites
from tracker.settings import MINIMAL_SITES, SERVER, TOP_LEVEL, Settings, load_settings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("TRACKER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def written(tmp_path, text):
    path = tmp_path / "my.toml"
    path.write_text(text)
    return path


def test_without_a_file_the_defaults_and_one_shop_hold():
    loaded = load_settings({})
    assert (loaded.settings.port, loaded.settings.store) == (8400, "embedded:")
    assert loaded.settings.max_age_ms == 72 * 3_600_000
    assert list(loaded.sites) == ["shop"]
    assert loaded.config is None


def test_a_tracker_toml_in_the_folder_is_read(tmp_path):
    (tmp_path / "tracker.toml").write_text("port = 9001\n")
    assert load_settings({}).settings.port == 9001


def test_the_environment_wins_over_the_file_and_a_flag_over_both(tmp_path, monkeypatch):
    path = written(tmp_path, "port = 9001\n[server]\nmax_age = '1h'\nlateness = '1h'\n")
    monkeypatch.setenv("TRACKER_PORT", "9002")
    monkeypatch.setenv("TRACKER_MAX_AGE", "2h")
    assert load_settings({"port": None}, config=path).settings.port == 9002
    loaded = load_settings({"port": 9003}, config=path)
    assert loaded.settings.port == 9003
    assert loaded.settings.max_age == "2h"


def test_every_problem_is_said_at_once_with_its_origin(tmp_path, monkeypatch):
    path = written(
        tmp_path,
        "prt = 1\n[server]\nmax_age = '9 days'\nfoo = 1\n[site.shop]\ncurrency = 'XXY'\n",
    )
    monkeypatch.setenv("TRACKER_TRUSTED_PROXIES", "10.0.0.0/8, nowhere")
    with pytest.raises(TrackerError) as caught:
        load_settings({"port": 0}, config=path)
    assert caught.value.code is Code.CONFIGURATION
    for part in (
        "prt: no such setting",
        "server.max_age: '9 days'",
        "server.foo: no such setting; [server] has public_url",
        "site.shop.currency: 'XXY'",
        "TRACKER_TRUSTED_PROXIES: 'nowhere'",
        "--port: ",
    ):
        assert part in caught.value.message


def test_an_unknown_key_lists_the_known_ones(tmp_path):
    with pytest.raises(TrackerError, match=r"known are data, port, host, log, store"):
        load_settings({}, config=written(tmp_path, "prt = 1\n"))


def test_a_missing_or_broken_file_is_one_sentence(tmp_path):
    with pytest.raises(TrackerError, match="There is no settings file"):
        load_settings({}, config=tmp_path / "none.toml")
    with pytest.raises(TrackerError, match="cannot be read"):
        load_settings({}, config=written(tmp_path, "port = \n"))


def test_what_has_no_effect_yet_is_said(tmp_path, monkeypatch):
    path = written(
        tmp_path, "[server]\nlateness = '2h'\n[site.shop]\ncubes = [['utm_source', 'country']]\n"
    )
    monkeypatch.setenv("TRACKER_PROT", "1")
    notices = load_settings({}, config=path).notices
    assert any("lateness is kept" in notice for notice in notices)
    assert any("site.shop.cubes is kept" in notice for notice in notices)
    assert any("TRACKER_PROT is no setting" in notice for notice in notices)


def test_the_defaults_make_no_notices():
    assert load_settings({}).notices == ()


def test_minimal_toml_is_what_holds_without_a_file():
    minimal = tomllib.loads((DEPLOY / "minimal.toml").read_text())
    assert minimal == {"site": MINIMAL_SITES}


def test_reference_toml_explains_every_setting_with_its_default():
    text = (DEPLOY / "reference.toml").read_text()
    reference = tomllib.loads(text)
    assert set(reference) == {*TOP_LEVEL, "server", "site"}
    assert set(reference["server"]) == set(SERVER)
    for name, value in {**reference, **reference["server"]}.items():
        if name in ("server", "site"):
            continue
        default = Settings.model_fields[name].default
        assert (tuple(value) if isinstance(value, list) else value) == (
            str(default) if isinstance(default, Path) else default
        ), name
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if " = " in line and not line.startswith("#"):
            above = lines[:number]
            assert any(before.startswith("#") for before in above[-6:]), f"no comment: {line}"


def test_reference_toml_explains_every_setting_of_a_site():
    sites = tomllib.loads((DEPLOY / "reference.toml").read_text())["site"]
    parsed, problems = parse_sites(sites)
    assert problems == []
    assert parsed["shop"].funnels
    assert parsed["shop"].links
    _, unknown = parse_sites({"shop": {"nonsense": 1}})
    known = unknown[0].partition("a site has ")[2].rstrip(".").split(", ")
    assert set(known) == set(sites["shop"])


def test_every_setting_is_top_level_or_of_the_server():
    assert set(Settings.model_fields) == {*TOP_LEVEL, *SERVER}


def test_the_secret_is_made_once_and_private(tmp_path):
    path = tmp_path / "secret"
    keys = open_secret(path)
    assert len(keys.secret) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert open_secret(path) == keys
    assert [found.name for found in tmp_path.iterdir()] == ["secret"]


def test_a_damaged_secret_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(TrackerError, match="5 bytes instead of 32"):
        open_secret(tmp_path / "secret")


def test_sockets_of_a_long_path_lie_in_a_private_short_one(tmp_path):
    places = Places(tmp_path / ("long" * 40))
    places.prepare()
    assert len(os.fsencode(places.run)) <= SOCKET_PATH_MAX
    assert places.run.stat().st_mode & 0o777 == 0o700
    assert places.run == Places(places.data).run
    assert places.run != Places(tmp_path / ("other" * 40)).run
    places.run.rmdir()


def test_a_data_directory_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackerError, match="cannot be used"):
        Places(tmp_path / "file" / "data").prepare()


def test_a_second_lock_is_refused_and_names_the_first(tmp_path):
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    first.take()
    with pytest.raises(TrackerError, match=rf"process {os.getpid()}\)"):
        second.take(wait_s=0)
    first.release()
    second.take(wait_s=0)
    second.release()
