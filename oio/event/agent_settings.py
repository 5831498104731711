# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The configuration file of the event agent, read once and the same way by the parent and by its workers.

Every key of the section is also an option of every filter (a filter's own section overrides it): what the
agent does not know is therefore kept for them.
"""

from __future__ import annotations

import configparser
import logging
import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from oio.common import service
from oio.common.configuration import load_namespace_conf
from oio.common.logger import syslog_handler
from oio.http.server import RequestIdFilter

SECTION = "event-agent"
QUEUE_URL_DEFAULT = "beanstalk://127.0.0.1:11300"
TUBE_DEFAULT = "oio"
# Events handled at once for each queue, in each process: green threads that mostly wait for other services. The
# more there are, the more requests travel together: with 10, an event costs twice as much as with 64.
CONCURRENCY_DEFAULT = 64
# An event whose consumer failed comes back after this long, then after twice as long, and so on up to the
# longest: a consumer that is down is not hammered, one that is back is not left without news.
RETRY_DELAY_DEFAULT_S = 15.0
RETRY_DELAY_MAX_DEFAULT_S = 600.0
# With the delays above, an event is buried once it failed for a bit more than four hours.
MAX_ATTEMPTS_DEFAULT = 30
# A reserved event that is not settled within this time is given to somebody else.
TTR_DEFAULT_S = 120.0
# What is running when a stop is asked for has this long to end; the parent kills one second later.
STOP_GRACE_DEFAULT_S = 4.0
ACCOUNT_REFRESH_DEFAULT_S = 3600.0

_OBSOLETE = ("acct_update", "rdir_update", "retries_per_second", "batch_size")
_LOG_KEYS = ("syslog_prefix", "log_facility", "log_address", "log_udp_host", "log_udp_port")


@dataclass(frozen=True)
class AgentSettings:
    """The configuration file; see ``etc/event-agent.conf-sample``.

    :ivar queue_urls: one URL for each queue.
    :ivar options: the whole section as text, for the filters.
    """

    namespace: str
    queue_urls: tuple[str, ...] = (QUEUE_URL_DEFAULT,)
    tube: str = TUBE_DEFAULT
    workers: int = 1
    concurrency: int = CONCURRENCY_DEFAULT
    handlers_conf: str | None = None
    retry_delay_s: float = RETRY_DELAY_DEFAULT_S
    retry_delay_max_s: float = RETRY_DELAY_MAX_DEFAULT_S
    max_attempts: int = MAX_ATTEMPTS_DEFAULT
    ttr_s: float = TTR_DEFAULT_S
    stop_grace_s: float = STOP_GRACE_DEFAULT_S
    acct_refresh_interval: float = ACCOUNT_REFRESH_DEFAULT_S
    user: str | None = None
    listen: tuple[str, int] | None = None
    proxy: str | None = None
    log_level: str = "INFO"
    options: dict[str, str] = field(default_factory=dict)

    @property
    def consumers(self) -> int:
        """Consumers of one worker."""
        return self.concurrency * len(self.queue_urls)

    def proxy_address(self) -> str:
        """``IP:PORT`` of the proxy. :raises ConfigurationException: when nothing tells it."""
        return self.proxy or str(load_namespace_conf(self.namespace)["proxy"])


def load_agent_settings(path: str) -> AgentSettings:
    """Read the configuration file. :raises ValueError: on a mistake, in one line."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with open(path, encoding="utf-8") as stream:
            parser.read_file(stream, path)
    except (OSError, UnicodeDecodeError, configparser.Error) as exc:
        raise ValueError(f"cannot read {path}: {str(exc).splitlines()[0]}") from exc
    if not parser.has_section(SECTION):
        raise ValueError(f"{path}: section [{SECTION}] is missing")
    options = {key: value for key, value in parser.items(SECTION) if value.strip() and value != "None"}
    try:
        return _settings(options)
    except ValueError as exc:
        raise ValueError(f"{path}: {exc}") from exc


def _settings(options: dict[str, str]) -> AgentSettings:
    if not options.get("namespace"):
        raise ValueError("key namespace is missing")
    urls = tuple(url.strip() for url in options.get("queue_url", QUEUE_URL_DEFAULT).split(";") if url.strip())
    for url in urls:
        if not url.partition("://")[1]:
            raise ValueError(f"queue_url: {url!r} is not a URL")
    # Keys of former versions.
    if options.get("state_dir"):
        urls = tuple(_with_state_dir(url, options["state_dir"]) for url in urls)
    if options.get("delay_s"):
        options.setdefault("delay", options["delay_s"])
    workers = _number(options, "workers", 0, int, None)
    if workers <= 0:
        workers = os.cpu_count() or 1
    if any(url.startswith("spool://") for url in urls):
        # A spool has one reader.
        workers = 1
    listen = options.get("listen")
    return AgentSettings(
        namespace=options["namespace"],
        queue_urls=urls,
        tube=options.get("tube", TUBE_DEFAULT),
        workers=workers,
        concurrency=_number(options, "concurrency", CONCURRENCY_DEFAULT, int, 1),
        handlers_conf=options.get("handlers_conf"),
        retry_delay_s=_number(options, "retry_delay_s", RETRY_DELAY_DEFAULT_S, float, 0),
        retry_delay_max_s=_number(options, "retry_delay_max_s", RETRY_DELAY_MAX_DEFAULT_S, float, 0),
        max_attempts=_number(options, "max_attempts", MAX_ATTEMPTS_DEFAULT, int, 0),
        ttr_s=_number(options, "ttr_s", TTR_DEFAULT_S, float, 1),
        stop_grace_s=_number(options, "stop_grace_s", STOP_GRACE_DEFAULT_S, float, 0),
        acct_refresh_interval=_number(options, "acct_refresh_interval", ACCOUNT_REFRESH_DEFAULT_S, float, None),
        user=options.get("user"),
        listen=service.parse_address(listen) if listen else None,
        proxy=options.get("proxy"),
        log_level=options.get("log_level", "INFO").upper(),
        options=options,
    )


def _with_state_dir(url: str, state_dir: str) -> str:
    """URL of a spool, with the place where its consumer keeps what is left to do."""
    if not url.startswith("spool://") or "state_dir=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}state_dir={quote(state_dir)}"


def _number(options: dict[str, str], key: str, default: Any, kind: type, least: float | None) -> Any:
    text = options.get(key)
    if text is None:
        return default
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"{key}: {text!r} is not a number") from None
    if least is not None and value < least:
        raise ValueError(f"{key}: {text} is below {least}")
    return value


def setup_logs(settings: AgentSettings, verbose: bool = False) -> logging.Logger:
    """Log to standard error, and to syslog when a key asks for it.

    :raises ValueError: when the level is not one.
    """
    service.setup_logging(None, "DEBUG" if verbose else settings.log_level)
    if any(key in settings.options for key in _LOG_KEYS):
        handler = syslog_handler(settings.options)
        if handler is not None:
            prefix = settings.options.get("syslog_prefix", SECTION)
            handler.setFormatter(logging.Formatter(f"{prefix}: {service.SYSLOG_FORMAT}"))
            handler.addFilter(RequestIdFilter())
            logging.getLogger().addHandler(handler)
    return logging.getLogger("oio.event.agent")


def warn_about_obsolete_keys(settings: AgentSettings, logger: logging.Logger) -> None:
    """Tell which keys have no effect any more."""
    for key in _OBSOLETE:
        if key in settings.options:
            logger.warning("the key %s is obsolete and has no effect", key)
