# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio object create`` and ``openio object save`` on directories, and what Ctrl-C leaves of transfers."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
from cli_program import OpenioProgram
from support import ACCOUNT, eventually

from oio.cli.common.download import partial_path


@pytest.fixture
def openio(cluster, tmp_path):
    return OpenioProgram(cluster, tmp_path)


@pytest.fixture
def tree(tmp_path):
    """Files of a directory, by name."""
    files = {
        "one": b"1", "sub.txt": b"text", "sub/two": b"22", "sub/deep/three": b"333", "é": b"accent",
        "big": os.urandom(3 * 2**20 + 7), "empty": b"",
    }  # fmt: skip
    for name, data in files.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "tree" / "nothing here").mkdir()
    return files


def content(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def statuses(rows):
    return {row["Name"]: row["Status"] for row in rows}


def test_a_directory_goes_in_and_comes_out(openio, container, tree, tmp_path):
    rows = openio.json("object", "create", container, "tree", "--recursive")
    assert [row["Name"] for row in rows] == sorted(tree, key=str.encode)
    assert set(statuses(rows).values()) == {"Ok"}
    openio.silent("object", "save", container, "--recursive", "--file", "copy")
    assert content(tmp_path / "copy") == tree
    openio("object", "create", container, "tree", "-r", "--prefix", "photos/2026/", "--concurrency", "2")
    openio.silent("object", "save", container, "photos/2026/su", "-r", "--file", "part")
    assert set(content(tmp_path / "part")) == {"sub.txt", "sub/two", "sub/deep/three"}
    listed = openio.json("object", "list", container, "--prefix", "photos/")
    assert len(listed) == len(tree)


def test_what_is_there_already_is_skipped(openio, container, tree, tmp_path):
    openio("object", "create", container, "tree", "-r")
    (tmp_path / "tree" / "one").write_bytes(b"2")
    (tmp_path / "tree" / "more").write_bytes(b"new")
    found = statuses(openio.json("object", "create", container, "tree", "-r", "--resume"))
    assert {name for name, status in found.items() if status == "Ok"} == {"one", "more"}
    assert set(found.values()) == {"Ok", "Skipped"}
    openio("object", "save", container, "-r", "--file", "copy")
    old = (tmp_path / "copy" / "big").stat()
    (tmp_path / "copy" / "one").write_bytes(b"3")
    openio.silent("object", "save", container, "-r", "--file", "copy", "--resume")
    assert (tmp_path / "copy" / "one").read_bytes() == b"2"
    new = (tmp_path / "copy" / "big").stat()
    assert (new.st_ino, new.st_mtime_ns) == (old.st_ino, old.st_mtime_ns)


def test_what_is_no_file_is_told(openio, container, tmp_path):
    top = tmp_path / "odd"
    top.mkdir()
    (top / "file").write_bytes(b"x")
    (top / "link").symlink_to("file")
    (top / "loop").symlink_to(".")
    (top / "lost").symlink_to("nowhere")
    os.mkfifo(top / "pipe")
    (tmp_path / "odd" / os.fsdecode(b"not utf-8 \xff")).write_bytes(b"x")
    words = ("object", "create", container, "odd", "-r")
    done = openio(*words, "-f", "value", "-c", "Name", "-c", "Status", status=1)
    found = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert found == {
        "file": "Ok", "link": "Ok", "loop": "Skipped", "lost": "Failed", "pipe": "Failed",
        "not utf-8 \udcff": "Failed",
    }  # fmt: skip
    assert "not followed" in done.stderr and "Neither a file nor a directory" in done.stderr
    assert [row["Name"] for row in openio.json("object", "list", container)] == ["file", "link"]


def test_objects_stay_below_the_directory(openio, api, container, tmp_path):
    for name in ("../up", "/abs", "ok", "way/out", "folder/", "a/../b"):
        data = b"" if name.endswith("/") else b"x"
        api.object_create(ACCOUNT, container, data=data, obj_name=name)
    (tmp_path / "copy").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "copy" / "way").symlink_to(tmp_path / "elsewhere")
    done = openio("object", "save", container, "-r", "--file", "copy", status=1)
    assert "4 of 6 objects could not be saved" in done.stderr
    assert (tmp_path / "copy" / "ok").read_bytes() == b"x" and (tmp_path / "copy" / "folder").is_dir()
    assert not (tmp_path / "up").exists() and list((tmp_path / "elsewhere").iterdir()) == []


def test_what_does_not_go_together_is_told(openio, container, tree):
    for words, text in (
        (["create", container, "tree", "-r", "--name", "x"], "--name does not go with --recursive"),
        (["create", container, "tree", "--prefix", "x"], "--prefix goes with --recursive"),
        (["create", container, "tree", "-r", "--concurrency", "0"], "--concurrency wants a positive number"),
        (["save", "-r", "--auto", "x"], "--recursive goes neither with --auto"),
        (["save", container, "-r", "--concurrency", "-1"], "--concurrency wants a positive number"),
    ):
        assert text in openio.error("object", *words)
    assert "does not exist" in openio.error("object", "save", container + "-absent", "-r")


