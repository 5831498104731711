# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Namespace configuration: lookup, merge, and what happens when something is missing."""

import pytest

from oio.common import configuration
from oio.common.configuration import load_namespace_conf, read_conf, set_namespace_options
from oio.common.exceptions import ConfigurationException


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch):
    monkeypatch.setattr(configuration, "NS_CONF_CACHE", {})


@pytest.fixture
def conf_file(tmp_path, monkeypatch):
    path = tmp_path / "sds.conf"
    path.write_text("[default]\nns.worm = false\n[NS]\nProxy = 127.0.0.1:6000\nzookeeper = a%%b\n")
    monkeypatch.setenv("OIO_SDS_CONF", str(path))
    return path


def test_options_are_lower_case_and_hold_the_namespace(conf_file):
    conf = load_namespace_conf("NS")
    assert conf["proxy"] == "127.0.0.1:6000"
    assert conf["namespace"] == "NS"
    assert conf["zookeeper"] == "a%b"
    assert conf["ns.worm"] == "false"
    assert conf.files == [str(conf_file)]


def test_a_missing_key_names_the_key_and_the_files(conf_file):
    with pytest.raises(Exception, match=r"ecd.*NS.*sds\.conf"):
        load_namespace_conf("NS")["ecd"]


def test_results_are_cached_until_fresh_is_asked(conf_file):
    first = load_namespace_conf("NS")
    conf_file.write_text("[NS]\nproxy = 127.0.0.1:7000\n")
    assert load_namespace_conf("NS") is first
    assert load_namespace_conf("NS", fresh=True)["proxy"] == "127.0.0.1:7000"


@pytest.mark.parametrize(
    ("text", "message"),
    [("[OTHER]\nproxy=1\n", "section not found"), ("[NS]\necd=1\n", "Missing field 'proxy'")],
)
def test_what_is_missing_is_said_before_leaving(conf_file, capsys, text, message):
    conf_file.write_text(text)
    with pytest.raises(SystemExit) as left:
        load_namespace_conf("NS")
    assert left.value.code == 1
    assert message in capsys.readouterr().out


def test_failsafe_returns_what_there_is(conf_file):
    conf_file.write_text("[NS]\necd=127.0.0.1:6001\n")
    assert load_namespace_conf("NS", failsafe=True)["ecd"] == "127.0.0.1:6001"
    assert "NS" not in configuration.NS_CONF_CACHE


def test_the_user_file_serves_only_without_system_files(tmp_path, monkeypatch):
    monkeypatch.delenv("OIO_SDS_CONF", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".oio").mkdir()
    (tmp_path / ".oio/sds.conf").write_text("[NS]\nproxy = 127.0.0.1:1\n")
    system = tmp_path / "system.conf"
    system.write_text("[NS]\nproxy = 127.0.0.1:2\n")
    user = str(tmp_path / ".oio/sds.conf")
    monkeypatch.setattr(
        configuration, "_config_paths", lambda: iter([(str(system), True), (user, False)])
    )
    assert load_namespace_conf("NS", fresh=True)["proxy"] == "127.0.0.1:2"
    system.unlink()
    assert load_namespace_conf("NS", fresh=True)["proxy"] == "127.0.0.1:1"


def test_setting_options_rewrites_the_last_file(conf_file):
    options = set_namespace_options("NS", {"ns.worm": True}, remove=["zookeeper"])
    assert options["ns.worm"] == "True"
    assert "zookeeper" not in load_namespace_conf("NS", fresh=True)


def test_setting_options_keeps_links_and_rights(conf_file, tmp_path, monkeypatch):
    conf_file.chmod(0o640)
    link = tmp_path / "link.conf"
    link.symlink_to(conf_file)
    monkeypatch.setenv("OIO_SDS_CONF", str(link))
    set_namespace_options("NS", {"ns.worm": True})
    assert link.is_symlink() and conf_file.stat().st_mode & 0o777 == 0o640
    assert load_namespace_conf("NS", fresh=True)["ns.worm"] == "True"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.conf", "sds.conf"]


def test_a_malformed_value_is_a_configuration_error(conf_file):
    conf_file.write_text("[NS]\nproxy = 127.0.0.1:6000\nbad = 100%\n")
    with pytest.raises(ConfigurationException, match="must be followed"):
        load_namespace_conf("NS")


def test_setting_options_without_any_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("OIO_SDS_CONF", str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="Could not read"):
        set_namespace_options("NS", {"a": "b"})


def test_reading_a_section_of_a_plain_file(tmp_path):
    path = tmp_path / "service.conf"
    path.write_text("[a]\nx = 1\n[b]\ny = 2\n")
    assert read_conf(str(path), "a") == {"x": "1"}
    assert read_conf(str(path)) == {"a": {"x": "1"}, "b": {"y": "2"}}
    with pytest.raises(SystemExit):
        read_conf(str(path), "c")


def test_a_file_whose_name_reads_as_a_pattern(tmp_path, monkeypatch):
    path = tmp_path / "sds[1].conf"
    path.write_text("[NS]\nproxy=127.0.0.1:6000\n")
    monkeypatch.setenv("OIO_SDS_CONF", str(path))
    assert load_namespace_conf("NS", fresh=True)["proxy"] == "127.0.0.1:6000"
