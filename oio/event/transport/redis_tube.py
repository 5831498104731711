# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""A tube in Redis: its keys, the scripts that move jobs between them, the connection.

=======================  ====================================================================================
``oio:tubes``            set of the names of the tubes
``oio:TUBE``             stream of the ready and the reserved jobs (the latter are pending in the group ``agents``)
``oio:TUBE:delayed``     sorted set of ``ID ATTEMPTS BODY``, by the time they are due (ms since the epoch)
``oio:TUBE:buried``      stream of the buried jobs
=======================  ====================================================================================

An entry of a stream has the fields ``b`` (body), and once it was moved ``i`` (first id) and ``n`` (deliveries
before it was moved). Every move is one script: a job is in one place at any moment, also when the server or the
caller dies. Scripts check that the caller still owns the job: pending, for this consumer, delivered as often as
it knows.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from oio.event.queue import shown_url, url_options

TUBES_KEY = "oio:tubes"
GROUP = "agents"

# Contract: ``events.beanstalkd.timeout``.
TIMEOUT_S = 4.0
CONNECT_TIMEOUT_S = 2.0
# A queue in memory must have an end; beyond it, events wait where they were born, on disk.
JOBS_MAX = 1_000_000

_MOVE = """
local function put(key, fields, attempts)
  redis.call('XADD', key, '*', 'b', fields.b, 'i', fields.i, 'n', attempts)
end
-- What others put is delivered too, somehow: a hole in a reply would hide the jobs that follow.
local function read(id, flat)
  local i, n = string.match(flat[4] or '', '^%d+%-%d+$'), string.match(flat[6] or '', '^%d+$')
  return {b = flat[2], i = i or id, n = tonumber(n or 0)}
end
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function promote(delayed, stream, highest, limit)
  local members = redis.call('ZRANGEBYSCORE', delayed, '-inf', highest, 'LIMIT', 0, limit)
  for _, member in ipairs(members) do
    local i, n, b = string.match(member, '^(%S+) (%d+) (.*)$')
    put(stream, {b = b or member, i = i or '0-0'}, n or 0)
    redis.call('ZREM', delayed, member)
  end
  return #members
end
"""

# KEYS: stream, tubes. ARGV: name of the tube, jobs at most, bodies.
PUT = """
if tonumber(ARGV[2]) > 0 and redis.call('XLEN', KEYS[1]) + #ARGV - 2 > tonumber(ARGV[2]) then
  return redis.error_reply('FULL the tube holds ' .. redis.call('XLEN', KEYS[1]) .. ' jobs')
end
redis.call('SADD', KEYS[2], ARGV[1])
for a = 3, #ARGV do redis.call('XADD', KEYS[1], '*', 'b', ARGV[a]) end
return #ARGV - 2
"""

# KEYS: stream, delayed. ARGV: group, consumer, jobs at most. Gives the ms until the next delayed job is due
# (-1: unknown) and for each job: place, first id, former attempts, deliveries from this place, body.
FETCH = _MOVE + """
local now = now_ms()
promote(KEYS[2], KEYS[1], now, 100)
local out = {-1}
local streams = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3], 'STREAMS', KEYS[1], '>')
if streams then
  for _, entry in ipairs(streams[1][2]) do
    local f = read(entry[1], entry[2])
    local o = #out
    out[o + 1] = entry[1]; out[o + 2] = f.i; out[o + 3] = f.n; out[o + 4] = 1; out[o + 5] = f.b
  end
else
  local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
  if first[2] then out[1] = math.max(1, math.ceil(first[2] - now)) end
end
return out
"""

# KEYS: stream. ARGV: group, consumer, ms without news, jobs at most, number of dead consumers, their names, places
# of the jobs that the consumer holds. Takes over what is pending for the consumer itself and not held, for the
# dead, and for anybody without news. Gives jobs as FETCH does, and the places held that are not the consumer's.
RECLAIM = _MOVE + """
local stream, group, own, most = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[4])
local out, jobs = {-1}, 0
local function take(pending, idle)
  if jobs >= most then return end
  local claimed = redis.call('XCLAIM', stream, group, own, idle, pending[1])
  if claimed[1] then
    local f = read(claimed[1][1], claimed[1][2])
    local o = #out
    out[o + 1] = pending[1]; out[o + 2] = f.i; out[o + 3] = f.n; out[o + 4] = pending[4] + 1; out[o + 5] = f.b
    jobs = jobs + 1
  end
end
local dead, held, gone = {}, {}, {}
for a = 6 + ARGV[5], #ARGV do held[ARGV[a]] = true end
local mine = redis.call('XPENDING', stream, group, '-', '+', 10000, own)
local rest = {}
for _, pending in ipairs(mine) do
  if held[pending[1]] then held[pending[1]] = nil else rest[#rest + 1] = pending end
end
if #mine < 10000 then for place in pairs(held) do gone[#gone + 1] = place end end
for _, pending in ipairs(rest) do take(pending, 0) end
for a = 6, 5 + ARGV[5] do
  dead[ARGV[a]] = true
  for _, pending in ipairs(redis.call('XPENDING', stream, group, '-', '+', most, ARGV[a])) do take(pending, 0) end
end
for _, pending in ipairs(redis.call('XPENDING', stream, group, 'IDLE', ARGV[3], '-', '+', most)) do
  take(pending, ARGV[3])
end
for _, other in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  if other[2] ~= own and other[4] == 0 and (dead[other[2]] or other[6] > 3600000) then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, other[2])
  end
end
return {out, gone}
"""

