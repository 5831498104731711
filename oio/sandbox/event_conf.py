# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Configuration of the event agents of a local cluster: their queues, and what is done with each event."""

from __future__ import annotations

import os

from oio.sandbox.layout import Layout, Service
from oio.sandbox.queues import redis_url

#: Data base of Redis that holds the events; accounts are in the first one.
_REDIS_BASE = 1
#: Where copies of events go: to whom repairs objects, moves chunks, replicates containers, tests.
_TUBES = {
    "content_rebuild": "oio-rebuild",
    "content_improve": "oio-improve",
    "replication": "oio-repli",
    "preserve": "oio-preserved",
}
#: What is done with each type of event, apart from what options add.
_PIPELINES = {
    "storage.content.new": "",
    "storage.content.update": "",
    "storage.content.append": "",
    "storage.content.broken": "content_rebuild",
    "storage.content.deleted": "content_cleaner",
    "storage.content.drained": "content_cleaner",
    "storage.content.perfectible": "logger content_improve",
    "storage.container.new": "account_update volume_index",
    "storage.container.update": "",
    "storage.container.deleted": "account_update",
    "storage.container.state": "account_update",
    "storage.chunk.new": "volume_index",
    "storage.chunk.deleted": "volume_index",
    "storage.meta2.deleted": "volume_index",
    "account.services": "account_update volume_index",
}
#: Types of which objects tell a webhook.
_WEBHOOK_TYPES = frozenset(
    {
        "storage.content.new", "storage.content.update", "storage.content.append", "storage.content.deleted",
    }
)  # fmt: skip
#: Types that may be of interest elsewhere: those of containers and objects.
_REPLICATED_PREFIXES = ("storage.content.", "storage.container.")


def queue_urls(layout: Layout) -> list[str]:
    """Where services put their events: the beanstalkd if there are some, else Redis."""
    beanstalkds = layout.of_type("beanstalkd")
    if beanstalkds:
        return [f"beanstalk://{service.addr}" for service in beanstalkds]
    return [redis_url(layout, _REDIS_BASE)]


def agent(layout: Layout, service: Service) -> str:
    """Configuration of an event agent: each consumes one queue."""
    handlers_conf = os.path.join(layout.conf_dir, handlers_name(service))
    return (
        "[event-agent]\n"
        f"namespace={layout.options.namespace}\n"
        f"listen={service.addr}\n"
        f"queue_url={queue_urls(layout)[service.num - 1]}\n"
        "tube=oio\nworkers=1\n"
        f"handlers_conf={handlers_conf}\n"
    )


def handlers_name(service: Service) -> str:
    """Name of the handlers file of an event agent."""
    return f"event-handlers-{service.num}.conf"


def handlers(layout: Layout, service: Service) -> str:
    """What an event agent does with each type of event."""
    options = layout.options
    urls = queue_urls(layout)
    lines = []
    for type_, names in _PIPELINES.items():
        pipeline = names.split()
        if options.webhook_enabled and type_ in _WEBHOOK_TYPES:
            pipeline.insert(0, "webhook")
        if options.replication_events and type_.startswith(_REPLICATED_PREFIXES):
            pipeline.insert(0, "replication")
        if options.preserve_events:
            pipeline.append("preserve")
        lines += [f"[handler:{type_}]", f"pipeline = {' '.join(pipeline)}".rstrip(), ""]
    own = urls[service.num - 1]
    filters: dict[str, dict[str, object]] = {
        "account_update": {"connection_timeout": 1.0, "read_timeout": 15.0},
        "content_cleaner": {
            "concurrency": 4, "pool_connections": 16, "pool_maxsize": 16, "timeout": 4.5,
        },
        "volume_index": {},
        "logger": {},
        "content_rebuild": _notify("content_rebuild", own),
        "content_improve": _notify("content_improve", own),
    }  # fmt: skip
    if options.webhook_enabled:
        filters["webhook"] = {"endpoint": layout.webhook}
    if options.replication_events:
        filters["replication"] = {
            **_notify("replication", own, "replicate"),
            "check_replication_enabled": "true",
            "connection_timeout": 1.0,
            "read_timeout": 15.0,
        }
    if options.preserve_events:
        # Of all the agents in one place, where tests look for them.
        filters["preserve"] = _notify("preserve", urls[0])
    for name, values in filters.items():
        values = {"use": f"egg:oio#{name}", **values}
        lines += [f"[filter:{name}]"]
        lines += [f"{key} = {str(value).replace('%', '%%')}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def _notify(name: str, url: str, filter_: str = "notify") -> dict[str, object]:
    return {"use": f"egg:oio#{filter_}", "tube": _TUBES[name], "queue_url": url}
