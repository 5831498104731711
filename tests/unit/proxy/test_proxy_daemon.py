# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Command line and configuration of ``oio-proxy``."""

import threading

import pytest

from oio.common.exceptions import ConfigurationException
from oio.proxy.server import (
    Options,
    ProxyProcess,
    listen_address,
    main,
    parse_arguments,
    read_configuration,
)


@pytest.fixture
def conf(tmp_path, monkeypatch):
    path = tmp_path / "sds.conf"
    path.write_text("[default]\nns.flat_bits=9\n[KNOWN]\nconscience=127.0.0.1:1,127.0.0.1:2\n[POOR]\nproxy=1.2.3.4:5\n")
    monkeypatch.setenv("OIO_SDS_CONF", str(path))
    return path


def test_command_line():
    options = parse_arguments(
        ["-O", "Bind=/run/proxy.sock", "-O", "SysConfig=off", "-O", "Config=/a", "-O", "Config=/b",
         "-O", "Workers=3", "127.0.0.1:6000", "NS"]
    )  # fmt: skip
    assert options == Options(["127.0.0.1:6000", "/run/proxy.sock"], "NS", 3, False, ["/a", "/b"])
    assert listen_address("/run/x") == "unix:/run/x"
    assert listen_address("127.0.0.1:80") == ("127.0.0.1", 80)
    for bad in (["x", "NS"], ["-O", "Workers=0", "1.2.3.4:5", "NS"], ["-O", "What=1", "1.2.3.4:5", "NS"], ["1:5"]):
        with pytest.raises(SystemExit):
            parse_arguments(bad)


def test_namespaces_that_cannot_be_served(conf, capsys):
    assert main(["127.0.0.1:0", "UNKNOWN"]) == 1
    assert "UNKNOWN is not configured" in capsys.readouterr().err
    assert main(["127.0.0.1:0", "POOR"]) == 1
    assert "no 'conscience' address" in capsys.readouterr().err
    assert main(["-O", f"Config={conf}.absent", "127.0.0.1:0", "KNOWN"]) == 1


def test_files_of_the_command_line_win(conf, tmp_path, monkeypatch):
    extra = tmp_path / "proxy.conf"
    extra.write_text("[KNOWN]\nns.flat_bits=3\n[OTHER]\nconscience=nowhere\n")
    read = read_configuration(Options([], "KNOWN", files=[str(extra)]))
    assert read["ns.flat_bits"] == "3" and read["conscience"] == "127.0.0.1:1,127.0.0.1:2"
    with pytest.raises(ConfigurationException, match="nowhere"):
        read_configuration(Options([], "OTHER", files=[str(extra)]))
    monkeypatch.delenv("OIO_SDS_CONF")
    with pytest.raises(ConfigurationException, match="conscience"):
        read_configuration(Options([], "KNOWN", system_configuration=False, files=[str(extra)]))


def test_reload_goes_back_to_the_configuration(conf):
    options = Options([], "KNOWN")
    process = ProxyProcess("KNOWN", read_configuration(options), options)
    process.variables.set("ns.chunk_size", "5")
    conf.write_text("[KNOWN]\nconscience=127.0.0.1:3\nns.flat_bits=11\n")
    process.reload()
    assert process.variables["ns.chunk_size"] == 10485760
    assert process.variables["ns.flat_bits"] == 11
    assert process.feed.registry.addresses == ["127.0.0.1:3"]
    conf.write_text("[KNOWN]\nproxy=x\n")
    process.reload()
    assert process.feed.registry.addresses == ["127.0.0.1:3"], "a broken file changes nothing"
    process.stop()


def test_addresses_of_consciences_are_read_again(conf):
    options = Options([], "KNOWN")
    settings = {"proxy.period.refresh.csurl": "50ms", "proxy.period.cs.downstream": "50ms"}
    process = ProxyProcess("KNOWN", {**read_configuration(options), **settings}, options)
    process.start()
    try:
        conf.write_text("[KNOWN]\nconscience=127.0.0.1:4,127.0.0.1:5\n")
        pause = threading.Event()
        for _ in range(500):
            if process.feed.registry.addresses == ["127.0.0.1:4", "127.0.0.1:5"]:
                break
            pause.wait(0.01)
        assert process.feed.registry.addresses == ["127.0.0.1:4", "127.0.0.1:5"]
    finally:
        process.stop()
