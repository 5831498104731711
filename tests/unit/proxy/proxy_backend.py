# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""A live proxy in front of the real metadata services, all in this process."""

import contextlib

from proxy_cluster import NS, Cluster
from support import MemoryQueue

from oio.common.variables import Variables
from oio.conscience.messages import Service
from oio.directory.prefixes import generate_prefixes
from oio.http.server import Server, ServerConfig
from oio.meta.base import BaseOptions
from oio.meta.messages import Meta0Get, Meta0Set, PrefixMapping
from oio.meta.meta0.service import META0, Meta0Service
from oio.meta.meta1.prefixes import Prefixes
from oio.meta.meta1.service import META1, Meta1Service
from oio.meta.meta2.schema import META2
from oio.meta.meta2.service import Meta2Service
from oio.meta.repository import Repository
from oio.meta.server import MetaApplication


class Backend:
    """meta0, meta1 and meta2, each with its volume."""

    def __init__(self, directory, cluster):
        self.variables = Variables({"ns.meta1_digits": "0"})
        self.servers, self.repositories = [], []
        self.queue = MemoryQueue()
        handlers = Meta0Service(self._repository(directory, META0), NS).handlers()
        self._serve(cluster, "meta0", handlers)
        self.prefixes_read = 0
        prefixes = Prefixes(self._load_prefixes)
        handlers = Meta1Service(self._repository(directory, META1), prefixes, 0).handlers()
        self._serve(cluster, "meta1", handlers)
        repository = self._repository(directory, META2)
        handlers = Meta2Service(repository, self.variables, f"{NS}-meta2-1").handlers()
        self._serve(cluster, "meta2", handlers)

    def _load_prefixes(self):
        self.prefixes_read += 1
        return frozenset({"0000"})

    def _repository(self, directory, base_type):
        volume = directory / base_type.name
        volume.mkdir()
        self.repositories.append(
            Repository(str(volume), base_type, options=BaseOptions(sync="off"), queue=self.queue)
        )
        return self.repositories[-1]

    def _serve(self, cluster, kind, handlers):
        config = ServerConfig(linger_s=0.001, access_log=None)
        server = Server(MetaApplication(kind, NS, handlers, self.variables), [("127.0.0.1", 0)], config)
        server.start()
        self.servers.append(server)
        addr = f"127.0.0.1:{server.addresses[0][1]}"
        tags = {"tag.service_id": f"{NS}-meta2-1"} if kind == "meta2" else {}
        cluster.conscience.services[kind] = [Service(type=kind, addr=addr, score=90, tags=tags)]
        if kind == "meta1":
            table = {prefix: [addr] for prefix in generate_prefixes(4)}
            meta0 = cluster.conscience.services["meta0"][0].addr
            cluster.app.resolver.meta.call(meta0, Meta0Set(mapping=table))
            assert cluster.app.resolver.meta.call(meta0, Meta0Get()) == PrefixMapping(mapping=table)

    def stop(self):
        """Stop the servers, close the bases."""
        for server in self.servers:
            server.stop(0.2)
        for repository in self.repositories:
            repository.close()


@contextlib.contextmanager
def full_cluster(directory, **variables):
    """A cluster whose proxy knows the real services."""
    cluster = Cluster(**{"ns.meta1_digits": "0", **variables})
    backend = Backend(directory, cluster)
    cluster.conscience.generation += 1
    cluster.reload()
    cluster.backend = backend
    yield cluster
    cluster.stop()
    backend.stop()
