# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Command line of the chunk server: ``oio-rawx [-s ID] [-v] [-D X] [-servicing] -f CONFIG``."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from oio.common.configuration import load_namespace_conf
from oio.common.exceptions import ConfigurationException
from oio.common.service import command_line, install_verbosity_signals
from oio.common.variables import Variables
from oio.common.volume_lock import lock_volume
from oio.event.queue import DEFAULT_TUBE, QueueError, producer_url, split_urls
from oio.event.routing import CHUNK_EVENTS_PRIORITY, TUBE_VARIABLES, RoutedQueue, emission_url
from oio.event.transport.spool import SpoolQueue, spool_from_url
from oio.rawx import config as configuration
from oio.rawx import events, logs
from oio.rawx.config import RawxConfig
from oio.rawx.journal import Journal
from oio.rawx.recall import recall
from oio.rawx.server import Rawx, store_options
from oio.rawx.store import Volume

STOP_GRACE_S = 10.0
# What the queue does not take in this time stays in the journal, for the next start.
EVENTS_DRAIN_S = 1.0
# In the volume. No chunk is there: names of hashed directories are hexadecimal.
JOURNAL_DIRECTORY = ".events"
# The kernel may hand a signal to a thread other than the main one (it does when a debugger holds the
# main one); the handler then runs when the main thread wakes up.
SIGNAL_POLL_S = 1.0
# SIGUSR1 makes the logs more verbose for that long.
VERBOSE_PERIOD_S = 900.0

logger = logging.getLogger("oio.rawx")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service until SIGTERM or SIGINT; gives the exit code of the process."""
    options = parse_arguments(arguments)
    try:
        config = configuration.load(options.file)
    except ConfigurationException as err:
        print(f"oio-rawx: {options.file}: {err}", file=sys.stderr)
        return 1
    log = logs.setup(options.syslog or config.syslog_id, options.verbose)
    for warning in config.warnings:
        logger.warning("%s: %s", options.file, warning)
    try:
        run(config, log=log, verbose=options.verbose, servicing=options.servicing)
    except (ConfigurationException, OSError) as err:
        logger.error("cannot start: %s", err)
        print(f"oio-rawx: {err}", file=sys.stderr)
        return 1
    finally:
        if log is not None:
            log.close()
    return 0


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a mistake ends the program."""
    parser = command_line("oio-rawx", "Serve the chunks of one volume.")
    parser.add_argument("-f", dest="file", required=True, help="configuration file")
    parser.add_argument("-s", dest="syslog", default="", help="log to syslog with this identifier")
    parser.add_argument("-v", dest="verbose", action="store_true", help="be verbose, on stderr")
    parser.add_argument("-D", dest="ignored", help="accepted and ignored")
    parser.add_argument("-servicing", dest="servicing", action="store_true", help="do not lock the volume")
    return parser.parse_args(arguments)


def run(config: RawxConfig, *, log: logs.LogWriter | None, verbose: bool, servicing: bool) -> None:
    """Lock the volume, serve until a signal comes, and stop in good order."""
    if not os.path.isdir(config.docroot):
        raise ConfigurationException(f"docroot: {config.docroot} is not a directory")
    lock = None if servicing else lock_volume(config.docroot, config.namespace, "rawx", config.volume_id)
    volume = Volume(config.docroot, store_options(config, exclusive=lock is not None))
    try:
        journals = open_journals(config, servicing)
    except ConfigurationException:
        if lock is not None:
            lock.release()
        raise
    sender = events.EventSender(journals, config.listen, config.service_id)
    rawx = Rawx(
        config,
        emit=sender.emit if journals else None,
        volume=volume,
        log=log,
        verbose=verbose,
        event_counters=sender.counters if journals else None,
    )
    asked, sweeper = threading.Event(), None

    def ask(signum: int, _frame: object) -> None:
        del signum
        asked.set()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    install_verbosity_signals(VERBOSE_PERIOD_S)
    volume.spread_directories()
    rawx.start()
    try:
        if lock is not None:
            sweeper = threading.Thread(
                target=_tend, args=(volume, config, journals, sender, asked), name="rawx-sweep", daemon=True
            )
            sweeper.start()
        logger.info("serving %s on %s", config.docroot, rawx.address)
        while not asked.wait(SIGNAL_POLL_S):
            continue
    finally:
        asked.set()
        rawx.stop(STOP_GRACE_S)
        sender.close(EVENTS_DRAIN_S)
        if sweeper is not None:
            sweeper.join(1.0)
        if lock is not None:
            lock.release()
        logger.info("stopped")


def _tend(
    volume: Volume,
    config: RawxConfig,
    journals: dict[str, Journal],
    sender: events.EventSender,
    stop: threading.Event,
) -> None:
    """What is done to the volume in the background, once, after the start."""
    volume.remove_leftovers(stop)
    journal = journals.get(events.CHUNK_NEW)
    if journal is not None and journal.interrupted_at is not None:
        try:
            recall(volume, sender.emit, journal.interrupted_at, stop)
            if not stop.is_set():
                journal.recalled()
        except OSError as err:
            logger.error("chunks are not told again, the next start will: %s", err)
    if config.prepare_directories and not stop.is_set():
        volume.prepare_directories(stop)


def open_journals(config: RawxConfig, servicing: bool = False) -> dict[str, Journal]:
    """For each kind of event, the journal that keeps it until the queue has it; empty when events are off.

    A spool of ``event_queue`` is the one of this service; that of the namespace is common to the services
    of the host, each of which has its own sub-directory. A spool is its own journal.
    """
    if not config.events:
        return {}
    namespace = load_namespace_conf(config.namespace, failsafe=True, fresh=True)
    variables = Variables(namespace)
    if not variables["rawx.events_allowed"]:
        return {}
    urls = split_urls(config.event_queue)
    if not urls:
        common = split_urls(namespace.get("event-agent") or "")
        urls = [producer_url(url, "rawx", config.volume_id) for url in common]
    if not urls:
        raise ConfigurationException(
            f"events are on and no queue is configured: set event_queue here, or event-agent in "
            f"the section [{config.namespace}] of the namespace configuration"
        )
    try:
        if not any(url.startswith("spool://") for url in urls):
            return dict.fromkeys(events.KINDS, _forwarding_journal(config, urls, variables, servicing))
        if len(urls) > 1:
            raise ConfigurationException("event queue: a spool must be the only queue of a service")
        return _spools(urls[0], variables)
    except (ValueError, QueueError) as err:
        raise ConfigurationException(f"event queue: {err}") from None


def _forwarding_journal(
    config: RawxConfig, urls: list[str], variables: Variables, servicing: bool
) -> Journal:
    target = emission_url(";".join(urls), variables, CHUNK_EVENTS_PRIORITY)
    opener = functools.partial(RoutedQueue, target, variables)
    opener().close()  # a malformed URL is told at once
    directory = config.events_journal or os.path.join(config.docroot, JOURNAL_DIRECTORY)
    if servicing:
        # The one of the volume belongs to the process that holds the volume.
        directory += "-servicing"
    spool = SpoolQueue(directory, max_bytes=config.events_journal_size, fsync=False)
    return Journal(spool, opener, events.chunk_of if len(urls) > 1 else None)


def _spools(url: str, variables: Variables) -> dict[str, Journal]:
    if "fsync=" not in url:
        url += ("&" if "?" in url else "?") + "fsync=0"
    tubes = {kind: variables[TUBE_VARIABLES[kind]] or DEFAULT_TUBE for kind in events.KINDS}
    journals = {tube: Journal(spool_from_url(url, tube)) for tube in set(tubes.values())}
    return {kind: journals[tube] for kind, tube in tubes.items()}


def run_and_exit() -> NoReturn:
    """Entry point of the program."""
    sys.exit(main())


if __name__ == "__main__":
    run_and_exit()
