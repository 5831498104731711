# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Namespace configuration: where it lies, how it is merged, and generic INI/YAML readers.

Lookup: ``/etc/oio/sds.conf``, then ``/etc/oio/sds.conf.d/*``, cumulative; ``~/.oio/sds.conf`` only when no
system file could be read. The environment variable ``OIO_SDS_CONF`` names one file to use instead of all of them
(a private cluster beside a system one).
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterator, Mapping
from glob import glob
from typing import Any, NoReturn

from oio.common.exceptions import ConfigurationException

CONF_FILE_VARIABLE = "OIO_SDS_CONF"
NS_CONF_CACHE: dict[str, NamespaceConfiguration] = {}


class InvalidServiceConfigError(ValueError):
    """Raised when the configuration of a service lacks its namespace."""


class NamespaceConfiguration(dict[str, Any]):
    """Options of one namespace. :ivar files: the files that were read."""

    def __init__(self, options: Mapping[str, Any], files: list[str]) -> None:
        super().__init__(options)
        self.files = files

    def __missing__(self, key: str) -> NoReturn:
        raise ConfigurationException(
            f"Missing key '{key}' of namespace {self.get('namespace')}, looked up in "
            f"{', '.join(self.files) or 'no file'}"
        )


def _config_paths() -> Iterator[tuple[str, bool]]:
    """Yield (path or pattern, does it add to what was read before?)."""
    only = os.environ.get(CONF_FILE_VARIABLE)
    if only:
        yield only, True
        return
    yield "/etc/oio/sds.conf", True
    yield "/etc/oio/sds.conf.d/*", True
    yield os.path.join(os.environ.get("HOME") or os.path.expanduser("~"), ".oio/sds.conf"), False


def _read_files() -> tuple[configparser.ConfigParser, list[str]]:
    parser = configparser.ConfigParser(default_section="default")
    files: list[str] = []
    for pattern, cumulative in _config_paths():
        if files and not cumulative:
            break
        # A file may have a name that reads as a pattern.
        for path in [pattern] if os.path.isfile(pattern) else sorted(glob(pattern)):
            try:
                files.extend(parser.read(path, encoding="utf-8"))
            except (configparser.Error, UnicodeDecodeError) as exc:
                raise ConfigurationException(f"Cannot parse {path}: {one_line(exc)}") from exc
    return parser, files


def load_namespace_conf(
    namespace: str, failsafe: bool = False, fresh: bool = False
) -> NamespaceConfiguration:
    """Load the options of a namespace.

    :param failsafe: return what there is instead of leaving the program when something is missing.
    :param fresh: read the files again even when the namespace is cached.
    :returns: options by lower-case name, plus ``namespace``; all values are texts.
    :raises SystemExit: when the namespace or its proxy is not configured (unless ``failsafe``).
    """
    if not fresh and namespace in NS_CONF_CACHE:
        return NS_CONF_CACHE[namespace]
    parser, files = _read_files()
    try:
        options = dict(parser.items(namespace)) if parser.has_section(namespace) else {}
    except configparser.InterpolationError as exc:
        raise ConfigurationException(f"[{namespace}] of {', '.join(files)}: {exc}") from exc
    conf = NamespaceConfiguration({**options, "namespace": namespace}, files)
    if not files:
        problem = "Missing or unreadable namespace configuration: " + ", ".join(
            path for path, _ in _config_paths()
        )
    elif not parser.has_section(namespace):
        problem = f"[{namespace}] section not found in {', '.join(files)}"
    elif "proxy" not in conf:
        problem = f"Missing field 'proxy' in namespace configuration ({', '.join(files)})"
    else:
        NS_CONF_CACHE[namespace] = conf
        return conf
    if failsafe:
        return conf
    print(problem)
    sys.exit(1)


def set_namespace_options(
    namespace: str, options: Mapping[str, Any], remove: list[str] | None = None
) -> dict[str, str]:
    """Set (and remove) options of a namespace, in the last readable file of the lookup list.

    :raises ValueError: when no configuration file can be read.
    """
    parser, files = _read_files()
    if not files:
        raise ValueError("Could not read any configuration file")
    if not parser.has_section(namespace):
        parser.add_section(namespace)
    for name, value in options.items():
        parser.set(namespace, name, str(value))
    for name in remove or ():
        parser.remove_option(namespace, name)
    path = os.path.realpath(files[-1])
    # A hidden name: readers of the directory must not take it for a configuration file.
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as out:
        os.fchmod(out.fileno(), os.stat(path).st_mode & 0o7777)
        parser.write(out)
    os.replace(temporary, path)
    NS_CONF_CACHE.pop(namespace, None)
    return dict(parser.items(namespace))


def read_conf(
    conf_path: str,
    section_name: str | None = None,
    defaults: Mapping[str, str] | None = None,
    use_yaml: bool = False,
) -> Any:
    """Read an INI (or YAML) file.

    :returns: options of the section, or ``{section: options}`` without a section name.
    :raises SystemExit: when the file cannot be read or the section is missing.
    """
    if use_yaml:
        return _read_yaml(conf_path)
    parser = configparser.ConfigParser(defaults=dict(defaults or {}), interpolation=None)
    try:
        readable = parser.read(conf_path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as exc:
        print(f"Unable to parse config from {conf_path}: {one_line(exc)}")
        sys.exit(1)
    if not readable:
        print(f"Unable to read config from {conf_path}")
        sys.exit(1)
    if section_name is None:
        return {section: dict(parser.items(section)) for section in parser.sections()}
    if not parser.has_section(section_name):
        print(f"Unable to find section {section_name} in config {conf_path}")
        sys.exit(1)
    return dict(parser.items(section_name))


def _read_yaml(conf_path: str) -> Any:
    import yaml

    try:
        return parse_config(conf_path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        print(f"Unable to read config from {conf_path}: {one_line(exc)}")
        sys.exit(1)


def one_line(error: BaseException) -> str:
    """What an error says, on one line: the parsers of configuration files use several."""
    return " ".join(str(error).split())


def parse_config(conf_path: str) -> Any:
    """Load a YAML file. :raises OSError: when it cannot be read."""
    import yaml

    with open(conf_path, encoding="utf-8") as stream:
        return yaml.safe_load(stream)


def parse_options(parser: Any = None) -> tuple[str, dict[str, Any]]:
    """Parse ``PROGRAM CONFIG [-v]``; returns the path and the options as a dictionary."""
    import optparse

    if parser is None:
        parser = optparse.OptionParser("%prog CONFIG [options]")
    parser.add_option(
        "-v", "--verbose", default=False, action="store_true", help="verbose output"
    )
    options, args = parser.parse_args(args=sys.argv[1:])
    if not args:
        parser.print_usage()
        print("Error: missing argument config path")
        sys.exit(1)
    if not os.path.exists(args[0]):
        parser.print_usage()
        print(f"Error: unable to locate config file {args[0]}")
        sys.exit(1)
    return args[0], vars(options)


def validate_service_conf(conf: Mapping[str, Any]) -> None:
    """:raises InvalidServiceConfigError: when the configuration does not name its namespace."""
    if not conf.get("namespace"):
        raise InvalidServiceConfigError("Missing field 'namespace' in service configuration")
