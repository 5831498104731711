# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``--request-id``: every request that a command causes carries the id that the user gave."""

import json
import subprocess
import sys

import pytest
from cli_program import OpenioProgram, example_words, make_example_files, remove_account

from oio.cli.common.examples import EXAMPLES

ACCOUNT = "account_of_request_ids"
ID = "id-of-the-user"
#: What must not be done to a cluster that others use.
HARMFUL = frozenset(("cluster deregister", "cluster flush", "directory rebalance", "directory restore"))
#: Commands that send nothing in HTTP.
SILENT = frozenset((
    "cluster local conf", "complete", "events exhume", "events stats", "events tubes",
    "zk armageddon", "zk bootstrap", "zk reset", "zk smudge", "zk stat",
))  # fmt: skip
#: Runs commands; tells the requests of each, and the ids that these carried.
RUN = """
import contextlib, io, json, sys
from oio.cli.openio import OpenIOApp
from oio.http.client_connection import ClientConnection

sent = []
put_request = ClientConnection.put_request

def recorded(self, method, path, headers=()):
    headers = list(headers.items() if hasattr(headers, "items") else headers)
    ids = [value for name, value in headers if name.lower() == "x-oio-req-id"]
    sent.append([f"{method} {self.host_header}{path}", ids])
    return put_request(self, method, path, headers)

ClientConnection.put_request = recorded
told = {}
for name, lines in json.load(sys.stdin).items():
    sent.clear()
    for argv in lines:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                OpenIOApp().run(argv)
            except SystemExit:
                continue
    told[name] = list(sent)
json.dump(told, sys.stdout)
"""


@pytest.fixture
def program(cluster, tmp_path, api):
    yield OpenioProgram(cluster, tmp_path, account=ACCOUNT)
    remove_account(api, ACCOUNT)


def test_the_id_is_in_every_request(program, cluster, tmp_path):
    make_example_files(tmp_path)
    commands = {
        name: [["--request-id", ID, *example_words(line, cluster)] for line in lines]
        for name, lines in EXAMPLES.items()
        if name not in HARMFUL
    }
    commands["object create --auto"] = [["--request-id", ID, "object", "create", "--auto", "cat.jpg"]]
    commands["object list --auto"] = [["--request-id", ID, "object", "list", "--auto"]]
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(commands), cwd=tmp_path, env=program.environment,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {name for name, sent in told.items() if not sent} == SILENT
    without = {name: lost for name, sent in told.items() if (lost := [line for line, ids in sent if ids != [ID]])}
    assert not without, json.dumps(without, indent=1)
