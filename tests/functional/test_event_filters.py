# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What the events of a real cluster become: counters of accounts, indexes of volumes, chunks that are gone."""

import sys
import time

import pytest
from support import ACCOUNT, ROOT, eventually

from oio.common.exceptions import BadRequest, NotFound, OioException, VolumeException
from oio.common.utils import cid_from_name
from oio.rdir.client import RdirClient
from oio.rdir.dispatcher import RdirDispatcher

sys.path.append(str(ROOT / "tests" / "unit" / "event"))


@pytest.fixture(scope="module")
def rdir(cluster):
    """Client of the reverse directory; each volume has one."""
    conf = {"namespace": cluster.namespace}
    dispatcher = RdirDispatcher(conf, endpoint=f"http://{cluster.proxy}")
    dispatcher.assign_all_rawx()
    dispatcher.assign_all_meta2()
    return RdirClient(conf, endpoint=f"http://{cluster.proxy}")


def indexed(rdir, chunk_url):
    volume, chunk_id = chunk_url.split("/")[2:]
    try:
        return any(chunk == chunk_id for _cid, _content, chunk, _value in rdir.chunk_fetch(volume))
    except (NotFound, VolumeException):
        return False


def bases(rdir, cluster, path):
    """Meta2 services whose index has a container."""
    found = []
    for service in cluster.services("meta2"):
        try:
            records = rdir.meta2_index_fetch(service.id, prefix=path)["records"]
        except (BadRequest, NotFound, VolumeException):
            continue
        found += [service.id for record in records if record["container_url"] == path]
    return found


def counters(api, container):
    try:
        seen = api.account.container_show(ACCOUNT, container)
    except OioException:
        return None
    return (seen["objects"], seen["bytes"]) if float(seen["mtime"]) else None


def test_the_life_of_an_object(api, cluster, container, rdir):
    """From its first chunk to its last one, and its container with it."""
    path = f"{cluster.namespace}/{ACCOUNT}/{container}"
    eventually(lambda: bases(rdir, cluster, path), what="the base is indexed")
    chunks = []
    for number in range(3):
        api.object_create(ACCOUNT, container, obj_name=f"o{number}", data=b"x" * 100)
        chunks += [chunk["url"] for chunk in api.object_locate(ACCOUNT, container, f"o{number}")[1]]
    eventually(lambda: counters(api, container) == (3, 300), what="the counters of the container")
    eventually(lambda: all(indexed(rdir, url) for url in chunks), what="the chunks are indexed")
    for number in range(3):
        api.object_delete(ACCOUNT, container, f"o{number}")
    eventually(lambda: counters(api, container) == (0, 0), what="the counters of the container")
    eventually(lambda: not any(indexed(rdir, url) for url in chunks), what="the chunks leave the index")
    for url in chunks:
        with pytest.raises(NotFound):
            api.blob_client.chunk_head(url)
    api.container_delete(ACCOUNT, container)
    eventually(lambda: not bases(rdir, cluster, path), what="the base leaves the index")
    listed = lambda: [entry[0] for entry in api.container_list(ACCOUNT, prefix=container)]  # noqa: E731
    eventually(lambda: container not in listed(), what="the container leaves its account")


def test_the_chunks_of_a_drained_object_are_deleted(api, container):
    api.object_create(ACCOUNT, container, obj_name="o", data=b"x" * 100)
    chunks = [chunk["url"] for chunk in api.object_locate(ACCOUNT, container, "o")[1]]
    api.object_drain(ACCOUNT, container, "o")

    def gone(url):
        try:
            api.blob_client.chunk_head(url)
        except NotFound:
            return True
        return False

    eventually(lambda: all(gone(url) for url in chunks), what="the chunks are deleted")


def test_what_exists_is_told_for_sure(api, cluster, container):
    """What decides on old events: containers that exist, that are frozen, and those that do not in any way."""
    from filter_kit import Chain

    conf = {"namespace": cluster.namespace, "proxyd_url": f"http://{cluster.proxy}"}
    step = Chain("account_update", {"conf": conf}).filter
    missing = f"{container}-missing"
    assert step._exists(ACCOUNT, container, "REQ")
    assert not step._exists(ACCOUNT, missing, "REQ")
    assert not step._exists(f"nobody-{time.time_ns()}", missing, "REQ")
    api.directory.create(ACCOUNT, missing)
    assert not step._exists(ACCOUNT, missing, "REQ")
    api.directory.delete(ACCOUNT, missing)
    for change in (api.container.container_freeze, api.container.container_enable):
        change(ACCOUNT, container)
        assert step._exists(ACCOUNT, container, "REQ")
    api.container_delete(ACCOUNT, container)
    assert not step._exists(ACCOUNT, container, "REQ")
    api.container_create(ACCOUNT, container)
    assert step._exists(ACCOUNT, container, "REQ")


def test_old_services_are_compared_with_the_directory(api, cluster, container):
    from filter_kit import Chain

    conf = {"namespace": cluster.namespace, "proxyd_url": f"http://{cluster.proxy}"}
    step = Chain("volume_index", {"conf": conf}).filter
    url = {"account": ACCOUNT, "user": container, "id": cid_from_name(ACCOUNT, container)}
    linked = {service["host"] for service in api.directory.list(ACCOUNT, container, service_type="meta2")["srv"]}
    assert linked
    assert step._linked_peers(url, {"reqid": "REQ"}) == linked
    api.container_delete(ACCOUNT, container)
    assert step._linked_peers(url, {"reqid": "REQ"}) == set()
    assert step._linked_peers({**url, "user": f"{container}-missing"}, {"reqid": "REQ"}) == set()
