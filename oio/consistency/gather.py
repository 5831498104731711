# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Asks every part of a namespace what it holds.

Containers are those that an account lists, that the index of a meta2 service has, or that have a base on a volume
of this host: one that all three forgot cannot be found. Files are read on the volumes of this host only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from oio import ObjectStorageApi
from oio.account.client import AccountClient
from oio.blob.utils import check_volume_for_service_type
from oio.common.constants import CHUNK_XATTR_CONTENT_FULLPATH_PREFIX, HIDDEN_ACCOUNTS
from oio.common.exceptions import NotFound, OioException
from oio.common.utils import cid_from_name, paths_gen
from oio.common.xattr import read_user_xattr
from oio.conscience.client import ConscienceClient
from oio.consistency.facts import Facts
from oio.rdir.client import RdirClient

T = TypeVar("T")

CONCURRENCY_DEFAULT = 8
_PAGE = 1000
_BATCH = 10000
_BASE_NAME = re.compile(r"([0-9A-F]{64})\.\d+\.meta2\Z")
_CHUNK_NAME = re.compile(r"[0-9A-F]{24,64}\Z")

# Counters that a container keeps, in the order of the facts.
_COUNTERS = ("sys.m2.objects", "sys.m2.usage", "sys.m2.objects.damaged", "sys.m2.chunks.missing")

# Chunk method of objects whose data is gone.
DRAINED = "drained"

Progress = Callable[[str, int], None]


