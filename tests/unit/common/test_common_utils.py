# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Small tools that programs import: one test for each promise."""

import fcntl
import grp
import hashlib
import io
import os
import pwd
import subprocess
import sys
import time

import pytest

from oio.common import utils
from oio.common.exceptions import OioException, ServiceBusy
from oio.common.utils import CacheDict, GeneratorIO, RingBuffer, depaginate

# --- identifiers ----------------------------------------------------------------------------------


def test_container_ids():
    assert utils.cid_from_name("é", "à/b") == hashlib.sha256("é\0à/b".encode()).hexdigest().upper()


def test_chunk_ids():
    texts = ("C" * 64, "a/é", 1600000000000000, "0.1", "EC")
    plain = "".join(map(str, texts)).encode()
    assert utils.compute_chunk_id(*texts) == hashlib.sha256(plain).hexdigest().upper()
    for name in ("md5", "sha512"):
        assert utils.compute_chunk_id(*texts, hash_algo=name) == hashlib.new(name, plain).hexdigest().upper()


def test_request_ids_hold_the_process_id_and_differ():
    made = {utils.request_id() for _ in range(1000)}
    assert len(made) == 1000 and {len(one) for one in made} == {32}
    assert all(one.startswith(f"{os.getpid():04X}") and int(one, 16) for one in made)
    assert {len(utils.request_id("x" * n)) for n in range(25)} == {32}


def test_children_make_other_request_ids():
    code = (
        "import os; from oio.common.utils import request_id\n"
        "r, w = os.pipe()\n"
        "child = os.fork()\n"
        "digits = len(f'{os.getpid():04X}')\n"
        "if not child: os.write(w, request_id().encode()); os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "assert os.read(r, 99)[digits:].decode() != request_id()[digits:]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- time -----------------------------------------------------------------------------------------


def test_deadlines():
    assert abs(utils.monotonic_time() - time.monotonic()) < 5
    assert utils.timeout_to_deadline(5, now=10) == 15
    assert 4 < utils.deadline_to_timeout(utils.timeout_to_deadline(5)) <= 5
    assert utils.deadline_to_timeout(utils.monotonic_time() - 3) < -2.9


def test_a_deadline_needs_a_read_timeout():
    kwargs = {}
    utils.set_deadline_from_read_timeout(kwargs)
    assert kwargs == {}
    kwargs = {"read_timeout": "2.5"}
    utils.set_deadline_from_read_timeout(kwargs)
    assert 2 < kwargs["deadline"] - utils.monotonic_time() <= 2.5
    kwargs = {"read_timeout": 1, "deadline": 7}
    utils.set_deadline_from_read_timeout(kwargs)
    assert kwargs["deadline"] == 7


# --- pages ----------------------------------------------------------------------------------------


def test_pages_of_any_shape():
    calls = []
    pages = [
        {"rows": [{"n": 1}, {"n": 2}], "next": "m2", "more": True},
        {"rows": [], "next": "m4", "more": True},
        {"rows": [{"n": 5}], "next": None, "more": False},
    ]

    def page(*args, **kwargs):
        calls.append((args, dict(kwargs)))
        return pages[len(calls) - 1]

    found = depaginate(
        page, lambda row: row["n"], lambda page: page["rows"], lambda page: page["next"],
        lambda page: page["more"], 1, "account", prefix="p",
    )  # fmt: skip
    assert list(found) == [1, 2, 5]
    assert calls == [
        (("account",), {"prefix": "p"}),
        (("account",), {"prefix": "p", "marker": "m2"}),
        (("account",), {"prefix": "p", "marker": "m4"}),
    ]


def test_a_page_is_tried_as_often_as_allowed():
    calls = []

    def busy(**_kwargs):
        calls.append(1)
        raise ServiceBusy()

    with pytest.raises(ServiceBusy):
        list(depaginate(busy, attempts=3))
    assert len(calls) == 3
    with pytest.raises(ServiceBusy):
        list(depaginate(busy))
    assert len(calls) == 4
    with pytest.raises(ValueError):
        list(depaginate(busy, attempts=0))


def test_other_errors_of_a_page_are_not_tried_again():
    calls = []

    def broken(**_kwargs):
        calls.append(1)
        raise OioException("x")

    with pytest.raises(OioException):
        list(depaginate(broken, attempts=3))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("given", "length", "expected"),
    [
        ([(0, 5), (8, 20), (20, 30), (None, 3), (None, 0), (9, None), (10, None)], 10,
         [(0, 5), (8, 9), (7, 9), (9, 9)]),
        ([(None, 50)], 10, [(0, 9)]),
        ([(0, None)], 0, []),
    ],
)  # fmt: skip
def test_ranges_are_clamped(given, length, expected):
    assert utils.fix_ranges(given, length) == expected


