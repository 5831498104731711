# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The store below the HTTP layer: failures of the disk at every step, and shared directory syncs."""

import errno
import os
import threading

import pytest
from rawx_harness import CHUNK, OTHER

from oio.rawx import dirsync, store, syscalls
from oio.rawx.dirsync import DirectorySyncer, DirectoryTree
from oio.rawx.store import StoreOptions, Volume

FULLPATH = f"user.oio.content.fullpath:{CHUNK}"
ATTRIBUTES = [(FULLPATH, b"a/b/c/1/AA"), ("user.grid.chunk.size", b"4")]


class Kernel:
    """Records the calls that change something, and makes one of them fail."""

    def __init__(self, monkeypatch, module_os=os):
        self.calls = []
        self.fail = {}
        for name in ("open", "write", "setxattr", "fsync", "unlink", "link", "mkdir"):
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))
        rename = self._wrap("rename", syscalls.rename_noreplace)
        monkeypatch.setattr(syscalls, "rename_noreplace", rename)

    def _wrap(self, name, real):
        def call(*args, **kwargs):
            self.calls.append((name, args))
            count = sum(1 for called, _ in self.calls if called == name)
            code = self.fail.get(name) or self.fail.get((name, count))
            if code:
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return call


@pytest.fixture
def volume(tmp_path):
    return Volume(str(tmp_path))


@pytest.fixture
def kernel(monkeypatch):
    return Kernel(monkeypatch)


def put(volume, chunk_id=CHUNK, data=b"data"):
    with volume.upload(chunk_id) as upload:
        upload.write(data)
        name = f"user.oio.content.fullpath:{chunk_id}"
        upload.commit([(name, b"a/b/c/1/AA"), ("user.grid.chunk.size", b"%d" % len(data))])


def files(root):
    return sorted(name for _, _, names in os.walk(root) for name in names)


def test_order_of_a_durable_upload(volume, kernel, tmp_path):
    put(volume)
    names = [name for name, _ in kernel.calls]
    assert names == [
        "open", "mkdir", "open",  # the directory did not exist
        "write", "setxattr", "setxattr", "fsync", "rename",
        "open", "fsync",  # the root, because of the new directory
        "open", "fsync",  # the directory
    ]  # fmt: skip
    opened = [args[0] for name, args in kernel.calls if name == "open"]
    assert opened[2:] == [str(tmp_path), f"{tmp_path}/{CHUNK[:3]}"]
    kernel.calls.clear()
    put(volume, CHUNK[:-1] + "0")
    assert [name for name, _ in kernel.calls][-2:] == ["open", "fsync"]
    assert sum(name == "fsync" for name, _ in kernel.calls) == 2


@pytest.mark.parametrize("step", ["write", "setxattr", "fsync", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_failed_upload_leaves_nothing(volume, kernel, tmp_path, step, code):
    put(volume, OTHER)
    kernel.fail[step] = code
    with pytest.raises(OSError) as caught:
        put(volume)
    assert caught.value.errno == code
    assert files(tmp_path) == [OTHER]
    kernel.fail.clear()
    put(volume)
    kernel.fail["write"] = errno.ENOSPC
    volume.delete(OTHER)  # a full disk can be emptied
    assert files(tmp_path) == [CHUNK]


@pytest.mark.parametrize("which", [2, 3])
def test_a_failed_directory_sync_is_a_failed_upload(volume, kernel, tmp_path, which):
    kernel.fail["fsync", which] = errno.EIO  # 1 is the file, 2 the root, 3 the directory
    with pytest.raises(OSError):
        put(volume)
    assert files(tmp_path) == []


def test_block_sums_are_left_out_when_they_do_not_fit(volume, kernel, tmp_path):
    with volume.upload(CHUNK) as upload:
        upload.write(b"data")
        kernel.fail["setxattr", 2] = errno.ENOSPC
        upload.commit([(FULLPATH, b"a/b/c/1/AA"), ("user.oio.chunk.block_sums", b"x" * 3000)])
    assert os.listxattr(volume.path_of(CHUNK)) == [FULLPATH]


def test_short_writes_are_completed(volume, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:3])))
    put(volume, data=b"0123456789")
    with open(volume.path_of(CHUNK), "rb") as stream:
        assert stream.read() == b"0123456789"


