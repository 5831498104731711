# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The tour for operators: its commands run, in order, and print about what it says."""

import os
import re
import subprocess
import sys

import pytest
from support import ROOT

PAGE = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|text)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
MARK = "=== block"


def pattern_of(line):
    """What a line of the page stands for: numbers vary, ``…`` is anything, blanks and rules do not count."""
    words = re.escape(" ".join(line.replace("|", " ").split()))
    words = re.sub(r"\d+", r"\\d+", words)
    return re.compile(words.replace("…", ".*").replace(r"\ .*", ".*").replace(r".*\ ", ".*"))


def missing_lines(expected, output):
    """Lines of the page that the output does not have, in this order."""
    shown = iter([" ".join(line.replace("|", " ").split()) for line in output.splitlines()])
    return [
        line for line in expected.splitlines() if not any(pattern_of(line).fullmatch(row) for row in shown)
    ]


def test_comparison():
    output = "+--+\n| a.jpg | 12 | AB | Ok |\nother\nready, 5.3 s\n"
    assert missing_lines("| a.jpg | 99 | … | Ok |\nready…\n", output) == []
    assert missing_lines("ready…\nother\n", output) == ["other"]


@pytest.fixture
def shell(tmp_path):
    """Runs a script as an operator would, with the programs of this tree."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OIO_", "SDS_"))}
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("oio-sandbox", "oio-check-consistency"):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/bin/{name}" "$@"\n')
    (programs / "openio").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m oio.cli.openio "$@"\n')
    (programs / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}

    def run(script):
        return subprocess.run(
            ["bash", "-e", "-c", script], cwd=tmp_path, env=environment, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=150,
        )  # fmt: skip

    yield run
    if (tmp_path / "tour").exists():
        run("oio-sandbox --home tour -q destroy")


@pytest.mark.slow
def test_tour(shell, tmp_path):
    steps = []
    for kind, text in BLOCKS:
        if kind == "sh":
            steps.append([text, ""])
        else:
            steps[-1][1] = text
    assert len(steps) > 10
    done = shell("".join(f"echo '{MARK}'\n{text}" for text, _expected in steps))
    _nothing, *outputs = done.stdout.split(f"{MARK}\n")
    for (text, expected), output in zip(steps, outputs, strict=False):
        assert missing_lines(expected, output) == [], f"{text}\n{output}"
    assert done.returncode == 0 and len(outputs) == len(steps), done.stdout[-3000:]
    assert not (tmp_path / "tour" / "sds").exists()
