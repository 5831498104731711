# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""How the proxy reaches the backend: caches, order of replicas, redirections, failures."""

import time

import pytest
from proxy_cluster import NS

from oio.common.status import StatusError
from oio.common.variables import Variables
from oio.conscience.messages import NamespaceInfo, Service
from oio.meta.messages import (
    ContainerGetProperties,
    ContainerSetProperties,
    Meta0Get,
    PrefixMapping,
    Properties,
    ReferenceReply,
    ReferenceShow,
    ServiceLink,
)
from oio.proxy.lb import build_world
from oio.proxy.resolver import Resolver

CID = "AB" * 32
READ = ContainerGetProperties(cid=CID)
WRITE = ContainerSetProperties(cid=CID, properties={"user.a": "b"})
STALE = (431, 450, 453, 409)
STOPPING = (305, 503, 504, 509)


class Context:
    """A request without peculiarities."""

    reqid, admin, origin, force_master, prefer_slave = "REQ", False, "tests", False, False

    def __init__(self, only=(), left_s=60.0):
        self.only, self.left_s, self.measures = list(only), left_s, []

    def timeout_s(self, at_most_s):
        return min(self.left_s, at_most_s)

    def measure(self, name, seconds):
        self.measures.append(name)


class Backend:
    """Plays all the services: ``answers[address or operation]`` is a value, an error, or a list of them."""

    def __init__(self):
        self.calls = []
        self.answers = {
            "meta0_get": lambda call: PrefixMapping(mapping={call.prefix: ["meta1-1"]}),
            "reference_show": linked("meta2-1", "meta2-2", "meta2-3"),
        }

    def call(self, address, request, **kwargs):
        self.calls.append((address, request.operation()))
        answer = self.answers.get(request.operation(), self.answers.get(address))
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Exception):
            raise answer
        return answer if answer is not None else Properties()

    def asked(self, kind):
        """Ids of the services of a type that were called, in order."""
        return [name for address, _ in self.calls if (name := NAMES[address]).startswith(kind)]


NAMES = {f"127.0.0.1:{kind}{number}": f"meta{kind}-{number}" for kind in (0, 1, 2) for number in (1, 2, 3)}
ADDRESSES = {name: address for address, name in NAMES.items()}


def linked(*hosts):
    link = ServiceLink(type="meta2", host=",".join(hosts))
    return ReferenceReply(cid=CID, account="a", name="r", services=[link] if hosts else [])


class Feed:
    """What the conscience said."""

    def __init__(self, kinds=("meta0", "meta1", "meta2")):
        groups = {
            kind: [
                Service(type=kind, addr=ADDRESSES[f"{kind}-{n}"], score=50, tags={"tag.service_id": f"{kind}-{n}"})
                for n in (1, 2, 3)
            ]
            for kind in kinds
        }
        self.world = build_world(NamespaceInfo(ns=NS), groups, groups)


@pytest.fixture
def backend():
    return Backend()


@pytest.fixture
def variables():
    return Variables({"proxy.srv_shuffle": "off", "proxy.dir_shuffle": "off"})


@pytest.fixture
def resolver(backend, variables):
    return Resolver(variables, backend, Feed())


def refused(*args, code, **kwargs):
    """Check that a call fails with a code; gives the message."""
    function, *rest = args
    with pytest.raises(StatusError) as caught:
        function(*rest, **kwargs)
    assert caught.value.code == code
    return caught.value.message


# --- caches


def test_what_is_learnt_is_not_asked_again(resolver, backend):
    for _ in range(3):
        resolver.call_meta2(READ, Context(), write=False)
    assert len(backend.asked("meta0")) == len(backend.asked("meta1")) == 1
    assert len(backend.asked("meta2")) == 3
    assert resolver.csm0.describe()["count"] == resolver.links.describe()["count"] == 1


def test_without_caches_everything_is_asked(resolver, backend, variables):
    variables.set("proxy.cache.enabled", "off")
    for _ in range(2):
        resolver.call_meta2(READ, Context(), write=False)
    assert len(backend.asked("meta0")) == len(backend.asked("meta1")) == len(backend.asked("meta2")) == 2
    assert resolver.csm0.describe()["count"] == resolver.links.describe()["count"] == 0


