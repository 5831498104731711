# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Reads the handlers file and builds the pipeline of each type of event out of installed filters.

    [handler:storage.content.deleted]
    pipeline = trace cleaner

    [filter:trace]
    use = egg:oio#logger

    [filter:cleaner]
    use = egg:oio#content_cleaner
    timeout = 4.5

``use`` names an entry point of the group ``oio.event.filter_factory`` of an installed distribution
(``egg:DISTRIBUTION#NAME``, NAME is ``main`` when absent), or another filter section whose options are
inherited. Options are case-sensitive, ``%(name)s`` is replaced, ``__file__`` is the path of the file. A
filter gets the values of ``[DEFAULT]``, overridden by the keys of the agent, overridden by its section.

Each handler has filters of its own, in each process. The first one of the list is called first.
"""

from __future__ import annotations

import configparser
import importlib
import importlib.util
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from oio.common.exceptions import ConfigurationException
from oio.event.filters.base import Callback, Env

FILTER_GROUP = "oio.event.filter_factory"
HANDLER_GROUP = "oio.event.handler_factory"
# The name under which handlers files know this package, whatever its distribution is called.
OWN_EGG = "oio"
_OWN_DISTRIBUTION = "oio-sds"

# What is done when no handlers file is configured.
DEFAULT_PIPELINES = {
    "account.services": "account_update volume_index",
    "storage.chunk.deleted": "volume_index",
    "storage.chunk.new": "volume_index",
    "storage.container.deleted": "account_update",
    "storage.container.new": "account_update",
    "storage.container.state": "account_update",
    "storage.container.update": "",
    "storage.content.append": "",
    "storage.content.broken": "",
    "storage.content.deleted": "content_cleaner",
    "storage.content.drained": "content_cleaner",
    "storage.content.new": "",
    "storage.content.perfectible": "",
    "storage.content.update": "",
    "storage.meta2.deleted": "volume_index",
}

# Longest delay that a filter may ask for: what all queues can hold.
DELAY_MAX_S = 2.0**32 - 1

logger = logging.getLogger("oio.event.agent")


class Answer:
    """What a pipeline answered: it is the callback that filters are given."""

    __slots__ = ("delay_s", "failed_in", "message", "status")

    def __init__(self) -> None:
        self.status = 0
        self.message = ""
        #: How long to wait before the next delivery; None: what the agent does by itself.
        self.delay_s: float | None = None
        self.failed_in = ""

    def __call__(self, status: int, message: Any = "", delay_s: float | None = None, **_more: Any) -> None:
        """Answer: 2xx the event is done, 5xx it is to be delivered again (after ``delay_s``)."""
        if delay_s is not None and not 0 <= float(delay_s) <= DELAY_MAX_S:
            raise ValueError(f"delay_s={delay_s!r} is no delay")
        self.status = int(status)
        self.message = str(message or "")
        self.delay_s = None if delay_s is None else float(delay_s)

    @property
    def is_done(self) -> bool:
        """Whether the event needs nothing more."""
        return 200 <= self.status < 300


class MeasuredFilter:
    """A filter and what it costs; ``seconds`` include the filters that follow in its pipeline."""

    def __init__(self, name: str, inner: Any, app_env: dict[str, Any] | None = None) -> None:
        self.name = name
        self.inner = inner
        #: For the filter before it: a filter that is a function keeps nothing.
        self.app_env = getattr(inner, "app_env", None) or app_env
        self.calls = 0
        self.errors = 0
        self.seconds = 0.0
        self._lock = threading.Lock()

    def __call__(self, env: Env, beanstalkd: Any, cb: Callback) -> Any:
        begin_s = time.perf_counter()
        failed = True
        try:
            result = self.inner(env, beanstalkd, cb)
            # An answer that comes later cannot be blamed on anybody.
            failed = type(cb) is Answer and cb.status != 0 and not cb.is_done
            return result
        finally:
            seconds = time.perf_counter() - begin_s
            with self._lock:
                self.calls += 1
                self.seconds += seconds
                # The innermost filter through which a failure went is where it comes from.
                if failed and not (type(cb) is Answer and cb.failed_in):
                    self.errors += 1
                    if type(cb) is Answer:
                        cb.failed_in = self.name

    def counts(self) -> Mapping[str, int]:
        """What the filter itself counts."""
        counts = getattr(self.inner, "counts", None)
        return counts if isinstance(counts, Mapping) else {}

    def close(self) -> None:
        """Release what the filter holds."""
        close = getattr(self.inner, "close", None)
        if callable(close):
            close()


class Pipeline:
    """The filters and the handler of one type of event."""

    def __init__(self, event_type: str, filters: list[MeasuredFilter], entry: Callable[..., Any]) -> None:
        self.event_type = event_type
        self.filters = filters
        self.call = entry


class _App:
    """What the innermost step is built on."""

    def __init__(self, app_env: dict[str, Any]) -> None:
        self.app_env = app_env


class Pipelines:
    """The pipeline of each type of event.

    :param app_env: what all filters share.
    :param agent_conf: the keys of the agent, which all filters inherit.
    :param handlers_path: the handlers file; None: the usual consumers of all events.
    :raises ConfigurationException: when the file is wrong, or a filter refuses its options.
    """

    def __init__(
        self,
        app_env: dict[str, Any],
        agent_conf: Mapping[str, Any] | None = None,
        handlers_path: str | None = None,
    ) -> None:
        self.by_type: dict[str, Pipeline] = {}
        self._app = _App(app_env)
        self._conf = dict(agent_conf or {})
        self._file = _HandlersFile(handlers_path)
        self._where = handlers_path or "built-in handlers"
        try:
            for event_type, names in self._file.pipelines():
                self.by_type[event_type] = self._pipeline(event_type, names)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Pipeline]:
        return iter(self.by_type.values())

    def close(self) -> None:
        """Release what the filters hold."""
        for pipeline in self:
            for step in pipeline.filters:
                try:
                    step.close()
                except Exception:
                    logger.exception("closing the filter %s of %s", step.name, pipeline.event_type)

    def _pipeline(self, event_type: str, names: list[str]) -> Pipeline:
        global_conf = {**self._file.defaults, **self._conf}
        handler_factory = load_factory(f"egg:{OWN_EGG}#default", HANDLER_GROUP, self._where)
        app = handler_factory(self._app, global_conf)
        steps: list[MeasuredFilter] = []
        for name in reversed(names):
            use, options = self._file.filter(name)
            factory = load_factory(use, FILTER_GROUP, f"{self._where}: [filter:{name}]")
            try:
                step = factory(global_conf, **options)(app)
            except ConfigurationException as exc:
                raise ConfigurationException(f"{self._where}: [filter:{name}] {exc}") from exc
            except Exception as exc:
                # Code of third parties: whatever it raises, the agent cannot begin without it.
                logger.debug("%s: [filter:%s]", self._where, name, exc_info=True)
                raise ConfigurationException(
                    f"{self._where}: [filter:{name}] {type(exc).__name__}: {exc}"
                ) from exc
            app = MeasuredFilter(name, step, self._app.app_env)
            steps.insert(0, app)
        return Pipeline(event_type, steps, app)


class _HandlersFile:
    """Sections of a handlers file."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._filters: dict[str, dict[str, str]] = {}
        self._pipelines: dict[str, list[str]] = {}
        self.defaults: dict[str, str] = {}
        if path is None:
            self._pipelines = {name: text.split() for name, text in DEFAULT_PIPELINES.items()}
            names = {name for pipeline in self._pipelines.values() for name in pipeline}
            self._filters = {name: {"use": f"egg:{OWN_EGG}#{name}"} for name in names}
            return
        parser = configparser.ConfigParser(defaults={"__file__": os.path.abspath(path).replace("%", "%%")})
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        try:
            with open(path, encoding="utf-8") as stream:
                parser.read_file(stream, path)
            self.defaults = {name: _default(parser, name) for name in parser.defaults()}
            for name in parser.sections():
                self._section(parser, name)
        except (OSError, UnicodeDecodeError, configparser.Error) as exc:
            raise ConfigurationException(f"Cannot read {path}: {str(exc).splitlines()[0]}") from exc

    def _section(self, parser: configparser.ConfigParser, section: str) -> None:
        kind, separator, name = section.partition(":")
        kind, name = kind.strip(), name.strip()
        known: Any = self._pipelines if kind == "handler" else self._filters
        if not separator or kind not in ("handler", "filter"):
            logger.warning("%s: section [%s] has no effect", self._path, section)
            return
        if name in known:
            raise ConfigurationException(f"{self._path}: there are several sections [{kind}:{name}]")
        if kind == "handler":
            self._pipelines[name] = parser.get(section, "pipeline", fallback="").split()
            return
        own: dict[str, str] = {}
        for option in parser.options(section):
            if option not in self.defaults:
                own[option] = parser.get(section, option)
            elif parser.get(section, option, raw=True) != parser.defaults()[option]:
                logger.warning("%s: [%s] %s has no effect: [DEFAULT] has it too", self._path, section, option)
        self._filters[name] = own

    def pipelines(self) -> Iterator[tuple[str, list[str]]]:
        """Each type of event, and the names of its filters."""
        return iter(self._pipelines.items())

    def filter(self, name: str) -> tuple[str, dict[str, str]]:
        """Factory (``egg:…``) and options of a filter, inherited ones included."""
        options: dict[str, str] = {}
        seen: list[str] = []
        while True:
            section = self._filters.get(name)
            if section is None:
                raise ConfigurationException(
                    f"{self._path}: section [filter:{name}] is missing"
                    + (f" (used by {seen[-1]})" if seen else "")
                )
            if name in seen:
                raise ConfigurationException(f"{self._path}: {' -> '.join([*seen, name])} is a loop")
            seen.append(name)
            options = {**section, **options}
            use = section.get("use", "").strip()
            if not use:
                raise ConfigurationException(f"{self._path}: [filter:{name}] has no use=")
            if ":" in use:
                options.pop("use", None)
                return use, options
            options.pop("use", None)
            name = use


def _default(parser: configparser.ConfigParser, name: str) -> str:
    """Value of a variable of all sections."""
    try:
        return parser.get(parser.default_section, name)
    except configparser.InterpolationMissingOptionError:
        # Made for sections that have the missing part.
        return parser.get(parser.default_section, name, raw=True)


def load_factory(use: str, group: str, where: str) -> Callable[..., Any]:
    """Load what ``egg:DISTRIBUTION#NAME`` names. :raises ConfigurationException: when it cannot be."""
    scheme, _, rest = use.partition(":")
    egg, _, name = rest.partition("#")
    egg, name = egg.strip(), name.strip() or "main"
    if scheme.strip() != "egg" or not egg:
        raise ConfigurationException(f"{where}: use={use!r} is not egg:DISTRIBUTION#NAME")
    try:
        found = _entry_point(egg, group, name)
        if found is not None:
            return _callable(found.load(), use, where)
        if egg == OWN_EGG:
            # A source tree that is not installed has no entry points.
            return _callable(_own(group, name), use, where)
    except ConfigurationException:
        raise
    except Exception as exc:
        # Importing a module of a third party may raise anything.
        raise ConfigurationException(f"{where}: cannot load use={use!r}: {type(exc).__name__}: {exc}") from exc
    known = sorted(point.name for point in _points_of(egg, group))
    raise ConfigurationException(
        f"{where}: use={use!r}: "
        + (f"{egg} has only {', '.join(known)}" if known else f"no distribution {egg} has filters")
    )


def _callable(factory: Any, use: str, where: str) -> Callable[..., Any]:
    if not callable(factory):
        raise ConfigurationException(f"{where}: use={use!r} cannot be called")
    return factory  # type: ignore[no-any-return]


def _entry_point(egg: str, group: str, name: str) -> EntryPoint | None:
    return next((point for point in _points_of(egg, group) if point.name == name), None)


def _points_of(egg: str, group: str) -> list[EntryPoint]:
    wanted = {_normal(egg)} | ({_OWN_DISTRIBUTION} if egg == OWN_EGG else set())
    return [
        point
        for point in entry_points(group=group)
        if point.dist is not None and _normal(point.dist.metadata["Name"]) in wanted
    ]


def _normal(distribution: str) -> str:
    return distribution.lower().replace("_", "-").replace(".", "-")


def _own(group: str, name: str) -> Any:
    if group == HANDLER_GROUP:
        from oio.event import handlers

        return handlers.handler_factory
    module = f"oio.event.filters.{name}"
    if not name.isidentifier() or importlib.util.find_spec(module) is None:
        raise ImportError(f"there is no filter {name}")
    return importlib.import_module(module).filter_factory
