# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Containers computed from the names of objects (``--auto``, ``--flat-bits``): options, and where objects lie."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from oio.common.autocontainer import HashedContainerBuilder
from oio.common.exceptions import CommandError

# Digits of SHA-256 that a name can be made of.
BITS_MAX = 256


def make_flat_builder(options: Mapping[str, Any], bits: int | None = None) -> HashedContainerBuilder:
    """Rule that computes the container of an object.

    :param options: those of the namespace, as the conscience tells them: ``flat_bitlength``,
        ``flat_hash_offset``, ``flat_hash_size``.
    :param bits: number of bits to use instead of ``flat_bitlength``, 1 to ``BITS_MAX``.
    :raises CommandError: when the namespace has no such configuration, or a wrong one.
    """
    try:
        count = bits or int(options.get("flat_bitlength") or 0)
    except ValueError:
        count = -1
    if count == 0:
        raise CommandError("Namespace not configured for autocontainers")
    if not 0 < count <= BITS_MAX:
        raise CommandError(f"Invalid autocontainer config: bits ({options['flat_bitlength']})")
    try:
        offset = int(options.get("flat_hash_offset") or 0)
        size = int(options["flat_hash_size"]) if options.get("flat_hash_size") else None
    except ValueError as exc:
        raise CommandError("Invalid autocontainer config: offset/size") from exc
    if offset < 0 or (size is not None and size <= 0):
        raise CommandError("Invalid autocontainer config: offset/size")
    return HashedContainerBuilder(offset=offset, size=size, bits=count)


def bits_argument(text: str) -> int:
    """Type of ``--flat-bits``."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= BITS_MAX):
        raise argparse.ArgumentTypeError(f"a number from 1 to {BITS_MAX} is expected, not {text!r}")
    return int(text)


def add_auto(parser: argparse.ArgumentParser) -> None:
    """Add ``--auto`` and ``--flat-bits``."""
    parser.add_argument(
        "--auto", action="store_true", help="Compute the container name from the object name"
    )
    parser.add_argument("--flat-bits", type=bits_argument, metavar="BITS", help="Bits of computed names")


def add_object_container(parser: argparse.ArgumentParser) -> None:
    """Add the container of an object command: named, by id, or computed from the object's name."""
    parser.add_argument("container", metavar="<container>", nargs="?", help="Name of the container")
    add_auto(parser)
    parser.add_argument("--cid", dest="is_cid", action="store_true", help="The container is an id")


def add_object(parser: argparse.ArgumentParser) -> None:
    """Add the object of an object command, and its version."""
    add_object_container(parser)
    parser.add_argument("object", metavar="<object>", help="Name of the object")
    parser.add_argument("--object-version", type=int, metavar="VERSION", help="Version of the object")


def check_object_container(parsed: argparse.Namespace) -> None:
    """:raises CommandError: when neither a container nor ``--auto`` is given."""
    if not parsed.container and not parsed.auto:
        raise CommandError("Missing value for container or --auto")


def add_objects(parser: argparse.ArgumentParser) -> None:
    """Add the objects of an administration command: several of one container, or ``--auto``."""
    parser.add_argument("container", metavar="<container>", nargs="?", help="Name of the container")
    parser.add_argument("objects", metavar="<object>", nargs="*", help="Names of the objects")
    parser.add_argument("--object-version", metavar="VERSION", help="Version of the objects")
    add_auto(parser)
    parser.add_argument("--cid", dest="is_cid", action="store_true", help="The container is an id")


def objects_of(
    parsed: argparse.Namespace, flat_builder: Callable[[int | None], Callable[[str], str]]
) -> Iterator[tuple[str, str, str | None]]:
    """Yield (container, object, version or None) for the arguments of :func:`add_objects`.

    With ``--auto`` the first argument is an object like the others; it comes last.

    :param flat_builder: gives the rule of computed names, for a number of bits; called with ``--auto`` only.
    :raises CommandError: when a name is missing, before anything is yielded.
    """
    names = list(parsed.objects)
    if not parsed.container and not parsed.auto:
        raise CommandError("Missing value for container_name or --auto")
    if parsed.auto and parsed.container:
        names.append(parsed.container)
    if not names:
        raise CommandError("Missing value for object_name")
    container_of = flat_builder(parsed.flat_bits) if parsed.auto else lambda _name: parsed.container
    return ((container_of(name), name, parsed.object_version) for name in names)
