# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""A service that shows itself in ZooKeeper: an ephemeral node that carries its address.

Tools compare the registrations of meta0 with what the conscience knows (contract: "ZooKeeper tree").
"""

from __future__ import annotations

import logging
from typing import Any

from kazoo.exceptions import KazooException, NodeExistsError, NoNodeError

from oio.meta.replication.zookeeper import CONNECTED, Ensemble
from oio.zk.tree import Tree

#: Something else than the connection failed: tried again after this delay.
RETRY_DELAY_S = 1.0

logger = logging.getLogger("oio.zookeeper")


class Registration:
    """Keeps the node of a service while the session lives, and makes it again in the next one.

    A node of the same name that another session holds was left by a former process of the service: it is replaced,
    once per session, so that two processes with one address by mistake do not chase each other.

    :param address: ``ip:port``, the name of the node and its value.
    """

    def __init__(self, ensemble: Ensemble, namespace: str, service_type: str, address: str) -> None:
        self.path = f"{Tree.registration_directory(namespace, service_type)}/{address}"
        self._ensemble = ensemble
        self._value = address.encode()
        self._wanted = False
        self._replaced = 0  # the session that replaced the node of a former process

    def start(self) -> None:
        """Show the service, now and in later sessions. Comes back at once."""
        self._ensemble.post(self._start)

    def stop(self) -> None:
        """Show it no more. The end of the session does as much."""
        self._ensemble.post(self._stop)

    def connection_changed(self, state: str) -> None:
        """The session of the ensemble is in this state."""
        if state == CONNECTED:
            self._look()

    def _start(self) -> None:
        self._wanted = True
        self._ensemble.attach(self)
        self._look()

    def _stop(self) -> None:
        self._wanted = False
        self._ensemble.detach(self)
        self._ensemble.request("delete", self.path, then=self._ignore)

    def _look(self) -> None:
        if self._wanted and self._ensemble.connected:
            self._ensemble.request("exists", self.path, watch=self._on_watch, then=self._seen)

    def _on_watch(self, _event: Any) -> None:
        """Kazoo's thread: the node came, or is gone."""
        self._ensemble.post(self._look)

    def _seen(self, result: Any) -> None:
        try:
            stat = result.get()
        except KazooException as exc:
            self._failed(exc)
            return
        if not self._wanted or (stat is not None and stat.ephemeralOwner == self._ensemble.session):
            return
        if stat is None:
            self._create()
        elif self._replaced != self._ensemble.session:
            self._replaced = self._ensemble.session
            # The watch tells when it is gone.
            self._ensemble.request("delete", self.path, then=self._ignore)

    def _create(self) -> None:
        create = {"ephemeral": True, "makepath": True}
        self._ensemble.request("create", self.path, self._value, **create, then=self._created)

    def _created(self, result: Any) -> None:
        try:
            result.get()
        except NodeExistsError:
            self._look()
        except KazooException as exc:
            self._failed(exc)

    def _ignore(self, result: Any) -> None:
        try:
            result.get()
        except NoNodeError:
            return
        except KazooException as exc:
            self._failed(exc)

    def _failed(self, exc: Exception) -> None:
        logger.warning("ZooKeeper %s: registration %s: %r", self._ensemble.hosts, self.path, exc)
        self._ensemble.call_later(RETRY_DELAY_S, self._look)
