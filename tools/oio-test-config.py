#!/usr/bin/env python3
# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Tells test scripts what ``test.yml`` says of a local cluster.

    oio-test-config.py -n                 the namespace
    oio-test-config.py -v storage_policy  a value
    oio-test-config.py -t rawx            addresses of the rawx, one a line; -1 the first only; -c their number
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import yaml

DEFAULT_PATH = "~/.oio/sds/conf/test.yml"


def main(argv: Sequence[str] | None = None) -> int:
    """Print what is asked for; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="oio-test-config.py", description="Tell what the test configuration of a cluster says."
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("-n", dest="namespace", action="store_true", help="namespace")
    asked.add_argument("-v", dest="value", metavar="KEY", help="value of a key")
    asked.add_argument(
        "-t", dest="types", metavar="TYPE", action="append", help="addresses of a type of services; repeatable"
    )
    parser.add_argument("-c", dest="count", action="store_true", help="their number instead")
    parser.add_argument("-1", dest="first", action="store_true", help="the first of them only")
    path = os.environ.get("SDS_TEST_CONFIG_FILE") or DEFAULT_PATH
    parser.add_argument("-f", dest="file", default=path, help=f"configuration file ({path})")
    options = parser.parse_args(argv)
    try:
        with open(os.path.expanduser(options.file), encoding="utf-8") as stream:
            conf = yaml.safe_load(stream)
        lines = [str(line) for line in answer(conf, options)]
    except (OSError, yaml.YAMLError, LookupError, TypeError) as exc:
        print(f"{parser.prog}: {options.file}: {exc}", file=sys.stderr)
        return 1
    print("".join(f"{line}\n" for line in lines), end="")
    return 0


def answer(conf: dict[str, Any], options: argparse.Namespace) -> list[Any]:
    """Lines to print. :raises KeyError: for a key that is not there."""
    if options.namespace:
        return [conf["namespace"]]
    if options.value:
        return [conf[options.value]]
    services = [service for type_ in options.types for service in conf["services"].get(type_) or ()]
    addresses = [service["addr"] for service in services if "addr" in service]
    if options.count:
        return [len(services)]
    return addresses[:1] if options.first else addresses


if __name__ == "__main__":
    sys.exit(main())
