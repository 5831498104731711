# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The ``openio`` program: global options, commands loaded on demand, one-line errors.

The first word of the command line selects the family, so that a simple command loads only what it needs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, distributions
from typing import Any

from cliff.app import App
from cliff.commandmanager import CommandManager

import oio
from oio.cli.clientmanager import ClientManager
from oio.cli.common import formatters
from oio.cli.common.errors import describe_error
from oio.common.constants import STRLEN_REQID
from oio.common.exceptions import CommandError
from oio.common.utils import request_id

_PROG = "openio"
_DISTRIBUTION = "oio-sds"
_GROUP_PREFIX = "openio."
INTERRUPTED = 130
CLOSED_PIPE = 141

EPILOG = f"""\
exit codes:
  0    success
  1    the command failed, or at least one of its rows
  2    the command line is wrong
  {INTERRUPTED}  interrupted (Ctrl-C)
  {CLOSED_PIPE}  the reader of the output went away
  143  terminated (129: the terminal was closed)
Commands that come from standard input end with 0, whatever each of them does.

Without a command, commands are read from standard input, one per line. Colours are for terminals only; they
heed NO_COLOR. Command help: openio COMMAND --help
"""


class LazyCommandManager(CommandManager):
    """Finds commands among the entry points of this package; those of others only when there is no such one."""

    def __init__(self) -> None:
        super().__init__(None)
        self._groups: dict[str, list[EntryPoint]] | None = None
        self._loaded: set[str] = set()

    def load_for(self, words: list[str]) -> None:
        """Load what the command line needs; ``words`` are the arguments that are not options."""
        if self._groups is None:
            self._groups = _groups_of(_own_entry_points())
        groups = [_GROUP_PREFIX + words[0]] if words else []
        for group in groups if groups and groups[0] in self._groups else list(self._groups):
            self._load(group, self._groups[group])
        if words and not any(name.startswith(words[0]) for name in self.commands):
            self._load_plugins()

    def load_everything(self) -> None:
        """Load all the commands, those of other packages too."""
        self.load_for([])
        self._load_plugins()

    def _load_plugins(self) -> None:
        # Looking for them means reading what all the installed packages declare.
        for group, found in _groups_of(_all_entry_points()).items():
            self._load(f"{group} of plugins", found)

    def _load(self, key: str, found: list[EntryPoint]) -> None:
        if key not in self._loaded:
            self._loaded.add(key)
            for entry in found:
                self.commands.setdefault(entry.name.replace("_", " "), entry)


def _own_entry_points() -> Iterable[EntryPoint]:
    try:
        return distribution(_DISTRIBUTION).entry_points
    except PackageNotFoundError as exc:
        raise CommandError(f"The package {_DISTRIBUTION} is not installed: its commands are unknown") from exc


def _all_entry_points() -> Iterable[EntryPoint]:
    return (entry for package in distributions() for entry in package.entry_points)


def _groups_of(found: Iterable[EntryPoint]) -> dict[str, list[EntryPoint]]:
    groups: dict[str, list[EntryPoint]] = {}
    for entry in found:
        if entry.group.startswith(_GROUP_PREFIX):
            groups.setdefault(entry.group, []).append(entry)
    return groups


