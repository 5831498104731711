# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``AdminClient``: the bases of the directory and of containers, their copies and their elections.

A base is designated by the type of its services and by a reference: ``account, reference``, or ``cid`` (which may
be ``CID.SEQUENCE``, or a prefix of at most 4 digits for meta1). ``service_id``, one service or several, restricts
a request to some copies. Routes that ask every copy give one entry for each, whatever it answered::

    {"OPENIO-meta2-1": {"status": {"status": 200, "message": "OK"}, "body": ""}}
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from oio.api.base import text_of_json
from oio.common.client import ProxyClient

SYS_PEERS = "sys.peers"
MASTER, SLAVE = 200, 303

#: Answer of each copy, by service.
PerPeer = dict[str, Any]


def loc_params(func: Callable[..., Any]) -> Callable[..., Any]:
    """Give a method of a base, as its first argument, the parameters that designate the base.

    :raises ValueError: (the method) when the type or the location is missing.
    """

    @functools.wraps(func)
    def wrapper(
        self: Any,
        service_type: str | None = None,
        account: str | None = None,
        reference: str | None = None,
        cid: str | None = None,
        service_id: str | Iterable[str] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if not service_type:
            raise ValueError("Missing value for service_type")
        params: dict[str, Any] = {"type": service_type}
        if cid:
            params["cid"] = cid
        elif account and reference:
            params.update(acct=account, ref=reference)
        else:
            raise ValueError("Missing value for account and reference, or cid")
        if service_id:
            params["service_id"] = service_id if isinstance(service_id, str) else ",".join(service_id)
        return func(self, params, *args, **kwargs)

    return wrapper


class AdminClient(ProxyClient):
    """Client of the administration of bases.

    >>> admin = AdminClient({"namespace": "OPENIO"})  # doctest: +SKIP
    >>> admin.election_status("meta2", "acme", "photos")["master"]  # doctest: +SKIP
    'OPENIO-meta2-1'

    The methods of a base take ``(service_type, account=None, reference=None, cid=None, service_id=None)``, then
    what is said for each; they raise ``ValueError`` when the base is not designated.
    """

    def __init__(self, conf: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(conf, request_prefix="/admin", **kwargs)
        self._above_ns = f"{self.proxy_scheme}://{self.proxy_netloc}/v3.0"

    def _post(self, action: str, params: Mapping[str, Any], **kwargs: Any) -> Any:
        _, body = self._request("POST", f"/{action}", params=params, **kwargs)
        return body

    # --- elections ------------------------------------------------------------------------------------

    @loc_params
    def election_debug(self, params: dict[str, Any], **kwargs: Any) -> PerPeer:
        """Describe the election as each copy sees it."""
        return dict(self._post("debug", params, **kwargs))

    @loc_params
    def election_leave(self, params: dict[str, Any], **kwargs: Any) -> PerPeer:
        """Have the copies leave the election: they take part again when they are needed."""
        return dict(self._post("leave", params, **kwargs))

    @loc_params
    def election_ping(self, params: dict[str, Any], **kwargs: Any) -> PerPeer:
        """Start the election, or keep it alive."""
        return dict(self._post("ping", params, **kwargs))

    @loc_params
    def election_status(self, params: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Tell who is what: ``{"peers": {…}, "type": "meta2", "master": id, "slaves": [ids]}``.

        ``master`` and ``slaves`` are absent when nobody says it is.
        """
        peers = dict(self._post("status", params, **kwargs))
        found: dict[str, Any] = {"peers": peers, "type": params["type"]}
        for service, answer in sorted(peers.items()):
            code = answer["status"]["status"]
            if code == MASTER:
                found["master"] = service
            elif code == SLAVE:
                found.setdefault("slaves", []).append(service)
        return found

    @loc_params
    def election_sync(self, params: dict[str, Any], check_type: int | None = None, **kwargs: Any) -> PerPeer:
        """Have the copies take the state of the master, which answers 301.

        :param check_type: how a copied file is checked: 0 not, 1 quickly, 2 wholly; None as services are set.
        """
        if check_type is not None:
            params["check_type"] = check_type
        return dict(self._post("sync", params, **kwargs))

    # --- bases ----------------------------------------------------------------------------------------

    @loc_params
    def has_base(self, params: dict[str, Any], **kwargs: Any) -> PerPeer:
        """Ask each service for the path of its file; 200 when there is one."""
        return dict(self._post("has", params, **kwargs))

    @loc_params
    def get_properties(self, params: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Read the properties of a base, or of one copy: ``{"properties": {…}, "system": {…}}``."""
        return dict(self._post("get_properties", params, **kwargs))

    @loc_params
    def set_properties(
        self,
        params: dict[str, Any],
        properties: Mapping[str, str] | None = None,
        system: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Set user and system properties of a base."""
        data = {"properties": dict(properties or {}), "system": dict(system or {})}
        self._post("set_properties", params, data=text_of_json(data), **kwargs)

    @loc_params
    def set_peers(self, params: dict[str, Any], peers: Iterable[str], **kwargs: Any) -> None:
        """Write in a base which services hold it."""
        data = {"properties": {}, "system": {SYS_PEERS: ",".join(sorted(peers))}}
        self._post("set_properties", params, data=text_of_json(data), **kwargs)

    @loc_params
    def copy_base_from(self, params: dict[str, Any], svc_from: str, svc_to: str, **kwargs: Any) -> None:
        """Have a service take a copy of a base from another service."""
        self._post("copy", params, data=text_of_json({"to": svc_to, "from": svc_from}), **kwargs)

    @loc_params
    def copy_base_to(self, params: dict[str, Any], svc_to: str, **kwargs: Any) -> None:
        """Have the master of a base give a copy to a service."""
        self._post("copy", params, data=text_of_json({"to": svc_to}), **kwargs)

    @loc_params
    def remove_base(self, params: dict[str, Any], **kwargs: Any) -> Any:
        """Delete the copies of a base that ``service_id`` names."""
        return self._post("remove", params, **kwargs)

    @loc_params
    def vacuum_base(self, params: dict[str, Any], **kwargs: Any) -> None:
        """Have the master defragment a base, and give it to the other copies."""
        self._post("vacuum", params, **kwargs)

    @loc_params
    def freeze_base(self, params: dict[str, Any], **kwargs: Any) -> Any:
        """Have a container refuse writes; what is refused already raises 436 or 437."""
        return self._post("freeze", params, **kwargs)

    @loc_params
    def enable_base(self, params: dict[str, Any], **kwargs: Any) -> Any:
        """Have a container take writes again."""
        return self._post("enable", params, **kwargs)

    # --- proxies --------------------------------------------------------------------------------------

    def _above(self, method: str, path: str, proxy_netloc: str | None = None, **kwargs: Any) -> tuple[Any, Any]:
        base = f"{self.proxy_scheme}://{proxy_netloc}/v3.0" if proxy_netloc else self._above_ns
        return self._direct_request(method, f"{base}/{path}", **kwargs)

    def proxy_flush_cache(
        self, high: bool = True, low: bool = True, proxy_netloc: str | None = None, **kwargs: Any
    ) -> None:
        """Have a proxy forget which services it found for references.

        :param high: the services of type meta0 and meta1.
        :param low: the services linked to references.
        :param proxy_netloc: address of the proxy, if not this one.
        """
        for asked, level in ((high, "high"), (low, "low")):
            if asked:
                self._above("POST", f"cache/flush/{level}", proxy_netloc, **kwargs)

    def proxy_get_cache_status(self, proxy_netloc: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Count what a proxy remembers."""
        return dict(self._above("GET", "cache/status", proxy_netloc, **kwargs)[1])

    def proxy_get_live_config(self, proxy_netloc: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Read the settings of a proxy."""
        return dict(self._above("GET", "config", proxy_netloc, **kwargs)[1])

    def proxy_set_live_config(
        self, proxy_netloc: str | None = None, config: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Change settings of a proxy: ``{name: whether it was changed}``.

        :raises ValueError: without settings.
        """
        if not config:
            raise ValueError("Missing value for config")
        return dict(self._above("POST", "config", proxy_netloc, data=text_of_json(config), **kwargs)[1])

    # --- services -------------------------------------------------------------------------------------

    def _forward(
        self, method: str, action: str, svc_id: str, params: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> tuple[Any, Any]:
        return self._above(method, f"forward/{action}", params={"id": svc_id, **(params or {})}, **kwargs)

    def service_flush_cache(self, svc_id: str, **kwargs: Any) -> Any:
        """Have a service forget what it knows of others."""
        return self._forward("POST", "flush", svc_id, **kwargs)[1]

    def service_get_live_config(self, svc_id: str, **kwargs: Any) -> Any:
        """Read the settings of a service."""
        return self._forward("GET", "config", svc_id, **kwargs)[1]

    def service_set_live_config(self, svc_id: str, config: Mapping[str, Any], **kwargs: Any) -> Any:
        """Change settings of a service: ``{name: whether it was changed}``."""
        return self._forward("POST", "config", svc_id, data=text_of_json(config), **kwargs)[1]

    def service_get_info(self, svc_id: str, **kwargs: Any) -> Any:
        """Ask a service for its counters and elections."""
        return self._forward("GET", "info", svc_id, **kwargs)[1]

    def service_reload_lb(self, svc_id: str, **kwargs: Any) -> Any:
        """Have a service list the other services again."""
        return self._forward("POST", "reload", svc_id, **kwargs)[1]

    def service_balance_elections(
        self, svc_id: str, max_ops: int = 0, inactivity: int = 0, **kwargs: Any
    ) -> tuple[int, Any]:
        """Have a service leave elections of which it is the master.

        :param max_ops: elections at most; 0: as the proxy is set.
        :param inactivity: only bases without request for that long (seconds).
        :returns: HTTP status, and the number of elections.
        """
        params: dict[str, Any] = {}
        if max_ops > 0:
            params["max"] = max_ops
        if inactivity > 0:
            params["inactivity"] = inactivity
        resp, body = self._forward("POST", "balance-masters", svc_id, params, **kwargs)
        return resp.status, body
