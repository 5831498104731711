# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Clients that the tools of the directory work with: those that they are given, or made when they are needed."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from oio.common.logger import get_logger
from oio.conscience.client import ConscienceClient
from oio.directory.admin import AdminClient
from oio.directory.client import DirectoryClient
from oio.rdir.client import RdirClient


class ToolClients:
    """Base of these tools.

    :param conf: must hold ``namespace``.
    :param given: clients to use, by the name of their attribute; None for one to be made.
    :param kwargs: for the clients that are made.
    """

    def __init__(
        self, conf: Mapping[str, Any], logger: Any, given: Mapping[str, Any], kwargs: Mapping[str, Any]
    ) -> None:
        self.conf = conf
        self.logger = logger or get_logger(dict(conf), "oio.directory")
        self._kwargs = {**kwargs, "logger": self.logger}
        # The cached properties of these names are not computed then.
        self.__dict__.update({name: client for name, client in given.items() if client is not None})

    @functools.cached_property
    def admin(self) -> AdminClient:
        """Client of the administration of bases."""
        return AdminClient(self.conf, **self._kwargs)

    @functools.cached_property
    def conscience(self) -> ConscienceClient:
        """Client of the registry of services."""
        return ConscienceClient(self.conf, **self._kwargs)

    @functools.cached_property
    def directory(self) -> DirectoryClient:
        """Client of the directory."""
        return DirectoryClient(self.conf, **self._kwargs)

    @functools.cached_property
    def rdir(self) -> RdirClient:
        """Client of the reverse directory."""
        return RdirClient(self.conf, directory_client=self.directory, **self._kwargs)
