# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever stands in the fields of an event, each filter does its work or puts the event aside, at once.

Every field of every event is replaced by things that it should not be. All the services answer: so nothing may
come again later, and no defect of a filter may show.
"""

import copy
import json
import time

import pytest
from filter_kit import CID, Chain, WebServer, event

from oio.common.exceptions import ClientException, ExplicitBury, NotFound
from oio.event.pipelines import Answer
from oio.event.worker.outcomes import Outcome, judge_failure
from oio.http.client import HttpPool

BEANS = [
    {"type": "aliases", "name": "o", "version": 1, "ctime": 1, "mtime": 1, "deleted": False, "header": "AB"},
    {"type": "contents_headers", "id": "AB", "hash": "C" * 32, "size": 3, "policy": "P", "chunk-method": "plain/"},
    {"type": "properties", "alias": "o", "version": 1, "key": "k", "value": "v"},
]
CHUNK = {"type": "chunks", "id": "http://rawx-1/0C", "pos": "0", "hash": "C" * 32, "size": 3}
CHUNK_DATA = {
    "volume_id": "127.0.0.1:1", "volume_service_id": "rawx-1", "container_id": CID, "content_id": "AB",
    "chunk_id": "0C",
}  # fmt: skip
SERVICES = [{"seq": 1, "type": "meta2", "host": "meta2-1", "args": ""}]
STATE = {"bucket": None, "bytes-count": 42, "object-count": 1, "damaged-objects": 0, "missing-chunks": 0}
# Type of the event, its data, the filters that are about it.
KINDS = [
    ("storage.content.new", BEANS, ["webhook", "replicate"]),
    ("storage.content.update", BEANS, ["webhook", "replicate"]),
    ("storage.content.deleted", [*BEANS, CHUNK], ["content_cleaner", "webhook", "replicate"]),
    ("storage.content.drained", [*BEANS, CHUNK], ["content_cleaner", "webhook"]),
    ("storage.container.new", {"peers": ["meta2-1"], "bucket": None}, ["account_update", "replicate"]),
    ("storage.container.state", STATE, ["account_update", "replicate"]),
    ("storage.container.deleted", {"bucket": None, "peers": ["meta2-1"]}, ["account_update", "volume_index"]),
    ("storage.meta2.deleted", {"peer": "meta2-1"}, ["volume_index", "meta2_index"]),
    ("account.services", SERVICES, ["account_update", "volume_index"]),
    ("storage.chunk.new", CHUNK_DATA, ["volume_index"]),
    ("storage.chunk.deleted", CHUNK_DATA, ["volume_index"]),
]
BAD = [
    None, True, 0, -1, 1.5, 1e308, 10**30, "", "x", "\u00e9\U0001f600", "a\r\nX: y", "a\0b", "../../x", "x" * 3000,
    [], ["x"], [None], {}, {"a": [1]},
]  # fmt: skip


class Services:
    """A proxy, an account service, a reverse directory, a rawx, an endpoint: all of them agree to everything."""

    def __init__(self):
        self.server = WebServer(self._answer)
        self.paused = {}

    def _answer(self, request, _body):
        if request.path.endswith("/conscience/resolve"):
            return 200, {"addr": self.server.address}
        if request.path.endswith("/lb/choose"):
            return 200, [{"addr": self.server.address, "id": "x", "score": 1, "tags": {}}]
        if request.path.endswith("/reference/show"):
            address = self.server.address
            services = [{"seq": 1, "type": kind, "host": address, "args": ""} for kind in ("rdir", "meta2")]
            return 200, {"dir": [], "srv": services}
        return (204, None) if request.method == "DELETE" else (200, {})

    def chain(self, name):
        """A filter on these services; it tells here which of them it would leave alone."""
        url = self.server.url
        conf = {"namespace": "NS", "proxyd_url": url, "account_url": url}
        options = {
            "webhook": {"endpoint": f"{url}/hook"},
            "replicate": {"queue_url": "beanstalk://127.0.0.1:1", "check_replication_enabled": "true"},
        }
        env = {"pool": HttpPool(), "conf": conf}
        return Chain(name, env, {"proxy": self.server.address}, **options.get(name, {}))


@pytest.fixture(scope="module")
def services():
    services = Services()
    yield services
    services.server.stop()


def spoiled(value, path=()):
    """Every variant of a value with one of its parts replaced, or gone; and the path of that part."""
    yield from ((path, bad) for bad in BAD)
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        for where, bad in spoiled(part, (*path, key)):
            variant = copy.copy(value)
            variant[key] = bad
            yield where, variant
        yield (*path, key, "gone"), [p for k, p in parts if k != key] if isinstance(value, list) else {
            k: p for k, p in value.items() if k != key
        }


@pytest.mark.parametrize(
    ("kind", "data", "name"), [(kind, data, name) for kind, data, names in KINDS for name in names]
)
def test_wrong_fields_neither_break_a_filter_nor_come_again(services, kind, data, name):
    chain = services.chain(name)
    good = event(kind, time.time(), data)
    good["url"].update(path="o", content="AB", version="1")
    wrong = []
    for path, variant in spoiled({key: good[key] for key in ("when", "url", "request_id", "data")}):
        if not path or not isinstance(variant, dict):
            continue
        # As it comes out of a queue.
        env = json.loads(json.dumps({"event": kind, "job_id": "7", **variant}))
        try:
            answer = chain.answer(env)
            if answer.status != 200:
                wrong.append((path, variant, answer.status, answer.message))
        except ExplicitBury:
            continue
        except Exception as exc:
            verdict = judge_failure(exc)
            if verdict.outcome is not Outcome.BURIED or verdict.trace is not None:
                wrong.append((path, variant, repr(exc)))
    assert not wrong, f"{len(wrong)}: {wrong[:3]}"
    assert chain.run(good) == 200


@pytest.mark.parametrize("reqid", [None, 5, ["x"], "", "a b", "a\r\nX: y", "\u00e9", "-"])
def test_a_request_id_that_no_header_can_hold_is_replaced(services, reqid):
    before = len(services.server.requests)
    assert services.chain("account_update").run(
        event("storage.container.state", time.time(), STATE, request_id=reqid)
    ) == 200
    ids = {request.headers["x-oio-req-id"] for request in services.server.requests[before:]}
    assert len(ids) == 1 and ids.pop().startswith("account-update-")


@pytest.mark.parametrize("delay_s", [-1, float("nan"), float("inf"), 2**33, "soon", []])
def test_what_is_no_delay_is_a_defect_of_the_filter(delay_s):
    answer = Answer()
    with pytest.raises((TypeError, ValueError)) as caught:
        answer(503, "later", delay_s=delay_s)
    assert answer.status == 0
    assert judge_failure(caught.value).outcome is Outcome.BURIED


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no word")


@pytest.mark.parametrize("exc", [NotFound("no such shop"), ClientException(None), Mute(), ExplicitBury(b"\xff")])
def test_whatever_filters_of_third_parties_raise_has_an_outcome(exc):
    assert judge_failure(exc).outcome is Outcome.BURIED
