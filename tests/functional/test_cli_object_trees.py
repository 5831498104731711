# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio object create`` and ``openio object save`` on directories, and what Ctrl-C leaves of transfers."""

import contextlib
import fcntl
import os
import re
import shlex
import signal
import struct
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


def is_stopped(pid):
    """Does a process stand still?"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def interrupted(process, condition):
    """Ctrl-C once a condition holds; gives the exit code and what was written."""
    eventually(lambda: condition() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out.decode(), err.decode()


def chunks(cluster):
    """Files of the volumes of the cluster, those being written too."""
    volumes = [Path(service.volume) for service in cluster.services("rawx")]
    return {path for volume in volumes for path in volume.glob("[!.]*/*") if path.is_file()}


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
    assert (code, out, err) == (130, "endless 0 None Interrupted\n", "Interrupted\n")
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
    assert process.wait(30) == 130
    process.stdin.close()
    process.stderr.close()
    assert openio.json("object", "list", container) == []


@pytest.mark.parametrize(("resume", "number"), [(False, signal.SIGTERM), (True, signal.SIGINT)])
def test_an_interrupted_download_leaves_no_file(openio, api, container, tmp_path, resume, number):
    data = os.urandom(2**20) * 64
    api.object_create(ACCOUNT, container, data=data, obj_name="large")
    words = ["object", "save", container, "large", "--file", "dir/copy", *(["--resume"] if resume else [])]
    directory = tmp_path / "dir"

    def sizes():
        """What there is of the download."""
        with contextlib.suppress(FileNotFoundError):
            return {path.name: path.stat().st_size for path in directory.iterdir()}
        return {}

    process = openio.start(*words)
    eventually(lambda: any(sizes().values()) or process.poll() is not None, what="the beginning")
    # It stands still, or is over, so that what is there now is what there is when it is interrupted.
    process.send_signal(signal.SIGSTOP)
    eventually(lambda: process.poll() is not None or is_stopped(process.pid), what="the pause")
    begun = "copy" not in sizes()
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    out, _err = process.communicate(timeout=60)
    assert process.returncode == 128 + number or (not begun and process.returncode == 0)
    if begun:
        assert out == b"" and "copy" not in sizes() and len(sizes()) == int(resume)
    else:
        assert list(sizes()) == ["copy"]
    openio.silent(*words)
    assert (directory / "copy").read_bytes() == data
    assert [path.name for path in directory.iterdir()] == ["copy"]


def test_a_batch_ends_where_it_is_interrupted(openio, container, tmp_path):
    os.mkfifo(tmp_path / "silent")
    lines = f"object create {container} silent\nobject create {container} /etc/hostname\n"
    process = openio.start(stdin=subprocess.PIPE)
    process.stdin.write(lines.encode())
    process.stdin.close()
    # It has begun once the pipe has a reader.
    pipe = os.open(tmp_path / "silent", os.O_WRONLY)
    process.send_signal(signal.SIGINT)
    assert process.stderr.read() == b"Interrupted\n"
    assert process.wait(30) == 130 and b"hostname" not in process.stdout.read()
    process.stdout.close()
    process.stderr.close()
    os.close(pipe)


def drawn(openio, *words, until=None):
    """Run it on a terminal, output included; gives the exit code, the text, and what lines show at the end.

    :param words: those of the command, or one line of shell.
    :param until: Ctrl-C is typed once this pattern stands on the terminal.
    """
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))

    def take_terminal():
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    options = {"stdin": slave, "stdout": slave, "stderr": slave, "preexec_fn": take_terminal}
    if len(words) == 1:
        process = subprocess.Popen(words, shell=True, cwd=openio.directory, env=openio.environment, **options)
    else:
        process = openio.start(*words, **options)
    os.close(slave)
    text = b""
    with open(master, "r+b", buffering=0) as terminal:
        try:
            while block := terminal.read(65536):
                text += block
                if until is not None and re.search(until, text):
                    until = None
                    terminal.write(b"\x03")
        except OSError:
            # The last one who had the other end is gone.
            text += b""
    return process.wait(30), text.decode(), [visible(line) for line in text.decode().split("\r\n")]


def visible(line):
    """What a terminal shows of a line that was written over."""
    cells = []
    # The bar is wiped where the line begins.
    for part in line.rsplit("\r\x1b[K", 1)[-1].split("\r"):
        cells[: len(part)] = part
    return "".join(cells).rstrip()


@pytest.fixture
def large(tmp_path):
    (tmp_path / "large").mkdir()
    for name in "abc":
        (tmp_path / "large" / name).write_bytes(os.urandom(2**20) * 24)
    return tmp_path / "large"


@pytest.mark.parametrize("form", ["value", "csv", "table", "json"])
def test_what_is_drawn_beside_rows(openio, container, large, form):
    code, raw, lines = drawn(openio, "object", "create", container, "large", "-r", "-f", form)
    assert code == 0 and "B/s]" in raw and "Uploading" in raw
    assert "B/s" not in "".join(lines)
    rows = [line for line in lines if "Ok" in line]
    assert len(rows) == 3
    if form == "value":
        assert all(re.fullmatch(r"[abc] 25165824 [0-9A-F]{32} Ok", line) for line in lines[:3])


def test_what_is_drawn_beside_messages(openio, container, large):
    (large / "aa").symlink_to("nowhere")
    code, raw, lines = drawn(openio, "object", "create", container, "large", "-r", "--concurrency", "1")
    assert code == 1 and "B/s]" in raw
    assert lines[0].startswith("aa: Link that leads nowhere")


def test_what_is_drawn_beside_content(openio, api, container, large):
    api.object_create(ACCOUNT, container, data=b"text\n" * 2**21, obj_name="o")
    code, raw, lines = drawn(openio, "object", "save", container, "o", "--file", "-")
    assert (code, "B/s" in raw) == (0, False) and set(lines) == {"text", ""}
    code, raw, lines = drawn(openio, "object", "save", container, "o")
    assert (code, "B/s" in raw, lines) == (0, True, [""])


@pytest.mark.parametrize("form", ["pipe", "file"])
def test_what_is_drawn_of_standard_input(openio, container, large, form):
    source = {"pipe": "cat large/a |", "file": "< large/a"}[form]
    program = f"{sys.executable} -m oio.cli.openio object create {shlex.quote(container)} - --name piped"
    command = f"{source} {program} -f value" if form == "pipe" else f"{program} -f value {source}"
    code, raw, lines = drawn(openio, command)
    assert code == 0 and "piped: " in raw and "B/s]" in raw and ("%|" in raw) == (form == "file")
    assert lines[0].startswith("piped 25165824 ")


def test_what_is_drawn_when_a_transfer_is_interrupted(openio, container, large):
    (large / "d").write_bytes(b"")
    os.truncate(large / "d", 2**31)
    code, _raw, lines = drawn(openio, "object", "create", container, "large/d", until=rb" [1-9][0-9]?%\|")
    shown = [line for line in lines if line]
    assert code == 130 and "^C" not in "".join(shown)
    assert "WARNING" not in "".join(lines) and shown[-1] == "Interrupted"
    assert openio("object", "list", container, "-f", "value", status=0).stdout == ""


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


@pytest.mark.parametrize(
    ("closed", "words"),
    [("<&-", "create {} - --name x -f value"), (">&-", "save {} o --file -")],
    ids=["input", "output"],
)
def test_streams_that_are_closed_are_told(openio, api, container, closed, words):
    api.object_create(ACCOUNT, container, data=b"x", obj_name="o")
    command = f"exec {sys.executable} -m oio.cli.openio object {words.format(shlex.quote(container))} {closed}"
    done = subprocess.run(
        ["bash", "-c", command], env=openio.environment, cwd=openio.directory, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "Bad file descriptor: 'standard " in done.stderr, done.stderr
    assert [row["Name"] for row in openio.json("object", "list", container)] == ["o"]


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("folder", "Is a directory: 'folder'"), ("new/", "Is a directory: 'new/'"),
        ("file/x", "Not a directory: 'file/x'"), ("y" * 300, "File name too long: 'yyy"),
        ("/dev/full", "No space left on device: '/dev/full'"), ("", "--file wants a name"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_targets_that_cannot_be_written(openio, api, container, tmp_path, target, text, resume):
    api.object_create(ACCOUNT, container, data=b"x", obj_name="o")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"kept")
    assert text in openio.error("object", "save", container, "o", "--file", target, *resume)
    assert {path.name for path in tmp_path.rglob("*")} == {"folder", "file"}
    assert (tmp_path / "file").read_bytes() == b"kept"


@pytest.mark.parametrize("resume", [False, True])
def test_a_disk_that_is_too_small_for_a_download(openio, api, container, tmp_path, resume):
    api.object_create(ACCOUNT, container, data=bytes(3 * 2**20), obj_name="o")
    api.object_create(ACCOUNT, container, data=b"small", obj_name="small")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted")
    try:
        options = ["--resume"] if resume else []
        line = openio.error("object", "save", container, "o", "--file", "disk/copy", *options)
        assert line == "No space left on device: 'disk/copy'"
        assert len(list(disk.iterdir())) == int(resume)
        if not resume:
            words = ("object", "save", container, "-r", "--file", "disk", "--concurrency", "1")
            lines = openio(*words, status=1).stderr.splitlines()
            assert lines == ["No space left on device: 'disk/o'", "1 of 2 objects could not be saved"]
            assert [path.name for path in disk.iterdir()] == ["small"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_tracebacks_of_rows_are_for_those_who_debug(openio, container):
    words = ("object", "create", container, "absent")
    assert "Traceback" not in openio(*words, status=1).stderr
    process = openio.start(*words, "--debug")
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and b"FileNotFoundError: [Errno 2]" in err