class Gatherer:
    """Fills the facts of one pass; ``unchecked`` tells what could not be read."""

    def __init__(
        self,
        namespace: str,
        proxy: str | None,
        facts: Facts,
        concurrency: int = CONCURRENCY_DEFAULT,
        progress: Progress = lambda what, count: None,
    ) -> None:
        self._facts = facts
        self._progress = progress
        self._concurrency = concurrency
        conf: dict[str, Any] = {"namespace": namespace, **({"proxyd_url": proxy} if proxy else {})}
        self._api = ObjectStorageApi(namespace, endpoint=proxy)
        self._account = AccountClient(conf)
        self._conscience = ConscienceClient(conf)
        self._rdir = RdirClient(conf)
        self._namespace = namespace
        self.unchecked: list[str] = []

    def run(self) -> None:
        """Ask everything. :raises OioException: when not even the services are known."""
        rawx = self._conscience.all_services("rawx", full=True)
        meta2 = self._conscience.all_services("meta2", full=True)
        self._say("accounts")
        accounts = self._accounts()
        self._say("indexes")
        for service in meta2:
            self._try(f"index of {service['id']}", self._base_index, service["id"])
        for service in rawx:
            self._try(f"index of {service['id']}", self._chunk_index, service["id"])
        self._say("containers")
        cids = {cid_from_name(account, name) for account, names in accounts.items() for name in names}
        cids |= {row[0] for row in self._facts.ask("SELECT DISTINCT cid FROM indexed_base")}
        for service in meta2:
            cids |= self._local_bases(service)
        self._containers(cids)
        self._say("files")
        for service in rawx:
            self._try(f"files of {service['id']}", self._files, service)

    # --- accounts -------------------------------------------------------------------------------

    def _accounts(self) -> dict[str, list[str]]:
        found = {}
        for account in self._account.account_list():
            if account not in HIDDEN_ACCOUNTS:
                names = self._try(f"account {account}", self._one_account, account)
                found[account] = names or []
        return found

    def _one_account(self, account: str) -> list[str]:
        names = [row[0] for row in self._listing(account)]
        shown = self._account.account_show(account)
        self._facts.add("account", [(account, *_counters(shown), shown["containers"])])

        def show(name: str) -> tuple[Any, ...]:
            return account, name, *_counters(self._account.container_show(account, name))

        self._facts.add("account_container", self._each(names, show))
        marker = None
        while True:
            page = self._account.bucket_list(account, limit=_PAGE, marker=marker)
            for bucket in page["listing"]:
                shown = self._account.bucket_show(bucket["name"])
                self._facts.add("bucket", [(bucket["name"], shown["account"], *_counters(shown))])
            if not page.get("truncated"):
                return names
            marker = page["next_marker"]

    def _listing(self, account: str) -> Iterator[list[Any]]:
        marker = None
        while True:
            page = self._account.container_list(account, limit=_PAGE, marker=marker)["listing"]
            if not page:
                return
            yield from page
            marker = page[-1][0]

    # --- indexes --------------------------------------------------------------------------------

    def _base_index(self, volume: str) -> None:
        records = self._rdir.meta2_index_fetch_all(volume)
        rows = ((volume, record["container_id"], record["container_url"]) for record in records)
        self._add_in_batches("indexed_base", rows)
        self._facts.add("read_index", [(volume,)])

    def _chunk_index(self, volume: str) -> None:
        rows = ((volume, chunk, cid, content) for cid, content, chunk, _value in self._rdir.chunk_fetch(volume))
        self._add_in_batches("indexed", rows)
        self._facts.add("read_index", [(volume,)])

    # --- containers -----------------------------------------------------------------------------

    def _local_bases(self, service: Mapping[str, Any]) -> set[str]:
        path = self._local_volume(service, "meta2")
        names = (os.path.basename(file) for file in paths_gen(path)) if path else ()
        return {match[1] for match in map(_BASE_NAME.match, names) if match}

    def _containers(self, cids: Iterable[str]) -> None:
        objects = (item for cid in cids for item in self._objects(cid))
        for done, rows in enumerate(self._each(objects, self._chunks), 1):
            self._facts.add("chunk", rows)
            self._progress("objects", done)

    def _objects(self, cid: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the objects of a container, then note the container. What was deleted meanwhile is not there."""
        try:
            yield from self._listed_objects(cid)
        except NotFound:
            self._try(f"directory of {cid}", self._links, cid)
        except OioException as exc:
            self.unchecked.append(f"container {cid}: {exc}")

    def _links(self, cid: str) -> None:
        """Note which services the directory names for a container that does not exist."""
        try:
            found = self._api.directory.list(cid=cid, service_type="meta2", force_master=True)
        except NotFound:
            return
        url = f"{self._namespace}/{found['account']}/{found['name']}"
        self._facts.add("linked_base", [(one["host"], cid, url) for one in found["srv"] if one["type"] == "meta2"])

    def _listed_objects(self, cid: str) -> Iterator[tuple[str, dict[str, Any]]]:
        system = self._api.container.container_get_properties(cid=cid)["system"]
        account, name = system["sys.account"], system["sys.user.name"]
        if account in HIDDEN_ACCOUNTS:
            return
        url = f"{self._namespace}/{account}/{name}"
        self._facts.add("peer", [(peer, cid, url) for peer in system["sys.peers"].split(",")])
        count = size = 0
        page: dict[str, Any] = {"truncated": True}
        while page["truncated"]:
            page = self._api.object_list(
                account, name, limit=_PAGE, versions=True, cid=cid,
                marker=page.get("next_marker"), version_marker=page.get("next_version_marker"),
            )  # fmt: skip
            alive = [item for item in page["objects"] if not item["deleted"]]
            count += len(alive)
            size += sum(item["size"] for item in alive)
            for item in alive:
                yield cid, item
        counters = [int(system.get(key, 0)) for key in _COUNTERS]
        bucket = system.get("sys.m2.bucket.name")
        self._facts.add("container", [(cid, account, name, bucket, *counters, count, size)])

    def _chunks(self, located: tuple[str, dict[str, Any]]) -> list[tuple[Any, ...]]:
        cid, item = located
        if item["chunk_method"] == DRAINED:
            return []
        name, version = item["name"], item["version"]
        try:
            _meta, chunks = self._api.container.content_locate(
                cid=cid, path=name, version=version, properties=False
            )
        except NotFound:
            return []
        except OioException as exc:
            self.unchecked.append(f"object {cid} {name} version {version}: {exc}")
            return []
        rows = []
        for chunk in chunks:
            _scheme, _, rest = chunk["url"].partition("://")
            volume, _, chunk_id = rest.partition("/")
            rows.append((volume, chunk_id, cid, item["id"], name, version))
        return rows

    # --- files ----------------------------------------------------------------------------------

    def _files(self, service: Mapping[str, Any]) -> None:
        path = self._local_volume(service, "rawx")
        if path is None:
            self.unchecked.append(f"files of {service['id']}: not on this host")
            return
        volume = service["id"]
        names = ((file, os.path.basename(file)) for file in paths_gen(path))
        rows = ((volume, name, _fullpath(file, name)) for file, name in names if _CHUNK_NAME.match(name))
        self._add_in_batches("stored", (row for row in rows if row[2] is not None))
        self._facts.add("read_files", [(volume,)])

    def _local_volume(self, service: Mapping[str, Any], service_type: str) -> str | None:
        """Volume of a service, when it is on this host and really its own."""
        path = service["tags"].get("tag.vol")
        if not path or not os.path.isdir(path):
            return None
        try:
            namespace, owner = check_volume_for_service_type(path, service_type)
        except OioException:
            return None
        ours = namespace == self._namespace and owner in (service["id"], service["addr"])
        return path if ours else None

    # --- tools ----------------------------------------------------------------------------------

    def _say(self, what: str) -> None:
        self._progress(what, 0)

    def _try(self, what: str, action: Callable[..., T], *args: Any) -> T | None:
        try:
            return action(*args)
        except (OioException, OSError) as exc:
            self.unchecked.append(f"{what}: {exc}")
            return None

    def _each(self, items: Iterable[Any], action: Callable[[Any], T]) -> Iterator[T]:
        """Apply something to every item, several at once, in order, with a bounded number ahead."""
        iterator = iter(items)
        with ThreadPoolExecutor(self._concurrency) as pool:
            while batch := list(islice(iterator, _PAGE)):
                yield from pool.map(action, batch)

    def _add_in_batches(self, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        iterator = iter(rows)
        count = 0
        while batch := list(islice(iterator, _BATCH)):
            self._facts.add(table, batch)
            count += len(batch)
            self._progress(table, count)


def _counters(shown: Mapping[str, Any]) -> tuple[int, int, int, int]:
    return (
        int(shown.get("objects", 0)), int(shown.get("bytes", 0)),
        int(shown.get("damaged_objects", 0)), int(shown.get("missing_chunks", 0)),
    )  # fmt: skip


def _fullpath(file: str, name: str) -> str | None:
    """Full path of the object of a chunk file; ``None`` when the file went away, or is only being written."""
    try:
        attributes = read_user_xattr(file)
    except FileNotFoundError:
        return None
    return attributes.get(CHUNK_XATTR_CONTENT_FULLPATH_PREFIX + name, "")
