# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""AccountClient: how it finds its service, what each method asks and returns."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from oio.account.client import AccountClient
from oio.common import exceptions as exc

CONF = {"namespace": "OPENIO"}
BASE = "http://10.0.0.1:6009/v1.0/account/"


@pytest.fixture
def client() -> AccountClient:
    return AccountClient(CONF, endpoint="10.0.0.1:6009", proxy_endpoint="127.0.0.1:1")


def mocked(client: AccountClient, status: int = 204, body: Any = b"") -> Mock:
    mock = Mock(return_value=(SimpleNamespace(status=status), body))
    client._direct_request = mock  # type: ignore[method-assign]
    return mock


@pytest.mark.parametrize(
    ("call", "method", "action", "params", "data", "body", "returned"),
    [
        (("account_create", "a"), "PUT", "create", {"id": "a"}, None, b"", False),
        (("account_delete", "a"), "POST", "delete", {"id": "a"}, None, b"", None),
        (("account_list",), "GET", "list", {"id": None}, None, ["a"], ["a"]),
        (("account_show", "a"), "GET", "show", {"id": "a"}, None, {"id": "a"}, {"id": "a"}),
        (("account_refresh", "a"), "POST", "refresh", {"id": "a"}, None, b"", None),
        (("account_flush", "a"), "POST", "flush", {"id": "a"}, None, b"", None),
        (
            ("account_update", "a", {"k": "v"}, ["x"]), "PUT", "update", {"id": "a"},
            {"metadata": {"k": "v"}, "to_delete": ["x"]}, b"", None,
        ),
        (
            ("container_list", "a", 3, "m", "e", "p", "d", True), "GET", "containers",
            {"id": "a", "limit": 3, "marker": "m", "end_marker": "e", "prefix": "p", "delimiter": "d",
             "s3_buckets_only": True}, None, {"listing": []}, {"listing": []},
        ),
        (
            ("container_show", "a", "c"), "GET", "show-container", {"id": "a", "container": "c"}, None,
            {"name": "c"}, {"name": "c"},
        ),
        (
            ("container_update", "a", "c", {"dtime": 1}), "PUT", "container/update", {"id": "a"},
            {"dtime": 1, "name": "c"}, "c", "c",
        ),
        (
            ("container_reset", "a", "c", 12.5), "PUT", "container/reset", {"id": "a"},
            {"name": "c", "mtime": 12.5}, b"", None,
        ),
        (
            ("bucket_list", "a", 3, "m", "p"), "GET", "buckets",
            {"id": "a", "limit": 3, "marker": "m", "prefix": "p"}, None, {"listing": []}, {"listing": []},
        ),
        (("bucket_show", "b"), "GET", "show-bucket", {"id": "b"}, None, {"objects": 1}, {"objects": 1}),
        (
            ("bucket_update", "b", None, ["k"]), "PUT", "update-bucket", {"id": "b"},
            {"metadata": None, "to_delete": ["k"]}, {"k": "v"}, {"k": "v"},
        ),
        (("bucket_refresh", "b"), "POST", "refresh-bucket", {"id": "b"}, None, b"", None),
    ],
)  # fmt: skip
def test_requests(
    client: AccountClient, call: Any, method: str, action: str, params: Any, data: Any, body: Any, returned: Any
) -> None:
    mock = mocked(client, 204, body)
    assert getattr(client, call[0])(*call[1:], reqid="R") == returned
    assert mock.call_args[0] == (method, BASE + action)
    kwargs = mock.call_args[1]
    assert list(kwargs["params"].items()) == list(params.items())
    assert kwargs["reqid"] == "R"
    assert ("data" in kwargs) == (data is not None)
    if data is not None:
        assert json.loads(kwargs["data"]) == data


def test_an_account_that_is_created(client: AccountClient) -> None:
    mocked(client, 201)
    assert client.account_create("a") is True


def test_timeouts_of_the_constructor_are_defaults() -> None:
    client = AccountClient(CONF, endpoint="10.0.0.1:6009", proxy_endpoint="127.0.0.1:1", read_timeout="7",
                           connection_timeout=2, write_timeout="None")  # fmt: skip
    mock = mocked(client)
    client.account_delete("a", read_timeout=1)
    kwargs = mock.call_args[1]
    assert (kwargs["read_timeout"], kwargs["connection_timeout"]) == (1, 2.0)
    assert "write_timeout" not in kwargs


class Discovered:
    """A client that finds its service through a fake load balancer."""

    def __init__(self, **kwargs: Any) -> None:
        self.client = AccountClient(CONF, proxy_endpoint="127.0.0.1:1", **kwargs)
        self.address = Mock(side_effect=[f"10.0.0.{number}:6009" for number in range(1, 9)])
        self.client._get_account_addr = self.address  # type: ignore[method-assign]
        self.sent = mocked(self.client)

    def target(self) -> str:
        self.client.account_delete("a")
        url: str = self.sent.call_args[0][1]
        return url.split("/")[2]


def test_the_service_is_asked_for_once_then_again_after_a_while() -> None:
    found = Discovered(refresh_delay=1000.0)
    assert found.client.endpoint is None
    assert [found.target(), found.target()] == ["10.0.0.1:6009"] * 2
    assert found.client.endpoint == "http://10.0.0.1:6009/v1.0/account"
    found.client._last_refresh -= 1001
    assert found.target() == "10.0.0.2:6009"


def test_a_network_error_is_raised_and_another_service_is_chosen() -> None:
    found = Discovered()
    found.target()
    answer, found.sent.side_effect = found.sent.return_value, exc.OioNetworkException("refused")
    with pytest.raises(exc.OioNetworkException, match="refused"):
        found.client.account_delete("a")
    assert found.client.endpoint == "http://10.0.0.2:6009/v1.0/account"
    found.address.side_effect = exc.ServiceBusy(message="no service")
    with pytest.raises(exc.OioNetworkException, match="refused"):
        found.client.account_delete("a")
    found.sent.side_effect, found.sent.return_value = None, answer
    found.address.side_effect = ["10.0.0.9:6009"]
    assert found.target() == "10.0.0.9:6009"


def test_a_given_service_is_never_left(client: AccountClient) -> None:
    client._get_account_addr = Mock()  # type: ignore[method-assign]
    mocked(client).side_effect = exc.OioNetworkException("refused")
    with pytest.raises(exc.OioNetworkException):
        client.account_list()
    assert client.endpoint == BASE.rstrip("/")
    client._get_account_addr.assert_not_called()


def test_the_load_balancer_gives_the_address(client: AccountClient) -> None:
    client.cs = Mock()
    client.cs.next_instance.return_value = {"addr": "10.0.0.5:6009"}
    assert client._get_account_addr() == "10.0.0.5:6009"
    assert client.cs.next_instance.call_args[0] == ("account",)
    client.cs.next_instance.return_value = {"addr": "account-1"}
    client.cs.resolve_service_id.return_value = "10.0.0.6:6009"
    assert client._get_account_addr() == "10.0.0.6:6009"
