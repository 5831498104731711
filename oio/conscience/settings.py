# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Configuration of the conscience: its own INI file, the storage policies, the service types and pools.

Everything is checked when the program starts; a mistake is one :class:`ConfigurationException` that names the
file, the section and the key. A policy that leads nowhere would otherwise only show up as failed uploads.
"""

from __future__ import annotations

import configparser
import glob
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from oio.common.configuration import one_line
from oio.common.easy_value import boolean_value
from oio.common.exceptions import ConfigurationException
from oio.common.service import parse_address
from oio.conscience.expression import ExpressionError, Tags, compile_expression

SERVER_SECTION = "Server.conscience"
PLUGIN_SECTION = "Plugin.conscience"

TIMEOUT_DEFAULT_S = 300
VARIATION_BOUND_DEFAULT = 5
ALERT_FREQUENCY_DEFAULT_S = 30
ALERT_FREQUENCY_CORE_S = 300

# Types that exist even when no file speaks of them, with the expression of their score.
BUILTIN_TYPES = {
    "meta0": "100",
    "meta1": "root(2, (num stat.cpu) * (num stat.io))",
    "meta2": "root(2, (num stat.cpu) * (num stat.io))",
    "rawx": "root(3, (num stat.cpu) * ((num stat.io) * (num stat.space)))",
}

SECURITY_TYPES = ("plain", "ec")
_POOL_NUMBERS = {"min_dist": (1, 4), "max_dist": (1, 4), "warn_dist": (0, 5)}
# This matrix is not invertible for every loss from 5 parities on: some sets could never be repaired.
_ISA_L_RS_VAND_PARITIES_MAX = 4


@dataclass(frozen=True)
class ServiceType:
    """How services of one type are scored; durations in seconds."""

    name: str
    expression: str = "100"
    timeout_s: float = TIMEOUT_DEFAULT_S
    variation_bound: int = VARIATION_BOUND_DEFAULT
    lock_at_first_register: bool = True
    alert_frequency_s: float = ALERT_FREQUENCY_DEFAULT_S
    evaluate: Callable[[Tags], float] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "evaluate", compile_expression(self.expression))


@dataclass(frozen=True)
class Storage:
    """What the namespace offers; the three maps are served as they are."""

    policies: dict[str, str]
    securities: dict[str, str]
    pools: dict[str, str]


@dataclass(frozen=True)
class HubSettings:
    """Where the consciences of the namespace tell each other what they learn."""

    listen: tuple[str, int]
    peers: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """Everything the daemon needs."""

    namespace: str
    listen: tuple[str, int]
    types: dict[str, ServiceType]
    storage: Storage
    hub: HubSettings | None = None


def load_settings(path: str) -> Settings:
    """Read the file ``path`` and those it names.

    :raises ConfigurationException: on the first mistake.
    """
    parser = _read_ini([path])
    plugin = _section(parser, PLUGIN_SECTION, path)
    server = _section(parser, SERVER_SECTION, path)
    namespace = _required(plugin, "param_namespace", path)
    storage_path = _required(plugin, "param_storage_conf", path)
    service_glob = _required(plugin, "param_service_conf", path)
    service_paths = expand_glob(service_glob)
    if not service_paths:
        raise ConfigurationException(f"{path}: param_service_conf={service_glob} matches no file")
    policies, securities = load_storage(storage_path)
    types, pools = load_services(service_paths)
    return Settings(
        namespace=namespace,
        listen=_listen_address(server, path),
        types=types,
        storage=Storage(policies, securities, pools),
        hub=_hub(plugin, path),
    )


def _hub(plugin: dict[str, str], path: str) -> HubSettings | None:
    """The other consciences; None when this one is alone."""
    own = plugin.get("param_hub.me", "").strip()
    group = [url.strip() for url in plugin.get("param_hub.group", "").split(",") if url.strip()]
    listen = _hub_address("param_hub.me", own, path) if own else None
    peers = [_hub_address("param_hub.group", url, path) for url in group if url != own]
    others = [peer for peer in dict.fromkeys(peers) if peer != listen]
    if not others:
        return None
    if listen is None:
        raise ConfigurationException(f"{path}: param_hub.group names others, param_hub.me is missing")
    return HubSettings(
        listen=("" if listen[0] == "*" else listen[0], listen[1]),
        peers=tuple(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in others),
    )


def _hub_address(key: str, url: str, path: str) -> tuple[str, int]:
    """Address of ``tcp://IP:PORT``."""
    scheme, separator, rest = url.partition("://")
    try:
        if scheme != "tcp" or not separator:
            raise ValueError(f"{url!r} is not tcp://IP:PORT")
        return parse_address(rest, port_min=1)
    except ValueError as exc:
        raise ConfigurationException(f"{path}: {key}: {exc}") from exc