# --- streams --------------------------------------------------------------------------------------


def test_a_generator_is_read_across_items():
    stream = GeneratorIO(iter([b"abc", b"", "", b"de", b"fgh"]))
    assert isinstance(stream, io.RawIOBase) and stream.readable()
    assert [stream.read(2), stream.read(4), stream.read(), stream.read(9), stream.read(1), stream.read()] == [
        b"ab", b"cdef", b"gh", b"", b"", b""
    ]  # fmt: skip


@pytest.mark.parametrize("data", [b"abcdefgh", bytearray(b"abcdefgh"), [b"abc", b"defgh"], iter([b"abcdefgh"])])
def test_a_stream_is_iterated_in_blocks(data):
    assert list(GeneratorIO(data, iter_size=3)) == [b"abc", b"def", b"gh"]


def test_generators_of_generators():
    parts = ((bytes([65 + n]) * 2 for _ in range(2)) for n in range(2))
    assert GeneratorIO(parts, sub_generator=True).read(9) == b"AAAABBBB"


def test_a_stream_fills_a_buffer():
    buffer = bytearray(4)
    stream = GeneratorIO([b"abcde"])
    assert (stream.readinto(buffer), bytes(buffer), stream.readinto(buffer), stream.readinto(buffer)) == (
        4, b"abcd", 1, 0
    )  # fmt: skip
    assert io.BufferedReader(GeneratorIO([b"a\nb", b"\nc"])).readlines() == [b"a\n", b"b\n", b"c"]


# --- texts and collections ------------------------------------------------------------------------


def test_errors_of_chunks_are_grouped():
    pairs = [("c1", "e1"), ("c2", "e2"), ("c3", "e1")]
    assert utils.group_chunk_errors(iter(pairs)) == {"e1": ["c1", "c3"], "e2": ["c2"]}
    assert utils.group_chunk_errors([]) == {}


def test_percent_encoding():
    assert utils.quote("a/b é~") == "a/b%20%C3%A9~"
    assert utils.quote("a/b", "") == "a%2Fb" and utils.quote(12) == "12"
    assert utils.quote("\udcff") == "%3F"
    assert utils.quote(b"\xff") == "%EF%BF%BD" and utils.quote(b"\xc3\xa9") == "%C3%A9"


def test_texts_are_encoded_everywhere_but_in_keys():
    assert utils.encode({"k": ["é", {"n": "x"}], "i": 1}) == {"k": ["é".encode(), {"n": b"x"}], "i": 1}
    assert utils.encode("é", "latin-1") == b"\xe9" and utils.encode(b"x") == b"x" and utils.encode(None) is None


def test_keys_become_lower_case_in_place():
    headers = {"A-b": 1, "c": 2}
    assert utils.lower_dict_keys(headers) is None and headers == {"a-b": 1, "c": 2}


def test_a_cache_drops_its_oldest_entries():
    cache = CacheDict(2)
    for key in "abc":
        cache[key] = key
    assert list(cache) == ["b", "c"]
    cache["b"] = 1
    assert dict(cache) == {"b": 1, "c": "c"} and CacheDict().size == 262144


