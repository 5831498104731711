# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What a user sees of a transfer and of an error."""

import fcntl
import io
import itertools
import logging
import os
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest
from support import ROOT

from oio.cli.common import progress as progress_module
from oio.cli.common.errors import describe_error
from oio.cli.common.progress import MINIMUM_BYTES, Progress, countdown, counted
from oio.common.exceptions import (
    ClientException,
    CommandError,
    NoSuchObject,
    NotFound,
    OioNetworkException,
    ServiceBusy,
    ServiceUnavailable,
)


@pytest.fixture
def terminal(monkeypatch):
    """Puts a terminal of some columns on standard error; without columns, returns what it shows."""
    master, slave = os.openpty()
    stream = os.fdopen(slave, "w", encoding="utf-8")

    def shown(columns=None):
        if columns is not None:
            monkeypatch.setattr(sys, "stderr", stream)
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            return ""
        stream.write("END")
        stream.flush()
        text = b""
        while not text.endswith(b"END"):
            text += os.read(master, 65536)
        return text.decode()

    yield shown
    stream.close()
    os.close(master)


@pytest.mark.parametrize("columns", [0, 60, 200])
def test_a_long_transfer_shows_its_rate_and_the_time_left(terminal, columns):
    terminal(columns)
    with Progress("name", 10 * MINIMUM_BYTES) as progress:
        progress._bar.mininterval = 0
        progress.advance(5 * MINIMUM_BYTES)
    text = terminal()
    assert "name:  50%|" in text and "B/s]" in text
    assert "[00:00<00:0" in text or "[00:00<?" in text
    assert max(len(line) for line in text.split("\r")) <= (columns or 80)


def test_a_label_cannot_drive_the_terminal(terminal):
    terminal(80)
    with Progress("\x1b[2Jevil\r\n" + "x" * 300, 10 * MINIMUM_BYTES):
        text = terminal()
    assert "\x1b[2J" not in text and "…xxx" in text


def test_a_label_leaves_room_however_wide_its_characters_are(terminal):
    terminal(80)
    with Progress("漢" * 40, 10 * MINIMUM_BYTES):
        text = terminal()
    assert "…漢" in text and 10 < text.count("漢") < 20


def test_messages_have_lines_of_their_own(terminal):
    terminal(80)
    logger = logging.getLogger("test of messages beside a bar")
    logger.propagate = False
    console = logging.StreamHandler(sys.stderr)
    logger.addHandler(console)
    try:
        with Progress("name", 10 * MINIMUM_BYTES) as progress:
            logger.error("first")
            progress._bar.mininterval = 0
            progress.advance(5 * MINIMUM_BYTES)
            with progress.paused():
                progress.advance(MINIMUM_BYTES)
                sys.stderr.write("second\n")
            progress.advance(MINIMUM_BYTES)
        logger.error("third")
    finally:
        logger.removeHandler(console)
    lines = terminal().split("\r\n")
    # What stood before on the line was wiped.
    assert [line.rsplit("\r\x1b[K", 1)[1] for line in lines[:2]] == ["first", "second"]
    assert " 50%|" in lines[1] and " 60%|" not in "".join(lines) and " 70%|" in lines[2]
    assert lines[2].endswith("\r\x1b[Kthird")


def test_what_was_there_already_says_nothing_of_the_rate(terminal):
    terminal(80)
    with Progress("name", 10 * MINIMUM_BYTES) as progress:
        progress.skip(8 * MINIMUM_BYTES)
        progress._bar.start_t -= 1
        progress._bar.last_print_t -= 1
        progress.advance(MINIMUM_BYTES)
        shown = progress._bar.format_dict
        assert (shown["n"], shown["initial"]) == (9 * MINIMUM_BYTES, 8 * MINIMUM_BYTES)
        assert shown["rate"] < 2 * MINIMUM_BYTES
    assert " 90%|" in terminal()


def test_a_short_transfer_shows_nothing(terminal):
    terminal(80)
    with Progress("name", MINIMUM_BYTES - 1) as progress:
        progress.advance(MINIMUM_BYTES - 1)
    assert terminal() == "END"


def test_without_terminal_nothing_is_shown(capsys):
    with Progress("name", 10 * MINIMUM_BYTES) as progress:
        progress.advance(3)
        with progress.paused():
            progress.skip(3)
    assert capsys.readouterr().err == ""


# --- counts and countdowns


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(progress_module, "QUIET_S", 0.01)


