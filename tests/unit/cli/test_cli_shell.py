# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Commands read from standard input, and commands found among entry points."""

import io
import sys
from importlib.metadata import EntryPoint

import pytest

from oio.cli import openio as program
from oio.cli.common.formatters import prepare_streams
from oio.cli.common.shell import completions, run_lines


def run(text, fail=None):
    ran, errors = [], []

    def one(words):
        ran.append(words)
        if fail:
            raise fail

    run_lines(io.StringIO(text), one, errors.append, list)
    return ran, errors


def test_lines_are_split_as_a_shell_does():
    first = "object show 'a b' \"c\\\"d\" e\\ f"
    ran, errors = run(first + "\n\n  # comment\n  object   list  \nlast # no comment > x | y")
    assert ran == [
        ["object", "show", "a b", 'c"d', "e f"],
        ["object", "list"],
        ["last", "#", "no", "comment", ">", "x", "|", "y"],
    ]
    assert errors == []


def test_a_line_that_cannot_be_split_is_told_and_the_next_one_runs():
    ran, errors = run("bad 'quote\ngood\n")
    assert ran == [["good"]] and errors == ["No closing quotation: bad 'quote"]


def test_global_options_are_those_of_the_start():
    ran, errors = run("--ns OTHER object list\ngood\n")
    assert ran == [["good"]]
    assert errors == ["A line begins with a command, and openio takes --ns when it starts: --ns OTHER object list"]


@pytest.mark.parametrize("word", ["exit", "quit"])
def test_a_word_ends_the_session(word):
    assert run(f"a\n{word}\nb\n")[0] == [["a"]]
    assert run(f"a\n{word} now\nb\n")[0] == [["a"], [word, "now"], ["b"]]


def test_usage_errors_end_their_line_only_and_interruptions_the_batch():
    assert run("a\nb\n", SystemExit(2))[0] == [["a"], ["b"]]
    with pytest.raises(KeyboardInterrupt):
        run("a\nb\n", KeyboardInterrupt())


def test_a_standard_input_that_was_closed_is_empty(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.StringIO())
    prepare_streams()
    with sys.stdin as stdin:
        run_lines(stdin, pytest.fail, pytest.fail, list)


def test_completion_of_words():
    commands = ["object list", "object locate", "object show", "volume admin show", "help"]
    assert completions(commands, [], "") == ["help ", "object ", "volume "]
    assert completions(commands, ["object"], "l") == ["list ", "locate "]
    assert completions(commands, ["volume", "admin"], "") == ["show "]
    assert completions(commands, ["object", "list"], "") == []


@pytest.fixture
def manager(monkeypatch):
    """A manager with two families, and a plugin; tells when all packages were read."""
    own = [
        EntryPoint("object_list", "m:A", "openio.object"), EntryPoint("bucket_list", "m:B", "openio.container"),
        EntryPoint("rawx = x", "m:C", "oio.other"),
    ]  # fmt: skip
    read = []

    def everything():
        read.append(True)
        others = [("mine_do", "plugin:D", "openio.mine"), ("object_list", "bad:E", "openio.object")]
        return own + [EntryPoint(*other) for other in others]

    monkeypatch.setattr(program, "_own_entry_points", lambda: own)
    monkeypatch.setattr(program, "_all_entry_points", everything)
    manager = program.LazyCommandManager()
    manager.read = read
    return manager


def test_the_first_word_selects_what_is_loaded(manager):
    manager.load_for(["object", "list"])
    assert list(manager.commands) == ["object list"]
    manager.load_for(["bucket", "list"])
    assert sorted(manager.commands) == ["bucket list", "object list"] and not manager.read


def test_plugins_are_looked_for_when_nothing_else_fits(manager):
    manager.load_for(["mine", "do"])
    assert manager.read and manager.commands["mine do"].value == "plugin:D"
    assert manager.commands["object list"].value == "m:A", "a plugin does not replace a command"


def test_without_word_everything_of_the_package_is_there(manager):
    manager.load_for([])
    assert sorted(manager.commands) == ["bucket list", "object list"] and not manager.read


def test_every_command_loads_and_describes_itself():
    manager = program.LazyCommandManager()
    manager.load_for([])
    commands = dict(manager)
    assert {"account refresh", "bucket show", "container snapshot", "object link", "rdir bootstrap"} <= {*commands}
    for name, entry in commands.items():
        command = entry.load()(None, None)
        parser = command.get_parser(f"openio {name}")
        assert parser.format_help().startswith("usage: openio") and command.get_description(), name