def test_an_existing_chunk_is_never_replaced(volume, tmp_path):
    with volume.upload(CHUNK) as upload:
        upload.write(b"mine")
        with open(volume.path_of(CHUNK), "wb") as stream:  # somebody else, out of any protocol
            stream.write(b"theirs")
        with pytest.raises(FileExistsError):
            upload.commit(ATTRIBUTES)
    with open(volume.path_of(CHUNK), "rb") as stream:
        assert stream.read() == b"theirs"
    assert files(tmp_path) == [CHUNK]


def test_rename_without_kernel_support(tmp_path, monkeypatch):
    monkeypatch.setattr(syscalls, "_renameat2", None)
    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    for path in (source, target):
        with open(path, "w", encoding="ascii") as stream:
            stream.write(path)
    with pytest.raises(FileExistsError):
        syscalls.rename_noreplace(source, target)
    os.unlink(target)
    syscalls.rename_noreplace(source, target)
    assert files(tmp_path) == ["target"]


@pytest.mark.parametrize("step", ["setxattr", "fsync", "rename"])
def test_a_failed_link_leaves_nothing(volume, kernel, tmp_path, step):
    put(volume)
    kernel.fail[step] = errno.EIO
    with pytest.raises(OSError):
        volume.link(CHUNK, OTHER, "x/y/z/1/BB")
    assert files(tmp_path) == [CHUNK]
    assert f"user.oio.content.fullpath:{OTHER}" not in os.listxattr(volume.path_of(CHUNK))


def test_a_failed_sync_of_a_deletion_is_reported(volume, kernel):
    put(volume)
    kernel.fail["fsync"] = errno.EIO
    with pytest.raises(OSError):
        volume.delete(CHUNK)


def test_a_link_made_during_a_deletion_keeps_no_name_of_the_deleted(volume, monkeypatch):
    put(volume)
    real = os.unlink

    def unlink(path):
        monkeypatch.setattr(os, "unlink", real)
        volume.link(CHUNK, OTHER, "x/y/z/1/BB")
        real(path)

    monkeypatch.setattr(os, "unlink", unlink)
    volume.delete(CHUNK)
    names = [name for name in os.listxattr(volume.path_of(OTHER)) if "fullpath" in name]
    assert names == [f"user.oio.content.fullpath:{OTHER}"]


def test_leftovers(volume, tmp_path):
    put(volume)
    directory = os.path.dirname(volume.path_of(CHUNK))
    strange = ["notes.pending", CHUNK + ".corrupt", "A" * 64 + ".pending.pending"]
    for name in ["A" * 64 + ".pending", *strange]:
        with open(f"{directory}/{name}", "wb") as stream:
            stream.write(b"half")
    upload = volume.upload(CHUNK[:-1] + "0")
    assert volume.remove_leftovers() == 1
    assert files(tmp_path) == sorted([CHUNK, CHUNK[:-1] + "0.pending", *strange])
    upload.abort()
    assert CHUNK[:-1] + "0.pending" not in files(tmp_path)


def test_without_the_lock_a_temporary_file_may_be_somebody_elses(tmp_path):
    volume = Volume(str(tmp_path), StoreOptions(exclusive=False))
    os.makedirs(os.path.dirname(volume.path_of(CHUNK)))
    with open(volume.path_of(CHUNK) + ".pending", "wb"):
        with pytest.raises(FileExistsError):
            volume.upload(CHUNK)
    assert files(tmp_path) == [CHUNK + ".pending"]
    put(volume, OTHER)


# -- directory syncs ---------------------------------------------------------------------------


class Flusher:
    """A flush that can be held; counts what had been changed when each flush started."""

    def __init__(self):
        self.changes = 0
        self.started = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.error = None

    def __call__(self, path):
        self.started.append(self.changes)
        self.entered.release()
        assert self.gate.acquire(timeout=5)
        if self.error:
            raise self.error


def wait_for_users(syncer, count):
    pause = threading.Event()
    for _ in range(500):
        directory = syncer._directories.get("d")
        if directory is not None and directory.users == count:
            return
        pause.wait(0.01)
    raise AssertionError("the callers did not come")


