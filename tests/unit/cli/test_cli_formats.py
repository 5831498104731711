# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Formats of the output: what is written, in how much memory, and what a terminal is spared."""

import argparse
import io
import json
import re
import subprocess
import sys

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT

from oio.cli.common import formatters
from oio.cli.common.formatters import LIST_FORMATS, SHOW_FORMATS, Formatters, coloured, printable, use_colours

COLUMNS = ("Name", "Size", "More")


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


def options(formats, *args):
    parser = argparse.ArgumentParser()
    for plugin in Formatters(formats):
        plugin.obj.add_argument_group(parser)
    return parser.parse_args(args)


def listed(name, rows, *args, stdout=None):
    stdout = stdout or io.StringIO()
    Formatters(LIST_FORMATS)[name].obj.emit_list(COLUMNS, rows, stdout, options(LIST_FORMATS, *args))
    return stdout.getvalue()


def shown(name, keys, values, *args):
    stdout = io.StringIO()
    Formatters(SHOW_FORMATS)[name].obj.emit_one(keys, values, stdout, options(SHOW_FORMATS, *args))
    return stdout.getvalue()


ROWS = [("é\n", 1, None), ("b", 2.5, {"k": "v"})]


def test_json_is_what_the_standard_library_writes():
    objects = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]
    assert listed("json", iter(ROWS)) == json.dumps(objects, indent=2) + "\n"
    assert listed("json", iter(ROWS), "--noindent") == json.dumps(objects) + "\n"
    assert listed("json", iter([])) == "[]\n"
    assert shown("json", ("a", "b"), (1, None)) == '{\n  "a": 1,\n  "b": null\n}\n'


def test_yaml_keeps_the_order_of_columns():
    text = listed("yaml", iter(ROWS))
    told = [list(row.items()) for row in yaml.safe_load(text)]
    assert told == [list(zip(COLUMNS, row, strict=True)) for row in ROWS]
    assert listed("yaml", iter([])) == "[]\n"
    many = [(str(number), number, None) for number in range(1000)]
    assert [row["Size"] for row in yaml.safe_load(listed("yaml", iter(many)))] == list(range(1000))
    assert yaml.safe_load(shown("yaml", ("b", "a"), (1, [2]))) == {"b": 1, "a": [2]}


@pytest.mark.parametrize("name", ["json", "yaml"])
def test_errors_in_cells_are_texts(name):
    text = listed(name, [("a", ValueError("broken"), None)])
    assert yaml.safe_load(text)[0]["Size"] == "broken"


@pytest.mark.parametrize("name", ["json", "yaml", "table"])
def test_nothing_is_written_of_a_list_that_fails(name):
    def rows():
        yield ROWS[0]
        raise OSError("lost")

    stdout = io.StringIO()
    with pytest.raises(OSError, match="lost"):
        listed(name, rows(), stdout=stdout)
    assert stdout.getvalue() == ""


@pytest.mark.parametrize("name", ["value", "csv"])
def test_rows_that_came_before_a_failure_are_written(name):
    def rows():
        yield ("a", 1, 2)
        raise OSError("lost")

    stdout = io.StringIO()
    with pytest.raises(OSError, match="lost"):
        listed(name, rows(), stdout=stdout)
    assert stdout.getvalue().splitlines()[-1] in ("a 1 2", '"a",1,2')


def test_empty_lists():
    assert [listed(name, iter([])) for name in ("table", "value", "csv")] == ["\n", "", '"Name","Size","More"\n']


def test_a_shell_takes_the_values_as_they_are():
    nasty = 'a "b" `c` $(d) \\ $HOME'
    text = shown("shell", ("meta.k", "Some-Key"), (nasty, 1), "--prefix", "my_")
    assert text.splitlines()[1] == 'my_some_key="1"'
    done = subprocess.run(
        ["sh", "-c", text + 'printf %s "$my_meta_k"'], capture_output=True, text=True, check=True
    )
    assert done.stdout == nasty
    assert shown("shell", ("a", "b"), (1, 2), "--variable", "b") == 'b="2"\n'


