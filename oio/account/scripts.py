# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The atomic steps of the account service: Lua scripts, which Redis runs one at a time.

A script that fails midway is not undone. Therefore everything that could make a command fail (texts that are
not numbers, numbers that are too big) is refused before a script is called, and scripts read before they write.

The names of the keys are made inside of the scripts: all of them must be on one server (contract: Redis Cluster is
not supported). They are described in ``docs/format/account.md``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

# What update and reset of a container answer.
DONE, STALE, NO_ACCOUNT, NO_CONTAINER, TOO_BIG = 0, 1, 2, 3, 7
# What the scripts of a refresh of a bucket answer.
NO_BUCKET, LOCKED, MORE = 4, 5, 6

# A deleted container is remembered this long, so that events that come late are recognised (contract).
TOMBSTONE_S = 60
# A refresh of a bucket that gave no sign of life for this long is taken over (contract).
BUCKET_LOCK_S = 3600

_COMMON = """
local COUNTERS = {'objects', 'bytes', 'damaged_objects', 'missing_chunks'}

local function account_key(account) return @account_prefix@ .. account end
local function containers_key(account) return @container_list_prefix@ .. account end
local function buckets_key(account) return @bucket_list_prefix@ .. account end
local function bucket_key(bucket) return @bucket_prefix@ .. bucket end
local function lock_key(bucket) return @bucket_lock_prefix@ .. bucket end
local function container_key(account, name) return 'container:' .. account .. ':' .. name end
local function metadata_key(account) return 'metadata:' .. account end

local function create_account(account, now)
    redis.call('hset', 'accounts:', account, 1)
    redis.call('hset', account_key(account), 'id', account, 'ctime', now,
        'objects', 0, 'bytes', 0, 'damaged_objects', 0, 'missing_chunks', 0)
end

-- Counters are exact: as texts without exponent, and never minus zero, which is no integer to Redis.
local function add(key, counter, value)
    if value ~= 0 then
        redis.call('hincrby', key, counter, string.format('%.0f', value))
    end
end

-- Like add, but false when the sum does not fit in 64 bits.
local function fits(key, counter, value)
    if value == 0 then return true end
    local answer = redis.pcall('hincrby', key, counter, string.format('%.0f', value))
    if type(answer) ~= 'table' then return true end
    if string.find(answer.err, 'overflow', 1, true) then return false end
    return error(answer)
end

-- Beyond this, numbers of Lua are not exact: then Redis computes, step by step.
local EXACT = 9007199254740992

local function replace(key, counter, old, new)
    if math.abs(old) + math.abs(new) < EXACT then return fits(key, counter, new - old) end
    if old == new then return true end
    if not fits(key, counter, new) then return false end
    if fits(key, counter, -old) then return true end
    add(key, counter, -new)
    return false
end

-- Counters from the first on, all of them or none: false when a sum does not fit in 64 bits.
local function replace_all(key, first, old, new)
    for i = first, 4 do
        if not replace(key, COUNTERS[i], old[i], new[i]) then
            for j = first, i - 1 do replace(key, COUNTERS[j], new[j], old[j]) end
            return false
        end
    end
    return true
end

local function sum_up(key, sums, i, value)
    local number = tonumber(value or 0) or 0
    if math.abs(sums[i]) + math.abs(number) >= EXACT then
        add(key, COUNTERS[i], sums[i])
        sums[i] = 0
    end
    sums[i] = sums[i] + number
end

local function set_to_zero(key)
    redis.call('hset', key, 'objects', 0, 'bytes', 0, 'damaged_objects', 0, 'missing_chunks', 0)
end
"""

_CREATE = """
local account, now = ARGV[1], ARGV[2]
if redis.call('exists', account_key(account)) == 1 then return 0 end
create_account(account, now)
return 1
"""

# 0: done, 1: there are containers, 2: no such account. Its buckets are left alone (contract).
_DELETE = """
local account = ARGV[1]
if redis.call('exists', account_key(account)) == 0 then return 2 end
if redis.call('zcard', containers_key(account)) > 0 then return 1 end
redis.call('del', account_key(account), metadata_key(account), containers_key(account))
redis.call('hdel', 'accounts:', account)
return 0
"""