def test_pipes(openio, container, tmp_path):
    (row,) = openio.json("object", "create", container, "-", "--name", "piped", input="from a pipe\n")
    assert (row["Size"], row["Status"]) == (12, "Ok")
    assert openio("object", "save", container, "piped", "--file", "-").stdout == "from a pipe\n"
    with open(tmp_path / "log", "ab") as log:
        log.write(b"before ")
        log.flush()
        words = ("object", "save", container, "piped", "--file", "/dev/stdout")
        assert openio.start(*words, stdout=log).wait(60) == 0
    assert (tmp_path / "log").read_bytes() == b"before from a pipe\n"
    assert "needs a --name" in openio.error("object", "create", container, "-", input="")
    assert "needs a --name" in openio.error("object", "create", container, "log", "-", "--name", "x")


def interrupted(process, condition, number=signal.SIGINT):
    """Ctrl-C (or another signal) once a condition holds; gives the exit code and what was written."""
    eventually(lambda: condition() or process.poll() is not None)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out.decode(), err.decode()


def chunks(cluster):
    """Files of the volumes of the cluster, those being written too."""
    return {path for path in Path(cluster.home).rglob("*-rawx-*/[!.]*/*") if path.is_file()}


def test_an_interrupted_upload_leaves_nothing(openio, cluster, container, tmp_path):
    os.mkfifo(tmp_path / "endless")
    stop = threading.Event()

    def feed():
        try:
            with open(tmp_path / "endless", "wb", buffering=0) as pipe:
                while not stop.is_set():
                    pipe.write(bytes(65536))
        except BrokenPipeError:
            return

    feeder = threading.Thread(target=feed)
    feeder.start()
    before = chunks(cluster)
    process = openio.start("object", "create", container, "endless", "-f", "value")
    code, out, err = interrupted(process, lambda: len(chunks(cluster) - before) > 3)
    stop.set()
    feeder.join(30)
    assert (code, out) == (1, "endless 0 None Interrupted\n")
    assert "Traceback" not in err
    assert openio.json("object", "list", container) == []
    eventually(lambda: chunks(cluster) <= before, what="no chunk of the upload is left")


def test_an_upload_that_waits_for_its_source_is_interrupted(openio, container, tmp_path):
    process = openio.start("object", "create", container, "-", "--name", "x", "-f", "value", stdin=subprocess.PIPE)
    process.stdin.write(b"begin")
    process.stdin.flush()
    queue = process.stdin.fileno()

    def is_read():
        return not int.from_bytes(fcntl.ioctl(queue, termios.FIONREAD, bytes(4)), sys.byteorder)

    eventually(is_read, what="the beginning is read")
    process.send_signal(signal.SIGINT)
    assert process.stdout.read() == b"x 0 None Interrupted\n"
    assert process.wait(30) == 1
    process.stdin.close()
    process.stderr.close()
    assert openio.json("object", "list", container) == []


@pytest.mark.parametrize(("resume", "number"), [(False, signal.SIGTERM), (True, signal.SIGINT)])
def test_an_interrupted_download_leaves_no_file(openio, api, container, tmp_path, resume, number):
    data = os.urandom(2**20) * 64
    api.object_create(ACCOUNT, container, data=data, obj_name="large")
    words = ["object", "save", container, "large", "--file", "dir/copy", *(["--resume"] if resume else [])]
    directory = tmp_path / "dir"

    def begun():
        found = list(directory.glob(".openio-*.part")) if directory.exists() else []
        return found and found[0].stat().st_size

    process = openio.start(*words)
    code, out, _err = interrupted(process, begun, number)
    left = [path.name for path in directory.iterdir()]
    assert code in (0, 128 + number), "it may be over before"
    if code:
        assert out == "" and "copy" not in left and len(left) == int(resume)
    openio.silent(*words)
    assert (directory / "copy").read_bytes() == data
    assert [path.name for path in directory.iterdir()] == ["copy"]


def test_a_damaged_beginning_is_not_kept(openio, api, container, tmp_path):
    api.object_create(ACCOUNT, container, data=b"0123456789", obj_name="o")
    content_id = api.object_get_properties(ACCOUNT, container, "o")["id"]
    openio("object", "save", container, "o", "--resume")
    (tmp_path / "o").unlink()
    partial = partial_path(str(tmp_path / "o"), content_id)
    for begin, fine in ((b"0123", True), (b"abcd", False)):
        with open(partial, "wb") as file:
            file.write(begin)
        if fine:
            openio.silent("object", "save", container, "o", "--resume")
            assert (tmp_path / "o").read_bytes() == b"0123456789"
            (tmp_path / "o").unlink()
        else:
            assert "is damaged: start again" in openio.error("object", "save", container, "o", "--resume")
            assert list(tmp_path.iterdir()) == []
