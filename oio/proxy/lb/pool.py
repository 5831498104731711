# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Definitions of pools and of storage policies, as text and as values (contract: "Storage policies and chunk
placement"). Nothing here knows which services exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from oio.common import status
from oio.common.status import StatusError
from oio.common.variables import FALSE_WORDS, TRUE_WORDS, parse_boolean
from oio.meta.messages import Security
from oio.proxy.lb.location import DISTANCE_MAX, DISTANCE_MIN

#: A pool asks for one service per target: more than that in one poll is a mistake in the configuration.
TARGETS_MAX = 1024

#: A target that any service satisfies, of whatever type: a known one even when its score is 0. With it a pool says
#: "far enough from that one": ``1,__any_slot;1,rdir`` finds an rdir for a known volume.
JOKER_SLOT = "__any_slot"

#: Policies that exist in every namespace: one plain copy anywhere.
BUILTIN_POLICIES = ("NONE", "plain", "")

#: Not a tag of services: older configurations say by it that references of a type bear the names of services.
_ABOUT_REFERENCES = "user_is_a_service"

_EC_K_DEFAULT = 6
_EC_M_DEFAULT = 3


@dataclass(frozen=True, slots=True)
class PoolDefinition:
    """What a pool asks for.

    :ivar targets: one tuple of slots per service wanted: the main slot, then the fallbacks.
    """

    name: str
    targets: tuple[tuple[str, ...], ...]
    min_dist: int = 1
    max_dist: int = DISTANCE_MAX
    warn_dist: int = 0
    nearby_mode: bool = False


@dataclass(frozen=True, slots=True)
class PolicyDefinition:
    """A storage policy: where its chunks go and how they are made.

    :ivar pool: name of the pool.
    :ivar span: how many chunk sizes of data one metachunk holds.
    """

    name: str
    pool: str
    chunk_method: str
    security: Security
    span: int
    fragmented: bool


class UpdatePolicy(NamedTuple):
    """How services of a type are linked to references.

    :ivar mode: ``KEEP`` what is linked, ``APPEND`` a set, or ``REPLACE`` the former one.
    :ivar tag: only services with this tag are chosen, those where it has this ``value``; empty: all of them.
    """

    mode: str = "KEEP"
    replicas: int = 1
    distance: int = 1
    tag: str = ""
    value: str = ""

    def takes(self, tags: Mapping[str, Any]) -> bool:
        """May a service with these tags be chosen?

        >>> UpdatePolicy(tag="ssd", value="true").takes({"tag.ssd": True})
        True
        """
        if not self.tag:
            return True
        told = tags.get(f"tag.{self.tag}", tags.get(self.tag))
        if isinstance(told, bool):
            return self.value.lower() in (TRUE_WORDS if told else FALSE_WORDS)
        return told is not None and str(told) == self.value


def parse_targets(text: str) -> tuple[tuple[str, ...], ...]:
    """Read ``N,slot[,fallback…][;N,slot…]``. :raises ValueError: with the reason, when it cannot be read."""
    targets: list[tuple[str, ...]] = []
    for part in text.split(";"):
        part = part.strip()
        if not part:
            continue
        count, *slots = [token.strip() for token in part.split(",")]
        if not (count.isascii() and count.isdigit()):
            raise ValueError(f"target {part!r} does not begin with a number of services")
        names = tuple(slot for slot in slots if slot)
        if not names:
            raise ValueError(f"target {part!r} names no slot")
        if len(targets) + int(count) > TARGETS_MAX:
            raise ValueError(f"more than {TARGETS_MAX} targets")
        targets.extend([names] * int(count))
    if not targets:
        raise ValueError("no target")
    return tuple(targets)


def make_pool(name: str, targets: tuple[tuple[str, ...], ...], options: dict[str, Any]) -> PoolDefinition:
    """Build a definition from the texts of its options. :raises ValueError: when a number is not one."""

    def bounded(key: str, default: int, lowest: int, highest: int) -> int:
        value = options.get(key)
        if value is None or value == "":
            return default
        try:
            return min(max(int(value), lowest), highest)
        except (TypeError, ValueError):
            raise ValueError(f"option {key!r} is not a number: {value!r}") from None

    return PoolDefinition(
        name,
        targets,
        min_dist=bounded("min_dist", 1, DISTANCE_MIN, DISTANCE_MAX),
        max_dist=bounded("max_dist", DISTANCE_MAX, DISTANCE_MIN, DISTANCE_MAX),
        warn_dist=bounded("warn_dist", 0, 0, 5),
        nearby_mode=parse_boolean(str(options.get("nearby_mode", ""))),
    )


