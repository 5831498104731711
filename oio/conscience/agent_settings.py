# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Configuration of the conscience agent: one YAML file, and one more per service in its include directories.

The file itself must be right, else the program does not start (:class:`ConfigurationException`). A service
whose description is wrong is logged and left out, and the others run.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from oio.common.configuration import one_line
from oio.common.easy_value import boolean_value
from oio.common.exceptions import ConfigurationException

CHECK_INTERVAL_DEFAULT_S = 1.0
# Below this, the agent would spend the host's time on watching it.
CHECK_INTERVAL_MIN_S = 0.05
# Duplicates are searched on host:port, with this port when none is given (contract: agent configuration).
PORT_DEFAULT = 80

_SUFFIXES = (".json", ".yml", ".yaml")
# libyaml is ten times faster than the pure Python loader, but not everywhere present.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class ServiceSettings:
    """One service to watch."""

    name: str
    type: str
    host: str
    port: int
    checks: tuple[dict[str, Any], ...]
    stats: tuple[dict[str, Any], ...]
    rise: int
    fall: int
    interval_s: float
    deregister_on_exit: bool
    location: str | None = None
    slots: tuple[str, ...] = ()
    service_id: str | None = None
    tls: str | None = None

    @property
    def address(self) -> str:
        """``IP:PORT``."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class AgentSettings:
    """The whole configuration. ``options`` is the raw file, for loggers and third-party checks."""

    namespace: str
    user: str
    services: tuple[ServiceSettings, ...]
    options: dict[str, Any]


def load_agent_settings(path: str, logger: logging.Logger) -> AgentSettings:
    """Read the configuration file of the agent and its include directories.

    :raises ConfigurationException: when the main file is wrong.
    """
    options = _load_yaml(path)
    if not isinstance(options, dict):
        raise ConfigurationException(f"{path}: a dictionary is expected")
    namespace = options.get("namespace")
    if not namespace or not isinstance(namespace, str):
        raise ConfigurationException(f"{path}: missing field 'namespace'")
    try:
        _timing(options, {})
    except (TypeError, ValueError) as exc:
        raise ConfigurationException(f"{path}: {exc}") from exc
    inline = options.get("services") or {}
    if not isinstance(inline, dict):
        raise ConfigurationException(f"{path}: services: a dictionary is expected")
    described = {str(name): description for name, description in inline.items()}
    described.update(_included(options.get("include_dir"), logger))
    services = []
    for name in _without_duplicates(described, logger):
        try:
            services.append(_service(name, described[name], options))
        except (KeyError, TypeError, ValueError) as exc:
            reason = f"missing field {exc}" if isinstance(exc, KeyError) else exc
            logger.error("service %s is ignored: %s", name, reason)
    return AgentSettings(
        namespace=namespace,
        user=str(options.get("user", "openio")),
        services=tuple(services),
        options=options,
    )


def _load_yaml(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as stream:
            return yaml.load(stream, _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise ConfigurationException(f"Cannot read {path}: {one_line(exc)}") from exc


def _included(directories: Any, logger: logging.Logger) -> dict[str, dict[str, Any]]:
    """Descriptions found in the include directories, named after their files."""
    found: dict[str, dict[str, Any]] = {}
    if directories is None:
        return found
    if isinstance(directories, str):
        directories = directories.split(":")
    elif not isinstance(directories, list) or not all(isinstance(one, str) for one in directories):
        raise ConfigurationException("include_dir: directories separated by colons, or a list, are expected")
    for directory in filter(None, directories):
        directory = os.path.expanduser(directory)
        try:
            names = sorted(os.listdir(directory))
        except OSError as exc:
            raise ConfigurationException(f"include_dir: {exc}") from exc
        for file_name in names:
            name, suffix = os.path.splitext(file_name)
            if suffix not in _SUFFIXES:
                continue
            path = os.path.join(directory, file_name)
            try:
                description = _load_yaml(path)
            except ConfigurationException as exc:
                logger.error("service %s is ignored: %s", name, exc)
                continue
            if not description:
                logger.warning("%s is empty, skipped", path)
            elif not isinstance(description, dict):
                raise ConfigurationException(f"{path}: a dictionary is expected")
            else:
                if name in found:
                    logger.warning("service %s is described again by %s, which counts", name, path)
                found[name] = description
    return found


def _without_duplicates(described: dict[str, Any], logger: logging.Logger) -> list[str]:
    """Names of the services whose endpoint is theirs alone."""
    endpoints = {}
    for name, description in described.items():
        if not isinstance(description, dict):
            logger.error("service %s is ignored: a dictionary is expected", name)
            continue
        try:
            if not boolean_value(description.get("enabled"), True):
                continue
        except ValueError as exc:
            logger.error("service %s is ignored: enabled: %s", name, exc)
            continue
        endpoints[name] = f"{description.get('host')}:{description.get('port', PORT_DEFAULT)}"
    counts = Counter(endpoints.values())
    for endpoint, count in counts.items():
        if count > 1:
            names = ", ".join(sorted(name for name, value in endpoints.items() if value == endpoint))
            logger.error("services %s are ignored: all of them are at %s", names, endpoint)
    return [name for name, endpoint in endpoints.items() if counts[endpoint] == 1]


def _timing(own: Mapping[str, Any], common: Mapping[str, Any]) -> tuple[int, int, float]:
    """``rise``, ``fall`` and ``check_interval`` of a service, else of the agent."""
    rise, fall = (int(own.get(key, common.get(key, 1))) for key in ("rise", "fall"))
    if rise < 1 or fall < 1:
        raise ValueError("rise and fall must be at least 1")
    interval = own.get("check_interval", common.get("check_interval", CHECK_INTERVAL_DEFAULT_S))
    return rise, fall, max(CHECK_INTERVAL_MIN_S, float(interval))


def _service(name: str, own: dict[str, Any], common: dict[str, Any]) -> ServiceSettings:
    rise, fall, interval_s = _timing(own, common)
    port = int(own["port"])
    if not 0 < port < 65536:
        raise ValueError(f"port {port} is not in 1..65535")
    slots = own.get("slots") or ()
    if isinstance(slots, str):
        slots = slots.split(",")
    if not isinstance(slots, (list, tuple)) or any(isinstance(slot, (list, dict)) for slot in slots):
        raise ValueError("slots must be a list of names")
    deregister = own.get("deregister_on_exit", common.get("deregister_on_exit"))
    return ServiceSettings(
        name=name,
        type=str(own["type"]),
        host=str(own["host"]),
        port=port,
        checks=_parts(own, "checks"),
        stats=_parts(own, "stats"),
        rise=rise,
        fall=fall,
        interval_s=interval_s,
        deregister_on_exit=boolean_value(deregister, False),
        location=_text(own, "location"),
        slots=tuple(str(slot) for slot in slots),
        service_id=_text(own, "service_id"),
        tls=_text(own, "tls"),
    )


def _parts(own: dict[str, Any], key: str) -> tuple[dict[str, Any], ...]:
    parts = own[key]
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and isinstance(part.get("type"), str) for part in parts
    ):
        raise ValueError(f"{key} must be a list of dictionaries with a type")
    return tuple(parts)


def _text(own: dict[str, Any], key: str) -> str | None:
    value = own.get(key)
    if isinstance(value, (list, dict)):
        raise ValueError(f"{key} must be a text")
    return None if value in (None, "") else str(value)
