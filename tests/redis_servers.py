# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Real Redis servers and Sentinels for tests, on ports of loopback that stay theirs over restarts."""

import contextlib
import subprocess

import pytest
import redis
from support import eventually, held_port

from oio.common.redis_server import find_redis_server

SET = "the-set"


class RedisProcess:
    """A Redis server with an append-only file, or a Sentinel; can be killed and started again.

    :param config: lines of a configuration file.
    """

    def __init__(self, home, *config, sentinel=False):
        program = find_redis_server()
        if program is None:
            pytest.skip("no Redis server on this machine")
        home.mkdir(parents=True)
        # While the socket is open nobody else gets the port, but a server can listen on it.
        self._held, self.port = held_port()
        lines = [f"port {self.port}", "bind 127.0.0.1", f'dir "{home}"', *config]
        if not sentinel:
            lines += ['save ""', "appendonly yes", "appendfsync everysec", "repl-diskless-sync-delay 0"]
        self._log = home / "log"
        path = home / "redis.conf"
        path.write_text("\n".join(lines) + "\n")
        self._command = [program, str(path)] + (["--sentinel"] if sentinel else [])
        self.client = redis.Redis(port=self.port, decode_responses=True)
        self.start()

    @property
    def addr(self):
        return f"127.0.0.1:{self.port}"

    def start(self):
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        eventually(self._answers, what=f"answer of Redis ({self._log})")

    def _answers(self):
        assert self.process.poll() is None, self._log.read_text()
        try:
            return self.client.ping()
        except redis.exceptions.RedisError:
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.kill()
        self.client.close()
        self._held.close()


class ReplicatedRedis:
    """A master, a replica that follows it, and Sentinels that watch them.

    :param config: lines of the configuration of the two servers.
    """

    def __init__(self, home, *config, sentinels=1):
        self.servers = [RedisProcess(home / "one", *config)]
        self.servers.append(
            RedisProcess(home / "two", f"replicaof 127.0.0.1 {self.servers[0].port}", *config)
        )
        self.sentinels = [
            RedisProcess(
                home / f"sentinel-{number}",
                f"sentinel monitor {SET} 127.0.0.1 {self.servers[0].port} {sentinels // 2 + 1}",
                f"sentinel down-after-milliseconds {SET} 500",
                f"sentinel failover-timeout {SET} 2000",
                sentinel=True,
            )
            for number in range(sentinels)
        ]
        self.sentinel = self.sentinels[0]
        eventually(self.synchronous, what="replica in step")
        eventually(self._acquainted, what="Sentinels that know each other")
        eventually(self._confirms, what="a replica that confirms")

    def synchronous(self):
        """Whether Sentinel sees a replica that follows the master."""
        seen = self.sentinel.client.sentinel_slaves(SET)
        return any(one["flags"] == "slave" and one["master-link-status"] == "ok" for one in seen)

    def _confirms(self):
        client = self.servers[0].client
        with contextlib.suppress(redis.exceptions.RedisError):
            # After the first contact a replica may be silent for a second.
            return client.set("probe", 1) and client.delete("probe") and client.wait(1, 100)

    def _acquainted(self):
        others = len(self.sentinels) - 1
        return all(len(one.client.sentinel_sentinels(SET)) == others for one in self.sentinels)

    def in_step(self):
        """Whether the Sentinels agree on a master, and the other server follows it."""
        if len(self.masters()) > 1:
            return False
        state = self.master.client.info("replication")
        return state["role"] == "master" and state.get("slave0", {}).get("state") == "online"

    def masters(self):
        """Ports of the master, as the Sentinels that run see it."""
        running = [one for one in self.sentinels if one.process.poll() is None]
        return {one.client.sentinel_get_master_addr_by_name(SET)[1] for one in running}

    @property
    def master(self):
        port = self.masters().pop()
        return next(server for server in self.servers if server.port == port)

    @property
    def replica(self):
        master = self.master
        return next(server for server in self.servers if server is not master)

    def stop(self):
        for server in (*self.sentinels, *self.servers):
            server.stop()
