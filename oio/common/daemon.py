# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Daemons configured by an INI file, for programs that derive theirs from :class:`Daemon`.

The services of this package stand on ``oio.common.service``.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Mapping
from logging import Logger
from typing import Any

from oio.common.configuration import read_conf
from oio.common.logger import detach_stdio, get_logger, redirect_stdio
from oio.common.utils import drop_privileges

DEFAULT_USER = "openio"
STOP_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


class Daemon:
    """A long-running process: derive, and write :meth:`run` (and :meth:`stop` when there is something to stop)."""

    def __init__(self, conf: Mapping[str, Any]) -> None:
        self.conf = conf
        self.logger: Logger = get_logger(conf)

    def run(self, **kwargs: Any) -> None:
        """Do the work of the daemon; it ends when this returns."""
        raise NotImplementedError("run")

    def stop(self) -> None:
        """Told that the process is about to leave, from within a signal handler."""

    def start(self, **kwargs: Any) -> None:
        """Become the configured user, leave the terminal, obey the stop signals, then :meth:`run`.

        A stop signal is passed on to the whole process group (as SIGTERM); then this process exits with code 0.

        :param kwargs: given to :meth:`run`.
        :raises OioException: when the user (``user``, by default ``openio``) is unknown.
        """
        drop_privileges(self.conf.get("user") or DEFAULT_USER)
        detach_stdio()
        redirect_stdio(self.logger)
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_stop_signal)
        self.run(**kwargs)

    def _on_stop_signal(self, number: int, _frame: Any) -> None:
        # The group holds this process too: what it sends itself must not bring it back here.
        for one in STOP_SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        self.logger.info("Stopped by %s", signal.Signals(number).name)
        os.killpg(0, signal.SIGTERM)
        try:
            self.stop()
        except Exception:
            self.logger.exception("Could not stop as it should")
            sys.exit(1)
        sys.exit(0)


def section_of(klass: type) -> str:
    """Name of the section of a daemon: ``BlobIndexer`` → ``blob-indexer``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", klass.__name__).lower()


def run_daemon(
    klass: type[Daemon], conf_file: str, section_name: str | None = None, **kwargs: Any
) -> None:
    """Read a configuration, make the daemon and start it; returns when it is done.

    :param section_name: section of the file (by default the class name, dashed: see :func:`section_of`).
    :keyword verbose: also log on standard error.
    :keyword use_yaml: the file is in YAML, and has no section.
    :param kwargs: the others are given to ``start``, hence to ``run``.
    :raises SystemExit: when the file or the section is missing, or the daemon fails (logged).
    """
    section = section_name or section_of(klass)
    conf = read_conf(conf_file, section, use_yaml=kwargs.pop("use_yaml", False))
    logger = get_logger(conf, section, verbose=kwargs.pop("verbose", False))
    try:
        klass(conf).start(**kwargs)
    except Exception:
        logger.exception("%s failed", section)
        sys.exit(1)
    logger.info("%s is done", section)
