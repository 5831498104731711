# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What transfers stand on: threads that end in order, directories seen as objects, files that are whole."""

import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import Future

import pytest
from support import ROOT

from oio.cli.common.download import Download, partial_path
from oio.cli.common.parallel import AHEAD, Stopped, Workers, reader
from oio.cli.common.progress import Progress
from oio.cli.common.trees import path_of, total_bytes, walk
from oio.common.exceptions import CommandError

# --- threads


@pytest.mark.parametrize("concurrency", [1, 4])
def test_results_come_in_order_and_few_wait(concurrency):
    begun = []
    consumed = 0

    def items():
        for number in range(200):
            begun.append(number)
            assert len(begun) - consumed <= concurrency * AHEAD + 1
            yield number

    for result in Workers(concurrency, lambda number: number * 2).map(items()):
        assert result == consumed * 2
        consumed += 1
    assert consumed == 200


def test_an_interruption_that_another_thread_received_is_heard():
    program = """
        import signal, sys, threading, time, traceback
        from oio.cli.common.parallel import Stopped, Workers
        def is_awaited():
            stack = traceback.extract_stack(sys._current_frames()[threading.main_thread().ident])
            return stack[-1].filename == threading.__file__ and all(entry.name != "submit" for entry in stack)
        def work(number):
            while not is_awaited():
                time.sleep(0.001)
            # Ctrl-C, as the kernel may deliver it: whoever waits for this thread is not woken up.
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                try:
                    workers.check()
                except Stopped:
                    return "stopped"
            return "late"
        workers = Workers(1, work)
        print(*workers.map([1]), workers.interrupted)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, preexec_fn=heed_interruptions,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("stopped True\n", "")


def heed_interruptions():
    """Whoever started the tests behind a shell made them ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_an_interruption_ends_what_runs_and_begins_nothing():
    running = threading.Event()
    begun = []

    def work(number):
        begun.append(number)
        running.set()
        try:
            while True:
                workers.check()
        except Stopped:
            return f"stopped {number}"

    def items():
        yield 1
        assert running.wait(10)
        # As if the user had typed Ctrl-C.
        raise KeyboardInterrupt

    workers = Workers(1, work)
    assert list(workers.map(items())) == ["stopped 1"]
    assert workers.interrupted and begun == [1]


def test_nobody_waits_for_what_hangs_when_interrupted_twice(monkeypatch):
    running, released = threading.Event(), threading.Event()

    def work(number):
        running.set()
        assert released.wait(30)
        return number

    def items():
        yield 1
        assert running.wait(10)
        raise KeyboardInterrupt

    def interrupted_too(self, timeout=None):
        raise KeyboardInterrupt

    workers = Workers(1, work)
    monkeypatch.setattr(Future, "result", interrupted_too)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(workers.map(items()))
        assert workers.interrupted and not released.is_set()
    finally:
        released.set()


def test_errors_of_the_work_reach_the_caller():
    def work(number):
        raise ValueError(number)

    with pytest.raises(ValueError, match="7"):
        list(Workers(2, work).map([7]))


def test_a_file_that_is_read_counts_and_may_be_stopped(tmp_path):
    counted = []
    stopped = []

    def check():
        if stopped:
            raise Stopped("Interrupted")

    (tmp_path / "file").write_bytes(b"12345")
    with open(tmp_path / "file", "rb") as file:
        source = reader(file, check, counted.append)
        buffer = bytearray(2)
        assert (source.read(2), source.readinto(buffer), bytes(buffer)) == (b"12", 2, b"34")
        assert (counted, source.name) == ([2, 2], str(tmp_path / "file"))
        stopped.append(True)
        with pytest.raises(Stopped):
            source.read(1)


# --- directories


def test_files_come_in_the_order_of_their_names(tmp_path):
    names = ["a", "a.txt", "a0", "dir/x", "dir-1", "dir/sub/y", "dir/sub.z", "é"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    found = [leaf.name for leaf in walk(str(tmp_path), "p/")]
    assert found == sorted(f"p/{name}" for name in names)
    assert total_bytes(str(tmp_path)) == sum(len(name.encode()) for name in names)


def test_very_deep_directories(tmp_path):
    depth = 1200
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert list(walk(str(tmp_path))) == []
    # What removes the directories of tests goes down by recursion.
    for level in range(depth, 0, -1):
        os.rmdir(f"{tmp_path}{'/d' * level}")


def test_a_directory_that_cannot_be_read_is_a_leaf(tmp_path):
    (leaf,) = walk(str(tmp_path / "absent"))
    assert "No such file or directory" in leaf.problem and leaf.is_error


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "a/", "", ".", "a/../../b", "a\0b", "./a"])
def test_names_that_are_no_path(tmp_path, name):
    with pytest.raises(CommandError, match="no path"):
        path_of(str(tmp_path), name)


