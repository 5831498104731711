# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The examples of the help, run from the first to the last on a cluster."""

import json
import subprocess
import sys

import pytest
from cli_program import OpenioProgram, example_words, make_example_files, remove_account

from oio.cli.common.examples import EXAMPLES, NOT_RUN

ACCOUNT = "my_account"
# All of them in one process, as in a session; what follows from events may take a moment.
RUN = """
import contextlib, io, json, sys, time
from oio.cli.openio import OpenIOApp

def run(argv):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = OpenIOApp().run(argv)
        except SystemExit as exc:
            status = exc.code
    return status, out.getvalue(), err.getvalue()

failed = []
for argv in json.load(sys.stdin):
    deadline = time.monotonic() + 20
    while (done := run(argv))[0] and time.monotonic() < deadline:
        time.sleep(0.1)
    if done[0]:
        failed.append([argv, *done])
json.dump(failed, sys.stdout)
"""


@pytest.fixture
def program(cluster, tmp_path, api):
    yield OpenioProgram(cluster, tmp_path, account=ACCOUNT)
    remove_account(api, ACCOUNT)


def test_examples(program, cluster, tmp_path):
    make_example_files(tmp_path)
    lines = [line for name, examples in EXAMPLES.items() if name not in NOT_RUN for line in examples]
    commands = [example_words(line, cluster) for line in lines]
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(commands), cwd=tmp_path, env=program.environment,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    assert (tmp_path / "copy.jpg").read_bytes() == b"meow" * 1000
    assert {path.name for path in (tmp_path / "restored").iterdir()} == {"one.jpg", "two.jpg"}