# account, now, autocreate, number of names to delete, these names, then names and values to set.
_METADATA = """
local account, now, autocreate, deletions = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if redis.call('exists', account_key(account)) == 0 then
    if autocreate ~= '1' then return 2 end
    create_account(account, now)
end
for i = 5, 4 + deletions do redis.call('hdel', metadata_key(account), ARGV[i]) end
for i = 5 + deletions, #ARGV, 2 do redis.call('hset', metadata_key(account), ARGV[i], ARGV[i + 1]) end
return 0
"""

# now, autocreate, reset, then for each update: account, name, mtime, dtime, bucket, the four counters. Gives what
# became of each. One call for many updates costs less than many calls, and one sync of the disk.
_UPDATE = """
local now, autocreate, reset = ARGV[1], ARGV[2] == '1', ARGV[3] == '1'

local function digits(time)
    local point = string.find(time, '.', 1, true)
    if point then return point - 1 end
    return #time
end

-- Times are texts: those with as many digits before the point have the same length.
local function later(a, b)
    local digits_a, digits_b = digits(a), digits(b)
    if digits_a ~= digits_b then return digits_a > digits_b end
    return a > b
end

-- By bytes, whatever the locale of the server is.
local function not_after(a, b)
    for i = 1, #a do
        local byte_a, byte_b = string.byte(a, i), string.byte(b, i)
        if byte_b == nil or byte_a > byte_b then return false end
        if byte_a < byte_b then return true end
    end
    return true
end

local function delete_bucket(account, bucket)
    redis.call('zrem', buckets_key(account), bucket)
    -- A bucket of this name that another account created meanwhile is not ours to delete.
    local owner = redis.call('hget', bucket_key(bucket), 'account')
    if not owner or owner == account then
        redis.call('zrem', buckets_key(''), bucket)
        redis.call('del', bucket_key(bucket))
    end
end

local function count_in_bucket(account, bucket, name, mtime, old, new)
    redis.call('hset', bucket_key(bucket), 'account', account, 'mtime', mtime)
    if bucket == name then
        redis.call('zadd', buckets_key(account), 0, bucket)
        redis.call('zadd', buckets_key(''), 0, bucket)
    end
    -- A running refresh of the bucket has counted what stands up to its marker, and will count what follows.
    local refreshed = redis.call('hget', lock_key(bucket), 'marker')
    if refreshed and not not_after(name, refreshed) then return end
    -- The objects of these containers are parts of the objects of the bucket.
    local first = string.find(name, '+segments', 1, true) and 2 or 1
    -- What does not fit is left out: the account counts it, and a refresh of the bucket tells.
    replace_all(bucket_key(bucket), first, old, new)
end

local function update(account, name, mtime, dtime, bucket, new)
    if redis.call('exists', account_key(account)) == 0 then
        if not autocreate then return 2 end
        create_account(account, now)
    end

    local key = container_key(account, name)
    local stored = redis.call('hmget', key, 'mtime', 'dtime', 'objects', 'bytes', 'damaged_objects',
        'missing_chunks', 'bucket')
    local old_mtime, old_dtime, old_bucket = stored[1] or '0', stored[2] or '0', stored[7]
    local listed = stored[1] and not later(old_dtime, old_mtime)
    if reset and not listed then return 3 end

    local newer = later(mtime, old_mtime)
    if not newer and not later(dtime, old_dtime) then return 1 end
    if not newer then mtime = old_mtime end
    if not later(dtime, old_dtime) then dtime = old_dtime end
    local deleted = later(dtime, mtime)
    if not deleted and not newer then return 1 end

    if deleted then new = {0, 0, 0, 0} end
    local old = {}
    for i = 1, 4 do old[i] = tonumber(stored[i + 2] or 0) or 0 end
    if not replace_all(account_key(account), 1, old, new) then return 7 end
    redis.call('hset', key, 'name', name, 'mtime', mtime, 'dtime', dtime,
        'objects', string.format('%.0f', new[1]), 'bytes', string.format('%.0f', new[2]),
        'damaged_objects', string.format('%.0f', new[3]), 'missing_chunks', string.format('%.0f', new[4]))
    if bucket == '' then bucket = old_bucket end

    if deleted then
        redis.call('expire', key, @tombstone_s@)
        redis.call('zrem', containers_key(account), name)
        redis.call('hdel', key, 'bucket')
        if bucket == name then delete_bucket(account, bucket) end
        return 0
    end
    if not listed then
        redis.call('persist', key)
        redis.call('zadd', containers_key(account), 0, name)
    end
    if bucket then
        if bucket ~= old_bucket then redis.call('hset', key, 'bucket', bucket) end
        if not old_bucket then old = {0, 0, 0, 0} end
        count_in_bucket(account, bucket, name, mtime, old, new)
    end
    return 0
end

local outcomes = {}
for i = 4, #ARGV, 9 do
    local new = {tonumber(ARGV[i + 5]), tonumber(ARGV[i + 6]), tonumber(ARGV[i + 7]), tonumber(ARGV[i + 8])}
    outcomes[#outcomes + 1] = update(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], new)
end
return outcomes
"""