def run_callers(syncer, flusher, count, results):
    def call():
        flusher.changes += 1
        mine = flusher.changes
        try:
            syncer.sync("d")
            results.append((mine, len(flusher.started)))
        except OSError as err:
            results.append(err)

    threads = []
    for _ in range(count):
        threads.append(threading.Thread(target=call))
        threads[-1].start()
    return threads


def test_callers_share_a_sync_that_started_after_their_change():
    flusher, results = Flusher(), []
    syncer = DirectorySyncer(flusher)
    threads = run_callers(syncer, flusher, 1, results)
    assert flusher.entered.acquire(timeout=5)
    threads += run_callers(syncer, flusher, 5, results)
    wait_for_users(syncer, 6)
    assert results == []
    flusher.gate.release(2)
    for thread in threads:
        thread.join(5)
    # The first flush started when one change was made: it serves nobody else.
    assert flusher.started == [1, 6]
    assert syncer.flushes == 2
    assert sorted(results)[0] == (1, 1) or len(results) == 6
    assert all(flusher.started[1] >= mine for mine, _ in results)
    assert syncer._directories == {}


def test_a_failed_sync_fails_all_who_shared_it_and_nobody_else():
    flusher, results = Flusher(), []
    syncer = DirectorySyncer(flusher)
    first = run_callers(syncer, flusher, 1, results)
    assert flusher.entered.acquire(timeout=5)
    others = run_callers(syncer, flusher, 3, results)
    wait_for_users(syncer, 4)
    flusher.gate.release()
    first[0].join(5)
    assert flusher.entered.acquire(timeout=5)
    flusher.error = OSError(errno.EIO, "bad disk")
    flusher.gate.release()
    for thread in others:
        thread.join(5)
    assert [isinstance(result, OSError) for result in results] == [False, True, True, True]
    assert all(result.errno == errno.EIO for result in results[1:])


def test_followers_of_a_leader_that_dies_fail():
    flusher, results = Flusher(), []
    flusher.error = OSError(errno.EIO, "x")
    batch = dirsync._Batch()
    assert batch.error is not None  # a failure until a flush has returned
    syncer = DirectorySyncer(lambda path: (_ for _ in ()).throw(ValueError("bug")))
    with pytest.raises(ValueError):
        syncer.sync("d")
    assert results == []
    assert syncer._directories == {}


def test_new_directories_are_flushed_once_up_to_the_root(tmp_path):
    flushed = []
    root = str(tmp_path)
    tree = DirectoryTree(root, DirectorySyncer(flushed.append))
    leaf = f"{root}/A/B"
    tree.create(leaf)
    tree.sync(leaf)
    assert flushed == [root, f"{root}/A", leaf]
    tree.sync(leaf)
    assert flushed[3:] == [leaf]
    tree.create(f"{root}/A/C")
    tree.sync(f"{root}/A/C")
    assert flushed[4:] == [f"{root}/A", f"{root}/A/C"]


def test_a_directory_found_on_disk_may_not_be_durable_yet(tmp_path):
    flushed = []
    os.mkdir(tmp_path / "A")
    DirectoryTree(str(tmp_path), DirectorySyncer(flushed.append)).sync(f"{tmp_path}/A")
    assert flushed == [str(tmp_path), f"{tmp_path}/A"]


def test_a_volume_that_disappeared_is_an_error(tmp_path):
    volume = Volume(str(tmp_path / "gone"))
    with pytest.raises(OSError) as caught:
        volume.upload(CHUNK)
    assert caught.value.errno == errno.EIO
    assert not os.path.exists(tmp_path / "gone")


def test_store_defaults_are_durable():
    assert StoreOptions().fsync
    assert StoreOptions().fsync_dir
    assert store.PENDING == ".pending"


def test_the_disk_starts_to_write_before_the_end_of_an_upload(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(syscalls, "start_writeback", lambda fd, offset, length: begun.append((offset, length)))
    volume = Volume(str(tmp_path), StoreOptions())
    with volume.upload("AB" * 32) as upload:
        for _ in range(5):
            upload.write(bytes(1 << 20))
    assert begun == [(0, 2 << 20), (2 << 20, 2 << 20)]


def test_errors_of_the_writeback_are_errors_of_the_upload(tmp_path):
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(OSError, match="seek"):
            syscalls.start_writeback(write_end, 0, 1)
    finally:
        os.close(read_end)
        os.close(write_end)
