# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Directories created ahead of need."""

import os
import threading

from oio.rawx.store import StoreOptions, Volume


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
