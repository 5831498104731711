# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The chunk server as a process: what the kernel is told and in which order, kill -9."""

import hashlib
import re
import signal
import threading

import pytest
from processes import CHUNK, can_trace, tracer, whole_calls
from support import eventually

# -- order of the system calls -----------------------------------------------------------------

TRACED = "openat,write,fsetxattr,fsync,fdatasync,renameat2,rename,unlink,sendto,mkdir,close"

def events_of(trace, volume):
    """(call, what) for the calls that touch the volume or answer, descriptors replaced by paths."""
    names = {}
    found = []
    for line in whole_calls(trace):
        match = re.match(r"(?:\d+\s+)?(\w+)\((.*)\)\s+= (-?\d+)", line)
        if match is None or match[3].startswith("-"):
            continue
        call, arguments, result = match.groups()
        path = re.search(r'"([^"]*)"', arguments)
        if call == "openat":
            # The search for left-overs after the start reads directories too (opendir), at its own pace.
            if path[1].startswith(str(volume)) and "O_NONBLOCK" not in arguments:
                names[result] = path[1]
                found.append(("create" if "O_CREAT" in arguments else "open", path[1]))
            else:
                names.pop(result, None)
        elif call in ("write", "fsetxattr", "fsync", "fdatasync"):
            if target := names.get(arguments.split(",")[0]):
                found.append((call, target))
        elif call == "close":
            names.pop(arguments, None)
        elif call == "sendto" and '"HTTP/1.1 ' in arguments:
            found.append(("answer", path[1].split()[1]))
        elif call in ("renameat2", "rename", "unlink", "mkdir") and path[1].startswith(str(volume)):
            found.append((call, path[1]))
    return found


@pytest.mark.skipif(not can_trace(), reason="strace is missing, or ptrace is not allowed")
def test_what_reaches_the_disk_before_the_answer(tmp_path, start_rawx):
    trace = tmp_path / "trace"
    # One thread at a time: calls of two would be torn in the trace.
    service = start_rawx(wrapper=tracer(trace, TRACED), options="prepare_directories off\n")
    try:
        assert service.call("PUT", CHUNK, b"0123456789")[0] == 201
        assert service.call("DELETE", CHUNK)[0] == 204
    finally:
        service.terminate()
    directory = f"{service.volume}/{CHUNK[:3]}"
    pending = f"{directory}/{CHUNK}.pending"
    calls = events_of(trace, service.volume)
    begin = calls.index(("create", pending))
    answered = calls.index(("answer", "201"))
    # The new directory is made durable at any moment between its creation and the answer.
    made = calls.index(("mkdir", directory))
    of_the_volume = [("open", str(service.volume)), ("fsync", str(service.volume))]
    assert [call for call in calls[made:answered] if call in of_the_volume] == of_the_volume
    steps = []
    for step in calls[begin : answered + 1]:
        if step not in of_the_volume and step not in steps[-1:]:
            steps.append(step)
    assert steps == [
        ("create", pending),
        ("write", pending),
        ("fsetxattr", pending),
        ("fsync", pending),
        ("renameat2", pending),
        ("open", directory),
        ("fsync", directory),
        ("answer", "201"),
    ]
    assert made < begin
    after = calls[calls.index(("unlink", f"{directory}/{CHUNK}")) :]
    assert after[:4] == [
        ("unlink", f"{directory}/{CHUNK}"),
        ("open", directory),
        ("fsync", directory),
        ("answer", "204"),
    ]


# -- kill -9 -----------------------------------------------------------------------------------


def test_kill_during_uploads(start_rawx):
    """Whatever the moment, what stands under a final name is whole, and what was acknowledged is there."""
    service = start_rawx()
    acknowledged, sent = [], {}
    stop = threading.Event()

    def upload(worker):
        number = 0
        while not stop.is_set():
            chunk_id = hashlib.sha256(f"{worker}/{number}".encode()).hexdigest().upper()
            data = hashlib.sha256(chunk_id.encode()).digest() * (1 + 4000 * (number % 7))
            sent[chunk_id] = data
            number += 1
            try:
                if service.call("PUT", chunk_id, data)[0] == 201:
                    acknowledged.append(chunk_id)
            except (OSError, IndexError):
                return

    threads = [threading.Thread(target=upload, args=(worker,)) for worker in range(4)]
    half = service.connect()
    half.sendall(service.head("PUT", CHUNK, "Content-Length: 1000000\r\n") + b"x" * 300000)
    eventually(lambda: f"{CHUNK}.pending" in service.files(), what="the upload that will not end begins")
    for thread in threads:
        thread.start()
    eventually(lambda: len(acknowledged) >= 60, what="some answers")
    service.popen.send_signal(signal.SIGKILL)
    service.popen.wait()
    stop.set()
    for thread in threads:
        thread.join()
    half.close()
    assert CHUNK + ".pending" in service.files()
    again = start_rawx(volume=service.volume)
    finals = {name for name in again.files() if not name.endswith(".pending")}
    assert set(acknowledged) <= finals
    assert CHUNK not in finals
    for name in finals:
        assert again.call("GET", name) == (200, sent[name])
    eventually(lambda: set(again.files()) == finals, what="the leftovers swept")
    assert again.call("PUT", CHUNK, b"retry")[0] == 201


def test_two_processes_never_serve_one_volume(tmp_path, start_rawx):
    service = start_rawx()
    with pytest.raises(AssertionError, match="another process"):
        start_rawx(volume=service.volume)
    assert service.call("PUT", CHUNK, b"x")[0] == 201


def test_sigterm_lets_running_requests_end(start_rawx):
    service = start_rawx()
    with service.connect() as sock:
        sock.sendall(service.head("PUT", CHUNK, "Content-Length: 4\r\n") + b"ab")
        eventually(lambda: f"{CHUNK}.pending" in service.files(), what="the upload begins")
        service.popen.terminate()
        threading.Event().wait(0.1)
        sock.sendall(b"cd")
        assert sock.recv(65536).startswith(b"HTTP/1.1 201 ")
    assert service.popen.wait(15) == 0
    assert service.files() == [CHUNK]
