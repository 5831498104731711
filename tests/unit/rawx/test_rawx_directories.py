# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Directories created ahead of need."""

import errno
import os
import subprocess
import threading

import pytest

from oio.rawx import syscalls
from oio.rawx.store import StoreOptions, Volume
from oio.rawx.syscalls import spread_subdirectories


def test_all_directories_exist_and_are_flushed_once(tmp_path):
    volume = Volume(str(tmp_path), StoreOptions(hash_width=2))
    volume.prepare_directories(threading.Event())
    assert sorted(os.listdir(tmp_path)) == [f"{n:02X}" for n in range(256)]
    assert volume.syncer.flushes == 1


def test_a_stop_interrupts_the_preparation(tmp_path):
    stop = threading.Event()
    stop.set()
    volume = Volume(str(tmp_path), StoreOptions(hash_width=3))
    volume.prepare_directories(stop)
    assert len(os.listdir(tmp_path)) < 4096
    assert volume.syncer.flushes == 0


def test_deep_trees_are_not_prepared(tmp_path):
    Volume(str(tmp_path), StoreOptions(hash_width=3, hash_depth=2)).prepare_directories(threading.Event())
    assert os.listdir(tmp_path) == []


def test_directories_spread_where_the_file_system_can(tmp_path):
    asked = spread_subdirectories(str(tmp_path))
    shown = subprocess.run(["lsattr", "-d", str(tmp_path)], capture_output=True, text=True, check=False)
    if shown.returncode:
        pytest.skip("this file system has no such flags")
    assert asked
    assert "T" in shown.stdout.split()[0]


def test_a_volume_that_cannot_spread_its_directories_works(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    monkeypatch.setattr(syscalls.fcntl, "ioctl", refuse)
    Volume(str(tmp_path), StoreOptions()).spread_directories()
    assert not spread_subdirectories(str(tmp_path))
    assert not spread_subdirectories(str(tmp_path / "absent"))