def test_caches_expire_and_are_bounded(resolver, backend, variables, monkeypatch):
    variables.set("resolver.cache.srv.ttl.default", "10s")
    variables.set("resolver.cache.srv.max.default", "2")
    for digit in "1234":
        resolver.call_meta2(ContainerGetProperties(cid=digit * 64), Context(), write=False)
    assert resolver.links.describe() == {"count": 2, "max": 2, "ttl": 10}
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 11)
    asked = len(backend.asked("meta1"))
    resolver.call_meta2(ContainerGetProperties(cid="4" * 64), Context(), write=False)
    assert len(backend.asked("meta1")) == asked + 1


@pytest.mark.parametrize("code", STALE)
def test_a_wrong_location_is_forgotten_and_found_again(resolver, backend, code):
    resolver.learn(CID, "meta2", ["meta2-3"])
    backend.answers[ADDRESSES["meta2-3"]] = StatusError(code, "not here")
    resolver.call_meta2(WRITE, Context(), write=True)
    assert backend.asked("meta2") == ["meta2-3", "meta2-1"]
    assert resolver.links.get((CID, "meta2")) == ["meta2-1", "meta2-2", "meta2-3"]


def test_a_wrong_prefix_is_forgotten_and_found_again(resolver, backend):
    resolver.csm0.put("ABAB", ["meta1-3"])
    backend.answers = {
        "meta0_get": PrefixMapping(mapping={"ABAB": ["meta1-2"]}),
        ADDRESSES["meta1-3"]: StatusError(450, "elsewhere"),
        ADDRESSES["meta1-2"]: linked("meta2-1"),
    }
    assert resolver.call_meta1(ReferenceShow(cid=CID), Context(), write=False).services
    assert backend.asked("meta1") == ["meta1-3", "meta1-2"]


def test_the_operation_is_tried_four_times_at_most(resolver, backend):
    backend.answers["reference_show"] = StatusError(450, "elsewhere")
    refused(resolver.call_meta1, ReferenceShow(cid=CID), Context(), code=450, write=False)
    assert len(backend.asked("meta1")) == 4


# --- failures of the chain


def test_failures_of_the_directory_keep_their_code(resolver, backend):
    backend.answers["reference_show"] = StatusError(406, "no such reference")
    message = refused(resolver.call_meta2, READ, Context(), code=406, write=False)
    assert message == "Directory error: no such reference"
    backend.answers["meta0_get"] = StatusError(500, "broken")
    resolver.csm0.clear()
    assert refused(resolver.call_meta2, READ, Context(), code=500, write=False) == "Directory error: broken"


def test_nothing_linked(resolver, backend):
    backend.answers["reference_show"] = linked()
    assert refused(resolver.call_meta2, READ, Context(), code=431, write=False) == "No service located"


def test_no_meta1_answers(resolver, backend):
    backend.answers["reference_show"] = StatusError(2, "refused")
    message = refused(resolver.call_meta1, ReferenceShow(cid=CID), Context(), code=503, write=False)
    assert message == "No meta1 answered: No service replied (last error: (2) refused)"


def test_prefix_without_services(resolver, backend):
    backend.answers["meta0_get"] = PrefixMapping()
    message = refused(resolver.call_meta1, ReferenceShow(cid=CID), Context(), code=503, write=False)
    assert message == "Directory error: No META1: prefix ABAB is not assigned"


def test_no_meta0_is_known(backend, variables):
    resolver = Resolver(variables, backend, Feed(("meta1", "meta2")))
    message = refused(resolver.call_meta1, ReferenceShow(cid=CID), Context(), code=503, write=False)
    assert message.startswith("Directory error: No META0: ")


# --- bases of one copy (for the others see test_proxy_copies)


@pytest.fixture
def single(backend):
    """Containers have one copy."""
    backend.answers["reference_show"] = linked("meta2-1")
    return backend


@pytest.mark.parametrize("request_", [READ, WRITE])
@pytest.mark.parametrize("code", range(2, 10))
def test_the_only_copy_does_not_answer(resolver, single, code, request_):
    single.answers[ADDRESSES["meta2-1"]] = StatusError(code, "network")
    message = refused(resolver.call_meta2, request_, Context(), code=503, write=request_ is WRITE)
    assert message == f"No service replied (last error: ({code}) network)"
    assert single.asked("meta2") == ["meta2-1"]
    assert list(resolver.down) == [ADDRESSES["meta2-1"]]