def test_links_do_not_lead_outside(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "way").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "own").symlink_to(tmp_path / "in")
    with pytest.raises(CommandError, match="outside"):
        path_of(str(tmp_path / "in"), "way/file")
    with pytest.raises(CommandError, match="outside"):
        path_of(str(tmp_path / "in"), "way/new/file")
    assert path_of(str(tmp_path / "in"), "own/file") and path_of(str(tmp_path / "in"), "new/sub/file")


# --- files


class Server:
    """One object in memory; tells what was asked for."""

    def __init__(self, data):
        self.data = data
        self.asked = []
        self.fail_at = None

    def fetch(self, name, ranges, reqid):
        self.asked.append(ranges)
        start = ranges[0][0] if ranges else 0
        checksum = hashlib.md5(self.data).hexdigest().upper()
        return {"length": str(len(self.data)), "id": "ID", "hash": checksum}, self._blocks(start)

    def _blocks(self, start):
        for position in range(start, len(self.data), 4):
            if self.fail_at is not None and position >= self.fail_at:
                raise Stopped("Interrupted")
            yield self.data[position : position + 4]


def download(server, resume):
    return Download(server.fetch, lambda: None, Progress("x", 0), resume)


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_is_whole_or_absent(tmp_path, resume):
    server = Server(b"0123456789")
    server.fail_at = 8
    target = tmp_path / "sub" / "file"
    with pytest.raises(Stopped):
        download(server, resume).save("o", str(target), "")
    left = [path.name for path in target.parent.iterdir()]
    assert left == ([os.path.basename(partial_path(str(target), "ID"))] if resume else [])
    server.fail_at = None
    server.asked.clear()
    download(server, resume).save("o", str(target), "")
    assert target.read_bytes() == server.data and len(list(target.parent.iterdir())) == 1
    assert server.asked[-1] == ([(8, None)] if resume else None)


def test_a_file_in_the_place_of_a_directory(tmp_path):
    server = Server(b"data")
    fetch = server.fetch

    def late(*args):
        (tmp_path / "p").write_bytes(b"saved by another thread")
        return fetch(*args)

    server.fetch = late
    with pytest.raises(NotADirectoryError, match=f"Not a directory: '{tmp_path}/p/x'"):
        download(server, False).save("p/x", str(tmp_path / "p" / "x"), "")


def test_what_hangs_is_deleted_when_nobody_waits_for_it(tmp_path):
    begun, released = threading.Event(), threading.Event()

    def hang(name, ranges, reqid):
        def blocks():
            yield b"begin"
            begun.set()
            assert released.wait(30)

        return {"length": "10", "id": "ID"}, blocks()

    hanging = Download(hang, lambda: None, Progress("x", 0), resume=False)

    def save():
        with contextlib.suppress(FileNotFoundError):
            hanging.save("o", str(tmp_path / "file"), "")

    thread = threading.Thread(target=save)
    thread.start()
    try:
        assert begun.wait(10) and len(list(tmp_path.iterdir())) == 1
        hanging.abandon()
        assert list(tmp_path.iterdir()) == []
    finally:
        released.set()
        thread.join(10)
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    download(Server(b"new"), False).save("o", str(tmp_path / "link"), "")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"


def test_two_downloads_of_the_same_do_not_mix(tmp_path):
    target = str(tmp_path / "file")
    with open(partial_path(target, "ID"), "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(CommandError, match="Somebody else"):
            download(Server(b"data"), True).save("o", target, "")


def test_what_is_too_long_is_begun_again(tmp_path):
    target = tmp_path / "file"
    with open(partial_path(str(target), "ID"), "wb") as file:
        file.write(b"far too long")
    download(Server(b"data"), True).save("o", str(target), "")
    assert target.read_bytes() == b"data"
