# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Conditional writes: ``if_match`` and ``if_none_match`` of the API, on a cluster."""

import threading
from hashlib import md5

import pytest
from support import ACCOUNT

from oio.common import exceptions as exc

OLD, NEW = b"old data", b"new data"
TAG = md5(OLD).hexdigest()
OTHER = md5(b"other").hexdigest()


def read(api, container, name="o", **kwargs):
    return b"".join(api.object_fetch(ACCOUNT, container, name, **kwargs)[1])


def write(api, container, data=NEW, **kwargs):
    return api.object_create(ACCOUNT, container, data=data, obj_name="o", **kwargs)


@pytest.mark.parametrize(
    "held",
    [
        {"if_match": TAG}, {"if_match": TAG.upper()}, {"if_match": f'"{TAG}"'}, {"if_match": [OTHER, TAG]},
        {"if_match": "*"}, {"if_none_match": OTHER}, {"if_none_match": [OTHER, f'W/"{TAG}"']},
        {"if_match": TAG, "if_none_match": OTHER},
    ],
)  # fmt: skip
def test_a_condition_that_holds(api, container, held):
    write(api, container, OLD)
    write(api, container, **held)
    assert read(api, container) == NEW
    write(api, container, OLD)
    assert api.object_delete(ACCOUNT, container, "o", **held) is True


@pytest.mark.parametrize(
    "broken",
    [
        {"if_match": OTHER}, {"if_match": f'W/"{TAG}"'}, {"if_none_match": "*"}, {"if_none_match": TAG},
        {"if_none_match": [OTHER, TAG.upper()]}, {"if_match": TAG, "if_none_match": "*"},
    ],
)  # fmt: skip
def test_a_condition_that_does_not_hold(api, container, broken):
    write(api, container, OLD)
    sent = []
    create = api.container.content_create

    def spy(*args, **kwargs):
        sent.extend(kwargs["data"]["chunks"])
        return create(*args, **kwargs)

    api.container.content_create = spy
    before = api.object_get_properties(ACCOUNT, container, "o")
    for call in (
        lambda: write(api, container, policy="THREECOPIES", **broken),
        lambda: write(api, container, append=True, **broken),
        lambda: api.object_delete(ACCOUNT, container, "o", **broken),
    ):
        with pytest.raises(exc.ClientPreconditionFailed) as caught:
            call()
        assert (caught.value.http_status, caught.value.status) == (412, 412)
    assert api.object_get_properties(ACCOUNT, container, "o") == before
    assert read(api, container) == OLD
    assert len(sent) > 3
    for chunk in sent:
        with pytest.raises(exc.NotFound):
            api.blob_client.chunk_head(chunk["url"])


def test_without_an_object(api, container):
    for broken in ({"if_match": "*"}, {"if_match": TAG}):
        with pytest.raises(exc.ClientPreconditionFailed):
            write(api, container, **broken)
    assert not api.object_head(ACCOUNT, container, "o")
    write(api, container, if_none_match="*")
    assert read(api, container) == NEW
    with pytest.raises(exc.ClientPreconditionFailed):
        write(api, container, if_none_match="*")


def test_a_container_made_on_the_way(api, container):
    other = container + "-made"
    with pytest.raises(exc.ClientPreconditionFailed):
        write(api, other, if_match="*")
    with pytest.raises(exc.NoSuchContainer):
        api.container_get_properties(ACCOUNT, other)
    write(api, other, if_none_match="*")
    assert read(api, other) == NEW
    api.object_delete(ACCOUNT, other, "o")
    api.container_delete(ACCOUNT, other)


def test_a_delete_marker_is_no_object(api, container):
    api.container_set_properties(ACCOUNT, container, system={"sys.m2.policy.version": "-1"})
    write(api, container, OLD)
    api.object_delete(ACCOUNT, container, "o", if_match=TAG)
    with pytest.raises(exc.ClientPreconditionFailed):
        write(api, container, if_match=TAG)
    write(api, container, if_none_match="*")
    assert read(api, container) == NEW


@pytest.mark.parametrize("change", ["append", "truncate"])
def test_an_object_without_hash_only_matches_any(api, container, change):
    write(api, container, OLD)
    if change == "append":
        write(api, container, b"more", append=True)
    else:
        api.object_truncate(ACCOUNT, container, "o", size=3)
    with pytest.raises(exc.ClientPreconditionFailed):
        write(api, container, if_match=TAG)
    write(api, container, if_match="*", if_none_match=TAG)
    assert read(api, container) == NEW


def test_a_condition_is_about_the_version_that_is_named(api, container):
    api.container_set_properties(ACCOUNT, container, system={"sys.m2.policy.version": "-1"})
    old = write_version(api, container, OLD)
    new = write_version(api, container, NEW)
    for version, tag in ((new, TAG), (old, md5(NEW).hexdigest()), (None, TAG)):
        with pytest.raises(exc.ClientPreconditionFailed):
            api.object_delete(ACCOUNT, container, "o", version=version, if_match=tag)
    assert api.object_delete(ACCOUNT, container, "o", version=old, if_match=TAG) is True
    left = api.object_list(ACCOUNT, container, versions=True)["objects"]
    assert [item["version"] for item in left] == [int(new)]


def write_version(api, container, data):
    return api.object_create_ext(ACCOUNT, container, data=data, obj_name="o")[3]["version"]


def test_a_link_may_be_conditional(api, container):
    api.object_create(ACCOUNT, container, data=NEW, obj_name="target")
    write(api, container, OLD)
    with pytest.raises(exc.ClientPreconditionFailed):
        api.object_link(ACCOUNT, container, "target", ACCOUNT, container, "o", if_none_match="*")
    assert read(api, container) == OLD
    api.object_link(ACCOUNT, container, "target", ACCOUNT, container, "o", if_match=TAG)
    assert read(api, container) == NEW


def test_one_of_many_writers_wins(api, container):
    outcomes = []

    def attempt(number):
        try:
            write(api, container, b"%d" % number, if_none_match="*")
        except exc.ClientPreconditionFailed:
            outcomes.append(None)
        else:
            outcomes.append(b"%d" % number)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [outcome for outcome in outcomes if outcome is not None]
    assert (len(outcomes), won) == (8, [read(api, container)])


@pytest.mark.parametrize("tags", ["", "a b", "é", 'x"y', [], ["*", TAG], 3, [None]])
@pytest.mark.parametrize("name", ["if_match", "if_none_match"])
def test_a_tag_that_cannot_be_one(api, container, name, tags):
    for call in (
        lambda: write(api, container, **{name: tags}),
        lambda: api.object_delete(ACCOUNT, container, "o", **{name: tags}),
    ):
        with pytest.raises(exc.BadRequest, match=name):
            call()
