# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Attribute helpers, on real files."""

import errno
import os

import pytest

from oio.common import xattr

CHUNK = "0123456789ABCDEF" * 4
LEGACY = ("grid.chunk.id", "grid.content.container", "grid.content.path", "grid.content.version",
          "grid.content.id")  # fmt: skip


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"")
    return path


def test_read_user_xattr(path):
    os.setxattr(path, "user.a", b"1")
    os.setxattr(path, "user.b.c", "é".encode())
    expected = {"a": "1", "b.c": "é"}
    assert xattr.read_user_xattr(str(path)) == expected
    assert xattr.read_user_xattr(path) == expected
    with open(path, "rb") as stream:
        assert xattr.read_user_xattr(stream) == expected
        assert xattr.read_user_xattr(stream.fileno()) == expected


def test_missing_file(tmp_path):
    with pytest.raises(OSError) as caught:
        xattr.read_user_xattr(str(tmp_path / "none"))
    assert caught.value.errno == errno.ENOENT


def test_a_file_system_without_attributes(path, monkeypatch):
    def refuse(_path):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "listxattr", refuse)
    with pytest.raises(OSError) as caught:
        xattr.read_user_xattr(path)
    assert caught.value.errno == errno.ENOTSUP


def test_an_attribute_that_disappears_meanwhile_is_left_out(path, monkeypatch):
    os.setxattr(path, "user.a", b"1")
    monkeypatch.setattr(os, "listxattr", lambda _path: ["user.a", "user.gone", "security.x"])
    assert xattr.read_user_xattr(path) == {"a": "1"}


def test_the_library_can_be_imported_from_here():
    from oio.common.xattr import xattr as library

    assert all(callable(getattr(library, name)) for name in ("setxattr", "removexattr", "get_all", "getxattr"))


def test_set_fullpath_xattr(path):
    for name in LEGACY:
        os.setxattr(path, f"user.{name}", b"x")
    os.setxattr(path, "user.oio:ABC", b"old")
    with open(path, "rb") as stream:
        xattr.set_fullpath_xattr(stream.fileno(), {CHUNK.lower(): "a/b/c/1/AA"})
    assert len(os.listxattr(path)) == 7
    xattr.set_fullpath_xattr(path, {CHUNK: "a/b/c/2/AA"}, True, xattr_to_remove="oio:ABC")
    assert xattr.read_user_xattr(path) == {
        f"oio.content.fullpath:{CHUNK}": "a/b/c/2/AA",
        "grid.oio.version": "4.2",
    }
    xattr.set_fullpath_xattr(path, {}, True, xattr_to_remove="never.there")


def test_the_names_of_the_library(path):
    xattr.setxattr(path, "user.a", b"1")
    assert xattr.getxattr(str(path), "user.a") == b"1"
    assert xattr.listxattr(path) == ["user.a"]
    assert xattr.get_all(path) == [(b"user.a", b"1")]
    assert xattr.get_all(path, namespace=b"user") == [(b"a", b"1")]
    with pytest.raises(ValueError):
        xattr.get_all(path, namespace="trusted")
    xattr.removexattr(path, "user.a")
    assert xattr.get_all(path) == []
