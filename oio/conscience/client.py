# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Clients of the registry of services (``conscience/*``) and of the load balancer (``lb/*``) of the proxy."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping
from typing import Any

from oio.api.base import split_keywords, text_of_json
from oio.common.client import ProxyClient
from oio.common.exceptions import NotFound, OioException, ServiceBusy

# How long a resolved service id is trusted, in seconds: services rarely move, and a stale address only costs
# one failed connection.
SERVICE_ID_MAX_AGE_S = 60.0


class LbClient(ProxyClient):
    """Client of the load balancer."""

    def __init__(self, conf: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(conf, request_prefix="/lb", **kwargs)

    def next_instances(self, pool: str, size: int | None = None, **kwargs: Any) -> list[Any]:
        """Draw services of a type: ``[{"addr": …, "id": "NS|type|addr"}, …]``, all different."""
        params: dict[str, Any] = {"type": pool}
        if size is not None:
            params["size"] = size
        _resp, body = self._request("GET", "/choose", params=params, **kwargs)
        return body

    def next_instance(self, pool: str, **kwargs: Any) -> dict[str, Any]:
        """Draw one service of a type."""
        kwargs.pop("size", None)
        return self.next_instances(pool, size=1, **kwargs)[0]

    def poll(self, pool: str, **kwargs: Any) -> list[Any]:
        """Draw one service for each target of a pool.

        :keyword avoid: service keys that must not be drawn.
        :keyword known: service keys that count as already drawn.
        """
        body, kwargs = split_keywords(kwargs)
        _resp, services = self._request(
            "POST", "/poll", params={"pool": pool}, data=text_of_json(body), **kwargs
        )
        return services

    def create_pool(
        self,
        pool: str,
        targets: Iterable[tuple[int, str] | tuple[Any, ...]],
        force: bool = False,
        options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Create a pool in the memory of the proxy.

        :param targets: ``[(how many, slot, fallback slot…), …]``.
        :raises Conflict: when the pool exists, unless ``force``.
        """
        text = ";".join(",".join(str(part) for part in target) for target in targets)
        self._request(
            "POST",
            "/create_pool",
            params={"name": pool, "force": str(bool(force))},
            data=text_of_json({"targets": text, "options": options}),
            **kwargs,
        )


class ConscienceClient(ProxyClient):
    """Client of the registry of services.

    :param service_id_max_age: seconds during which a resolved service id is kept.
    """

    def __init__(
        self,
        conf: Mapping[str, Any],
        service_id_max_age: float = SERVICE_ID_MAX_AGE_S,
        **kwargs: Any,
    ) -> None:
        super().__init__(conf, request_prefix="/conscience", **kwargs)
        kwargs["pool_manager"] = self.pool_manager
        self._lb_kwargs = kwargs
        self._service_ids: dict[tuple[str, str], tuple[str, float]] = {}
        self._service_id_max_age = float(service_id_max_age)

    @functools.cached_property
    def lb(self) -> LbClient:
        """Client of the load balancer, on the same connections."""
        return LbClient(self.conf, **self._lb_kwargs)

    # --- load balancing ---

    def next_instances(self, pool: str, **kwargs: Any) -> dict[str, Any]:
        """Draw one service (the plural is historical: see ``lb.next_instances``)."""
        return self.lb.next_instance(pool, **kwargs)

    def next_instance(self, pool: str, **kwargs: Any) -> dict[str, Any]:
        """Draw one service of a type."""
        return self.lb.next_instance(pool, **kwargs)

    def poll(self, pool: str, **kwargs: Any) -> list[Any]:
        """Draw one service for each target of a pool; see ``LbClient.poll``."""
        return self.lb.poll(pool, **kwargs)

    # --- registry ---

    def all_services(self, type_: str, full: bool = False, **kwargs: Any) -> list[dict[str, Any]]:
        """List the services of a type.

        :param full: with their statistics.
        :returns: ``[{"addr": "ip:port", "id": …, "score": 100, "tags": {…}}, …]``.
        :raises NotFound: when the type is unknown.
        """
        params: dict[str, Any] = {"type": type_}
        if full:
            params["full"] = "1"
        _resp, services = self._request("GET", "/list", params=params, **kwargs)
        for service in services:
            service.setdefault("id", _service_id(service))
        return services

    def local_services(self, **kwargs: Any) -> list[dict[str, Any]]:
        """List the services that registered lately through this proxy, with their type."""
        url = self.endpoint_of("local/list")
        _resp, services = self._direct_request("GET", url, **kwargs)
        for service in services:
            service.setdefault("id", _service_id(service))
        return services

    def service_types(self, **kwargs: Any) -> list[str]:
        """List the types of services of the namespace."""
        _resp, types = self._request("GET", "/info", params={"what": "types"}, **kwargs)
        return types

    def info(self, **kwargs: Any) -> dict[str, Any]:
        """Describe the namespace: ``options``, ``storage_policy``, ``data_security``…"""
        _resp, body = self._request("GET", "/info", **kwargs)
        return body

    def get_service_definition(
        self,
        srv_type: str,
        srv_id: str,
        score: int | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Make the description of a service that ``register`` and ``lock_score`` take."""
        service: dict[str, Any] = {"ns": self.ns, "type": srv_type, "addr": srv_id}
        if score is not None:
            service["score"] = score
        if tags is not None:
            service["tags"] = dict(tags)
        return service

    def register(self, service_definitions: Any, **kwargs: Any) -> None:
        """Register one service, or a list of them."""
        self._request("POST", "/register", data=text_of_json(service_definitions), **kwargs)

    def deregister(self, service_definitions: Any, **kwargs: Any) -> None:
        """Have one service, or a list of them, forgotten."""
        self._request("POST", "/deregister", data=text_of_json(service_definitions), **kwargs)

    def lock_score(self, infos_srv: Any, **kwargs: Any) -> Any:
        """Lock the score of one service, or of a list of them, at the value of ``score``."""
        _resp, body = self._request("POST", "/lock", data=text_of_json(infos_srv), **kwargs)
        return body

    def unlock_score(self, infos_srv: Any, **kwargs: Any) -> None:
        """Have the score of one service, or of a list of them, computed again."""
        self._request("POST", "/unlock", data=text_of_json(infos_srv), **kwargs)

    def flush(self, srv_type: str, **kwargs: Any) -> None:
        """Have every service of a type forgotten."""
        self._request("POST", "/flush", params={"type": srv_type}, **kwargs)

    # --- resolution ---

    def resolve(self, srv_type: str, service_id: str, **kwargs: Any) -> dict[str, Any]:
        """Ask for the address of a service: ``{"addr": "ip:port"}``."""
        params = {"type": srv_type, "service_id": service_id}
        _resp, body = self._request("GET", "/resolve", params=params, **kwargs)
        return body

    def resolve_service_id(
        self, srv_type: str, service_id: str, check_format: bool = True, **kwargs: Any
    ) -> str:
        """Address of a service.

        :param check_format: return unchanged what already looks like ``host:port``.
        """
        if check_format and _has_port(service_id):
            return service_id
        key = (srv_type, service_id)
        now_s = time.monotonic()
        known = self._service_ids.get(key)
        if known is not None and now_s - known[1] < self._service_id_max_age:
            return known[0]
        address = self.resolve(srv_type, service_id, **kwargs).get("addr")
        if not address:
            raise OioException(f"No address for the {srv_type} service {service_id}")
        self._service_ids[key] = (address, now_s)
        return address

    def resolve_url(self, srv_type: str, url: str, **kwargs: Any) -> str:
        """Replace the service id of a URL by the address of the service."""
        scheme, separator, rest = url.partition("://")
        if not separator:
            scheme, rest = "http", url
        host, slash, path = rest.partition("/")
        if _has_port(host):
            return url if separator else f"http://{url}"
        return f"{scheme}://{self._resolve_host(srv_type, host, **kwargs)}{slash}{path}"

    def _resolve_host(self, srv_type: str, host: str, **kwargs: Any) -> str:
        """Resolve the host of a URL, which may have lost its case on the way."""
        lowered = host.lower()
        try:
            return self.resolve_service_id(srv_type, lowered, check_format=False, **kwargs)
        except (ServiceBusy, NotFound):
            if lowered == host:
                raise
        address = self.resolve_service_id(srv_type, host, check_format=False, **kwargs)
        self._service_ids[(srv_type, lowered)] = (address, time.monotonic())
        return address

    def endpoint_of(self, target: str) -> str:
        """URL of a route of the namespace that is not below ``conscience/``."""
        return f"{self.proxy_scheme}://{self.proxy_netloc}/v3.0/{self.ns}/{target}"


def _service_id(service: Mapping[str, Any]) -> str:
    return service.get("tags", {}).get("tag.service_id") or service["addr"]


def _has_port(host: str) -> bool:
    name, colon, port = host.rpartition(":")
    return bool(colon and name and port.isdigit())
