# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Completion in shells: the scripts are sourced by those shells that are installed, and asked."""

import os
import shlex
import shutil
import subprocess
import sys
import time

import pytest
from support import ROOT

from oio.cli.common.completion import FILES, Tables, make_tables
from oio.cli.common.describe import describe_commands, describe_program
from oio.cli.openio import OpenIOApp

SHELLS = ("bash", "fish", "zsh")

ASK_BASH = """
source {script}
COMP_WORDS=({words}) COMP_CWORD={position}
compopt() {{ printf '%s\\n' "files"; }}
_openio && printf '%s\\n' "${{COMPREPLY[@]}}"
"""
# Outside of a completion, zsh has no compadd: what the script would offer is printed instead.
ASK_ZSH = """
compdef() {{ }}
compadd() {{ print -rl -- ${{(P)2}} }}
_describe() {{ [[ $1 == -o ]] && shift; print -rl -- ${{${{(P)2}}%%:*}} }}
_files() {{ print files }}
compset() {{ }}
source {script}
words=({words}) CURRENT={number}
_openio
"""
ASK_FISH = """
source {script}
complete -C {line}
"""


@pytest.fixture(scope="module")
def program():
    app = OpenIOApp()
    app.manager.load_everything()
    return describe_program(app), describe_commands(app)


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The scripts, as the program prints them."""
    found = {}
    for shell in SHELLS:
        done = subprocess.run(
            [sys.executable, "-m", "oio.cli.openio", "complete", "--shell", shell],
            cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
            env={**os.environ, "COLUMNS": "60"},
        )  # fmt: skip
        assert done.stderr == ""
        found[shell] = tmp_path_factory.mktemp("scripts") / f"openio.{shell}"
        found[shell].write_text(done.stdout)
    return found


@pytest.fixture(params=SHELLS)
def complete(request, scripts):
    """Complete a line in one of the shells."""
    shell = request.param
    executable = shutil.which(shell)
    if not executable:
        pytest.skip(f"{shell} is not installed")

    def ask(line):
        words = ["openio", *line.split(" ")]
        if shell == "bash":
            words = " ".join(words).replace("=", " = ").split(" ")
        quoted = " ".join(map(shlex.quote, words))
        text = {"bash": ASK_BASH, "fish": ASK_FISH, "zsh": ASK_ZSH}[shell].format(
            script=scripts[shell], words=quoted, position=len(words) - 1, number=len(words),
            line=shlex.quote(f"openio {line}"),
        )  # fmt: skip
        options = {"bash": ["--norc"], "fish": ["--no-config"], "zsh": ["-f"]}[shell]
        done = subprocess.run(
            [executable, *options, "-c", text], capture_output=True, text=True, check=False, timeout=30, cwd="/"
        )
        # In zsh, 1 means that there is nothing to offer.
        assert done.returncode in ((0, 1) if shell == "zsh" else (0,)) and done.stderr == "", done
        return {row.split("\t")[0].removesuffix("/") for row in done.stdout.splitlines()} - {""}

    ask.shell = shell
    return ask


def test_words_options_and_values(complete):
    """What is offered has to contain what is expected; only bash leaves out what does not fit itself."""
    assert {"account", "cluster", "container", "object", "complete"} <= complete("")
    assert complete("volume ") == {"admin", "assignation", "show"}
    assert {"show", "lock"} <= complete("volume admin ")
    assert {"--interval", "--once", "--format", "--ns", "--help"} <= complete("cluster top --")
    assert not {"--interval", "--recursive"} & complete("cluster list --")
    assert complete("cluster top -f ") == {"table", "json"}
    assert {name.removeprefix("--format=") for name in complete("cluster top --format=")} == {"table", "json"}
    assert {"rawx", "meta2"} <= complete("cluster list ")
    # Options, their values and other arguments do not lose the command.
    assert complete("--ns account -v volume ") == {"admin", "assignation", "show"}
    assert "--quota" not in complete("container --ns container --")
    assert {"--quota"} <= complete("container create -a cluster box --")
    assert complete("zk stat ") == {"meta0", "meta1", "meta2"}
    # Nothing is known of the values of this option.
    assert complete("cluster top --interval ") == set()
    files = complete("object create box ")
    assert files == {"files"} if complete.shell != "fish" else {"bin", "etc"} <= files
    assert complete("object save box name --file ") == files


def test_arguments_by_their_position(complete):
    assert {"rawx", "meta2"} <= complete("cluster lock ")
    # A name of a service, which is not known here, or any number of them.
    assert complete("cluster lock rawx ") == complete("cluster lock rawx one ") == set()
    assert {"rawx", "meta2"} <= complete("cluster list rawx --tags rdir ")
    assert complete("reference link ") == set()
    assert {"rdir", "meta2"} <= complete("reference link -a someone photos ")
    assert complete("rdir bootstrap ") == {"rawx", "meta2"}
    assert complete("election sync ") == {"meta0", "meta1", "meta2"} and complete("election sync meta2 ") == set()


def test_help_of_commands(complete):
    assert {"cluster", "object"} <= complete("help ")
    assert complete("help volume ") == {"admin", "assignation", "show"}


def test_quick(complete):
    start = time.monotonic()
    complete("object create --")
    # Mostly the start of the shell; the program itself is not run.
    assert time.monotonic() - start < 5


def test_bash_leaves_out_what_does_not_fit(scripts):
    text = ASK_BASH.format(script=scripts["bash"], words="openio clus", position=1)
    done = subprocess.run(["bash", "--norc", "-c", text], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "cluster\n"


def test_scripts_have_all_commands_and_options(scripts, program):
    _globals, commands = program
    assert len(commands) > 80
    for shell, path in scripts.items():
        text = path.read_text()
        assert "@F@" not in text and "@NAME@" not in text
        for command in commands:
            assert command.words[-1] in text
            # Those without options of their own stand among the words that follow only.
            assert f"'{command.name}'" in text or len(command.options) == 1, (shell, command.name)
            for option in command.options:
                assert all(name in text for name in option.names), (shell, command.name)


def test_tables(program):
    tables = make_tables(*program)
    assert isinstance(tables, Tables)
    assert tables.following["object"]["create"].startswith("Upload")
    assert tables.values["object create"]["@*"] == (FILES,)
    assert "--property" in tables.valued["object create"] and "--auto" not in tables.valued["object create"]
    assert "--ns" in tables.global_valued and "--debug" not in tables.global_valued
    for rows in (*tables.following.values(), *tables.options.values()):
        assert all("\n" not in text and "\t" not in text for text in rows.values())


def test_another_name():
    done = subprocess.run(
        [sys.executable, "-m", "oio.cli.openio", "complete", "--name", "my-oio"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.endswith("complete -F _my_oio my-oio\n")
    subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True, timeout=30)
