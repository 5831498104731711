# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Addresses for the isolated hosts of a local cluster, and what is needed to make networks."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence

from oio.sandbox.errors import SandboxError

#: Subnets to choose among: 10.128.0.0/24 to 10.255.255.0/24.
_SUBNETS = 128 * 256


def choose(home: str) -> str:
    """First three numbers of the addresses of a cluster: always the same for a home, unless they are in use.

    :raises SandboxError: when this user or this machine cannot make networks.
    """
    check_means()
    first = int.from_bytes(hashlib.sha256(os.fsencode(home)).digest()[:4], "big")
    for step in range(_SUBNETS):
        number = (first + step) % _SUBNETS
        subnet = f"10.{128 + number // 256}.{number % 256}"
        if not in_use(subnet):
            return subnet
    raise SandboxError("No free subnet of 10.128.0.0/9 on this machine")


def check_means() -> None:
    """:raises SandboxError: when this user or this machine cannot make networks."""
    if os.geteuid() != 0:
        raise SandboxError("Isolated hosts need root: network namespaces are made for them")
    for program, package in (("ip", "iproute2"), ("nsenter", "util-linux")):
        if shutil.which(program) is None:
            raise SandboxError(f"Isolated hosts need the program {program}: install the package {package}")


def in_use(subnet: str) -> bool:
    """Does this machine know addresses of this subnet (``10.128.3``)?"""
    words = run(["ip", "-4", "route", "show", "table", "all"]).split()
    return any(word.startswith(f"{subnet}.") for word in words)


def run(words: Sequence[str], text: str | None = None) -> str:
    """Output of a command that is given ``text``. :raises SandboxError: when it fails."""
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        what = text.strip().replace("\n", "; ") if text else " ".join(words)
        raise SandboxError(f"The network cannot be set up: {what}: {done.stderr.strip()}")
    return done.stdout
