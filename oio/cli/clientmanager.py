# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Clients of the command line, built on first use so that a command pays only for what it calls."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from oio.common.exceptions import CommandError

if TYPE_CHECKING:
    from logging import Logger

    from oio.api.object_storage import ObjectStorageApi
    from oio.common.autocontainer import HashedContainerBuilder
    from oio.conscience.client import ConscienceClient
    from oio.directory.admin import AdminClient
    from oio.directory.client import DirectoryClient
    from oio.directory.meta0 import Meta0Client
    from oio.event.client import EventClient
    from oio.rdir.client import RdirClient
    from oio.rdir.dispatcher import RdirDispatcher


class ClientManager:
    """Holds the options that matter to clients, and the clients."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._namespace_options: dict[str, Any] | None = None

    @property
    def namespace(self) -> str:
        """Namespace. :raises CommandError: when none is set."""
        namespace = self._options.get("namespace")
        if not namespace:
            raise CommandError("Missing parameter:\nSet a namespace with --ns, OIO_NS")
        return str(namespace)

    @property
    def account(self) -> str:
        """Account. :raises CommandError: when none is set."""
        account = self._options.get("account")
        if not account:
            raise CommandError("Missing parameter:\nSet an account name with --account, OIO_ACCOUNT")
        return str(account)

    @property
    def account_option(self) -> str:
        """Account as it was given, maybe empty: for commands that can do without."""
        return str(self._options.get("account") or "")

    @property
    def conf(self) -> dict[str, Any]:
        """Configuration given to every client."""
        return {"namespace": self.namespace, "is_cli": True}

    @cached_property
    def logger(self) -> Logger:
        """Logger of the clients: timestamped lines on standard error, and syslog."""
        from oio.common.logger import get_logger

        return get_logger({"is_cli": True, "log_level": self._options.get("log_level") or "WARNING"}, "oio.cli")

    @property
    def _endpoint(self) -> str | None:
        return self._options.get("proxyd_url") or None

    @cached_property
    def storage(self) -> ObjectStorageApi:
        """Object storage client."""
        from oio.api.object_storage import ObjectStorageApi

        return ObjectStorageApi(
            self.namespace,
            logger=self.logger,
            endpoint=self._endpoint,
            admin_mode=self._options.get("admin_mode", False),
            perfdata=self._options.get("perfdata"),
        )

    @cached_property
    def conscience(self) -> ConscienceClient:
        """Client of the conscience, through the proxy."""
        from oio.conscience.client import ConscienceClient

        return ConscienceClient(self.conf, endpoint=self._endpoint, logger=self.logger)

    @cached_property
    def events(self) -> EventClient:
        """Client of the queue of events of this host."""
        from oio.event.client import EventClient

        return EventClient(self.conf, logger=self.logger)

    @property
    def queue_urls(self) -> list[str]:
        """URLs of all the queues of events that the configuration names."""
        from oio.common.configuration import load_namespace_conf
        from oio.event.client import CONF_KEY
        from oio.event.queue import split_urls

        return split_urls(str(load_namespace_conf(self.namespace, failsafe=True).get(CONF_KEY) or ""))

    @property
    def directory(self) -> DirectoryClient:
        """Client of the directory."""
        return self.storage.directory

    @cached_property
    def admin(self) -> AdminClient:
        """Client of the administration of bases."""
        from oio.directory.admin import AdminClient

        return AdminClient(self.conf, endpoint=self._endpoint, logger=self.logger)

    @cached_property
    def meta0(self) -> Meta0Client:
        """Client of the table of the directory."""
        from oio.directory.meta0 import Meta0Client

        return Meta0Client(self.conf, endpoint=self._endpoint, logger=self.logger)

    @cached_property
    def rdir(self) -> RdirClient:
        """Client of the reverse directory."""
        from oio.rdir.client import RdirClient

        return RdirClient(self.conf, endpoint=self._endpoint, logger=self.logger)

    @cached_property
    def rdir_dispatcher(self) -> RdirDispatcher:
        """Gives reverse directories to volumes."""
        from oio.rdir.dispatcher import RdirDispatcher

        return RdirDispatcher(
            self.conf, rdir_client=self.rdir, endpoint=self._endpoint, logger=self.logger
        )

    def flat_builder(self, bits: int | None, reqid: str | None = None) -> HashedContainerBuilder:
        """Rule that gives the container of an object (``--auto``). The namespace is asked once in a session.

        :param bits: instead of those of the namespace.
        :param reqid: id of the request to the namespace.
        :raises CommandError: when the namespace has no such configuration.
        """
        from oio.cli.common.autocontainer import make_flat_builder

        if self._namespace_options is None:
            self._namespace_options = dict(self.conscience.info(reqid=reqid).get("options") or {})
        return make_flat_builder(self._namespace_options, bits)
