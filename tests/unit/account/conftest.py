# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The base of an account service."""

import pytest

from oio.account.store import AccountStore


@pytest.fixture
def store(tmp_path):
    store = AccountStore(str(tmp_path / "account.db"), "OFF")
    yield store
    store.close()