# KEYS: stream, delayed, buried. ARGV: group, consumer, then for each job: operation, place, deliveries, delay ms
# Operations: delete, release, bury, touch, and giveback (a release that is not counted as an attempt).
SETTLE = _MOVE + """
local out = {}
for a = 3, #ARGV, 4 do
  local op, id, count = ARGV[a], ARGV[a + 1], tonumber(ARGV[a + 2])
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1)[1]
  if not pending or pending[2] ~= ARGV[2] or pending[4] ~= count then
    out[#out + 1] = 0
  elseif op == 'touch' then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'JUSTID')
    out[#out + 1] = 1
  else
    local entry = op ~= 'delete' and redis.call('XRANGE', KEYS[1], id, id)[1]
    if entry then
      local f = read(id, entry[2])
      local attempts = f.n + count
      local delay = tonumber(ARGV[a + 3])
      if op == 'giveback' then attempts = attempts - 1 end
      if op == 'bury' then
        put(KEYS[3], f, attempts)
      elseif delay > 0 then
        redis.call('ZADD', KEYS[2], now_ms() + delay, f.i .. ' ' .. attempts .. ' ' .. f.b)
      else
        put(KEYS[1], f, attempts)
      end
    end
    redis.call('XACK', KEYS[1], ARGV[1], id)
    redis.call('XDEL', KEYS[1], id)
    out[#out + 1] = 1
  end
end
return out
"""

# KEYS: stream, delayed, buried. ARGV: jobs at most. Attempts of buried jobs are counted anew.
KICK = _MOVE + """
local entries = redis.call('XRANGE', KEYS[3], '-', '+', 'COUNT', ARGV[1])
for _, entry in ipairs(entries) do
  put(KEYS[1], read(entry[1], entry[2]), 0)
  redis.call('XDEL', KEYS[3], entry[1])
end
if #entries > 0 then return #entries end
return promote(KEYS[2], KEYS[1], '+inf', ARGV[1])
"""

# KEYS: stream. ARGV: group, consumer. Its pending jobs would be lost with it, hence the condition.
LEAVE = """
for _, one in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  if one[2] == ARGV[2] and one[4] == 0 then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
  end
end
return 1
"""

OPTIONS: dict[str, Callable[[str], Any]] = {
    "timeout_s": float,
    "connect_timeout_s": float,
    "max_jobs": int,
    "replicas": int,
}

_SCRIPTS = (PUT, FETCH, RECLAIM, SETTLE, KICK, LEAVE)
_SHA1 = {script: hashlib.sha1(script.encode()).hexdigest() for script in _SCRIPTS}


