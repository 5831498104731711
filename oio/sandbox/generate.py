# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Writes the configuration files of a local cluster from its layout.

Every function returns the text of one file; :func:`write_all` is the only one that touches the disk. The
files are derived from the layout alone: writing them again changes nothing.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from oio.sandbox import conscience_conf, event_conf, queues, zookeeper
from oio.sandbox.errors import SandboxError
from oio.sandbox.layout import UNSCORED_TYPES, Layout, Service
from oio.sandbox.network import Network

#: First line of the namespace file: proof that it was written here, hence may be replaced or removed.
SDS_CONF_MARK = "# Written by oio-sandbox"

#: Seconds left to a service to stop by itself before it is killed (services take up to 10).
_STOP_WAIT_S = 15
#: Longest directory of temporary files, in bytes: workers put control sockets below it, and the path of
#: a socket has 107 bytes.
_TEMPORARY_PATH_MAX = 70


def write_all(layout: Layout) -> None:
    """Create directories and files.

    :raises SandboxError: when a namespace file stands there that was not written by this tool.
    """
    check_sds_conf(layout)
    options = layout.options
    watch_dir = os.path.join(layout.conf_dir, "watch")
    for directory in (layout.conf_dir, watch_dir, layout.run_dir, layout.log_dir):
        os.makedirs(directory, mode=0o700, exist_ok=True)
    for service in layout.services:
        if service.volume:
            os.makedirs(service.volume, mode=0o700, exist_ok=True)
    namespace = options.namespace
    files: dict[str, str] = {
        f"{namespace}-policies.conf": conscience_conf.policies(layout),
        f"{namespace}-service-pools.conf": conscience_conf.pools(layout),
        f"{namespace}-service-types.conf": conscience_conf.types(),
        "conscience-agent.yml": agent_conf(layout),
        "supervisord.conf": supervisor_conf(layout),
        "test.yml": test_conf(layout),
    }
    for service in layout.services:
        if service.type == "conscience":
            files[f"{service.name}.conf"] = conscience_conf_file(layout, service)
        elif service.type == "rawx":
            files[f"{service.name}.conf"] = rawx_conf(layout, service)
        elif service.type == "account":
            files[f"{service.name}.conf"] = account_conf(layout, service)
        elif service.type == "ecd":
            files[f"{service.name}.conf"] = ecd_conf(layout, service)
        elif service.type == "rdir":
            files[f"{service.name}.conf"] = rdir_conf(layout, service)
        elif service.type == "event-agent":
            files[f"{service.name}.conf"] = event_conf.agent(layout, service)
            files[event_conf.handlers_name(service)] = event_conf.handlers(layout, service)
        elif service.type == "redis":
            files[f"{service.name}.conf"] = queues.redis_conf(layout, service)
        elif service.type == "zookeeper":
            files[f"{service.name}.cfg"] = zookeeper.configuration(layout, service)
            files[os.path.join(service.volume, "myid")] = f"{service.num}\n"
        if service.port and service.type not in UNSCORED_TYPES:
            files[os.path.join("watch", f"{service.name}.yml")] = watch_conf(service)
    for name, text in files.items():
        _write(os.path.join(layout.conf_dir, name), text)
    _write(layout.sds_conf, sds_conf(layout))


def check_sds_conf(layout: Layout) -> None:
    """Refuse to replace a namespace file of somebody else."""
    try:
        with open(layout.sds_conf, encoding="utf-8") as stream:
            mark = stream.readline().strip()
    except FileNotFoundError:
        return
    if mark != SDS_CONF_MARK:
        raise SandboxError(
            f"{layout.sds_conf} was not written by this tool: move it, or choose another --home"
        )


