# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What repair tools stand on: rebuilding whatever names a chunk, reading attributes of volumes."""

import pytest
from content_harness import check_whole, forget, urls

from oio.blob.operator import ChunkOperator
from oio.blob.utils import check_volume
from oio.common import exceptions as exc

pytest_plugins = ["content_fixtures"]


class Rdir:
    """Remembers what is deleted from it."""

    def __init__(self, error=None):
        self.deleted = []
        self.error = error

    def chunk_delete(self, *names, **_kwargs):
        self.deleted.append(names)
        if self.error is not None:
            raise self.error


@pytest.fixture
def rdir():
    return Rdir()


@pytest.fixture
def operator(cluster, factory, rdir):
    return ChunkOperator({"namespace": cluster.namespace}, content_factory=factory, rdir_client=rdir)


@pytest.mark.parametrize("named_by", ["url", "id and service"])
@pytest.mark.parametrize("policy", ["TWOCOPIES", "EC"])
def test_the_operator_rebuilds_and_removes_traces(
    api, store, factory, cid, disk, operator, rdir, policy, named_by
):
    data, content = store(policy)
    old = content.chunks[0]
    path = disk.path(old)
    size = path.stat().st_size
    words = (old.url, None) if named_by == "url" else (old.id, old.host)
    rebuilt = operator.rebuild(cid, content.content_id, *words, try_chunk_delete=True, allow_same_rawx=False)
    assert rebuilt == size
    assert not path.exists()
    assert rdir.deleted == [(old.host, cid, content.content_id, old.id)]
    check_whole(api, factory, disk, factory.get(cid, content.content_id), data)


def test_the_operator_rebuilds_a_position(api, store, factory, cid, disk, operator, rdir):
    data, content = store("EC")
    lost = content.chunks[4]
    disk.lose(lost)
    forget(api, cid, content, lost)
    operator.rebuild(cid, content.content_id, lost.pos, try_chunk_delete=True)
    assert rdir.deleted == []
    check_whole(api, factory, disk, factory.get(cid, content.content_id), data)


def test_the_operator_does_not_delete_a_chunk_that_came_back_at_its_place(
    predictable_ids, cluster, api, store, factory, cid, disk, rdir
):
    """Predictable ids and a rebuild on the same rawx give the new chunk the URL of the old one."""
    operator = ChunkOperator({"namespace": cluster.namespace}, content_factory=factory, rdir_client=rdir)
    data, content = store("EC", size=1000)
    back = 0
    for chunk in list(content.chunks):
        url = chunk.url
        disk.lose(chunk)
        operator.rebuild(cid, content.content_id, url, try_chunk_delete=True, allow_same_rawx=True)
        back += url in urls(factory.get(cid, content.content_id))
    assert len(rdir.deleted) == len(content.chunks) - back
    check_whole(api, factory, disk, factory.get(cid, content.content_id), data)


def test_the_operator_only_logs_what_cannot_be_removed(cluster, api, store, factory, cid, disk):
    data, content = store("TWOCOPIES")
    rdir = Rdir(exc.VolumeException("no rdir"))
    operator = ChunkOperator({"namespace": cluster.namespace}, content_factory=factory, rdir_client=rdir)
    lost = content.chunks[0]
    disk.lose(lost)
    operator.rebuild(cid, content.content_id, lost.url, try_chunk_delete=True, allow_same_rawx=False)
    assert len(rdir.deleted) == 1
    check_whole(api, factory, disk, factory.get(cid, content.content_id), data)


def test_the_operator_works_without_rdir(cluster, api, store, factory, cid, disk):
    data, content = store("TWOCOPIES")
    lost = content.chunks[0]
    disk.lose(lost)
    operator = ChunkOperator({"namespace": cluster.namespace})
    operator.rebuild(cid, content.content_id, lost.url)
    check_whole(api, factory, disk, factory.get(cid, content.content_id), data)


def test_the_operator_names_orphans(predictable_ids, store, cid, operator):
    _data, content = store("TWOCOPIES", size=10)
    chunk = content.chunks[0]
    for words in (
        (cid, "0123456789ABCDEF" * 2, chunk.url),
        (cid, content.content_id, "AB" * 32),
        (cid, content.content_id, f"http://no-such-rawx/{chunk.id}"),
        (cid, content.content_id, chunk.id),  # which of the copies?
    ):
        with pytest.raises(exc.OrphanChunk):
            operator.rebuild(*words)


# -- volumes ----------------


def test_a_volume_tells_whose_it_is(cluster):
    for service in cluster.services("rawx")[:2]:
        assert check_volume(service.volume) == (cluster.namespace, service.service_id)
    with pytest.raises(exc.OioException, match=r"server\.type"):
        check_volume(cluster.services("meta2")[0].volume)
