# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Filter ``webhook``: tells an HTTP endpoint what happens to objects.

Options: ``endpoint`` (a URL), ``connection_timeout`` (2 s), ``read_timeout`` (30 s).

The endpoint gets a POST for each event, with a JSON object: ``eventId``, ``eventType``, ``timestamp``
(microseconds) and ``data``. What a new object is comes from its event; what it became (``storage.content.update``
and others) is asked from the proxy. An answer of 400 and above, and no answer, bring the event back later: the
endpoint may see an event twice, and tells it by its ``eventId`` when the delivery is the same job.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from oio.common.constants import REQID_HEADER
from oio.common.exceptions import (
    ClientException,
    ConfigurationException,
    ExplicitBury,
    NotFound,
    OioException,
)
from oio.event.filters.base import Callback, Env, Filter, make_filter_factory
from oio.event.filters.clients import LeftAlone, asking, container_of, pauses_of, pool_of
from oio.http.client import HttpClientError

CONNECTION_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 30.0
_REQID_PREFIX = "webhook-"
_GONE = 410
CONTENT_PREFIX = "storage.content."
CONTENT_NEW = "storage.content.new"
# Events that only tell which object they are about.
NAMED_ONLY = frozenset({"storage.content.deleted", "storage.content.append"})


class WebhookFilter(Filter):
    """Tells the endpoint, and goes on."""

    def init(self) -> None:
        """Read the options."""
        self.endpoint = str(self.conf.get("endpoint") or "")
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigurationException(f"endpoint={self.endpoint!r} is not the URL of a web service")
        self._timeouts: dict[str, Any] = self.timeouts(CONNECTION_TIMEOUT_S, READ_TIMEOUT_S)

    def process(self, env: Env, beanstalkd: Any, cb: Callback) -> Any:
        """Handle one event."""
        if not str(env.get("event")).startswith(CONTENT_PREFIX):
            return self.app(env, beanstalkd, cb)
        try:
            with asking(self, self.endpoint):
                problem = self._tell(env)
        except ExplicitBury:
            raise
        except LeftAlone as exc:
            return self.retry(cb, f"webhook: {exc}", exc.wait_s)
        except OioException as exc:
            if isinstance(exc, ClientException) and int(exc.http_status or 0) < 500:
                raise  # the agent decides: what is asked about can be no object
            return self.retry(cb, f"properties of the object: {exc}")
        if problem:
            return self.retry(cb, f"webhook {self.endpoint} {problem}")
        self.count("told")
        return self.app(env, beanstalkd, cb)

    def _tell(self, env: Env) -> str:
        """:returns: what went wrong at the endpoint. :raises OioException: from the proxy."""
        body = json.dumps(
            {
                "eventId": str(env.get("job_id")),
                "eventType": env["event"],
                "timestamp": env.get("when"),
                "data": self._data(env),
            }
        )
        headers = {"Content-Type": "application/json", REQID_HEADER: self.reqid_of(env, _REQID_PREFIX)}
        pauses = pauses_of(self)
        timeout = (self._timeouts["connection_timeout"], self._timeouts["read_timeout"])
        try:
            response = pool_of(self).request("POST", self.endpoint, headers, body, timeout=timeout)
        except HttpClientError as exc:
            pauses.failed(self.endpoint)
            return f"failed: {exc}"
        pauses.answered(self.endpoint)
        if response.status >= 400:
            return f"answered {response.status} {bytes(response.data[:200])!r}"
        return ""

    def _data(self, env: Env) -> dict[str, Any]:
        """:raises OioException: when the proxy does not tell the properties of the object."""
        url = env.get("url")
        if not isinstance(url, dict):
            self.bury(f"{env['event']} without object: {url!r}")
        named = {
            "id": url.get("content"),
            "account": url.get("account"),
            "container": url.get("user"),
            "name": url.get("path"),
        }
        if env["event"] == CONTENT_NEW:
            return {**named, **self._described_by_beans(env)}
        if env["event"] in NAMED_ONLY:
            return named
        try:
            meta = container_of(self).content_get_properties(
                url.get("account"),
                url.get("user"),
                content=url.get("content"),
                reqid=self.reqid_of(env, _REQID_PREFIX),
                **self._timeouts,
            )
        except ClientException as exc:
            if not isinstance(exc, NotFound) and exc.http_status != _GONE:
                raise
            # Deleted since: there is nothing more to tell, and its deletion will be told too. Or drained.
            return named
        return {**named, **_described_by_proxy(meta)}

    def _described_by_beans(self, env: Env) -> dict[str, Any]:
        beans = env.get("data") or []
        if not isinstance(beans, list) or not all(isinstance(bean, dict) for bean in beans):
            self.bury(f"data of {env['event']} is not a list of beans")
        alias: dict[str, Any] = {}
        header: dict[str, Any] = {}
        metadata = {}
        for bean in beans:
            kind = bean.get("type")
            if kind == "aliases":
                alias = bean
            elif kind == "contents_headers":
                header = bean
            elif kind == "properties" and bean.get("value") is not None:
                if not isinstance(bean.get("key"), str):
                    self.bury(f"a property of {env['event']} has no name: {bean}")
                metadata[bean["key"]] = bean["value"]
        return {
            "md5Hash": header.get("hash"),
            "contentType": header.get("mime-type"),
            "policy": header.get("policy"),
            "chunkMethod": header.get("chunk-method"),
            "size": header.get("size"),
            "creationTime": alias.get("ctime"),
            "modificationTime": alias.get("mtime"),
            "version": alias.get("version"),
            "metadata": metadata,
        }


filter_factory = make_filter_factory(WebhookFilter)


def _described_by_proxy(meta: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "md5Hash": meta.get("hash"),
        "contentType": meta.get("mime_type"),
        "policy": meta.get("policy"),
        "chunkMethod": meta.get("chunk_method"),
        "size": _integer(meta.get("length", meta.get("size"))),
        "creationTime": _integer(meta.get("ctime")),
        "modificationTime": _integer(meta.get("mtime")),
        "version": _integer(meta.get("version")),
        "metadata": dict(meta.get("properties") or {}),
    }


def _integer(text: Any) -> int | None:
    try:
        return int(text)
    except (TypeError, ValueError):
        return None
