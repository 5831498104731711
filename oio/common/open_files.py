# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""How many files a process may have open."""

from __future__ import annotations

import contextlib
import resource


def raise_files_limit(wanted: int) -> int:
    """Raise the limit of this process as far as it may be raised, by `wanted` files at most; gives the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(hard, wanted)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft >= wanted:
        return soft
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft
