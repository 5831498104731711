# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The JSON module for programs: simplejson when installed, else the standard one."""

from __future__ import annotations

try:
    import simplejson as json  # type: ignore[import-untyped, unused-ignore]
except ImportError:
    import json

__all__ = ["json"]
