# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Files are written whole, or an error tells."""

import resource

import pytest

from oio.common.durable import write_file


@pytest.fixture
def limit():
    """Sets what files may grow to: a write beyond it is cut, and the next one fails, as on a disk that is full."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size_bytes):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, former[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"something longer, which goes away")
    write_file(path, b"0123456789")
    assert path.read_bytes() == b"0123456789"
    write_file(path, b"")
    assert path.read_bytes() == b""


def test_a_write_that_is_cut_is_an_error(tmp_path, limit):
    limit(10_000)
    with pytest.raises(OSError):
        write_file(tmp_path / "file", b"x" * 10_001)
    write_file(tmp_path / "file", b"x" * 10_000)