class RedisTube:
    """Connection to the server of a tube; thread-safe.

    :ivar client: connects at its first command, and again after each failure; follows Sentinel.
    """

    def __init__(self, url: str, tube: str) -> None:
        """``redis://[user:password@]host:port/db`` or ``redis+sentinel://host:port,host:port/master/db``.

        In the query string: ``timeout_s`` (of one exchange), ``connect_timeout_s``, ``max_jobs`` (0: no limit),
        ``replicas`` (that must have an event before it is taken for put).

        :raises ValueError: when the URL is malformed.
        """
        address, options = url_options(url, OPTIONS)
        #: For messages.
        self.shown = shown_url(url)
        self.tube = tube
        self.timeout_s = float(options.get("timeout_s", TIMEOUT_S))
        self.jobs_max = int(options.get("max_jobs", JOBS_MAX))
        self.replicas = int(options.get("replicas", 0))
        self.stream = f"oio:{tube}"
        self.delayed = f"oio:{tube}:delayed"
        self.buried = f"oio:{tube}:buried"
        connect_timeout_s = float(options.get("connect_timeout_s", CONNECT_TIMEOUT_S))
        self._connect = _connector(address, self.timeout_s, connect_timeout_s)
        self._client: Any = None
        self._lock = threading.Lock()

    @property
    def client(self) -> Any:
        """Made when it is first needed: loading the package costs 0.1 s and 10 MiB in each service."""
        if self._client is None:
            with self._lock:
                if self._client is None:
                    self._client = self._connect()
        return self._client

    def run(self, script: str, keys: Sequence[str], *args: str | bytes | int) -> Any:
        """Run a script; it is sent whole only when the server does not know it."""
        from redis.exceptions import NoScriptError

        try:
            return self.client.evalsha(_SHA1[script], len(keys), *keys, *args)
        except NoScriptError:
            return self.client.eval(script, len(keys), *keys, *args)

    def run_and_wait(self, script: str, keys: Sequence[str], *args: str | bytes | int) -> int:
        """Run a script that writes, and return how many replicas have its effects (0 when none is wanted)."""
        if not self.replicas:
            self.run(script, keys, *args)
            return 0
        # WAIT speaks of what its own connection wrote, hence one pipeline, and the script is sent whole.
        with self.client.pipeline(transaction=False) as pipe:
            pipe.eval(script, len(keys), *keys, *args)
            pipe.execute_command("WAIT", self.replicas, int(self.timeout_s * 500))
            return int(pipe.execute()[1])

    def make_group(self) -> None:
        """Make the group of consumers, unless it is there; it begins with the oldest job."""
        from redis.exceptions import ResponseError

        try:
            # A server without memory left refuses to make anything, but lets consumers empty what there is.
            if any(group["name"] == GROUP.encode() for group in self.client.xinfo_groups(self.stream)):
                return
        except ResponseError as exc:
            if "no such key" not in str(exc):
                raise
        self.client.sadd(TUBES_KEY, self.tube)
        try:
            self.client.xgroup_create(self.stream, GROUP, id="0", mkstream=True)
        except ResponseError as exc:
            if not str(exc).startswith("BUSYGROUP"):
                raise

    def consumers(self) -> list[str]:
        """Names of the consumers of the group."""
        return [one["name"].decode() for one in self.client.xinfo_consumers(self.stream, GROUP)]

    def counts(self) -> tuple[int, int, int, int]:
        """Jobs that are ready, reserved, delayed, buried."""
        from redis.exceptions import ResponseError

        with self.client.pipeline(transaction=True) as pipe:
            pipe.xlen(self.stream).zcard(self.delayed).xlen(self.buried)
            pipe.execute_command("XPENDING", self.stream, GROUP)
            length, delayed, buried, pending = pipe.execute(raise_on_error=False)
        for reply in (length, delayed, buried):
            if isinstance(reply, Exception):
                raise reply
        if isinstance(pending, ResponseError) and str(pending).startswith("NOGROUP"):
            return length, 0, delayed, buried
        if isinstance(pending, Exception):
            raise pending
        reserved = int(pending["pending"] if isinstance(pending, dict) else pending[0])
        return max(0, length - reserved), reserved, delayed, buried

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()
            self._client.connection_pool.disconnect()


def tubes_of(url: str) -> list[str]:
    """Names of the tubes of a server."""
    tube = RedisTube(url, "")
    try:
        return sorted(name.decode() for name in tube.client.smembers(TUBES_KEY))
    finally:
        tube.close()


def _connector(address: str, timeout_s: float, connect_timeout_s: float) -> Callable[[], Any]:
    """How to make the client. :raises ValueError: when the URL is malformed."""
    parts = urlsplit(address)
    path = [piece for piece in parts.path.split("/") if piece]
    hosts = [_host_port(address, item) for item in parts.netloc.rpartition("@")[2].split(",")]
    options: dict[str, Any] = {
        "db": _database(address, path[-1]) if len(path) == (2 if "+" in parts.scheme else 1) else 0,
        "username": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_timeout_s,
        "socket_keepalive": True,
        "protocol": 2,
    }
    if parts.scheme == "redis":
        if len(hosts) != 1 or len(path) > 1:
            raise ValueError(f"{shown_url(address)!r} must be redis://host:port/db")
    elif not 1 <= len(path) <= 2:
        raise ValueError(f"{shown_url(address)!r} must be redis+sentinel://host:port,host:port/master/db")
    sentinel_options = {"socket_timeout": connect_timeout_s, "socket_connect_timeout": connect_timeout_s}

    def connect() -> Any:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        # The callers keep what failed and have their own pace; a command that is sent twice puts twice.
        options["retry"] = Retry(NoBackoff(), 0)
        if parts.scheme == "redis":
            return redis.Redis(host=hosts[0][0], port=hosts[0][1], **options)
        return redis.Sentinel(hosts, sentinel_kwargs=sentinel_options).master_for(path[0], **options)

    return connect


def _host_port(url: str, text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()):
        raise ValueError(f"{shown_url(url)!r}: {text!r} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _database(url: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{shown_url(url)!r}: {text!r} is not the number of a database")
    return int(text)
