# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Namespace configuration: lookup, merge, and what happens when something is missing."""

import pytest

from oio.common import configuration
from oio.common.configuration import (
    InvalidServiceConfigError,
    load_namespace_conf,
    parse_config,
    parse_options,
    read_conf,
    set_namespace_options,
    validate_service_conf,
)
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


def test_the_places_of_the_configuration(monkeypatch):
    monkeypatch.delenv("OIO_SDS_CONF", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert list(configuration._config_paths()) == [
        ("/etc/oio/sds.conf", True), ("/etc/oio/sds.conf.d/*", True), ("/home/me/.oio/sds.conf", False)
    ]  # fmt: skip


def test_system_files_add_up_and_the_later_wins(tmp_path, monkeypatch):
    (tmp_path / "sds.conf").write_text("[NS]\nproxy = a:1\necd = e:1\n[ns]\nproxy = small:1\n")
    (tmp_path / "sds.conf.d").mkdir()
    (tmp_path / "sds.conf.d/10").write_text("[NS]\nproxy = b:1\nany.option = x\n")
    paths = [(str(tmp_path / "sds.conf"), True), (str(tmp_path / "sds.conf.d/*"), True)]
    monkeypatch.setattr(configuration, "_config_paths", lambda: iter(paths))
    conf = load_namespace_conf("NS")
    assert (conf["proxy"], conf["ecd"], conf["any.option"]) == ("b:1", "e:1", "x")
    assert conf.files == [str(tmp_path / "sds.conf"), str(tmp_path / "sds.conf.d/10")]
    assert conf.get("absent") is None and "absent" not in conf and isinstance(conf, dict)
    assert load_namespace_conf("ns")["proxy"] == "small:1"
    # All of it goes to the last file.
    assert set_namespace_options("NS", {"New": 5, "ecd": "f:1"}) == {
        "proxy": "b:1", "ecd": "f:1", "any.option": "x", "new": "5"
    }  # fmt: skip
    assert "e:1" in (tmp_path / "sds.conf").read_text()
    assert load_namespace_conf("NS", fresh=True)["ecd"] == "f:1"


def test_no_file_at_all(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OIO_SDS_CONF", str(tmp_path / "nothing"))
    with pytest.raises(SystemExit) as left:
        load_namespace_conf("NS")
    assert left.value.code == 1 and str(tmp_path / "nothing") in capsys.readouterr().out
    assert load_namespace_conf("NS", failsafe=True) == {"namespace": "NS"}


def test_a_new_namespace_can_be_set(conf_file):
    set_namespace_options("OTHER", {"proxy": "127.0.0.1:9"})
    assert load_namespace_conf("OTHER")["proxy"] == "127.0.0.1:9"
    assert load_namespace_conf("NS")["zookeeper"] == "a%b"


def test_defaults_of_a_plain_file(tmp_path):
    path = tmp_path / "service.conf"
    path.write_text("[a]\nx = 50%\n")
    assert read_conf(str(path), "a", defaults={"x": "0", "y": "2"}) == {"x": "50%", "y": "2"}


def test_yaml_files(tmp_path, capsys):
    path = tmp_path / "service.yml"
    path.write_text("a: {x: [1, two]}\n")
    assert parse_config(str(path)) == {"a": {"x": [1, "two"]}} == read_conf(str(path), use_yaml=True)
    path.write_text("a: !!python/object/apply:os.getpid []\n")
    for wrong in (path, tmp_path / "absent"):
        with pytest.raises(SystemExit) as left:
            read_conf(str(wrong), use_yaml=True)
        assert left.value.code == 1 and str(wrong) in capsys.readouterr().out


@pytest.mark.parametrize("text", [None, "no section\n", "[other]\n"])
def test_what_cannot_be_read_is_said_before_leaving(tmp_path, capsys, text):
    path = tmp_path / "service.conf"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as left:
        read_conf(str(path), "section")
    assert left.value.code == 1 and str(path) in capsys.readouterr().out


def test_options_of_a_program(tmp_path, monkeypatch, capsys):
    path = tmp_path / "service.conf"
    path.touch()
    monkeypatch.setattr("sys.argv", ["program", str(path), "-v"])
    assert parse_options() == (str(path), {"verbose": True})
    monkeypatch.setattr("sys.argv", ["program", str(path)])
    assert parse_options()[1] == {"verbose": False}
    for args in ([], [str(path) + "-absent"]):
        monkeypatch.setattr("sys.argv", ["program", *args])
        with pytest.raises(SystemExit) as left:
            parse_options()
        assert left.value.code == 1 and "Error" in capsys.readouterr().out


def test_a_program_may_bring_its_parser(tmp_path, monkeypatch):
    from optparse import OptionParser

    parser = OptionParser()
    parser.add_option("--times", type="int")
    monkeypatch.setattr("sys.argv", ["program", str(tmp_path), "--times", "3", "--verbose"])
    assert parse_options(parser) == (str(tmp_path), {"verbose": True, "times": 3})


@pytest.mark.parametrize("conf", [{}, {"namespace": ""}])
def test_a_service_needs_a_namespace(conf):
    validate_service_conf({"namespace": "NS"})
    with pytest.raises(InvalidServiceConfigError, match="namespace"):
        validate_service_conf(conf)
    assert issubclass(InvalidServiceConfigError, ValueError)
