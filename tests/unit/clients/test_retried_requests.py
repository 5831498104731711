# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""A change that was sent several times, and last met the effect of a former attempt, has no answer: a success."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

from oio import ObjectStorageApi
from oio.common import exceptions as exc
from oio.container.client import ContainerClient

NAMES = ("a", "c")
OBJ = (*NAMES, "o")


@pytest.fixture
def client() -> ContainerClient:
    client = ContainerClient({"namespace": "NS"}, endpoint="127.0.0.1:1")
    client._direct_request = Mock(return_value=(None, None))  # type: ignore[method-assign]
    return client


@pytest.mark.parametrize(
    ("method", "args", "returned"),
    [
        ("container_create", NAMES, True),
        ("container_create_many", ("a", ["x", "y"]), [("x", True), ("y", True)]),
        ("container_delete", NAMES, None),
        ("container_touch", NAMES, None),
        ("container_purge", NAMES, None),
        ("container_flush", NAMES, {"truncated": False}),
        ("container_snapshot", (*NAMES, "A", "C"), None),
        ("container_freeze", NAMES, None),
        ("container_enable", NAMES, None),
        ("container_raw_insert", ({}, *NAMES), None),
        ("container_raw_update", ([{}], [{}], *NAMES), None),
        ("container_raw_delete", (*NAMES, [{}]), None),
        ("container_set_properties", (*NAMES, {"k": "v"}), None),
        ("container_del_properties", (*NAMES, ["k"]), None),
        ("content_create", (*OBJ, 1, "AB", {"chunks": []}), (None, None)),
        ("content_delete", OBJ, True),
        ("content_delete_many", (*NAMES, ["x"]), [("x", True)]),
        ("content_drain", OBJ, True),
        ("content_touch", OBJ, None),
        ("content_truncate", OBJ, None),
        ("content_purge", OBJ, None),
        ("content_set_properties", (*OBJ, {"k": "v"}), None),
        ("content_del_properties", (*OBJ, ["k"]), True),
    ],
)
def test_changes(client: ContainerClient, method: str, args: Any, returned: Any) -> None:
    assert getattr(client, method)(*args) == returned


@pytest.mark.parametrize(
    ("method", "args", "returned"),
    [
        ("container_set_properties", (*NAMES, {"k": "v"}), None),
        ("object_delete", OBJ, True),
        ("object_drain", OBJ, None),
        ("object_del_properties", (*OBJ, ["k"]), True),
        ("container_touch", NAMES, None),
    ],
)
def test_methods_of_the_api(method: str, args: Any, returned: Any) -> None:
    api = ObjectStorageApi("NS", endpoint="127.0.0.1:1")
    api.container._direct_request = Mock(return_value=(None, None))  # type: ignore[method-assign]
    assert getattr(api, method)(*args) == returned


@pytest.mark.parametrize(
    ("errors", "raised"),
    [
        ([exc.ServiceBusy()] * 3, exc.ServiceBusy),
        ([exc.Conflict()], exc.Conflict),
        ([exc.ServiceBusy(), exc.Conflict()], None),
        ([exc.ServiceBusy(), exc.NotFound()], exc.NotFound),
    ],
)
def test_commits(monkeypatch: pytest.MonkeyPatch, errors: list[Exception], raised: Any) -> None:
    monkeypatch.setattr("oio.common.client._pause", lambda *_args: None)
    send = Mock(side_effect=errors)
    monkeypatch.setattr("oio.api.base.HttpApi._direct_request", send)
    client = ContainerClient({"namespace": "NS"}, endpoint="127.0.0.1:1", request_attempts=3)
    if raised is None:
        assert client.content_create(*OBJ, 1, "AB", {"chunks": []}) == (None, None)
    else:
        with pytest.raises(raised):
            client.content_create(*OBJ, 1, "AB", {"chunks": []})
    assert send.call_count == len(errors)


def test_what_is_sent_again_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oio.common.client._pause", lambda *_args: None)
    send = Mock(side_effect=[exc.ServiceBusy(), exc.ServiceBusy(), (Mock(status=204), b"")])
    monkeypatch.setattr("oio.api.base.HttpApi._direct_request", send)
    client = ContainerClient({"namespace": "NS"}, endpoint="127.0.0.1:1", request_attempts=3)
    headers = {"x-a": "b"}
    assert client.content_delete(*OBJ, headers=headers)
    again = {"x-a": "b", "x-oio-retried": "1"}
    assert [call.args[2] for call in send.call_args_list] == [{"x-a": "b"}, again, again]
    assert headers == {"x-a": "b"}


def test_without_attempts_the_first_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    send = Mock(side_effect=exc.ServiceBusy())
    monkeypatch.setattr("oio.api.base.HttpApi._direct_request", send)
    client = ContainerClient({"namespace": "NS"}, endpoint="127.0.0.1:1")
    with pytest.raises(exc.ServiceBusy) as caught:
        client.content_create(*OBJ, 1, "AB", {"chunks": []})
    assert (send.call_count, caught.value.retried) == (1, False)
