# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio object create``: upload files, and directories of any depth.

An object appears once all its data is stored: what Ctrl-C stops midway leaves nothing to see, and its chunks are
deleted. Running the same command again with ``--resume`` uploads what is missing.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any, BinaryIO, NamedTuple, cast

from oio.cli.common.autocontainer import add_object_container, check_object_container
from oio.cli.common.base import ListCommand, add_properties
from oio.cli.common.errors import describe_error
from oio.cli.common.formatters import printable
from oio.cli.common.objects import ObjectCommand, check_name, in_detail
from oio.cli.common.parallel import Stopped, Workers, reader, untold_stops
from oio.cli.common.progress import Progress
from oio.cli.common.trees import Leaf, total_bytes, walk
from oio.common.exceptions import CommandError, NoSuchContainer, NoSuchObject, OioException

CONCURRENCY_RECURSIVE = 4
STDIN = "-"
_HASH_BLOCK = 2**20


class Outcome(NamedTuple):
    """What became of a file."""

    name: str
    size_bytes: int
    checksum: str | None
    status: str
    error: str | None = None


class CreateObject(ObjectCommand, ListCommand):
    """Upload files."""

    rows_name = ""
    _interrupted = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_object_container(parser)
        parser.add_argument(
            "filenames", metavar="<filename>", nargs="+", help="Files to upload (-: standard input)"
        )
        parser.add_argument(
            "--no-autocreate", dest="autocreate", action="store_false",
            help="Fail when the container does not exist",
        )
        parser.add_argument(
            "--name", dest="names", metavar="NAME", action="append", default=[],
            help="Name of the object, in the order of the files (default: name of the file)",
        )
        parser.add_argument("--policy", metavar="NAME", help="Storage policy")
        add_properties(parser, "Property of the objects (repeatable)")
        parser.add_argument("--key-file", metavar="FILE", help="Keys of the storage back-end")
        parser.add_argument("--mime-type", metavar="TYPE", help="Type of the content")
        parser.add_argument("--tls", action="store_true", help="Send chunks through TLS")
        parser.add_argument("--perfdata-column", action="store_true", help="Show performance data")
        parser.add_argument(
            "-r", "--recursive", action="store_true",
            help="Upload the files of directories; objects are named after their paths below them",
        )
        parser.add_argument(
            "--prefix", metavar="PREFIX", default="", help="Start of the names of objects (with --recursive)"
        )
        parser.add_argument(
            "--resume", action="store_true",
            help="Skip the files whose object is there already, with the same size and checksum",
        )
        parser.add_argument(
            "--concurrency", type=int, metavar="N",
            help=f"Files uploaded at once (1; {CONCURRENCY_RECURSIVE} with --recursive)",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Upload the files in their order; one that fails is a row, and the command fails at the end."""
        _check_arguments(parsed_args)
        manager = self.app.client_manager
        # What is missing is an error of the command, not of each file.
        self._account, self._storage = manager.account, manager.storage
        self._resolving = threading.Lock()
        if parsed_args.auto or parsed_args.is_cid:
            self.resolve_name(parsed_args, "")
        columns: tuple[str, ...] = ("Name", "Size", "Hash", "Status")
        if parsed_args.perfdata_column:
            columns += ("Perfdata",)
        rows: Iterable[tuple[Any, ...]] = self._rows(parsed_args)
        if parsed_args.perfdata_column:
            perfdata = self.app.perfdata if self.app.options.dump_perfdata else None
            rows = ((*row, json.dumps(perfdata, sort_keys=True, indent=4)) for row in rows)
        return columns, rows

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Print the table before failing."""
        status = super().run(parsed_args)
        if self._interrupted:
            raise KeyboardInterrupt
        if not self.success:
            raise CommandError("Too many errors occured")
        return status

    def _rows(self, parsed: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
        concurrency = parsed.concurrency or (CONCURRENCY_RECURSIVE if parsed.recursive else 1)
        label, total = _work_of(parsed)
        many = parsed.recursive or len(parsed.filenames) > 1
        # Rows of these formats come one by one, maybe to the terminal where the bar is.
        scrolls = parsed.formatter in ("value", "csv") and self.app.stdout.isatty()
        with untold_stops(self._storage.logger), Progress(label, total) as progress:
            if parsed.recursive:
                progress.set_total_later(lambda: sum(_size_of(path) or 0 for path in parsed.filenames))

            def upload(leaf: Leaf) -> Outcome:
                return self._upload(parsed, leaf, workers, progress)

            workers: Workers[Leaf, Outcome] = Workers(concurrency, upload)
            for outcome in workers.map(_leaves(parsed)):
                if outcome.error is not None:
                    log = self.app.log.warning if outcome.status == "Skipped" else self.app.log.error
                    log("%s%s", f"{printable(outcome.name)}: " if many else "", outcome.error)
                if outcome.status not in ("Ok", "Skipped"):
                    self.success = False
                with progress.paused() if scrolls else nullcontext():
                    yield outcome[:4]
            self._interrupted = workers.interrupted

    def _upload(
        self, parsed: argparse.Namespace, leaf: Leaf, workers: Workers[Leaf, Outcome], progress: Progress
    ) -> Outcome:
        """Upload a file; called in threads."""
        name = leaf.name
        if leaf.problem is not None:
            return Outcome(name, 0, None, "Failed" if leaf.is_error else "Skipped", leaf.problem)
        reqid, debug = self.app.request_id(), self.app.options.debug
        try:
            workers.check()
            check_name(name)
            with self._resolving:
                container = self.resolve_name(parsed, name)
            with _open(leaf.path) as file:
                source = reader(file, workers.check, progress.advance)
                size = os.fstat(file.fileno()).st_size
                again = parsed.resume and leaf.path != STDIN
                if again and (checksum := self._in_place(container, name, file, size, workers)):
                    progress.skip(size)
                    return Outcome(name, size, checksum, "Skipped")
                _chunks, size, checksum = self._storage.object_create(
                    self._account, container, file_or_path=source, obj_name=name, policy=parsed.policy,
                    properties=parsed.property, mime_type=parsed.mime_type, autocreate=parsed.autocreate,
                    reqid=reqid, **_transport(parsed),
                )  # fmt: skip
            return Outcome(name, size, checksum.upper(), "Ok")
        except Stopped:
            return Outcome(name, 0, None, "Interrupted")
        except OSError as exc:
            text = describe_error(exc)
            if isinstance(exc, IsADirectoryError):
                text += ". Hint: --recursive uploads the files below it"
            return Outcome(leaf.path, 0, None, "Failed", in_detail(text, debug))
        except (OioException, CommandError) as exc:
            return Outcome(name, 0, None, "Failed", in_detail(describe_error(exc, reqid), debug))

    def _in_place(
        self, container: str, name: str, file: Any, size: int, workers: Workers[Leaf, Outcome]
    ) -> str | None:
        """Checksum of the object that has the content of the file already; then the file is at its start."""
        try:
            found = self._storage.object_get_properties(
                self._account, container, name, reqid=self.app.request_id()
            )
        except (NoSuchObject, NoSuchContainer):
            return None
        if str(found.get("length")) != str(size) or found.get("deleted") in (True, "True"):
            return None
        checksum = hashlib.md5(usedforsecurity=False)
        while block := file.read(_HASH_BLOCK):
            workers.check()
            checksum.update(block)
        file.seek(0)
        mine = checksum.hexdigest().upper()
        return mine if mine == str(found.get("hash")).upper() else None


def _check_arguments(parsed: argparse.Namespace) -> None:
    check_object_container(parsed)
    if "" in parsed.names:
        raise CommandError("--name wants a name, not an empty text")
    if parsed.names and parsed.recursive:
        raise CommandError("--name does not go with --recursive, --prefix does")
    if parsed.prefix and not parsed.recursive:
        raise CommandError("--prefix goes with --recursive, --name gives the name of one object")
    if STDIN in parsed.filenames[len(parsed.names) :]:
        raise CommandError("What comes from standard input needs a --name")
    if parsed.concurrency is not None and parsed.concurrency <= 0:
        raise CommandError(f"--concurrency wants a positive number, not {parsed.concurrency}")


def _open(path: str) -> BinaryIO:
    if path == STDIN and sys.__stdin__ is None:
        # Closed by whoever started the program: what has its number by now is something else.
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard input")
    # A copy: standard input is not ours to close. Without buffer, whether there is something to read can be told.
    file = open(os.dup(0) if path == STDIN else path, "rb", buffering=0)  # noqa: SIM115
    return cast(BinaryIO, file)


def _leaves(parsed: argparse.Namespace) -> Iterator[Leaf]:
    names = list(parsed.names)
    for path in parsed.filenames:
        if parsed.recursive and os.path.isdir(path):
            yield from walk(path, parsed.prefix)
        else:
            yield Leaf(path, names.pop(0) if names else parsed.prefix + os.path.basename(path))


def _work_of(parsed: argparse.Namespace) -> tuple[str, int | None]:
    """What the progress is that of, and its size when it is known at once."""
    if parsed.recursive:
        return "Uploading", None
    label = "Uploading"
    if len(parsed.filenames) == 1:
        (path,) = parsed.filenames
        label = parsed.names[0] if path == STDIN else os.path.basename(path)
    sizes = list(map(_size_of, parsed.filenames))
    return label, None if None in sizes else sum(size or 0 for size in sizes)


def _size_of(path: str) -> int | None:
    """Bytes to upload; None when that cannot be known, as of a pipe."""
    try:
        found = os.stat(0 if path == STDIN else path)
    except OSError:
        return 0
    if stat.S_ISDIR(found.st_mode):
        return total_bytes(path)
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _transport(parsed: argparse.Namespace) -> dict[str, Any]:
    kwargs: dict[str, Any] = {"tls": True} if parsed.tls else {}
    if parsed.key_file:
        kwargs["key_file"] = os.path.abspath(parsed.key_file)
    return kwargs
