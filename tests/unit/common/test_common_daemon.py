# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Daemons: user, standard files, signals, configuration."""

import os
import pwd
import signal
import subprocess
import sys

import pytest
from support import ROOT

from oio.common.daemon import Daemon, run_daemon, section_of
from oio.common.exceptions import OioException

ME = pwd.getpwuid(os.getuid())
PROGRAM = """
import os, signal, sys, time
from oio.common.daemon import Daemon, run_daemon

class BlobIndexer(Daemon):
    def run(self, ready=None, fail=False, stop_fails=False):
        self.stop_fails = stop_fails
        print(f"hello from {os.getcwd()} {os.environ['HOME']}")
        os.write(1, b"lost")
        if fail:
            raise ValueError("no luck")
        if ready:
            self.child = os.fork()
            if not self.child:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.kill(os.getppid(), signal.SIGUSR1)
                time.sleep(60)
                os._exit(0)
            signal.sigwait([signal.SIGUSR1])
            self.logger.info("ready")
            signal.pause()
    def stop(self):
        _pid, status = os.waitpid(self.child, 0)
        self.logger.info("child ended by %d", status)
        if self.stop_fails:
            raise ValueError("cannot stop")

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
"""


def start(tmp_path, call, conf=None):
    """Run a daemon in a process group of its own; its log is its standard error."""
    path = tmp_path / "daemon.conf"
    path.write_text(conf or f"[blob-indexer]\nuser = {ME.pw_name}\nlog_address = {tmp_path}/no-syslog\n")
    code = PROGRAM + f"run_daemon(BlobIndexer, {str(path)!r}, {call})\n"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_standard_output_goes_to_the_log(tmp_path):
    daemon = start(tmp_path, "verbose=True")
    out, err = daemon.communicate(timeout=30)
    assert daemon.returncode == 0 and out == ""
    assert f"log ERROR STDOUT: hello from / {ME.pw_dir}" in err
    assert "blob-indexer INFO blob-indexer is done" in err


def test_nothing_is_left_of_the_terminal(tmp_path):
    daemon = start(tmp_path, "")
    assert daemon.communicate(timeout=30) == ("", "") and daemon.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_stops_the_whole_group(tmp_path, number):
    daemon = start(tmp_path, "verbose=True, ready=True")
    try:
        # The lines end when the daemon does.
        assert any("INFO ready" in line for line in daemon.stderr)
        daemon.send_signal(number)
        _out, err = daemon.communicate(timeout=30)
    finally:
        daemon.kill()
    assert daemon.returncode == 0
    assert f"Stopped by {number.name}" in err and f"child ended by {signal.SIGTERM:d}" in err


def test_a_stop_that_fails_is_logged_and_the_code_tells(tmp_path):
    daemon = start(tmp_path, "verbose=True, ready=True, stop_fails=True")
    try:
        assert any("INFO ready" in line for line in daemon.stderr)
        daemon.terminate()
        _out, err = daemon.communicate(timeout=30)
    finally:
        daemon.kill()
    assert daemon.returncode == 1 and "ValueError: cannot stop" in err


def test_a_failure_is_logged_and_the_code_tells(tmp_path):
    daemon = start(tmp_path, "verbose=True, fail=True")
    _out, err = daemon.communicate(timeout=30)
    assert daemon.returncode == 1
    assert "blob-indexer failed" in err and "ValueError: no luck" in err


@pytest.mark.parametrize(("conf", "message"), [("[other]\n", "blob-indexer")])
def test_a_missing_section_is_said_on_standard_output(tmp_path, conf, message):
    daemon = start(tmp_path, "", conf)
    out, _err = daemon.communicate(timeout=30)
    assert daemon.returncode == 1 and message in out


class Recorded(Daemon):
    """Remembers what it was given, without leaving the test's terminal."""

    seen: list = []

    def start(self, **kwargs):
        self.seen.append((dict(self.conf), kwargs))


def test_the_section_can_be_named_and_arguments_reach_run(tmp_path):
    path = tmp_path / "conf"
    path.write_text("[mine]\nk = v\n")
    run_daemon(Recorded, str(path), "mine", once=True)
    assert Recorded.seen.pop() == ({"k": "v"}, {"once": True})


def test_a_yaml_file_has_no_section(tmp_path):
    path = tmp_path / "conf"
    path.write_text("k: [1, 2]\n")
    run_daemon(Recorded, str(path), use_yaml=True)
    assert Recorded.seen.pop() == ({"k": [1, 2]}, {})


@pytest.mark.parametrize(
    ("name", "section"),
    [("BlobIndexer", "blob-indexer"), ("Meta2Indexer", "meta2-indexer"), ("Agent", "agent")],
)
def test_the_section_has_the_name_of_the_class(name, section):
    assert section_of(type(name, (Daemon,), {})) == section


def test_an_unknown_user_is_refused():
    with pytest.raises(OioException, match="no-such-user"):
        Daemon({"user": "no-such-user"}).start()


def test_the_default_user_is_openio(monkeypatch):
    asked = []

    def refuse(user):
        asked.append(user)
        raise OioException("refused")

    monkeypatch.setattr("oio.common.daemon.drop_privileges", refuse)
    with pytest.raises(OioException):
        Daemon({}).start()
    assert asked == ["openio"]
    with pytest.raises(NotImplementedError):
        Daemon({}).run()