def sds_conf(layout: Layout) -> str:
    """The namespace, as programs and services see it."""
    options = layout.options
    proxy = layout.of_type("proxy")[0]
    keys: dict[str, Any] = {
        "proxy": proxy.addr,
        "conscience": ",".join(service.addr for service in layout.of_type("conscience")),
        "event-agent": ";".join(event_conf.queue_urls(layout)),
        "ns.meta1_digits": options.meta1_digits,
        "ns.chunk_size": options.chunk_size,
        "ns.service_update_policy": (
            f"meta2=KEEP|{options.container_replicas}|1|;sqlx=KEEP|1|1|;rdir=KEEP|1|1|"
        ),
        "proxy.location": proxy.location,
        "proxy.period.cs.downstream": "1s",
        "proxy.period.cs.upstream": "500ms",
        "meta2.flush_limit": 64,
        # The supervisor reads what services print: a line per request would cost as much as the request.
        "server.access_log": "off",
    }
    if ecds := layout.of_type("ecd"):
        keys["ecd"] = ecds[0].addr
    if options.durability == "relaxed":
        keys["sqliterepo.sync"] = "normal"
    if layout.zookeeper:
        for suffix in ("", ".meta0", ".meta1", ".meta2"):
            keys[f"zookeeper{suffix}"] = layout.zookeeper
    keys.update(options.config)
    keys["ns.storage_policy"] = options.storage_policy
    lines = [SDS_CONF_MARK, f"[{options.namespace}]"]
    lines += [f"{key}={_text(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def conscience_conf_file(layout: Layout, service: Service) -> str:
    """Configuration of the conscience itself."""
    namespace = layout.options.namespace
    base = os.path.join(layout.conf_dir, namespace)
    hubs = [f"tcp://{one.addr}" for one in layout.of_type("conscience")]
    group = f"param_hub.me=tcp://{service.addr}\nparam_hub.group={','.join(hubs)}\n" if len(hubs) > 1 else ""
    return (
        f"[Server.conscience]\nlisten={service.addr}\n\n"
        f"[Plugin.conscience]\nparam_namespace={namespace}\n"
        f"param_storage_conf={base}-policies.conf\n"
        f"param_service_conf={base}-service-{{pools,types}}.conf\n"
        f"{group}"
    )


def rawx_conf(layout: Layout, service: Service) -> str:
    """Configuration of a rawx."""
    options = layout.options
    sync = "on" if options.durability == "durable" else "off"
    compression = options.compression if service.num % 2 == 0 else "off"
    lines = [
        f"listen {service.addr}",
        f"namespace {options.namespace}",
        f'docroot "{service.volume}"',
        f"fsync {sync}",
        f"fsync_dir {sync}",
        "hash_width 3",
        "hash_depth 1",
        f"prepare_directories {'on' if options.prepare_directories else 'off'}",
    ]
    if compression != "off":
        # What is not said is not written on the chunks either: an attribute less to read for each.
        lines.append(f"compression {compression}")
    if not options.rawx_events:
        lines.append("events off")
    if service.service_id:
        lines.append(f"service_id {service.service_id}")
    return "\n".join(lines) + "\n"


def agent_conf(layout: Layout) -> str:
    """Configuration of the conscience agent."""
    return _yaml(
        {
            "namespace": layout.options.namespace,
            "check_interval": layout.options.check_interval_s,
            "rise": 1,
            "fall": 1,
            "deregister_on_exit": False,
            "include_dir": os.path.join(layout.conf_dir, "watch"),
        }
    )


def watch_conf(service: Service) -> str:
    """How the conscience agent watches one service."""
    system = {"type": "system"}
    volume = {"type": "volume", "path": service.volume}
    checks: list[dict[str, Any]]
    stats: list[dict[str, Any]]
    type_ = service.type
    if type_ == "proxy":
        type_ = "oioproxy"
        checks = [{"type": "tcp"}]
        stats = [{"type": "oioproxy"}, system]
    elif type_ == "rawx":
        checks = [{"type": "http", "uri": "/info"}]
        stats = [volume, {"type": "rawx", "path": "/stat"}, system]
    elif type_ == "redis":
        checks = [{"type": "tcp"}]
        stats = [volume, system]
    elif type_ == "beanstalkd":
        checks = [{"type": "tcp"}]
        stats = [{"type": "beanstalkd"}, system, volume]
    elif type_ == "rdir":
        # Who assigns volumes looks at the number of its bases.
        checks = [{"type": "http", "uri": "/status"}]
        stats = [volume, {"type": "http", "path": "/status", "parser": "json"}, system]
    elif type_ == "account":
        checks = [{"type": "http", "uri": "/status"}]
        stats = [{"type": "http", "path": "/status", "parser": "json"}, system]
    else:
        checks = [{"type": "http", "uri": "/status"}]
        stats = [volume, system]
    # By it the tool knows what was found out after a start.
    stats.append({"type": "look"})
    conf: dict[str, Any] = {
        "host": service.host,
        "port": service.port,
        "type": type_,
        "location": service.location,
        "checks": checks,
        "stats": stats,
    }
    if service.slots:
        conf["slots"] = service.slots
    if service.service_id:
        conf["service_id"] = service.service_id
    return _yaml(conf)


def account_conf(layout: Layout, service: Service) -> str:
    """Configuration of an account service."""
    keys = {"bind_addr": service.host, "bind_port": service.port, "workers": 1, **queues.redis_keys(layout)}
    return "[account-server]\n" + "".join(f"{key}={value}\n" for key, value in keys.items())


def rdir_conf(layout: Layout, service: Service) -> str:
    """Configuration of an index of volumes."""
    return (
        "[rdir-server]\n"
        f"namespace={layout.options.namespace}\n"
        f"bind_addr={service.host}\n"
        f"bind_port={service.port}\n"
        f"db_path={service.volume}\n"
        f"sync={'on' if layout.options.durability == 'durable' else 'off'}\n"
    )


def ecd_conf(layout: Layout, service: Service) -> str:
    """Configuration of a gateway to erasure-coded chunks."""
    return f"[ecd]\nendpoint={service.addr}\nnamespace={layout.options.namespace}\n"


def test_conf(layout: Layout) -> str:
    """What tests and tools read to know the cluster."""
    options = layout.options
    services: dict[str, list[dict[str, str]]] = {}
    for service in layout.services:
        entry = {"num": str(service.num)}
        if service.port and service.type != "event-agent":  # where it only shows its metrics
            entry["addr"] = service.addr
        if service.volume:
            entry["path"] = service.volume
        if service.service_id:
            entry["service_id"] = service.service_id
        services.setdefault(service.type, []).append(entry)
    return _yaml(
        {
            "namespace": options.namespace,
            "account": "test_account",
            "proxy": layout.of_type("proxy")[0].addr,
            "sds_path": layout.root,
            "storage_policy": options.storage_policy,
            "chunk_size": options.chunk_size,
            "compression": options.compression,
            "container_replicas": options.container_replicas,
            "directory_replicas": options.directory_replicas,
            "meta1_digits": options.meta1_digits,
            "monitor_period": options.check_interval_s,
            "config": dict(options.config),
            "with_service_id": options.service_ids,
            "random_service_id": False,
            "use_tls": False,
            "webhook": layout.webhook,
            "services": services,
        }
    )


def supervisor_conf(layout: Layout) -> str:
    """Configuration of the supervisor: one program per service, one group per type."""
    environment = service_environment(layout)
    # The supervisor has it from the launch; a value of this line cannot hold every path.
    environment.pop("PYTHONPATH", None)
    joined = ",".join(f'{name}="{_escape(value)}"' for name, value in environment.items())
    run = layout.run_dir
    network = Network(layout)
    lines = [
        "[unix_http_server]",
        f"file={_escape(layout.supervisor_socket)}",
        "chmod=0700",
        "[supervisord]",
        f"logfile={_escape(os.path.join(layout.log_dir, 'supervisord.log'))}",
        "logfile_maxbytes=10MB",
        f"pidfile={_escape(os.path.join(run, 'supervisord.pid'))}",
        f"childlogdir={_escape(layout.log_dir)}",
        f"directory={_escape(run)}",
        f"identifier={layout.options.namespace}",
        "minfds=4096",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
    ]
    for priority, service in enumerate(layout.services, start=100):
        lines += [
            f"[program:{service.name}]",
            "command=" + " ".join(map(_quote, [*network.prefix(service), *command(layout, service)])),
            f"environment={joined}",
            f"priority={priority}",
            "autostart=false",
            "autorestart=true",
            # A service that lives for a second has started; one that dies at once is tried again a few
            # times, more and more slowly, then given up: `status` says FATAL.
            "startsecs=1",
            "startretries=5",
            f"stopwaitsecs={_STOP_WAIT_S}",
            # The group is killed, not asked: services with workers stop them by themselves.
            "killasgroup=true",
            "redirect_stderr=true",
            f"stdout_logfile={_escape(os.path.join(layout.log_dir, service.name))}.log",
            "stdout_logfile_maxbytes=20MB",
            "stdout_logfile_backups=1",
        ]
    for type_ in dict.fromkeys(service.type for service in layout.services):
        names = ",".join(service.name for service in layout.of_type(type_))
        lines += [f"[group:{type_}]", f"programs={names}"]
    return "\n".join(lines) + "\n"


def service_environment(layout: Layout) -> dict[str, str]:
    """What every process of the cluster finds in its environment."""
    environment = {
        "OIO_SDS_CONF": layout.sds_conf,
        "OIO_SANDBOX": layout.mark,
        "PYTHONUNBUFFERED": "1",
    }
    if len(os.fsencode(layout.run_dir)) <= _TEMPORARY_PATH_MAX:
        # What a killed service leaves behind goes away with the cluster.
        environment["TMPDIR"] = layout.run_dir
    root = source_root()
    if root:
        environment["PYTHONPATH"] = root
    return environment


def command(layout: Layout, service: Service) -> list[str]:
    """Command line of a service."""
    namespace = layout.options.namespace
    conf = layout.conf_dir
    if service.type == "conscience":
        state = os.path.join(service.volume, "conscience.dat")
        return [
            *program("oio-conscience"),
            "-O", f"PersistencePath={state}", "-O", "PersistencePeriod=15",
            os.path.join(conf, f"{service.name}.conf"),
        ]  # fmt: skip
    if service.type == "proxy":
        workers = str(layout.options.proxy_workers)
        return [*program("oio-proxy"), "-O", f"Workers={workers}", service.addr, namespace]
    if service.type in ("meta0", "meta1", "meta2"):
        words = [*program(f"oio-{service.type}-server"), "-O", f"Endpoint={service.addr}"]
        if service.service_id:
            words += ["-O", f"ServiceId={service.service_id}"]
        return [*words, namespace, service.volume]
    if service.type == "rawx":
        return [*program("oio-rawx"), "-f", os.path.join(conf, f"{service.name}.conf")]
    if service.type == "account":
        return [*program("oio-account-server"), os.path.join(conf, f"{service.name}.conf")]
    if service.type == "rdir":
        return [*program("oio-rdir-server"), os.path.join(conf, f"{service.name}.conf")]
    if service.type == "ecd":
        return [*program("oio-ecd"), os.path.join(conf, f"{service.name}.conf")]
    if service.type == "redis":
        return queues.redis_command(os.path.join(conf, f"{service.name}.conf"))
    if service.type == "zookeeper":
        return zookeeper.command(os.path.join(conf, f"{service.name}.cfg"))
    if service.type == "beanstalkd":
        return queues.beanstalkd_command(layout, service)
    if service.type == "conscience-agent":
        return [*program("oio-conscience-agent"), os.path.join(conf, "conscience-agent.yml")]
    if service.type == "event-agent":
        return [*program("oio-event-agent"), os.path.join(conf, f"{service.name}.conf")]
    if service.type == "webhook":
        return [sys.executable, "-m", "oio.sandbox.webhook", service.addr]
    raise AssertionError(f"no program for {service.type}")


def program(name: str) -> list[str]:
    """How to run one of our programs: from the source tree when there is one, else as installed."""
    root = source_root()
    directory = os.path.join(root, "bin") if root else os.path.dirname(sys.executable)
    return [sys.executable, os.path.join(directory, name)]


def source_root() -> str:
    """Root of the source tree this runs from, empty when the package is installed."""
    root = Path(__file__).resolve().parents[2]
    return str(root) if (root / "bin" / "oio-sandbox").exists() else ""


def _write(path: str, text: str) -> None:
    temporary = f"{path}.tmp"
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with open(temporary, "w", encoding="utf-8") as out:
        out.write(text)
    os.replace(temporary, path)


def _text(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text.replace("%", "%%")


def _escape(text: str) -> str:
    """Text of a supervisor configuration, where ``%`` announces a variable."""
    return text.replace("%", "%%")


def _quote(word: str) -> str:
    """A word of a command in a supervisor configuration: no quote opens, no comment begins."""
    return re.sub(r"([^\w%/.,:=@+-])", r"\\\1", _escape(word))


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=False)
