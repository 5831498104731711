# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``ProxyClient``: base of the clients that talk to oio-proxy.

Adds to ``HttpApi`` the location of the proxy, the flags that travel as headers, and the retries of busy
services.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

from oio.api.base import HttpApi, only_reads
from oio.common.configuration import load_namespace_conf, validate_service_conf
from oio.common.constants import RETRIED_HEADER
from oio.common.easy_value import int_value
from oio.common.exceptions import ConfigurationException, Conflict, OioException, ServiceBusy
from oio.common.logger import get_logger

# One slot of the random pause between two attempts, in seconds; the number of slots doubles each time.
_BACKOFF_SLOT_S = 0.5
_PORT_MAX = 65535

ACTION_MODE_HEADER = "x-oio-action-mode"
UPGRADE_TO_TLS_HEADER = "x-oio-upgrade-to-tls"


class ProxyClient(HttpApi):
    """Base of the clients of oio-proxy.

    >>> client = ProxyClient({"namespace": "OPENIO"}, endpoint="127.0.0.1:6000")
    >>> client.endpoint
    'http://127.0.0.1:6000/v3.0/OPENIO'

    :param conf: must hold ``namespace``; may hold ``proxyd_url``.
    :param request_prefix: appended to the endpoint.
    :param no_ns_in_url: leave the version and the namespace out of the endpoint.
    :param endpoint: location of the proxy; else ``conf['proxyd_url']``, else the namespace configuration.
        :raises ConfigurationException: when it is not an address.
    :param request_attempts: how many times a request is sent while the service is busy.
    """

    def __init__(
        self,
        conf: Mapping[str, Any],
        request_prefix: str = "",
        no_ns_in_url: bool = False,
        endpoint: str | None = None,
        request_attempts: int = 1,
        logger: Any = None,
        **kwargs: Any,
    ) -> None:
        request_attempts = int_value(request_attempts, 1)
        assert request_attempts > 0
        validate_service_conf(conf)
        self.ns = conf["namespace"]
        self.conf = conf
        self.logger = logger or get_logger(dict(conf), "oio.client")
        location = endpoint or conf.get("proxyd_url") or load_namespace_conf(self.ns)["proxy"]
        self.proxy_scheme, self.proxy_netloc = _parse_location(location)
        base = f"{self.proxy_scheme}://{self.proxy_netloc}"
        if not no_ns_in_url:
            base = f"{base}/v3.0/{self.ns}"
        if request_prefix:
            base = f"{base}/{request_prefix.lstrip('/')}"
        self._request_attempts = request_attempts
        super().__init__(endpoint=base, service_type="proxy", **kwargs)

    def _direct_request(  # type: ignore[override]
        self,
        method: str,
        url: str,
        headers: dict[str, Any] | None = None,
        request_attempts: int | str | None = None,
        autocreate: Any = None,
        tls: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """Send a request, again while the service is busy and attempts are left.

        :param autocreate: create the missing container or reference on the way; False: do not, whatever the
            headers say.
        :param tls: ask for ``https`` chunk URLs.
        :returns: response and body; ``(None, None)`` when a POST that was sent again meets a conflict,
            because the first one had been done after all.
        """
        if autocreate or tls:
            if headers is None:
                headers = {}
            if autocreate:
                headers[ACTION_MODE_HEADER] = "autocreate"
            if tls:
                headers[UPGRADE_TO_TLS_HEADER] = tls
        if autocreate is False and headers and ACTION_MODE_HEADER in headers:
            # Left there by a former call, to which the same headers were given.
            del headers[ACTION_MODE_HEADER]
        attempts: int = int_value(request_attempts, 0) or self._request_attempts
        if attempts == 1:
            return super()._direct_request(method, url, headers, **kwargs)
        if attempts < 0:
            raise OioException("Negative request attempts")
        for attempt in range(1, attempts + 1):
            try:
                return super()._direct_request(method, url, headers, **kwargs)
            except ServiceBusy as exc:
                if attempt >= attempts:
                    exc.retried = attempt > 1
                    raise
                _pause(attempt, kwargs.get("deadline"))
                # The busy service may have done it nevertheless: what cannot be done twice must know. The
                # caller's headers go to other requests too, and are left alone.
                headers = {**(headers or {}), RETRIED_HEADER: "1"}
            except Conflict:
                # What only reads has nothing that a first request could have done already.
                if attempt > 1 and method == "POST" and not only_reads(url):
                    return None, None
                raise
            except OioException as exc:
                exc.retried = attempt > 1
                raise
        raise AssertionError("unreachable")


def _parse_location(location: str) -> tuple[str, str]:
    """Scheme and address of a proxy. :raises ConfigurationException: when it cannot be one."""
    scheme, separator, netloc = location.partition("://")
    if not separator:
        scheme, netloc = "http", location
    netloc = netloc.split("/", 1)[0]
    host, colon, port = netloc.rpartition(":")
    if not colon or netloc.endswith("]"):
        host, port = netloc, "80"
    if not host or not (port.isascii() and port.isdigit() and int(port) <= _PORT_MAX):
        raise ConfigurationException(f"Invalid address of the proxy: {location!r}, HOST:PORT is expected")
    return scheme, netloc


def _pause(attempt: int, deadline: float | None) -> None:
    """Wait before the n-th retry: 0 to 2^n − 1 slots, never beyond the deadline."""
    pause_s = random.randint(0, 2**attempt - 1) * _BACKOFF_SLOT_S
    if deadline is not None:
        pause_s = min(pause_s, max(deadline - time.monotonic(), 0.0))
    if pause_s:
        time.sleep(pause_s)
