# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Errors of the sandbox."""

from __future__ import annotations


class SandboxError(Exception):
    """Raised when the local cluster cannot do what is asked; the message is meant for a person."""
