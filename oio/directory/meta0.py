# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``Meta0Client``: the table of the directory, which tells the meta1 services of each prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oio.api.base import text_of_json
from oio.common.client import ProxyClient


class Meta0Client(ProxyClient):
    """Client of the table of prefixes.

    >>> Meta0Client({"namespace": "OPENIO"}).list()["00FF"]  # doctest: +SKIP
    ['10.0.0.1:6001', '10.0.0.2:6001', '10.0.0.3:6001']
    """

    def __init__(self, conf: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(conf, request_prefix="/admin", **kwargs)

    def force(self, mapping: str | bytes | Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        """Replace the services of some prefixes (of all of them, the first time).

        :param mapping: services by prefix of 4 digits, or its JSON.
        """
        data = mapping if isinstance(mapping, (str, bytes)) else text_of_json(mapping)
        self._request("POST", "/meta0_force", data=data, **kwargs)

    def list(self, **kwargs: Any) -> dict[str, Any]:
        """Read the whole table: services by prefix of 4 digits."""
        _, body = self._request("GET", "/meta0_list", **kwargs)
        return dict(body or {})
