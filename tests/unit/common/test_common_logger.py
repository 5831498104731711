# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Loggers of services and programs: where records go, and in what form."""

import logging
import logging.handlers
import re
import socket
import sys

import pytest

from oio.common import logger as module
from oio.common.logger import StreamToLogger, get_logger, redirect_stdio

CLOSE_S = 10.0


@pytest.fixture(autouse=True)
def no_console(monkeypatch):
    """As in a process that has never written to a console."""
    monkeypatch.setattr(module, "_console_used", False)


@pytest.fixture
def name(request):
    """Name of a logger that no other test uses; its handlers are closed at the end."""
    name = f"test-{request.node.name}"
    yield name
    for handler in list(logging.getLogger(name).handlers):
        logging.getLogger(name).removeHandler(handler)
        handler.close()


@pytest.fixture
def syslog(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "log"))
        receiver.settimeout(CLOSE_S)
        yield receiver


def consoles(logger):
    return [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]


def test_the_logger_has_its_name_and_keeps_its_records(name):
    logger = get_logger({}, name)
    assert logger is logging.getLogger(name) and not logger.propagate and logger.level == logging.INFO
    assert get_logger(None).name == "log"


@pytest.mark.parametrize(
    ("conf", "priority"),
    [
        ({}, 16),
        ({"log_facility": "LOG_LOCAL5"}, 21),
        ({"log_facility": "LOG_DAEMON"}, 3),
        ({"log_facility": "?"}, 16),
    ],
)
def test_records_go_to_syslog(name, syslog, tmp_path, conf, priority):
    conf = {"log_address": str(tmp_path / "log"), "syslog_prefix": "OIO,NS,x,1", **conf}
    get_logger(conf, name).warning("hello %s", "you")
    line = syslog.recv(65536).decode().rstrip("\0")
    expected = rf"<{priority * 8 + 4}>OIO,NS,x,1: \d+ [0-9A-F]+ {re.escape(name)} WARNING hello you"
    assert re.fullmatch(expected, line)


def test_the_format_can_be_given(name, syslog, tmp_path):
    get_logger({"log_address": str(tmp_path / "log")}, name, fmt="%(message)s!").info("m")
    assert syslog.recv(65536).rstrip(b"\0").endswith(b">m!")


def test_records_go_to_a_host(name):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(CLOSE_S)
        get_logger({"log_udp_host": "127.0.0.1", "log_udp_port": str(receiver.getsockname()[1])}, name).info("far")
        assert b"far" in receiver.recv(65536)


def test_without_the_local_socket_the_default_of_the_platform_is_taken(name, tmp_path):
    (handler,) = get_logger({"log_address": str(tmp_path / "absent")}, name).handlers
    assert isinstance(handler, logging.handlers.SysLogHandler) and handler.address == ("localhost", 514)
    get_logger({"log_address": str(tmp_path / "absent")}, name).info("nobody listens")


@pytest.mark.parametrize(
    ("conf", "verbose", "console"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"is_cli": True}, False, True),
        ({"log_level": "DEBUG"}, False, True),
        ({"log_level": "WARN"}, False, False),
    ],
)
def test_the_console_is_for_those_who_ask(name, capsys, conf, verbose, console):
    logger = get_logger(conf, name, verbose=verbose)
    assert len(consoles(logger)) == console
    logger.error("hello")
    expected = rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{{3}} \d+ [0-9A-F]+ {re.escape(name)} ERROR hello\n"
    assert re.fullmatch(expected if console else "", capsys.readouterr().err)


def test_once_there_was_a_console_all_loggers_have_one(name):
    assert not consoles(get_logger({}, name))
    get_logger({}, name + "-first", verbose=True)
    assert consoles(get_logger({}, name))


def test_handlers_are_not_doubled_and_foreign_ones_are_kept(name):
    foreign = logging.NullHandler()
    logging.getLogger(name).addHandler(foreign)
    for _ in range(3):
        logger = get_logger({}, name, verbose=True)
    assert foreign in logger.handlers and len(consoles(logger)) == 1 and len(logger.handlers) == 3


@pytest.mark.parametrize(("text", "level"), [("warning", 30), ("ERROR", 40), ("nonsense", 20), ("", 20)])
def test_the_level(name, text, level):
    assert get_logger({"log_level": text}, name).level == level


# --- standard output ------------------------------------------------------------------------------


class Kept(logging.Handler):
    """Keeps messages."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


@pytest.fixture
def kept(name):
    logger = logging.getLogger(name)
    logger.propagate = False
    handler = Kept()
    logger.addHandler(handler)
    return logger, handler.messages


def test_a_stream_writes_to_the_log(kept):
    logger, messages = kept
    stream = StreamToLogger(logger)
    assert stream.write("a line\n") == 7
    stream.write("\n")
    StreamToLogger(logger, "STDERR").writelines(["a", "b"])
    stream.flush()
    stream.close()
    print("printed", file=stream)
    assert messages == ["STDOUT: a line", "STDERR: a#012b", "STDOUT: printed"] and not stream.isatty()


def test_a_logger_that_fails_does_not_answer_itself(kept, monkeypatch):
    logger, messages = kept
    monkeypatch.setattr(sys, "stderr", StreamToLogger(logger, "STDERR"))

    class Broken(logging.Handler):
        """Complains on standard error."""

        def emit(self, _record):
            print("cannot write", file=sys.stderr)

    logger.addHandler(Broken())
    logger.error("hello")
    assert messages == ["hello", "STDERR: cannot write"]


def test_standard_files_and_uncaught_exceptions_go_to_the_log(kept, monkeypatch):
    logger, messages = kept
    for file in ("stdout", "stderr"):
        monkeypatch.setattr(sys, file, getattr(sys, file))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    redirect_stdio(logger)
    print("to stdout")
    print("to stderr", file=sys.stderr)
    sys.excepthook(ValueError, ValueError("x"), None)
    assert messages == ["STDOUT: to stdout", "STDERR: to stderr", "uncaught exception"]
