# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Several clients at once on one container."""

import random
import threading

from support import ACCOUNT

from oio import ObjectStorageApi
from oio.common.exceptions import ClientPreconditionFailed, Conflict, NoSuchObject, UnrecoverableContent


def at_once(cluster, work, clients=4):
    """Run ``work(api, number)`` in several threads; the first failure is raised."""
    failures = []

    def run(number):
        try:
            work(ObjectStorageApi(cluster.namespace, endpoint=cluster.proxy), number)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        raise failure


def content(api, container, name):
    metadata, stream = api.object_fetch(ACCOUNT, container, name)
    return metadata, b"".join(stream)


def test_a_counter_kept_by_conditional_writes_loses_no_increment(cluster, api, container):
    api.object_create(ACCOUNT, container, obj_name="counter", data=b"0")

    def increment(client, _number):
        done = 0
        while done < 10:
            try:
                metadata, data = content(client, container, "counter")
                client.object_create(
                    ACCOUNT, container, obj_name="counter", data=str(int(data) + 1), if_match=metadata["hash"]
                )
            except (ClientPreconditionFailed, Conflict, UnrecoverableContent):
                continue  # Somebody else was faster, maybe while this one was reading.
            done += 1

    at_once(cluster, increment)
    assert content(api, container, "counter")[1] == b"40"


def test_one_client_only_creates_a_name_that_must_be_absent(cluster, api, container):
    winners = []

    def create(client, number):
        for index in range(10):
            try:
                client.object_create(
                    ACCOUNT, container, obj_name=f"lock{index}", data=str(number), if_none_match="*"
                )
            except (ClientPreconditionFailed, Conflict):
                continue
            winners.append((index, str(number).encode()))

    at_once(cluster, create)
    assert sorted(index for index, _ in winners) == list(range(10))
    for index, owner in winners:
        assert content(api, container, f"lock{index}")[1] == owner


def test_counters_are_exact_after_clients_that_disturb_each_other(cluster, api, container):
    def disturb(client, number):
        rng = random.Random(number)
        for _ in range(40):
            name = f"o{rng.randrange(4)}"
            try:
                if rng.random() < 0.6:
                    data = bytes(rng.randrange(5000))
                    client.object_create(ACCOUNT, container, obj_name=name, data=data, append=rng.random() < 0.3)
                else:
                    client.object_delete(ACCOUNT, container, name)
            except (NoSuchObject, Conflict):
                continue

    at_once(cluster, disturb)
    page = api.object_list(ACCOUNT, container)
    assert page["system"]["sys.m2.objects"] == str(len(page["objects"]))
    assert page["system"]["sys.m2.usage"] == str(sum(entry["size"] for entry in page["objects"]))
    for entry in page["objects"]:
        assert len(content(api, container, entry["name"])[1]) == entry["size"]
