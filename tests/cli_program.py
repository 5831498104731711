# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The ``openio`` program as a child process, and what its formats have in common."""

import contextlib
import csv
import io
import json
import os
import shlex
import subprocess
import sys

import yaml
from support import ACCOUNT, ROOT, eventually

from oio.common.exceptions import Conflict, NoSuchContainer

LIST_FORMATS = ("csv", "json", "table", "value", "yaml")
SHOW_FORMATS = ("json", "shell", "table", "value", "yaml")


class OpenioProgram:
    """Runs ``openio``; the result is the finished process, or what it tells."""

    def __init__(self, cluster, directory, account=ACCOUNT):
        self.environment = dict(os.environ) | cluster.environment
        self.environment |= {"OIO_ACCOUNT": account, "PYTHONPATH": str(ROOT)}
        self.directory = directory

    def start(self, *args, **kwargs):
        """Start it, with its output in pipes."""
        kwargs.setdefault("stdout", subprocess.PIPE)
        kwargs.setdefault("stderr", None if kwargs["stdout"] != subprocess.PIPE else subprocess.PIPE)
        return subprocess.Popen(
            [sys.executable, "-m", "oio.cli.openio", *args], cwd=self.directory, env=self.environment, **kwargs
        )

    def __call__(self, *args, status=0, account=None, **kwargs):
        """Run it to the end."""
        environment = self.environment | ({"OIO_ACCOUNT": account} if account is not None else {})
        done = subprocess.run(
            [sys.executable, "-m", "oio.cli.openio", *args], cwd=self.directory, env=environment,
            capture_output=True, text=True, errors="surrogateescape", check=False, timeout=60, **kwargs,
        )  # fmt: skip
        assert done.returncode == status, (args, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    def json(self, *args, **kwargs):
        """What it tells in JSON."""
        return json.loads(self(*args, "-f", "json", **kwargs).stdout)

    def error(self, *args, status=1, **kwargs):
        """The one line that it writes of an error; nothing else is written."""
        done = self(*args, status=status, **kwargs)
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        return line

    def silent(self, *args, **kwargs):
        """Run it, and see that it says nothing."""
        done = self(*args, **kwargs)
        assert (done.stdout, done.stderr) == ("", ""), (done.stdout, done.stderr)

    def formats_of_list(self, *args, columns, moving=(), shared=False):
        """Run a listing in every format, and see that all tell the same; returns the rows.

        :param moving: columns whose values may change from one time to the next.
        :param shared: events of other tests may add rows: all is looked at again when there are some in between.
        """

        def look():
            found = {name: self(*args, "-f", name).stdout for name in LIST_FORMATS}
            return found if not shared or self(*args, "-f", "csv").stdout == found["csv"] else None

        texts = eventually(look, what="a list that stays the same meanwhile")
        rows = json.loads(texts["json"])
        assert rows and all(tuple(row) == columns for row in rows)
        assert [tuple(row) for row in yaml.safe_load(texts["yaml"])] == [columns] * len(rows)
        for row, same in zip(rows, yaml.safe_load(texts["yaml"]), strict=True):
            assert _without(same, moving) == _without(row, moving)
        header, *lines = csv.reader(io.StringIO(texts["csv"]))
        assert tuple(header) == columns and len(lines) == len(rows)
        assert [line[0] for line in lines] == [str(row[columns[0]]) for row in rows]
        fixed = [number for number, name in enumerate(columns) if name not in moving]
        for row, line in zip(rows, texts["value"].splitlines(), strict=True):
            cells = [str(cell) for cell in row.values()]
            if len(fixed) == len(columns):
                assert line == " ".join(cells)
            else:
                assert [line.split(" ")[number] for number in fixed] == [cells[number] for number in fixed]
        titles = texts["table"].splitlines()[1].split("|")[1:-1]
        assert tuple(title.strip() for title in titles) == columns
        return rows

    def formats_of_show(self, *args, moving=()):
        """Describe something in every format, and see that all tell the same; returns the dictionary.

        :param moving: keys whose values may change from one time to the next.
        """
        texts = {name: self(*args, "-f", name).stdout for name in SHOW_FORMATS}
        shown = json.loads(texts["json"])
        assert list(shown) == sorted(shown)
        fixed = [number for number, key in enumerate(shown) if key not in moving]
        for values in (list(yaml.safe_load(texts["yaml"]).values()), texts["value"].splitlines()):
            assert [str(values[number]) for number in fixed] == [str(list(shown.values())[n]) for n in fixed]
        assert list(yaml.safe_load(texts["yaml"])) == list(shown)
        keys = [line.split("|")[1].strip() for line in texts["table"].splitlines()[3:-1]]
        assert keys == list(shown)
        assert len(texts["shell"].splitlines()) == len(shown)
        return shown


def make_example_files(directory):
    """What the examples of the help upload."""
    (directory / "cat.jpg").write_bytes(b"meow" * 1000)
    (directory / "Pictures").mkdir()
    for name in ("one.jpg", "two.jpg"):
        (directory / "Pictures" / name).write_text(name)


def example_words(line, cluster):
    """Arguments of an example of the help, for the services of a cluster."""
    return shlex.split(line.replace("OPENIO-", f"{cluster.namespace}-"))[1:]


def remove_account(api, account):
    """Remove an account with its containers: it learns of these, and of their end, a moment later."""

    def removed():
        for name, *_counters in api.container_list(account, limit=100):
            with contextlib.suppress(NoSuchContainer):
                # A snapshot is frozen.
                api.container_set_properties(account, name, system={"sys.status": "0"})
                for entry in api.object_list(account, name, versions=True)["objects"]:
                    api.object_delete(account, name, entry["name"], version=entry["version"])
                api.container_delete(account, name)
        with contextlib.suppress(Conflict):
            api.account_flush(account)
            api.account_delete(account)
            return True
        return False

    eventually(removed, what="the end of the account")


def _without(row, keys):
    return {key: value for key, value in row.items() if key not in keys}
