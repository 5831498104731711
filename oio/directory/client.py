# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``DirectoryClient``: the ``reference/*`` routes of the proxy, one method each.

A reference is designated by ``account, reference`` or by the keyword ``cid``. A reference that does not exist
is :class:`~oio.common.exceptions.NotFound`. Unknown keywords go down to the HTTP layer, which ignores what it
does not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from oio.api.base import text_of_json
from oio.common.client import ProxyClient
from oio.common.exceptions import NotFound, from_response

_HTTP_CREATED = 201
_HTTP_ACCEPTED = 202


class DirectoryClient(ProxyClient):
    """Client of the directory of references.

    >>> client = DirectoryClient({"namespace": "OPENIO"})  # doctest: +SKIP
    >>> client.create("acme", "photos")  # doctest: +SKIP
    True
    >>> client.list("acme", "photos")["srv"]  # doctest: +SKIP
    []
    """

    def __init__(self, conf: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(conf, request_prefix="/reference", **kwargs)

    def create(
        self,
        account: str | None = None,
        reference: str | None = None,
        properties: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> bool:
        """Create a reference; False when it existed, then its properties are left as they are."""
        params = self._params(account, reference, kwargs.pop("cid", None))
        resp, body = self._request(
            "POST", "/create", params=params, data=text_of_json({"properties": dict(properties or {})}), **kwargs
        )
        if resp is None or resp.status == _HTTP_ACCEPTED:
            # Without a response: sent again while the service was busy, it had been done after all.
            return False
        if resp.status != _HTTP_CREATED:
            raise from_response(resp, body)
        return True

    def has(
        self,
        account: str | None = None,
        reference: str | None = None,
        cid: str | None = None,
        **kwargs: Any,
    ) -> bool:
        """Does this reference exist? A proxy of the 7.x series does not know the question and says no."""
        try:
            self._request("GET", "/has", params=self._params(account, reference, cid), **kwargs)
        except NotFound:
            return False
        return True

    def list(
        self,
        account: str | None = None,
        reference: str | None = None,
        cid: str | None = None,
        service_type: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Describe a reference and what is linked to it (of one type when given).

        Example: ``{"account": "acme", "name": "photos", "cid": "…", "dir": [{"seq": 1, "type": "meta1",
        "host": "10.0.0.1:6002", "args": ""}], "srv": []}``
        """
        params = self._params(account, reference, cid)
        if service_type:
            params["type"] = service_type
        _, body = self._request("GET", "/show", params=params, **kwargs)
        description: dict[str, Any] = body
        return description

    show = list

    def delete(
        self,
        account: str | None = None,
        reference: str | None = None,
        cid: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Delete a reference that has no linked service any more."""
        params = self._params(account, reference, cid)
        self._request("POST", "/destroy", params=params, **kwargs)

    destroy = delete

    def get_properties(
        self,
        account: str | None = None,
        reference: str | None = None,
        properties: Iterable[str] | None = None,
        cid: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Read properties, all of them unless some are named; unknown names are left out."""
        keys = [*(properties or ())]
        _, body = self._request(
            "POST",
            "/get_properties",
            params=self._params(account, reference, cid),
            data=text_of_json(keys),
            **kwargs,
        )
        answer: dict[str, Any] = body
        return answer

    def set_properties(
        self,
        account: str | None = None,
        reference: str | None = None,
        properties: Mapping[str, str] | None = None,
        cid: str | None = None,
        clear: bool = False,
        **kwargs: Any,
    ) -> None:
        """Set properties; an empty value deletes. ``clear`` removes the former ones first."""
        params = self._params(account, reference, cid)
        if clear:
            params["flush"] = 1
        self._request(
            "POST",
            "/set_properties",
            params=params,
            data=text_of_json({"properties": dict(properties or {})}),
            **kwargs,
        )

    def del_properties(
        self,
        account: str | None = None,
        reference: str | None = None,
        properties: Iterable[str] | None = None,
        cid: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Delete properties, all of them unless some are named; unknown names are ignored."""
        self._request(
            "POST",
            "/del_properties",
            params=self._params(account, reference, cid),
            data=text_of_json([*(properties or ())]),
            **kwargs,
        )

    def link(
        self,
        account: str | None = None,
        reference: str | None = None,
        service_type: str | None = None,
        cid: str | None = None,
        autocreate: bool = False,
        **kwargs: Any,
    ) -> None:
        """Link services of a type, unless some are linked already."""
        params = self._params(account, reference, cid, service_type)
        self._request("POST", "/link", params=params, autocreate=autocreate, **kwargs)

    def unlink(
        self,
        account: str | None = None,
        reference: str | None = None,
        service_type: str | None = None,
        cid: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Remove the links of a type."""
        params = self._params(account, reference, cid, service_type)
        self._request("POST", "/unlink", params=params, **kwargs)

    def renew(
        self,
        account: str | None = None,
        reference: str | None = None,
        service_type: str | None = None,
        cid: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Link a new set of services of a type, as the policy of the type tells."""
        params = self._params(account, reference, cid, service_type)
        self._request("POST", "/renew", params=params, **kwargs)

    def force(
        self,
        account: str | None = None,
        reference: str | None = None,
        service_type: str | None = None,
        services: Mapping[str, Any] | None = None,
        cid: str | None = None,
        autocreate: bool = False,
        replace: bool = False,
        **kwargs: Any,
    ) -> None:
        """Store a link as it is given: ``{"seq": 1, "type": "meta2", "host": "NS-meta2-1", "args": ""}``."""
        params = self._params(account, reference, cid, service_type)
        if replace:
            params["replace"] = "yes"
        self._request(
            "POST", "/force", params=params, data=text_of_json(services), autocreate=autocreate, **kwargs
        )

    def _params(
        self,
        account: str | None,
        reference: str | None,
        cid: str | None,
        service_type: str | None = None,
    ) -> dict[str, Any]:
        params: dict[str, Any] = {"cid": cid} if cid else {"acct": account, "ref": reference}
        if service_type:
            params["type"] = service_type
        return params
