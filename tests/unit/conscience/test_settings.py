# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Configuration files of the conscience."""

from pathlib import Path

import pytest

from oio.common.exceptions import ConfigurationException
from oio.conscience.settings import HubSettings, expand_glob, load_services, load_settings, load_storage

ETC = Path(__file__).parents[3] / "etc"


def write(path, text):
    path.write_text(text)
    return str(path)


def test_samples(tmp_path):
    for name in ("conscience-policies.conf", "conscience-services.conf"):
        write(tmp_path / name, (ETC / f"{name}-sample").read_text())
    text = (ETC / "conscience.conf-sample").read_text().replace("/etc/oio/sds/OPENIO/", f"{tmp_path}/")
    settings = load_settings(write(tmp_path / "cs.conf", text))
    assert settings.namespace == "OPENIO"
    assert settings.listen == ("127.0.0.1", 6000)
    assert settings.storage.policies["THREECOPIES"] == "rawx3:DUPONETHREE"
    assert settings.storage.securities["DUPONETHREE"] == "plain/min_dist=1,nb_copy=3"
    assert settings.storage.pools["rawx3"] == "1,rawx-even,rawx;1,rawx-odd,rawx;1,rawx;max_dist=2"
    assert settings.types["meta0"].variation_bound == 20
    assert not settings.types["meta0"].lock_at_first_register
    assert settings.types["rawx"].lock_at_first_register
    assert settings.types["rawx"].alert_frequency_s == 300
    assert settings.types["rdir"].alert_frequency_s == 30
    full = {"stat.cpu": 100, "stat.space": 100, "stat.io": 100, "stat.jobs_ready": 0}
    assert all(kind.evaluate(full) >= 100 for kind in settings.types.values())


def test_builtin_types(tmp_path):
    types, pools = load_services([write(tmp_path / "empty", "")])
    assert sorted(types) == ["meta0", "meta1", "meta2", "rawx"]
    assert pools == {}
    assert types["meta0"].evaluate({}) == 100
    assert types["meta2"].evaluate({"stat.cpu": 25, "stat.io": 100}) == 50
    assert types["rawx"].evaluate({"stat.cpu": 8, "stat.io": 27, "stat.space": 1}) == 6
    assert types["rawx"].timeout_s == 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[type:x]\nscore_expr=1 +", "type:x"),
        ("[type:x]\nscore_timeout=soon", "soon"),
        ("[pool:p]\n", "target"),
        ("[pool:p]\ntargets=rawx", "target"),
        ("[pool:p]\ntargets=0,rawx", "target"),
        ("[pool:p]\ntargets=1,rawx\nmin_dist=5", "min_dist"),
        ("[pool:p]\ntargets=1,rawx\nmindist=1", "mindist"),
        ("no section", "Cannot read"),
    ],
)
def test_bad_services(tmp_path, text, message):
    with pytest.raises(ConfigurationException, match=message):
        load_services([write(tmp_path / "bad", text)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[DATA_SECURITY]\nA=plain", "STORAGE_POLICY"),
        ("[STORAGE_POLICY]\nA=pool", "POOL:SECURITY"),
        ("[STORAGE_POLICY]\nA=pool:B", "unknown security"),
        ("[STORAGE_POLICY]\n[DATA_SECURITY]\nA=magic/k=1", "magic"),
        ("[STORAGE_POLICY]\n[DATA_SECURITY]\nA=backblaze/bucket_name=b", "not supported"),
        ("[STORAGE_POLICY]\n[DATA_SECURITY]\nA=ec/k=six", "not a number"),
        ("[STORAGE_POLICY]\n[DATA_SECURITY]\nA=ec/k=6,m=5,algo=isa_l_rs_vand", "repaired"),
        ("[STORAGE_POLICY]\n[DATA_SECURITY]\nA=ec/k=0,m=1", "at least 1"),
    ],
)
def test_bad_storage(tmp_path, text, message):
    with pytest.raises(ConfigurationException, match=message):
        load_storage(write(tmp_path / "bad", text))


def test_braces(tmp_path):
    for name in ("a1", "a2", "b1", "c1"):
        (tmp_path / name).touch()
    found = expand_glob(f"{tmp_path}/{{a,b}}[0-9]")
    assert [Path(path).name for path in found] == ["a1", "a2", "b1"]


@pytest.mark.parametrize("missing", ["listen", "param_namespace", "param_storage_conf", "param_service_conf"])
def test_required_keys(tmp_path, missing):
    lines = (ETC / "conscience.conf-sample").read_text().splitlines()
    path = write(tmp_path / "cs", "\n".join(line for line in lines if not line.startswith(missing)))
    with pytest.raises(ConfigurationException, match=missing):
        load_settings(path)


def test_files_of_the_old_daemon(tmp_path):
    policies = write(tmp_path / "policies", "[STORAGE_POLICY]\nSINGLE=NONE:NONE\n")
    services = write(tmp_path / "services", "[type:echo]\n")
    old = (
        "[General]\nto_op=1000\n[Service]\nnamespace=NS\ntype=conscience\n"
        "[Server.conscience]\nmin_workers=2\nlisten=127.0.0.1:6001\nplugins=conscience,stats,ping\n"
        "[Plugin.conscience]\nparam_namespace=NS\nparam_hub.me=tcp://127.0.0.1:6002\n"
        f"param_storage_conf={policies}\nparam_service_conf={services}\nparam_hub.group="
    )
    own = "tcp://127.0.0.1:6002"
    assert load_settings(write(tmp_path / "cs", old)).hub is None
    assert load_settings(write(tmp_path / "cs", old + own)).hub is None
    group = f"{own}, tcp://127.0.0.2:6002,tcp://[::1]:6003"
    assert load_settings(write(tmp_path / "cs", old + group)).hub == HubSettings(
        ("127.0.0.1", 6002), ("127.0.0.2:6002", "[::1]:6003")
    )
    for bad in ("127.0.0.2:6002", "tcp://127.0.0.2", "tcp://127.0.0.2:0", "ipc://x:1"):
        with pytest.raises(ConfigurationException, match=r"hub\.group"):
            load_settings(write(tmp_path / "cs", old + bad))
    with pytest.raises(ConfigurationException, match=r"hub\.me is missing"):
        load_settings(write(tmp_path / "cs", (old + group).replace(f"param_hub.me={own}", "")))
