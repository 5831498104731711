# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The gateway to erasure-coded chunks in a local cluster: there when it is asked for."""

import configparser
import os

import pytest
import yaml

from oio.ecd.server import read_settings
from oio.sandbox import Options, Sandbox, SandboxError, generate


@pytest.fixture(autouse=True)
def _own_reservations(tmp_path, monkeypatch):
    """Keep the reservations of ports of the tests apart from those of the user."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(directory))


def namespace_of(sandbox):
    conf = configparser.ConfigParser(interpolation=None)
    conf.read(sandbox.layout.sds_conf)
    return conf[sandbox.namespace]


def test_by_default_there_is_no_ecd(tmp_path):
    sandbox = Sandbox(str(tmp_path / "home"), Options(namespace="DEMO", rawx=1))
    sandbox.init()
    assert sandbox.services("ecd") == []
    assert "ecd" not in namespace_of(sandbox)
    assert "ecd" not in sandbox.conf["services"]


def test_the_namespace_and_the_test_configuration_tell_the_ecd(tmp_path):
    sandbox = Sandbox(str(tmp_path / "home"), Options(namespace="DEMO", rawx=1, ecd=1))
    layout = sandbox.init()
    (service,) = layout.of_type("ecd")
    assert service.name == "DEMO-ecd-1"
    assert namespace_of(sandbox)["ecd"] == service.addr
    with open(os.path.join(layout.conf_dir, "test.yml"), encoding="utf-8") as stream:
        assert yaml.safe_load(stream)["services"]["ecd"] == [{"num": "1", "addr": service.addr}]
    settings = read_settings(os.path.join(layout.conf_dir, "DEMO-ecd-1.conf"))
    assert settings.listen == (service.host, service.port)
    assert settings.namespace == "DEMO"
    assert generate.command(layout, service)[-2:] == [
        os.path.join(generate.source_root(), "bin", "oio-ecd"),
        os.path.join(layout.conf_dir, "DEMO-ecd-1.conf"),
    ]


def test_the_conscience_does_not_know_the_ecd(tmp_path):
    sandbox = Sandbox(str(tmp_path / "home"), Options(namespace="DEMO", rawx=1, ecd=1))
    layout = sandbox.init()
    assert not os.path.exists(os.path.join(layout.conf_dir, "watch", "DEMO-ecd-1.yml"))


def test_the_ecd_takes_the_port_after_the_proxy(tmp_path):
    sandbox = Sandbox(str(tmp_path / "home"), Options(namespace="DEMO", rawx=1, ecd=1))
    listening = [service.type for service in sandbox.init().services if service.port]
    assert listening[:2] == ["proxy", "ecd"]


def test_the_number_of_ecd_is_bounded():
    with pytest.raises(SandboxError, match="ecd"):
        Options(ecd=-1).check()
