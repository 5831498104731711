# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What services without replication answer about copies and elections."""

import pytest

from oio.common.status import StatusError
from oio.meta.base_messages import BaseDebug, BaseLeave, BasePing, BaseStatus, BaseSync
from oio.meta.base_type import BaseType
from oio.meta.bases import single_copy_handlers
from oio.meta.context import Context
from oio.meta.repository import Repository


@pytest.fixture
def ask(tmp_path):
    repository = Repository(str(tmp_path), BaseType(name="toy", schema=""))
    repository.create("there", lambda tx: None)
    handlers = single_copy_handlers(repository)
    yield lambda kind, base: handlers[kind](kind(base=base), Context())
    repository.close()


def code(ask, kind, base):
    with pytest.raises(StatusError) as caught:
        ask(kind, base)
    return caught.value.code


def test_who_has_the_base_is_its_master(ask):
    for kind in (BasePing, BaseStatus, BaseLeave):
        assert ask(kind, "there") is None
    # A master takes its state from nobody.
    assert code(ask, BaseSync, "there") == 301
    assert ask(BaseDebug, "there").election == {}


@pytest.mark.parametrize("kind", [BasePing, BaseStatus, BaseLeave, BaseSync])
def test_who_lacks_it_says_so(ask, kind):
    assert code(ask, kind, "absent") == 431
