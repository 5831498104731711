# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What programs say about a configuration file that cannot be used: one line that names it, and exit code 1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = [
    ["oio-account-server"],
    ["oio-conscience"],
    ["oio-conscience-agent"],
    ["oio-ecd"],
    ["oio-event-agent"],
    ["oio-meta2-indexer"],
    ["oio-rawx", "-f"],
    ["oio-rdir-server"],
]
FILES = {
    "bytes.conf": b"\x80\xff\x00: bytes",
    "headless.conf": b"key: [value\nother\n",
    "twice.conf": b"[a]\nx=1\n[a]\nx=1\n",
    "empty.conf": b"",
    "directory.conf": None,
}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda words: words[0])
def test_a_file_that_cannot_be_used_gets_one_line(tmp_path, program):
    for name, content in FILES.items():
        if content is None:
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_bytes(content)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = {
        name: subprocess.Popen(
            [sys.executable, ROOT / "bin" / program[0], *program[1:], tmp_path / name],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )
        for name in FILES
    }  # fmt: skip
    for name, process in running.items():
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 1, (name, said)
        assert len(said.splitlines()) == 1, (name, said)
        assert name in said