class OpenIOApp(App):
    """Command line of an OpenIO namespace: clusters, containers, objects."""

    log = logging.getLogger("openio")

    def __init__(self) -> None:
        self.manager = LazyCommandManager()
        super().__init__(
            description="Command line client of an OIO-SDS namespace.",
            version=oio.__version__,
            command_manager=self.manager,
            deferred_help=True,
        )
        # In the place of the one that cliff brings along.
        self.manager.commands["complete"] = EntryPoint("complete", "oio.cli.complete:Complete", "openio")
        self.client_manager: ClientManager = ClientManager({})
        self.perfdata: dict[str, Any] = {}
        self.last_request_id: str | None = None
        # Cliff logs here what escapes a command.
        self.LOG = _ErrorLog(self.LOG, self)  # type: ignore[assignment]
        self._batch_done = False

    def build_option_parser(
        self, description: str | None, version: str | None, argparse_kwargs: Any = None
    ) -> argparse.ArgumentParser:
        """Add the options that may stand anywhere on the line."""
        shape = {"epilog": EPILOG, "formatter_class": argparse.RawDescriptionHelpFormatter}
        parser = super().build_option_parser(description, version, {**shape, **(argparse_kwargs or {})})
        parser.prog = _PROG
        env = os.environ.get
        parser.add_argument(
            "--ns", "--oio-ns", dest="ns", default=env("OIO_NS", ""), metavar="NS",
            help="Namespace (environment: OIO_NS)",
        )
        parser.add_argument(
            "-a", "--account", "--oio-account", dest="account", default=env("OIO_ACCOUNT", ""),
            metavar="ACCOUNT", help="Account name (environment: OIO_ACCOUNT)",
        )
        parser.add_argument(
            "--oio-proxy", "--oio-proxyd-url", dest="proxy", default=env("OIO_PROXYD_URL", ""),
            metavar="HOST:PORT",
            help="Proxy address (environment: OIO_PROXYD_URL; default: configuration of the namespace)",
        )
        parser.add_argument(
            "--admin-flag", "--admin", dest="admin_mode", action="store_true",
            help="Send requests in administration mode",
        )
        parser.add_argument(
            "--request-id", "--req-id", dest="request_id", metavar="ID",
            help="Request id to use (at most 63 characters)",
        )
        parser.add_argument("--profile", metavar="FILE", help="Save profiling data; %%(pid)s is replaced")
        parser.add_argument("--profiler", default="cProfile", help="cProfile (default), profile or yappi")
        parser.add_argument("--profile-early", action="store_true", help="Profile the start-up too")
        parser.add_argument(
            "--dump-perfdata", action="store_true", help="Log performance data after the command"
        )
        return parser

    def configure_logging(self) -> None:
        """Results go to standard output, everything else to standard error."""
        level = self._log_level()
        root = logging.getLogger("")
        root.setLevel(logging.DEBUG)
        console = logging.StreamHandler(self.stderr)
        console.setLevel(level)
        console.setFormatter(logging.Formatter(self.CONSOLE_MESSAGE_FORMAT))
        root.addHandler(console)
        if self.options.log_file:
            to_file = logging.FileHandler(self.options.log_file)
            to_file.setFormatter(logging.Formatter(self.LOG_FILE_MESSAGE_FORMAT))
            root.addHandler(to_file)
        for name in ("stevedore", "cliff"):
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("urllib3").setLevel(logging.DEBUG if self.options.debug else logging.WARNING)

    def _log_level(self) -> int:
        levels = {0: logging.ERROR, 1: logging.WARNING, 2: logging.INFO}
        return levels.get(self.options.verbose_level, logging.DEBUG)

    def run(self, argv: list[str]) -> int:
        """Load the family that the first word names, then run the command."""
        options, _rest = self.parser.parse_known_args(argv)
        words = [word for word in _rest if not word.startswith("-")]
        profiler = _start_profiler(options) if options.profile_early else None
        status = 1
        try:
            self.manager.load_for(words)
            if profiler is None and options.profile:
                profiler = _start_profiler(options)
            status = super().run(argv)
        finally:
            if profiler is not None:
                try:
                    _save_profile(profiler, options)
                except OSError as exc:
                    self.log.error("The profile cannot be saved: %s", exc)
                    status = 1
        return 0 if self._batch_done else status

    def initialize_app(self, argv: list[str]) -> None:
        """Build what commands take their clients from."""
        super().initialize_app(argv)
        given = self.options.request_id
        if given and not (given.isascii() and given.isprintable()):
            raise CommandError(f"Invalid request id {given!r}: printable ASCII characters are expected")
        if given and len(given) > STRLEN_REQID:
            # Here, for all requests, those to chunk servers too; and told once.
            self.log.warning("Request id truncated to %d characters: %s", STRLEN_REQID, given)
            self.options.request_id = given[:STRLEN_REQID]
        self.client_manager = ClientManager(
            {
                "namespace": self.options.ns,
                "account": self.options.account,
                "proxyd_url": self.options.proxy,
                "admin_mode": self.options.admin_mode,
                "perfdata": self.perfdata if self.options.dump_perfdata else None,
                "log_level": logging.getLevelName(self._log_level()),
            }
        )

    def request_id(self, prefix: str = "CLI-") -> str:
        """The request id given by the user, or a new one."""
        self.last_request_id = self.options.request_id or request_id(prefix)
        return self.last_request_id

    def describe_error(self, exc: BaseException) -> str:
        """Text of an error, with the id of the request that failed."""
        return describe_error(exc, self.last_request_id)

    def clean_up(self, cmd: Any, result: int, err: BaseException | None) -> None:
        """Log performance data when asked for."""
        if self.options.dump_perfdata and self.perfdata:
            self.log.warning("Performance data: %s", json.dumps(self.perfdata, sort_keys=True, indent=4))

    def interact(self) -> None:
        """Interactive and batch mode: a failed line does not change the exit code."""
        from oio.cli.common.shell import run_lines

        self._batch_done = True

        def tell(text: str) -> None:
            self.LOG.error("%s", text)

        def run(words: list[str]) -> None:
            # A batch may be read by a program while it is written.
            self.run_subcommand(words)
            self.stdout.flush()

        # Errors of the arguments of a line leave its command, not the session.
        self.interactive_mode = False
        run_lines(self.stdin, run, tell, lambda: [name for name, _entry in self.command_manager])