def load_storage(path: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the storage policies and the data securities of a file."""
    parser = _read_ini([path])
    policies = dict(_section(parser, "STORAGE_POLICY", path))
    securities = dict(parser.items("DATA_SECURITY")) if parser.has_section("DATA_SECURITY") else {}
    for name, text in securities.items():
        _check_security(f"{path}: [DATA_SECURITY] {name}", text)
    for name, text in policies.items():
        pool, separator, security = text.partition(":")
        if not separator or not pool:
            raise ConfigurationException(
                f"{path}: [STORAGE_POLICY] {name}={text} is not POOL:SECURITY"
            )
        if security not in ("", "NONE") and security not in securities:
            raise ConfigurationException(
                f"{path}: [STORAGE_POLICY] {name} names the unknown security {security!r}"
            )
    return policies, securities


def load_services(paths: list[str]) -> tuple[dict[str, ServiceType], dict[str, str]]:
    """Return the service types and the serialised pools of some files; a later file wins."""
    parser = _read_ini(paths)
    where = ", ".join(paths)
    types = {name: _service_type(name, {}, "built-in") for name in BUILTIN_TYPES}
    pools = {}
    for section in parser.sections():
        kind, _, name = section.partition(":")
        options = dict(parser.items(section))
        if kind == "type" and name:
            types[name] = _service_type(name, options, f"{where}: [{section}]")
        elif kind == "pool" and name:
            pools[name] = _pool_text(options, f"{where}: [{section}]")
    return types, pools


def expand_glob(pattern: str) -> list[str]:
    """Files matching a pattern in which ``{a,b}`` gives alternatives; sorted, without duplicates."""
    found: set[str] = set()
    for alternative in _expand_braces(pattern):
        found.update(glob.glob(os.path.expanduser(alternative)))
    return sorted(found)


def _expand_braces(pattern: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [
        text
        for choice in match[1].split(",")
        for text in _expand_braces(head + choice + tail)
    ]


def _read_ini(paths: list[str]) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    for path in paths:
        try:
            with open(path, encoding="utf-8") as stream:
                parser.read_file(stream, path)
        except (OSError, UnicodeDecodeError, configparser.Error) as exc:
            raise ConfigurationException(f"Cannot read {path}: {one_line(exc)}") from exc
    return parser


def _section(parser: configparser.ConfigParser, name: str, path: str) -> dict[str, str]:
    if not parser.has_section(name):
        raise ConfigurationException(f"{path}: section [{name}] is missing")
    return dict(parser.items(name))


def _required(section: dict[str, str], key: str, path: str) -> str:
    value = section.get(key, "")
    if not value:
        raise ConfigurationException(f"{path}: key {key} is missing")
    return value


def _listen_address(server: dict[str, str], path: str) -> tuple[str, int]:
    try:
        return parse_address(_required(server, "listen", path))
    except ValueError as exc:
        raise ConfigurationException(f"{path}: listen: {exc}") from exc


def _service_type(name: str, options: dict[str, str], where: str) -> ServiceType:
    alert = ALERT_FREQUENCY_CORE_S if name in BUILTIN_TYPES else ALERT_FREQUENCY_DEFAULT_S
    try:
        return ServiceType(
            name=name,
            expression=options.get("score_expr", BUILTIN_TYPES.get(name, "100")),
            timeout_s=float(options.get("score_timeout", TIMEOUT_DEFAULT_S)),
            variation_bound=int(options.get("score_variation_bound", VARIATION_BOUND_DEFAULT)),
            lock_at_first_register=boolean_value(options.get("lock_at_first_register", "true")),
            alert_frequency_s=float(options.get("alert_frequency_limit", alert)),
        )
    except (ExpressionError, ValueError) as exc:
        raise ConfigurationException(f"{where}: {exc}") from exc


def _pool_text(options: dict[str, str], where: str) -> str:
    """Serialise a pool: its targets, then its options, all separated by semicolons."""
    items = []
    for target in options.get("targets", "").split(";"):
        if not re.match(r"^\s*[1-9]\d*\s*(,\s*[\w.\-]+\s*)+$", target):
            raise ConfigurationException(f"{where}: target {target!r} is not N,slot[,slot...]")
        items.append(target.replace(" ", ""))
    for key, value in options.items():
        if key in _POOL_NUMBERS:
            low, high = _POOL_NUMBERS[key]
            if not value.isdigit() or not low <= int(value) <= high:
                raise ConfigurationException(f"{where}: {key}={value} is not in {low}..{high}")
        elif key not in ("targets", "nearby_mode"):
            raise ConfigurationException(f"{where}: unknown key {key!r}")
        if key != "targets":
            items.append(f"{key}={value}")
    return ";".join(items)


def _check_security(where: str, text: str) -> None:
    kind, _, rest = text.partition("/")
    if kind == "backblaze":
        raise ConfigurationException(f"{where}={text}: chunks on Backblaze are not supported")
    if kind not in SECURITY_TYPES:
        raise ConfigurationException(
            f"{where}={text}: {kind!r} is not one of {', '.join(SECURITY_TYPES)}"
        )
    options = {}
    for item in filter(None, rest.split(",")):
        key, separator, value = item.partition("=")
        if not separator:
            raise ConfigurationException(f"{where}={text}: {item!r} is not key=value")
        options[key.strip()] = value.strip()
    for key in ("k", "m", "nb_copy", "min_dist", "distance", "warn_dist"):
        if key in options and not options[key].isdigit():
            raise ConfigurationException(f"{where}={text}: {key} is not a number")
    if kind != "ec":
        return
    for key in ("k", "m"):
        if int(options.get(key, 1)) < 1:
            raise ConfigurationException(f"{where}={text}: {key} must be at least 1")
    parities = int(options.get("m", 3))
    if options.get("algo") == "isa_l_rs_vand" and parities > _ISA_L_RS_VAND_PARITIES_MAX:
        raise ConfigurationException(
            f"{where}={text}: isa_l_rs_vand with {parities} parities can build sets that cannot"
            " be repaired; use isa_l_rs_cauchy"
        )
