# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The program around the commands: its options, and rows that are sorted."""

import logging

import pytest

from oio.cli.openio import OpenIOApp
from oio.cli.rdir import assignment_rows


@pytest.fixture
def root_logger():
    """The program gives it handlers of its own."""
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    yield root
    root.setLevel(before[0])
    root.handlers[:] = before[1]


@pytest.mark.usefixtures("root_logger")
@pytest.mark.parametrize("length", [63, 64, 200])
def test_an_id_that_is_too_long_is_cut_for_all_requests_and_told_once(length, capsys):
    app = OpenIOApp()
    assert app.run(["--request-id", "x" * length, "cluster", "local", "conf", "--ns", "NOWHERE"]) in (0, 1)
    told = [line for line in capsys.readouterr().err.splitlines() if "truncated to 63" in line]
    assert len(told) == (length > 63)
    assert {app.request_id(), app.request_id("CLI-BUCKET-")} == {"x" * 63}


def test_assignments_are_sorted_whatever_the_tags_hold():
    def service(number, location):
        return {"addr": f"127.0.0.1:{number}", "tags": {} if location is None else {"tag.loc": location}}

    rows = assignment_rows(
        {**service(1, location), "rdir": rdir}
        for location in (3, "a.b", None, 2)
        for rdir in (None, service(9, None), service(9, 7))
    )
    assert len(rows) == 12 and rows == sorted(rows, key=lambda row: [str(cell) for cell in row])
    assert {row[0] for row in rows} == {"n/a", "127.0.0.1:9"}
