# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The reference of the command line is that of the commands, and each of them has an example that it accepts."""

import shlex

import pytest

from oio.cli.common.examples import EXAMPLES, NOT_RUN, examples_of
from oio.cli.openio import CLOSED_PIPE, EPILOG, INTERRUPTED, OpenIOApp
from tools.cli_reference import PAGE


@pytest.fixture(scope="module")
def app():
    app = OpenIOApp()
    app.manager.load_for([])
    return app


def test_the_page_is_up_to_date():
    page = PAGE.read()
    assert PAGE.marker in page
    assert page == PAGE.updated(page), "run: python -m tools.cli_reference"


def test_every_command_has_examples_that_it_accepts(app):
    names = {name for name, _entry in app.command_manager} - {"help"}
    assert names == EXAMPLES.keys()
    assert names > NOT_RUN
    for name, examples in EXAMPLES.items():
        factory, _name, _rest = app.command_manager.find_command(name.split())
        parser = factory(app, None, cmd_name=name).get_parser(name)
        assert all(f"  {line}\n" in parser.format_help() for line in examples)
        for line in examples:
            program, *words = shlex.split(line)
            assert program == "openio" and words[: len(name.split())] == name.split()
            parser.parse_args(words[len(name.split()) :])


def test_examples_of_shortened_words():
    assert examples_of("obj cr") == EXAMPLES["object create"]
    assert examples_of("nothing") == () == examples_of("c show")


def test_exit_codes_are_told():
    page = PAGE.read().partition("## Exit codes")[2].partition("## ")[0]
    for code in (0, 1, 2, INTERRUPTED, CLOSED_PIPE, 129, 143):
        assert str(code) in page and str(code) in EPILOG
