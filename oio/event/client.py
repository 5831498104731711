# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Client that looks at the tubes of events, and gives buried events another chance.

>>> EventClient({"namespace": "OPENIO"}).exhume(limit=100)       # doctest: +SKIP
100
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from oio.common.configuration import load_namespace_conf
from oio.common.exceptions import ConfigurationException, OioException, OioNetworkException
from oio.event.beanstalk import Beanstalk, BeanstalkError, ResponseError
from oio.event.queue import DEFAULT_TUBE, split_urls
from oio.event.source import SourceError, open_source

CONF_KEY = "event-agent"
TIMEOUT_S = 10.0


class EventClient:
    """Talks to one of the queues of the namespace, drawn when the client is made.

    :param conf: ``namespace``, whose configuration has the key ``event-agent``; or that key itself.
    """

    def __init__(self, conf: Mapping[str, Any], logger: Any = None, **_kwargs: Any) -> None:
        """:raises ConfigurationException: when no queue is configured."""
        self.conf = conf
        self.logger = logger
        configured = conf.get(CONF_KEY) or load_namespace_conf(conf["namespace"], failsafe=True).get(CONF_KEY)
        urls = split_urls(str(configured or ""))
        if not urls:
            raise ConfigurationException(f"Missing field '{CONF_KEY}' in namespace configuration")
        self.queue_url = random.choice(urls)

    def exhume(self, limit: int = 1000, tube: str | None = None) -> int:
        """Make buried events, or delayed ones when none is buried, ready; returns how many."""
        with _translated(), open_source(self.queue_url, tube or DEFAULT_TUBE) as source:
            return source.kick(limit)

    def list_tubes(self) -> list[str]:
        """Names of the tubes."""
        with _translated():
            scheme = urlsplit(self.queue_url).scheme
            if scheme == "beanstalk":
                with contextlib.closing(self._beanstalk()) as beanstalk:
                    return beanstalk.tubes()
            if scheme == "spool":
                from oio.event.transport.spool_source import spool_tubes

                return spool_tubes(urlsplit(self.queue_url).path)
            from oio.event.transport.redis_tube import tubes_of

            return tubes_of(self.queue_url)

    def stats(self, tube: str | None = None) -> dict[str, Any]:
        """Statistics of a tube, under the names that beanstalkd gives them.

        ``{"name": "oio", "current-jobs-ready": 3, "current-jobs-reserved": 0, "current-jobs-delayed": 0,
        "current-jobs-buried": 1}``, and more of them when beanstalkd answers.

        :raises OioException: when beanstalkd has no such tube.
        """
        tube = tube or DEFAULT_TUBE
        with _translated():
            if urlsplit(self.queue_url).scheme == "beanstalk":
                with contextlib.closing(self._beanstalk()) as beanstalk:
                    return beanstalk.stats_tube(tube)
            with open_source(self.queue_url, tube) as source:
                stats = source.stats()
        return {
            "name": tube,
            "current-jobs-buried": stats.buried,
            "current-jobs-delayed": stats.delayed,
            "current-jobs-ready": stats.ready,
            "current-jobs-reserved": stats.reserved,
        }

    def _beanstalk(self) -> Beanstalk:
        return Beanstalk.from_url(self.queue_url.partition("?")[0], socket_timeout=TIMEOUT_S)


@contextlib.contextmanager
def _translated() -> Any:
    try:
        yield
    except ResponseError as exc:
        raise OioException(f"Event queue: {exc}") from exc
    except (BeanstalkError, SourceError) as exc:
        raise OioNetworkException(f"Event queue: {exc}") from exc
    except Exception as exc:
        # Of the client of Redis, which is loaded only when it is needed.
        if type(exc).__module__.partition(".")[0] == "redis":
            raise OioNetworkException(f"Event queue: {exc}") from exc
        raise
