# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The ``openio`` program: global options, command families loaded on demand, one-line errors.

The first word of the command line selects the family, so that a simple command loads only what it needs.
Exit codes: 0 success, 1 the command failed (or at least one of its rows), 2 bad command line.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from typing import Any

from cliff.app import App
from cliff.commandmanager import CommandManager

import oio
from oio.cli.clientmanager import ClientManager
from oio.cli.common.base import describe_error
from oio.common.exceptions import CommandError
from oio.common.utils import request_id

FAMILIES = ("cluster", "container", "events", "object", "rdir", "volume")
_PROG = "openio"


class LazyCommandManager(CommandManager):
    """Loads the entry points of one family, or of all when the word is not a family."""

    def __init__(self) -> None:
        super().__init__("openio.none")
        self._loaded: set[str] = set()

    def load_for(self, words: list[str]) -> None:
        """Load what the command line needs; ``words`` are the arguments that are not options."""
        wanted = [words[0]] if words and words[0] in FAMILIES else list(FAMILIES)
        for family in wanted:
            if family not in self._loaded:
                self._loaded.add(family)
                self.load_commands(f"openio.{family}")


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
        parser = super().build_option_parser(description, version, argparse_kwargs)
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
        self._batch_done = True
        # The shell takes the arguments of the process for its first commands; ours are options.
        arguments, sys.argv = sys.argv, sys.argv[:1]
        try:
            super().interact()
        finally:
            sys.argv = arguments


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


def main(argv: list[str] | None = None) -> int:
    """Entry point of the program."""
    try:
        return OpenIOApp().run(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:
        # The reader of our output went away (``openio … | head``): nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("Interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
