# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Where services are, and how far from each other (contract: "Locations and distance").

A location is a 64-bit integer made of four 16-bit hashes: room, rack, host, volume, widest first. The distance
of two services is read from the highest bit that differs, so "at least at distance d" means that the locations
differ once shifted right by ``SHIFTS[d]``: the shifted value names the *area* that a choice at that distance
must not share.
"""

from __future__ import annotations

#: Bits to drop from a location to have its area, by distance: 1 the volume itself, 2 the host, 3 the rack,
#: 4 the room, 5 the region.
SHIFTS = (0, 0, 16, 32, 48, 56)

DISTANCE_MIN = 1
DISTANCE_MAX = 4

_TOKENS_MAX = 4
_LOCATION_MASK = (1 << 64) - 1

#: Distance by number of significant bits in the difference of two locations.
_DISTANCE_OF_BITS = bytes([0] + [1] * 16 + [2] * 16 + [3] * 16 + [4] * 8 + [5] * 8)


def djb2(token: str) -> int:
    """DJB2 hash of a token of a location, on 16 bits."""
    value = 5381
    for byte in token.encode():
        value = (value * 33 + byte) & 0xFFFF
    return value


def location_from_text(text: str) -> int:
    """Location of a dotted name (``room.rack.host.volume``, at most 4 tokens) or of a literal ``0x…``.

    :raises ValueError: when a literal is not hexadecimal.
    """
    if text[:2] in ("0x", "0X"):
        return int(text, 16) & _LOCATION_MASK
    location = 0
    for token in text.split(".", _TOKENS_MAX - 1):
        location = location << 16 | djb2(token)
    return location


def location_from_address(address: str) -> int:
    """Location of a service that does not tell its own: made of its IPv4 address and its port.

    :raises ValueError: when the address is not ``a.b.c.d:port``.
    """
    host, _, port = address.rpartition(":")
    numbers = [int(byte) for byte in host.split(".")]
    if len(numbers) != 4 or any(not 0 <= number <= 255 for number in numbers):
        raise ValueError(f"not an IPv4 address: {address!r}")
    value = 0
    for number in numbers:
        value = value << 8 | number
    return value << 16 | int(port) & 0xFFFF


def distance(one: int, other: int) -> int:
    """0 same volume, 1 same host, 2 same rack, 3 same room, 4 same region, 5 faraway."""
    return _DISTANCE_OF_BITS[(one ^ other).bit_length()]


def distance_of_difference(difference: int) -> int:
    """Distance of two locations whose exclusive or is ``difference``."""
    return _DISTANCE_OF_BITS[difference.bit_length()]


def areas_of(location: int) -> tuple[int, int, int, int]:
    """Areas of a location at the distances 1 to 4: volume, host, rack, room."""
    return location, location >> 16, location >> 32, location >> 48
