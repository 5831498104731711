# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""From which meta0 a meta1 takes its prefixes."""

import pytest

from oio.common.status import StatusError
from oio.conscience.messages import Service
from oio.meta.messages import PrefixMapping
from oio.meta.meta1.prefixes import load_from_meta0

TABLE = {"0000": ["127.0.0.1:1", "127.0.0.1:2"], "1000": ["127.0.0.1:2"], "1001": ["127.0.0.1:2"]}
OWN = {"127.0.0.1:2", "meta1-2"}


class Registry:
    def __init__(self, count):
        self._services = [
            Service(type="meta0", score=1, addr=f"127.0.0.1:60{number}", tags={"tag.service_id": f"m0-{number}"})
            for number in range(count)
        ]

    def services(self, service_type):
        assert service_type == "meta0"
        return self._services


class Client:
    """Gives the answers of the services in their order; notes the peers that each was told of."""

    def __init__(self, *answers):
        self._answers = dict(zip(("127.0.0.1:600", "127.0.0.1:601", "127.0.0.1:602"), answers, strict=False))
        self.routes = []

    def call(self, address, request, *, timeout_s, route):
        self.routes.append((address, tuple(route.peers)))
        answer = self._answers[address]
        if isinstance(answer, int):
            raise StatusError(answer, "no")
        return PrefixMapping(mapping=answer)


def test_the_table_of_one_service_is_that_of_the_namespace():
    client = Client(TABLE)
    assert load_from_meta0(Registry(1), client, OWN, 1) == ["0000", "1000"]
    assert client.routes == [("127.0.0.1:600", ())]


def test_each_is_told_of_the_others():
    client = Client(303, TABLE, 303)
    assert load_from_meta0(Registry(3), client, OWN, 1) == ["0000", "1000"]
    peers = ("m0-0", "m0-1", "m0-2")
    assert client.routes == [("127.0.0.1:600", peers), ("127.0.0.1:601", peers)]


@pytest.mark.parametrize("answers", [({}, TABLE), ({}, 303, TABLE), (2, {}, TABLE)])
def test_an_emptied_service_does_not_take_our_prefixes(answers):
    assert load_from_meta0(Registry(len(answers)), Client(*answers), OWN, 1) == ["0000", "1000"]


@pytest.mark.parametrize(
    ("answers", "code"), [(({}, 2), 2), ((2, {}), 2), ((303, 303, 303), 303), (({}, 303, 503), 503), ((2, 5), 5)]
)
def test_an_empty_table_counts_only_when_all_answer(answers, code):
    with pytest.raises(StatusError) as caught:
        load_from_meta0(Registry(len(answers)), Client(*answers), OWN, 1)
    assert caught.value.code == code


@pytest.mark.parametrize("answers", [({},), ({}, {}), (303, {}, 303)])
def test_a_new_namespace_has_an_empty_table(answers):
    assert load_from_meta0(Registry(len(answers)), Client(*answers), OWN, 1) == []


def test_no_meta0_at_all():
    with pytest.raises(StatusError) as caught:
        load_from_meta0(Registry(0), Client(), OWN, 1)
    assert caught.value.code == 503