def test_a_long_listing_is_counted_on_the_terminal(terminal, at_once, capsys):
    terminal(80)
    end = time.monotonic() + 0.3

    def rows():
        for number in itertools.count():
            yield from range(64)
            time.sleep(0.002)
            # However late it begins, the bar has had an occasion.
            if time.monotonic() > end and number > 20:
                return

    with counted(rows(), "objects", io.StringIO(), True) as found:
        assert sum(1 for _ in found) > 64
    text = terminal()
    assert "Listing" in text and " objects" in text
    assert capsys.readouterr().out == ""


def test_rows_that_scroll_on_the_terminal_are_not_counted(terminal, at_once):
    terminal(80)

    class Screen(io.StringIO):
        def isatty(self):
            return True

    rows = [1, 2]
    with counted(rows, "objects", Screen(), True) as found:
        assert found is rows
    assert terminal() == "END"


def test_what_is_left_is_counted_down(terminal, at_once):
    terminal(80)
    left = [1000]
    shown = threading.Event()

    def ask():
        left[0] -= 100
        if left[0] < 500:
            shown.set()
        return left[0]

    with countdown("Flushing", "objects", ask):
        assert shown.wait(10)
    text = terminal()
    assert "Flushing" in text and "objects/s" in text


def test_a_countdown_that_cannot_be_read_does_not_stop_the_work(terminal, at_once):
    terminal(80)
    asked = threading.Event()

    def ask():
        asked.set()
        raise ServiceUnavailable("no")

    with countdown("Flushing", "objects", ask):
        assert asked.wait(10)
    assert terminal() == "END"


# --- errors


def test_errors_tell_the_request_once():
    error = NotFound(404, 420, "Alias not found")
    error.reqid = "ID"
    text, hint = describe_error(error, "LAST").split(". Hint: ")
    assert text == "Alias not found (HTTP 404) (STATUS 420) (reqid=ID)" and "object list" in hint
    assert describe_error(ServiceUnavailable("no copy"), "LAST") == "no copy (reqid=LAST)"
    network = OioNetworkException("reqid=LAST, host=127.0.0.1:1", "refused")
    assert describe_error(network, "LAST").startswith("refused (reqid=LAST, host=127.0.0.1:1). Hint: is it up?")
    assert describe_error(CommandError("bad option"), "LAST") == "bad option"
    assert describe_error(ServiceUnavailable("no copy")) == "no copy"


HEAVY = ["cmd2", "eventlet", "prometheus_client", "pyeclib", "supervisor", "tqdm", "urllib3", "yaml"]


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("from oio.cli.openio import main\nmain(['--version'])", [*HEAVY, "oio.api", "oio.http", "msgspec"]),
        ("from oio.cli.openio import main\nmain(['object', 'list', '-h'])", [*HEAVY, "oio.api", "oio.http"]),
        ("import oio", [*HEAVY, "oio.api", "oio.common"]),
        ("import oio.cli.object, oio\noio.ObjectStorageApi('NS', endpoint='127.0.0.1:1')", HEAVY),
    ],
    ids=["version", "help of a command", "package", "api"],
)
def test_starting_loads_only_what_is_needed(code, unwanted):
    report = f"print([name for name in {unwanted!r} if name in sys.modules], file=sys.stderr)"
    script = f"import atexit, sys\natexit.register(lambda: {report})\n{code}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NoSuchObject("Object 'o' does not exist.", "Alias not found"), "'openio object list'"),
        (NotFound(404, 453, "Service type [x] not managed"), "'openio cluster list'"),
        (ServiceBusy(503, None, "busy"), "try again"),
        (ClientException(500, 480, "Storage policy [x] not supported"), "'openio cluster show'"),
    ],
)
def test_a_hint_tells_what_to_do(error, text):
    line = describe_error(error, "ID")
    assert " (reqid=ID). Hint: " in line and text in line and "\n" not in line


def test_an_error_is_one_line_that_cannot_drive_the_terminal():
    line = describe_error(ServiceUnavailable("first\nsecond\x1b[2J"))
    assert line == "first second\\x1b[2J"
    assert describe_error(NoSuchObject("Object 'o' does not exist.", "Alias not found")).startswith(
        "Object 'o' does not exist. Alias not found. Hint: "
    )
    assert describe_error(FileNotFoundError(2, "No such file or directory", "a\nb")) == (
        "No such file or directory: 'a\\nb'"
    )