class _ErrorLog(logging.LoggerAdapter[logging.Logger]):
    """Tells the id of the request that failed, after the error."""

    def __init__(self, logger: logging.Logger, app: OpenIOApp) -> None:
        super().__init__(logger)
        self._app = app

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        """Make a text of an exception; other messages stay."""
        return (self._app.describe_error(msg) if isinstance(msg, BaseException) else msg), kwargs


def _start_profiler(options: argparse.Namespace) -> Any:
    if options.profiler in ("cProfile", "profile"):
        import importlib

        profiler = importlib.import_module(options.profiler).Profile()
        if hasattr(profiler, "enable"):
            profiler.enable()
        return profiler
    if options.profiler == "yappi":
        try:
            import yappi  # type: ignore[import-not-found, unused-ignore]
        except ImportError as exc:
            raise SystemExit(f"The profiler cannot be loaded: {exc}") from exc
        yappi.start()
        return yappi
    raise SystemExit(f"Unknown profiler: {options.profiler}")


def _save_profile(profiler: Any, options: argparse.Namespace) -> None:
    path = options.profile or f"{_PROG}-{os.getpid()}.prof"
    path = path.replace("%(pid)s", str(os.getpid()))
    if options.profiler == "yappi":
        profiler.stop()
        profiler.get_func_stats().save(path, type="callgrind")
        return
    if hasattr(profiler, "disable"):
        profiler.disable()
    profiler.dump_stats(path)


_ended_by: list[int] = []


def _terminate(number: int, _frame: Any) -> None:
    """Somebody wants the program to end: what is under way is undone, as at Ctrl-C."""
    _ended_by.append(number)
    raise KeyboardInterrupt


def _heed_signals() -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            # Not when whoever started the program wants it to stay (nohup).
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, _terminate)


def main(argv: list[str] | None = None) -> int:
    """Entry point of the program."""
    formatters.prepare_streams()
    _heed_signals()
    try:
        status = OpenIOApp().run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except CommandError as exc:
        print(describe_error(exc), file=sys.stderr)
        return 1
    except BrokenPipeError:
        status = CLOSED_PIPE
    except KeyboardInterrupt:
        status = INTERRUPTED
    except OSError as exc:
        # Standard output cannot be written (a full disk).
        print(describe_error(exc), file=sys.stderr)
        _give_up_output()
        status = 1
    if status == CLOSED_PIPE:
        _give_up_output()
    elif status == INTERRUPTED:
        print("Interrupted", file=sys.stderr)
        status = 128 + (_ended_by[0] if _ended_by else signal.SIGINT)
        if threading.active_count() > 1:
            # Interrupted once more while what is under way was being undone: nobody wants to wait for it.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return status


def _give_up_output() -> None:
    """The reader of our output went away (``openio … | head``): nothing is left to say, even at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