# cmsgpack of [fields of the container, replication_enabled of its bucket]
_SHOW_CONTAINER = """
local account, name = ARGV[1], ARGV[2]
local fields = redis.call('hgetall', container_key(account, name))
local replication = false
for i = 1, #fields, 2 do
    if fields[i] == 'bucket' then
        replication = redis.call('hget', bucket_key(fields[i + 1]), 'replication_enabled')
    end
end
return cmsgpack.pack({fields, replication})
"""

# Of each container: objects, bytes, mtime, in one list.
_DESCRIBE_CONTAINERS = """
local account, found = ARGV[1], {}
for i = 2, #ARGV do
    local values = redis.call('hmget', container_key(account, ARGV[i]), 'objects', 'bytes', 'mtime')
    for j = 1, 3 do found[#found + 1] = values[j] or '0' end
end
return cmsgpack.pack(found)
"""

_DESCRIBE_BUCKETS = """
local found = {}
for i = 1, #ARGV do
    local values = redis.call('hmget', bucket_key(ARGV[i]), 'objects', 'bytes', 'mtime')
    for j = 1, 3 do found[#found + 1] = values[j] or '0' end
end
return cmsgpack.pack(found)
"""

_REFRESH_ACCOUNT = """
local account = ARGV[1]
if redis.call('exists', account_key(account)) == 0 then return 2 end
set_to_zero(account_key(account))
local count, step = redis.call('zcard', containers_key(account)), 1000
for first = 0, count - 1, step do
    local sums = {0, 0, 0, 0}
    for _, name in ipairs(redis.call('zrange', containers_key(account), first, first + step - 1)) do
        local values = redis.call('hmget', container_key(account, name), unpack(COUNTERS))
        for i = 1, 4 do sum_up(account_key(account), sums, i, values[i]) end
    end
    for i = 1, 4 do add(account_key(account), COUNTERS[i], sums[i]) end
end
return 0
"""

_FLUSH_ACCOUNT = """
local account = ARGV[1]
if redis.call('exists', account_key(account)) == 0 then return 2 end
set_to_zero(account_key(account))
local count, step = redis.call('zcard', containers_key(account)), 1000
for first = 0, count - 1, step do
    for _, name in ipairs(redis.call('zrange', containers_key(account), first, first + step - 1)) do
        redis.call('del', container_key(account, name))
    end
end
redis.call('del', containers_key(account))
return 0
"""

# bucket, then names to delete and names and values to set, as in the metadata of an account
_UPDATE_BUCKET = """
local key, deletions = bucket_key(ARGV[1]), tonumber(ARGV[2])
for i = 3, 2 + deletions do redis.call('hdel', key, ARGV[i]) end
for i = 3 + deletions, #ARGV, 2 do redis.call('hset', key, ARGV[i], ARGV[i + 1]) end
return redis.call('hgetall', key)
"""

# bucket, now (normal form)
_LOCK_BUCKET = """
local bucket, now = ARGV[1], ARGV[2]
local key = lock_key(bucket)
if redis.call('exists', bucket_key(bucket)) == 0 then
    redis.call('del', key)
    return 4
end
local seen = redis.call('hget', key, 'mtime')
if seen and tonumber(now) - (tonumber(seen) or 0) < @bucket_lock_s@ then return 5 end
redis.call('del', key)
redis.call('hset', key, 'ctime', now, 'mtime', now, 'marker', '')
return 0
"""