def parse_pool(name: str, text: str) -> PoolDefinition:
    """Read the form in which the conscience publishes pools: targets, then ``key=value``, all separated by ``;``.

    :raises ValueError: when it cannot be read.
    """
    targets: list[str] = []
    options: dict[str, str] = {}
    for part in text.split(";"):
        key, equal, value = part.partition("=")
        if equal:
            options[key.strip()] = value.strip()
        elif part.strip()[:1].isdigit():
            targets.append(part)
    return make_pool(name, parse_targets(";".join(targets)), options)


def parse_update_policy(text: str) -> dict[str, UpdatePolicy]:
    """Read a service update policy ``type=KEEP|replicas|distance|tag=value;…``, by type."""
    found: dict[str, UpdatePolicy] = {}
    for part in text.split(";"):
        service_type, _, rule = part.partition("=")
        fields = [field.strip() for field in rule.split("|")]
        if not service_type.strip() or not fields[0]:
            continue
        numbers = [int(field) if field.isdigit() else 1 for field in ([*fields[1:3], "", ""])[:2]]
        tag, equal, value = (part.strip() for part in "|".join(fields[3:4]).partition("="))
        if not equal or tag == _ABOUT_REFERENCES:
            tag = value = ""
        found[service_type.strip()] = UpdatePolicy(
            fields[0].upper(), max(numbers[0], 1), max(numbers[1], 1), tag, value
        )
    return found


def parse_policy(
    name: str, text: str, data_security: dict[str, str]
) -> tuple[PolicyDefinition, PoolDefinition]:
    """Read a policy ``pool:security``.

    :returns: the policy, and the pool to create when the namespace does not define the one it names.
    :raises ValueError: when the security is unknown or cannot be read.
    """
    pool_name, _, security_name = (token.strip() for token in text.partition(":"))
    if pool_name in ("", "NONE"):
        pool_name = name
    if security_name in ("", "NONE"):
        kind, options = "plain", {"nb_copy": "1"}
    elif security_name in data_security:
        kind, options = _parse_security(data_security[security_name])
    else:
        raise ValueError(f"unknown data security {security_name!r}")
    dist = options.get("min_dist", options.get("distance", "1"))
    span, fragmented = 1, False
    if kind == "plain":
        copies = int(options.get("nb_copy", "1"))
        security, chunks = Security(type="plain", nb_copy=copies), copies
        method = f"plain/nb_copy={copies}"
    elif kind == "ec":
        k, m = int(options.get("k", _EC_K_DEFAULT)), int(options.get("m", _EC_M_DEFAULT))
        security, chunks, span, fragmented = Security(type="ec", k=k, m=m), k + m, k, True
        method = f"ec/algo={options.get('algo', 'liberasurecode_rs_vand')},k={k},m={m}"
    else:
        security, chunks = Security(type="plain", nb_copy=1), 1
        method = kind + "/" + ",".join(
            f"{key}={options[key]}" for key in sorted(options) if not key.endswith("dist")
        )
    if chunks < 1 or span < 1:
        raise ValueError(f"security {security_name!r} asks for no chunk")
    pool = make_pool(
        pool_name,
        (("rawx",),) * chunks,
        {"min_dist": dist, "warn_dist": options.get("warn_dist", "0")},
    )
    return PolicyDefinition(name, pool_name, method, security, span, fragmented), pool


def builtin_policy(name: str) -> PolicyDefinition:
    """One of :data:`BUILTIN_POLICIES`."""
    return PolicyDefinition(name or "NONE", "rawx", "plain/nb_copy=1", Security(), 1, False)


def unknown_policy(name: str) -> StatusError:
    """The error of a policy that the namespace does not have."""
    return StatusError(status.POLICY_NOT_SUPPORTED, f"Storage policy [{name}] not supported")


def _parse_security(text: str) -> tuple[str, dict[str, str]]:
    kind, _, rest = text.partition("/")
    options: dict[str, str] = {}
    for pair in rest.split(","):
        key, equal, value = pair.partition("=")
        if equal:
            options[key.strip()] = value.strip()
    return kind.strip(), options