# --- terminals


def test_a_name_cannot_drive_a_terminal():
    row = [("\x1b[2J\x07é", 1, "a\nb")]
    assert "\x1b" not in listed("table", row) and "\\x1b[2J\\x07é" in listed("table", row)
    assert listed("value", row) == "\x1b[2J\x07é 1 a\nb\n"
    assert listed("value", row, stdout=Screen()) == "\\x1b[2J\\x07é 1 a\\nb\n"
    assert printable("\udcff") == "\\udcff" and printable("é漢") == "é漢"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colours_are_for_terminals_that_want_them(monkeypatch, environment, expected):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert use_colours(Screen()) is expected
    assert use_colours(io.StringIO()) is False
    screen = Screen()
    formatter = Formatters(LIST_FORMATS)["table"].obj
    formatter.emit_list(("Name", "Up", "Score"), [("Up", True, 0)], screen, options(LIST_FORMATS))
    text = screen.getvalue()
    assert ("\x1b[32mTrue\x1b[0m" in text, "\x1b[31m0\x1b[0m" in text) == (expected, expected)
    widths = {len(re.sub("\x1b[^m]*m", "", line)) for line in text.splitlines()}
    assert len(widths) == 1, "colours do not count in the width"


def test_only_states_have_colours():
    assert coloured("Name", "Ok") == "Ok" and coloured("Status", "strange") == "strange"
    assert coloured("Status", "Ok") == "\x1b[32mOk\x1b[0m"


# --- memory


def test_a_long_list_takes_little_memory():
    """Rows are not kept: 100,000 of them would take more than the limit in any format."""
    script = """
import argparse, resource, sys
from oio.cli.common.formatters import Formatters, LIST_FORMATS
import cliff.formatters.commaseparated
parsed = argparse.Namespace(
    noindent=False, quote_mode="nonnumeric", max_width=0, fit_width=False, print_empty=False
)
rows = lambda: ((f"name of an object {n:060}", n, "0" * 32, n) for n in range(100_000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open("/dev/null", "w") as out:
    for name in ("value", "csv", "json", "table"):
        Formatters(LIST_FORMATS)[name].obj.emit_list(("Name", "Size", "Hash", "Version"), rows(), out, parsed)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 5 * formatters.SPOOL_BYTES // 2**20


# --- tables: those that cliff draws


def drawn_by_cliff(columns, rows, *args):
    from cliff.formatters.table import TableFormatter

    stdout = io.StringIO()
    TableFormatter().emit_list(columns, rows, stdout, options(LIST_FORMATS, *args))
    return stdout.getvalue()


cells = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(),
    st.dictionaries(st.text("ab", max_size=2), st.integers()),
    st.text(st.sampled_from("ab é漢\n-|+🙂é"), max_size=12),
)  # fmt: skip


@given(
    st.lists(st.tuples(cells, cells, cells), max_size=6),
    st.sampled_from([(), ("--max-width", "30"), ("--print-empty",)]),
)
@settings(max_examples=60, deadline=None)
def test_tables_are_those_of_cliff(rows, args):
    # But for names, which have one line.
    same = [(row[0].replace("\n", "\\n") if isinstance(row[0], str) else row[0], *row[1:]) for row in rows]
    assert listed("table", iter(rows), *args) == drawn_by_cliff(COLUMNS, same, *args)


def test_descriptions_are_those_of_cliff():
    from cliff.formatters.table import TableFormatter

    keys, values = ("a", "longer key", "é"), (1, "two\nlines", None)
    for args in ((), ("--max-width", "20")):
        stdout = io.StringIO()
        TableFormatter().emit_one(keys, values, stdout, options(SHOW_FORMATS, *args))
        assert shown("table", keys, values, *args) == stdout.getvalue()