# bucket, ctime of the lock, now, size of a batch. The lock tells how far the refresh is: when the answer of a call
# was lost, calling again goes on behind it.
_REFRESH_BUCKET = """
local bucket, token, now, size = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local lock = redis.call('hmget', lock_key(bucket), 'ctime', 'marker')
if not lock[1] then return 0 end
if lock[1] ~= token then return 5 end
local marker = lock[2] or ''
local owner = redis.call('hget', bucket_key(bucket), 'account')
if redis.call('exists', bucket_key(bucket)) == 0 then
    redis.call('del', lock_key(bucket))
    return 4
end
if marker == '' then set_to_zero(bucket_key(bucket)) end
local names = {}
if owner then
    local first = '-'
    if marker ~= '' then first = '(' .. marker end
    names = redis.call('zrangebylex', containers_key(owner), first, '+', 'limit', 0, size)
end
local sums = {0, 0, 0, 0}
for _, name in ipairs(names) do
    local values = redis.call('hmget', container_key(owner, name), 'objects', 'bytes', 'damaged_objects',
        'missing_chunks', 'bucket')
    if values[5] == bucket then
        for i = 1, 4 do
            if i ~= 1 or not string.find(name, '+segments', 1, true) then
                sum_up(bucket_key(bucket), sums, i, values[i])
            end
        end
    end
end
for i = 1, 4 do add(bucket_key(bucket), COUNTERS[i], sums[i]) end
if #names < size then
    redis.call('del', lock_key(bucket))
    return 0
end
redis.call('hset', lock_key(bucket), 'mtime', now, 'marker', names[#names])
return 6
"""


@dataclass(frozen=True)
class Script:
    """A script, and the hash under which Redis keeps it once it was loaded."""

    name: str
    text: bytes
    sha: bytes


@dataclass(frozen=True)
class Prefixes:
    """Beginnings of the names of keys that can be chosen."""

    account: str = "account:"
    bucket: str = "bucket:"
    bucket_list: str = "buckets:"
    container_list: str = "containers:"
    bucket_lock: str = "bucketlock:"


class Scripts:
    """All the scripts, for given prefixes."""

    def __init__(self, prefixes: Prefixes) -> None:
        words = {
            "account_prefix": _lua_text(prefixes.account),
            "bucket_prefix": _lua_text(prefixes.bucket),
            "bucket_list_prefix": _lua_text(prefixes.bucket_list),
            "container_list_prefix": _lua_text(prefixes.container_list),
            "bucket_lock_prefix": _lua_text(prefixes.bucket_lock),
            "tombstone_s": str(TOMBSTONE_S),
            "bucket_lock_s": str(BUCKET_LOCK_S),
        }
        self.create = _script("create", _CREATE, words)
        self.delete = _script("delete", _DELETE, words)
        self.metadata = _script("metadata", _METADATA, words)
        self.update = _script("update", _UPDATE, words)
        self.show_container = _script("show_container", _SHOW_CONTAINER, words)
        self.describe_containers = _script("describe_containers", _DESCRIBE_CONTAINERS, words)
        self.describe_buckets = _script("describe_buckets", _DESCRIBE_BUCKETS, words)
        self.refresh_account = _script("refresh_account", _REFRESH_ACCOUNT, words)
        self.flush_account = _script("flush_account", _FLUSH_ACCOUNT, words)
        self.update_bucket = _script("update_bucket", _UPDATE_BUCKET, words)
        self.lock_bucket = _script("lock_bucket", _LOCK_BUCKET, words)
        self.refresh_bucket = _script("refresh_bucket", _REFRESH_BUCKET, words)


def _script(name: str, body: str, words: Mapping[str, str]) -> Script:
    text = _COMMON + body
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    encoded = text.encode()
    return Script(name, encoded, hashlib.sha1(encoded, usedforsecurity=False).hexdigest().encode())


def _lua_text(text: str) -> str:
    """A literal that stands for these bytes whatever they are."""
    return "'" + "".join(f"\\{byte:03d}" for byte in text.encode()) + "'"
