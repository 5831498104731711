# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Services killed amid a snapshot: the source is enabled again and intact, nothing is left of the copy."""

import pytest
from faults import read
from support import ACCOUNT, eventually

from oio.common import exceptions as exc

COUNT = 12


@pytest.mark.parametrize("kind", ["proxy", "meta2"])
@pytest.mark.parametrize("when", [1, COUNT])
def test_a_service_is_killed_amid_a_snapshot(broken, fault_api, box, kind, when):
    for number in range(COUNT):
        fault_api.object_create(ACCOUNT, box, data=b"%d" % number, obj_name=f"o{number:02}", policy="THREECOPIES")
    urls = {chunk["url"] for chunk in fault_api.object_locate(ACCOUNT, box, "o03")[1]}
    victim = next(service.name for service in broken.layout.services if service.type == kind)
    former_pid = broken.pids()[victim]
    real, calls, linked = fault_api._link_chunks, [], []

    def link(*args, **kwargs):
        calls.append(args)
        if len(calls) == when:
            broken.kill(victim)
        links = real(*args, **kwargs)
        linked.extend(links)
        return links

    fault_api._link_chunks = link
    copy = box + "-copy"
    with pytest.raises(exc.OioException):
        fault_api.container_snapshot(ACCOUNT, box, ACCOUNT, copy, batch_size=2)
    broken.wait_restarted(victim, former_pid)
    del fault_api._link_chunks

    def status():
        try:
            return fault_api.container_get_properties(ACCOUNT, box)["system"]["sys.status"]
        except exc.OioException:
            return None

    assert eventually(status, what="the source answers") == "0"
    assert [read(fault_api, box, f"o{number:02}") for number in range(COUNT)] == [b"%d" % n for n in range(COUNT)]
    assert {chunk["url"] for chunk in fault_api.object_locate(ACCOUNT, box, "o03")[1]} == urls
    for chunk in linked:
        with pytest.raises(exc.NotFound):
            fault_api.blob_client.chunk_head(chunk["url"])
    with pytest.raises(exc.NoSuchContainer):
        fault_api.container_get_properties(ACCOUNT, copy)

    def placed():
        # What was started again knows all services, and is known, after a moment only.
        try:
            return fault_api.container_create(ACCOUNT, box + "-probe") or True
        except exc.OioException:
            return None

    eventually(placed, what="a container can be placed")
    fault_api.container_snapshot(ACCOUNT, box, ACCOUNT, copy)
    assert read(fault_api, copy, "o11") == b"11"