@pytest.mark.parametrize("code", STOPPING)
def test_answers_of_the_only_copy_come_back(resolver, single, code):
    single.answers[ADDRESSES["meta2-1"]] = StatusError(code, "enough")
    assert refused(resolver.call_meta2, READ, Context(), code=code, write=False) == "enough"
    assert single.asked("meta2") == ["meta2-1"]


def test_nothing_is_said_of_copies_when_there_is_one(resolver, single):
    seen = []
    single.call = lambda address, request, **options: seen.append(options) or Properties()
    resolver.learn(CID, "meta2", ["meta2-1"])
    resolver.call_meta2(WRITE, Context(), write=True)
    resolver.call_meta2(READ, Context(), write=False)
    assert [sorted(options) for options in seen] == [["admin", "origin", "reqid", "timeout_s"]] * 2


def test_services_are_not_down_for_ever(resolver, single, monkeypatch):
    single.answers[ADDRESSES["meta2-1"]] = StatusError(2, "refused")
    refused(resolver.call_meta2, READ, Context(), code=503, write=False)
    assert resolver.is_down(ADDRESSES["meta2-1"]) and not resolver.is_down(ADDRESSES["meta2-2"])
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 5.1)
    assert not resolver.is_down(ADDRESSES["meta2-1"])


def test_a_client_in_a_hurry_tells_nothing_about_the_service(resolver, single):
    single.answers[ADDRESSES["meta2-1"]] = StatusError(7, "too late")
    refused(resolver.call_meta2, READ, Context(left_s=0.01), code=503, write=False)
    assert not resolver.down
    refused(resolver.call_meta2, READ, Context(), code=503, write=False)
    assert list(resolver.down) == [ADDRESSES["meta2-1"]]


def test_a_service_that_vanished_from_the_conscience_is_passed_over(resolver, backend):
    backend.answers["reference_show"] = linked("meta2-9", "meta2-2")
    resolver.call_meta2(READ, Context(), write=False)
    assert backend.asked("meta2") == ["meta2-2"]


def test_redirections_of_the_only_copy_have_an_end(resolver, single, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    single.answers[ADDRESSES["meta2-1"]] = [StatusError(303, "meta2-2"), StatusError(303, "meta2-2")]
    resolver.call_meta2(WRITE, Context(), write=True)
    assert single.asked("meta2") == ["meta2-1", "meta2-2"] and waits == []
    for name, other in (("meta2-1", "meta2-2"), ("meta2-2", "meta2-1")):
        single.answers[ADDRESSES[name]] = StatusError(303, other)
    refused(resolver.call_meta2, WRITE, Context(), code=305, write=True)
    assert len(single.asked("meta2")) == 2 + 5
    assert waits == [0.2, 0.4, 0.8]


# --- services that are named


def test_services_that_are_named_are_asked_and_no_other(resolver, backend):
    context = Context(only=["meta2-3"])
    resolver.call_meta2(READ, context, write=False)
    assert backend.calls == [(ADDRESSES["meta2-3"], "container_get_properties")]
    backend.answers[ADDRESSES["meta2-3"]] = StatusError(303, "meta2-1")
    refused(resolver.call_meta2, WRITE, context, code=303, write=True)
    backend.answers[ADDRESSES["meta2-3"]] = StatusError(431, "not here")
    refused(resolver.call_meta2, WRITE, context, code=431, write=True)
    assert backend.asked("meta2") == ["meta2-3"] * 3
    refused(resolver.call_meta2, READ, Context(only=["unknown"]), code=503, write=False)


def test_durations_are_measured(resolver):
    context = Context()
    resolver.call_meta2(READ, context, write=False)
    assert context.measures == ["resolve", "meta2"]


def test_meta0_is_asked_for_one_prefix(resolver, backend, variables):
    variables.set("ns.meta1_digits", "2")
    seen = []
    backend.answers["meta0_get"] = lambda call: seen.append(call) or PrefixMapping(mapping={"AB00": ["meta1-1"]})
    assert resolver.meta1(CID, Context()) == ["meta1-1"]
    assert seen == [Meta0Get(prefix="AB00")]
