# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio object save`` and ``openio container save``: download objects to files."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from oio.cli.common.autocontainer import add_object, check_object_container
from oio.cli.common.base import PlainCommand, add_container, container_kwargs
from oio.cli.common.download import STDOUT, Download
from oio.cli.common.errors import describe_error
from oio.cli.common.formatters import printable
from oio.cli.common.objects import ObjectCommand, in_detail
from oio.cli.common.parallel import Stopped, Workers
from oio.cli.common.progress import Progress
from oio.cli.common.trees import path_of
from oio.common.exceptions import CommandError, OioException

CONCURRENCY = 4


class _Task(NamedTuple):
    name: str
    # Where to write, relative to the directory; maybe not the whole name.
    path: str
    size_bytes: int


def _add_transfer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume", action="store_true",
        help="Skip the files that are there already, continue those that an interrupted --resume left",
    )
    parser.add_argument(
        "--concurrency", type=int, default=CONCURRENCY, metavar="N",
        help=f"Objects downloaded at once ({CONCURRENCY}), when there are several",
    )


def _positive(parsed: argparse.Namespace) -> None:
    if parsed.concurrency <= 0:
        raise CommandError(f"--concurrency wants a positive number, not {parsed.concurrency}")


class _SaveCommand(PlainCommand):
    def save_all(
        self,
        listed: Iterable[dict[str, Any]],
        container: str | None,
        kwargs: dict[str, Any],
        directory: str,
        folder: str,
        parsed: argparse.Namespace,
    ) -> None:
        """Download objects below a directory.

        :param folder: start of the names that the paths leave out.
        :raises CommandError: when some could not be saved, after all the others.
        """
        done = failed = 0
        fetch = self.fetcher(container, kwargs)
        with Progress("Downloading", None) as progress:

            def save(task: _Task) -> str | None:
                return self._save_task(task, directory, download, workers)

            workers: Workers[_Task, str | None] = Workers(parsed.concurrency, save)
            download = Download(fetch, workers.check, progress, resume=parsed.resume)
            try:
                for error in workers.map(_tasks(listed, folder, progress)):
                    done += error is None
                    if error is not None:
                        failed += 1
                        self.app.log.error("%s", error)
            except KeyboardInterrupt:
                download.abandon()
                raise
        if workers.interrupted:
            raise KeyboardInterrupt
        if failed:
            raise CommandError(f"{failed} of {failed + done} objects could not be saved")

    def _save_task(
        self, task: _Task, directory: str, download: Download, workers: Workers[_Task, str | None]
    ) -> str | None:
        """Download an object; called in threads. :returns: what went wrong."""
        reqid, debug = self.app.request_id(), self.app.options.debug
        try:
            workers.check()
            if task.path.endswith("/") and not task.size_bytes:
                # An empty object that stands for a directory.
                os.makedirs(path_of(directory, task.path[:-1]), exist_ok=True)
            else:
                download.save(task.name, path_of(directory, task.path), reqid)
        except Stopped:
            return f"Interrupted: {task.name!r}"
        except OSError as exc:
            return in_detail(describe_error(exc), debug)
        except (OioException, CommandError) as exc:
            return in_detail(f"{printable(task.name)}: {describe_error(exc, reqid)}", debug)
        return None

    def fetcher(self, container: str | None, kwargs: dict[str, Any]) -> Any:
        """What opens the objects of a container."""
        manager = self.app.client_manager
        storage, account = manager.storage, manager.account

        def fetch(name: str, ranges: Any, reqid: str) -> Any:
            return storage.object_fetch(account, container, name, ranges=ranges, reqid=reqid, **kwargs)

        return fetch

    def list_all(self, container: str | None, kwargs: dict[str, Any], prefix: str) -> Iterator[dict[str, Any]]:
        """Yield the objects of a container, page after page."""
        manager = self.app.client_manager
        marker = None
        while True:
            page = manager.storage.object_list(
                manager.account, container, prefix=prefix or None, marker=marker,
                reqid=self.app.request_id(), **kwargs,
            )  # fmt: skip
            yield from page["objects"]
            if not page["truncated"]:
                return
            marker = page["next_marker"]


