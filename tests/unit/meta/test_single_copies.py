# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What services answer about copies and elections that are not theirs, or that are not at all."""

from types import SimpleNamespace

import pytest

from oio.common.status import StatusError
from oio.meta.base_messages import BaseDebug, BaseLeave, BasePing, BaseStatus, BaseSync
from oio.meta.base_type import BaseType
from oio.meta.bases import single_copy_handlers
from oio.meta.context import Context
from oio.meta.replication.engine import Replication
from oio.meta.replication.serving import Copies
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


@pytest.mark.parametrize("kind", [BasePing, BaseStatus, BaseSync])
def test_who_lacks_it_says_so(ask, kind):
    assert code(ask, kind, "absent") == 431
    assert ask(BaseLeave, "absent") is None, "there is nothing to leave"


def test_who_is_no_peer_names_no_master():
    known = SimpleNamespace(peers_of=lambda base, route: ["a", "b", "c"], own_name=lambda peers: "")
    with pytest.raises(StatusError) as caught:
        Replication.group_for(known, "base")
    assert caught.value.code == 431 and caught.value.message == "Base not managed: base is on a,b,c"


def test_who_is_no_peer_any_more_has_left():
    def group_for(base, route):
        raise StatusError(code, "said")

    copies = Copies(SimpleNamespace(), SimpleNamespace(group_for=group_for, follower=None))
    code = 431
    assert copies.leave(BaseLeave(base="base"), Context()) is None
    code = 503
    with pytest.raises(StatusError):
        copies.leave(BaseLeave(base="base"), Context())