def test_a_ring_is_bounded():
    ring = RingBuffer()
    assert ring.size == 1
    ring.append("a")
    ring.append("b")
    assert list(ring) == ["b"] and len(ring) == 1
    ring = RingBuffer(3)
    for number in range(5):
        ring.append(number)
    assert list(ring) == [3, 4, 2] and ring.size == 3
    with pytest.raises(TypeError):
        del ring[1]


def test_measures():
    perfdata = {"rawx": {"download.http://a": 1.0, "download.http://b": 3.0, "connect.http://a": 9.0}}
    utils.compute_perfdata_stats(perfdata, "download.")
    rawx = perfdata["rawx"]
    assert (rawx["download.AVG"], rawx["download.SD"], rawx["download.RSD"]) == (2.0, 1.0, 0.5)
    assert "connect.AVG" not in rawx
    # What was computed before is no sample.
    utils.compute_perfdata_stats(perfdata, "download.")
    assert rawx["download.AVG"] == 2.0
    empty = {"rawx": {"overall": 1.0}}
    utils.compute_perfdata_stats(empty, "upload.")
    assert empty == {"rawx": {"overall": 1.0}}
    zero = {"rawx": {"upload.a": 0.0}}
    utils.compute_perfdata_stats(zero, "upload.")
    assert zero["rawx"]["upload.RSD"] == 0.0


def test_the_number_of_processors():
    assert isinstance(utils.CPU_COUNT, int) and utils.CPU_COUNT >= 1


# --- files and processes --------------------------------------------------------------------------


def test_every_file_below_a_directory(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("x", "a/y", "a/b/z"):
        (tmp_path / name).touch()
    assert sorted(utils.paths_gen(str(tmp_path))) == sorted(str(tmp_path / name) for name in ("x", "a/y", "a/b/z"))


def test_the_free_ratio_is_the_smaller_one(monkeypatch):
    class Info:
        """As of os.statvfs."""

        f_files, f_ffree, f_blocks, f_bavail = 100, 50, 100, 20

    monkeypatch.setattr(os, "statvfs", lambda _path: Info)
    assert utils.statfs("/") == 0.2
    Info.f_ffree = 10
    assert utils.statfs("/") == 0.1
    Info.f_files = 0
    assert utils.statfs("/") == 0.2


def test_descriptors():
    reader, writer = os.pipe()
    try:
        os.set_inheritable(reader, True)
        utils.set_fd_non_blocking(reader)
        utils.set_fd_close_on_exec(reader)
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
        assert fcntl.fcntl(reader, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    finally:
        os.close(reader)
        os.close(writer)


def in_child(code):
    """Run in another process; what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_becoming_somebody_else():
    nobody = pwd.getpwnam("nobody")
    code = (
        "import os; from oio.common.utils import drop_privileges; drop_privileges('nobody')\n"
        "print(os.getuid(), os.geteuid(), os.getgid(), os.environ['HOME'], os.getcwd(), oct(os.umask(0)))\n"
        "print(*os.getgroups())"
    )
    uid, euid, gid, home, cwd, umask, *groups = in_child(code)
    assert (int(uid), int(euid), int(gid)) == (nobody.pw_uid, nobody.pw_uid, nobody.pw_gid)
    assert (home, cwd, umask) == (nobody.pw_dir, "/", "0o22")
    assert sorted(map(int, groups)) == sorted(g.gr_gid for g in grp.getgrall() if "nobody" in g.gr_mem)


def test_becoming_oneself_is_always_allowed():
    me = pwd.getpwuid(os.getuid())
    code = (
        "import os; from oio.common.utils import drop_privileges\n"
        f"drop_privileges({me.pw_name!r}); print(os.getuid(), os.getcwd())"
    )
    assert in_child(code) == [str(me.pw_uid), "/"]


def test_a_switch_that_fails_is_told(monkeypatch):
    def refuse(_gid):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "setgid", refuse)
    with pytest.raises(OioException, match="Cannot switch to user root"):
        utils.drop_privileges("root")
    with pytest.raises(OioException, match="no-such-user does not exist"):
        utils.drop_privileges("no-such-user")