def _tasks(listed: Iterable[dict[str, Any]], folder: str, progress: Progress) -> Iterator[_Task]:
    for item in listed:
        if not item["deleted"]:
            progress.add_total(int(item["size"]))
            yield _Task(item["name"], item["name"].removeprefix(folder), int(item["size"]))


class SaveObject(ObjectCommand, _SaveCommand):
    """Download an object to a file, or many objects to a directory."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_object(parser)
        parser.add_argument(
            "--file", metavar="FILE",
            help="Where to write, -: standard output (default: name of the object; with --recursive, the current"
            " directory)",
        )
        parser.add_argument("--key-file", metavar="FILE", help="Keys of the storage back-end")
        parser.add_argument("--tls", action="store_true", help="Read chunks through TLS")
        parser.add_argument(
            "-r", "--recursive", action="store_true",
            help="Download all the objects whose names start so to the directory --file; paths leave out what"
            " comes before the last / of that start. A single argument is the container",
        )
        _add_transfer(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Write beside the target, then rename: an interrupted download leaves nothing half-written."""
        _positive(parsed_args)
        if parsed_args.file == "":
            raise CommandError("--file wants a name, not an empty text")
        if parsed_args.recursive:
            self._save_many(parsed_args)
            return
        self.check_names(parsed_args)
        name = parsed_args.object
        container, kwargs = self.resolve_container(parsed_args, name)
        kwargs.update(_transport(parsed_args), version=parsed_args.object_version)
        fetch = self.fetcher(container, kwargs)
        # An object named like the standard output goes to a file all the same.
        target = parsed_args.file or (f"./{name}" if name in STDOUT[:1] else name)
        metadata, stream = fetch(name, None, self.app.request_id())
        # No bar amid the content itself.
        on_terminal = target in STDOUT and self.app.stdout.isatty()
        with Progress(name, 0 if on_terminal else int(metadata["length"])) as progress:
            first = [(metadata, stream)]

            def once(name: str, ranges: Any, reqid: str) -> Any:
                # The answer that told the size is the one that is read.
                return first.pop() if first and ranges is None else fetch(name, ranges, reqid)

            download = Download(once, lambda: None, progress, resume=parsed_args.resume)
            download.save(name, target, self.app.request_id())

    def _save_many(self, parsed: argparse.Namespace) -> None:
        if parsed.auto or parsed.object_version is not None:
            raise CommandError("--recursive goes neither with --auto nor with --object-version")
        if not parsed.container:
            parsed.container, parsed.object = parsed.object, ""
        check_object_container(parsed)
        container, kwargs = self.resolve_container(parsed, "")
        folder = parsed.object[: parsed.object.rfind("/") + 1]
        self.save_all(
            self.list_all(container, kwargs, parsed.object), container, {**kwargs, **_transport(parsed)},
            parsed.file or ".", folder, parsed,
        )  # fmt: skip


def _transport(parsed: argparse.Namespace) -> dict[str, Any]:
    kwargs: dict[str, Any] = {"tls": True} if parsed.tls else {}
    if parsed.key_file:
        kwargs["key_file"] = os.path.abspath(parsed.key_file)
    return kwargs


class SaveContainer(_SaveCommand):
    """Download all the objects of a container to files of the current directory, named after them."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Arguments of the command."""
        parser = super().get_parser(prog_name)
        add_container(parser)
        _add_transfer(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Save them; those that cannot be do not keep the others from being saved."""
        _positive(parsed_args)
        container, kwargs = container_kwargs(parsed_args.container, parsed_args.is_cid)
        self.save_all(self.list_all(container, kwargs, ""), container, kwargs, ".", "", parsed_args)
