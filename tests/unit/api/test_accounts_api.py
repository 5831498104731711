# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Account methods: what they ask of the account client and what they return."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

from oio import ObjectStorageApi
from oio.common import exceptions as exc


@pytest.fixture
def api() -> ObjectStorageApi:
    made = ObjectStorageApi("TESTNS", endpoint="127.0.0.1:1", read_timeout=3)
    made.account = Mock()
    return made


def test_the_client_is_built_without_a_request() -> None:
    api = ObjectStorageApi("TESTNS", endpoint="127.0.0.1:1")
    assert api.account is api.account
    assert api.account.endpoint is None
    assert api.account.cs.proxy_netloc == "127.0.0.1:1"
    assert api.account.pool_manager is api.container.pool_manager


def test_accounts(api: ObjectStorageApi) -> None:
    account: Any = api.account
    account.account_create.return_value = True
    assert api.account_create("a") is True
    assert account.account_create.call_args[0] == ("a",)
    assert set(account.account_create.call_args[1]) == {
        "autocreate",
        "deadline",
        "headers",
        "read_timeout",
        "reqid",
    }
    account.account_show.side_effect = lambda *_args, **_kw: {"id": "a", "metadata": {"k": "v"}}
    assert api.account_show("a") == {"id": "a", "metadata": {"k": "v"}}
    assert api.account_get_properties("a") == {"id": "a", "properties": {"k": "v"}}
    assert api.account_set_properties("a", {"k": "v"}) is not False
    assert account.account_update.call_args[0] == ("a", {"k": "v"}, None)
    api.account_del_properties("a", {"k": "v"}.keys())
    assert account.account_update.call_args[0] == ("a", None, ["k"])
    api.account_delete("a")
    account.account_list.return_value = ["a"]
    assert api.account_list() == ["a"]


def test_container_list(api: ObjectStorageApi) -> None:
    account: Any = api.account
    account.container_list.return_value = {"id": "a", "listing": [["c", 1, 2, 0, 3.0]]}
    assert api.container_list("a", limit=3, delimiter="/") == [["c", 1, 2, 0, 3.0]]
    assert account.container_list.call_args[1]["limit"] == 3


def test_no_such_account(api: ObjectStorageApi) -> None:
    account: Any = api.account
    account.container_list.side_effect = exc.NotFound(404, 404, "said")
    with pytest.raises(exc.NoSuchAccount) as caught:
        api.container_list("a")
    assert caught.value.args == ("Account 'a' does not exist.", "said")
