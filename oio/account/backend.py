# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What the account service knows, in Redis.

Every change is one Lua script (see :mod:`oio.account.scripts`), so that any number of workers and event agents can
change the same entries; the scripts are sent once and then called by their hash. Changes go to the master. With
Sentinel, reads go to a replica unless the caller must read its own writes.

Errors of Redis come through as they are (``redis.exceptions.RedisError``). After one of them a change may have
been applied or not; container updates can be sent again, since the second one is no news.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from oio.account.listing import LISTING_DEFAULT, Query, list_names
from oio.account.scripts import (
    DONE,
    MORE,
    NO_ACCOUNT,
    NO_BUCKET,
    NO_CONTAINER,
    STALE,
    TOO_BIG,
    Prefixes,
    Script,
    Scripts,
)
from oio.account.updates import COUNTERS, UNKNOWN_TIME, ContainerUpdate, normalize_time
from oio.common.easy_value import true_value
from oio.common.redis_conn import RedisConnection

# Names whose counters are asked for at once.
DESCRIBED_AT_ONCE = 1000
# Containers that one step of a refresh of a bucket looks at; Redis does nothing else meanwhile (about 10 ms).
REFRESH_BATCH = 10000
# A refresh of a bucket goes on after so many failures in a row of Redis, and waits this long before it does.
REFRESH_TRIES = 3
REFRESH_PAUSE_S = 0.5
# Creation and deletion of an account wait this long for each other, and hold the lock no longer than that.
LOCK_WAIT_S = 1.0
LOCK_LIFETIME_S = 10.0
# What the service itself keeps in the entry of a bucket: no metadata may have these names.
RESERVED_IN_BUCKETS = frozenset({"account", "mtime", *COUNTERS})

_REPLICATION = "replication_enabled"

log = logging.getLogger("oio.account")

Argument = str | int | bytes


class UnknownAccount(Exception):
    """Raised when the account does not exist."""


class UnknownContainer(Exception):
    """Raised when the account does not know the container."""


class UnknownBucket(Exception):
    """Raised when nothing is known of the bucket."""


class TooBig(Exception):
    """Raised when the counters of the account would not fit in 64 bits; nothing was changed."""


class AccountNotEmpty(Exception):
    """Raised when the account still has containers."""


class StaleUpdate(Exception):
    """Raised when the update is older than what is known."""


class BucketLocked(Exception):
    """Raised when somebody else refreshes the bucket."""


class AccountBackend:
    """Accounts, their containers and their buckets.

    Guarantee: the counters of an account are the sum over its listed containers after each method.

    :param autocreate: create accounts that an update names.
    """

    def __init__(
        self,
        connection: RedisConnection,
        prefixes: Prefixes | None = None,
        *,
        autocreate: bool = True,
        refresh_batch: int = REFRESH_BATCH,
    ) -> None:
        self.connection = connection
        self.autocreate = autocreate
        self.refresh_batch = refresh_batch
        self._prefixes = prefixes or Prefixes()
        self._scripts = Scripts(self._prefixes)

    # --- accounts ---

    def count(self, force_master: bool = False) -> int:
        """Number of accounts."""
        return int(self._read(force_master, ("HLEN", "accounts:"))[0])

    def names(self, force_master: bool = False) -> list[str]:
        """All the accounts, in any order."""
        return [_text(name) for name in self._read(force_master, ("HKEYS", "accounts:"))[0]]

    def create(self, account: str) -> bool:
        """Create an account; False when it existed, or when another request is creating or deleting it."""
        # The events of all new containers come here: the common answer must be cheap.
        if self._read(True, ("EXISTS", self._account_key(account)))[0]:
            return False
        token = self._lock(account)
        if not token:
            return False
        try:
            return bool(self._run(self._scripts.create, account, _now()))
        finally:
            self._unlock(account, token)

    def delete(self, account: str) -> None:
        """Delete an account and its metadata; its list of buckets is left alone.

        :raises UnknownAccount: also when another request is creating or deleting it.
        :raises AccountNotEmpty: when it has containers.
        """
        token = self._lock(account)
        if not token:
            raise UnknownAccount(account)
        try:
            found = self._run(self._scripts.delete, account)
        finally:
            self._unlock(account, token)
        if found == NO_ACCOUNT:
            raise UnknownAccount(account)
        if found:
            raise AccountNotEmpty(account)

    def show(self, account: str, force_master: bool = False) -> dict[str, Any]:
        """Counters and metadata of an account. :raises UnknownAccount:"""
        raw, metadata, containers, buckets = self._read(
            force_master,
            ("HGETALL", self._account_key(account)),
            ("HGETALL", f"metadata:{account}"),
            ("ZCARD", self._prefixes.container_list + account),
            ("ZCARD", self._prefixes.bucket_list + account),
        )
        info: dict[str, Any] = _fields(raw)
        if not info:
            raise UnknownAccount(account)
        info |= {counter: int(info.get(counter, 0)) for counter in COUNTERS}
        return info | {
            "containers": containers,
            "buckets": buckets,
            "metadata": _fields(metadata),
            # An artefact that clients expect (contract).
            _REPLICATION: False,
        }

    def update_metadata(self, account: str, metadata: Mapping[str, str], to_delete: Sequence[str]) -> None:
        """Delete, then set properties. :raises UnknownAccount: when it may not be created."""
        words = _words(metadata, to_delete)
        if self._run(self._scripts.metadata, account, _now(), int(self.autocreate), *words) == NO_ACCOUNT:
            raise UnknownAccount(account)

    def refresh(self, account: str) -> None:
        """Compute the counters of an account again from its containers. :raises UnknownAccount:"""
        if self._run(self._scripts.refresh_account, account) == NO_ACCOUNT:
            raise UnknownAccount(account)

    def flush(self, account: str) -> None:
        """Forget the containers of an account; its buckets are left alone. :raises UnknownAccount:"""
        if self._run(self._scripts.flush_account, account) == NO_ACCOUNT:
            raise UnknownAccount(account)

    # --- containers ---

    def update_container(self, account: str, update: ContainerUpdate) -> None:
        """Apply what an event tells of a container.

        :raises StaleUpdate: when it tells nothing newer than what is known.
        :raises UnknownAccount: when the account may not be created.
        :raises TooBig: when the sums over the account would not fit in 64 bits.
        """
        _check(self._update([(account, update)])[0], account, update.name)

    def update_containers(self, updates: Sequence[tuple[str, ContainerUpdate]]) -> list[Exception | None]:
        """Apply many updates in order, in one step.

        :returns: for each, None or what :meth:`update_container` would raise.
        """
        try:
            answers = self._update(updates)
        except ResponseError as exc:
            if len(updates) == 1:
                raise
            # One that Redis cannot take must not hold up the others: those before it are no news by now.
            log.warning("%d updates are applied one by one: %s", len(updates), exc)
            return self._update_one_by_one(updates)
        return [
            _outcome(answer, account, update.name)
            for answer, (account, update) in zip(answers, updates, strict=True)
        ]

    def _update_one_by_one(self, updates: Sequence[tuple[str, ContainerUpdate]]) -> list[Exception | None]:
        outcomes: list[Exception | None] = []
        for account, update in updates:
            try:
                outcomes.append(_outcome(self._update([(account, update)])[0], account, update.name))
            except ResponseError as exc:
                outcomes.append(exc)
        failures = [outcome for outcome in outcomes if isinstance(outcome, ResponseError)]
        if len(failures) == len(outcomes):
            raise failures[0]
        return outcomes

    def reset_container(self, account: str, name: str, mtime: str) -> None:
        """Set the counters of a known container to 0.

        :raises UnknownContainer: when it is not listed. :raises StaleUpdate: when something newer is known.
        """
        _check(self._update([(account, ContainerUpdate(name, mtime))], reset=True)[0], account, name)

    def _update(self, updates: Sequence[tuple[str, ContainerUpdate]], *, reset: bool = False) -> list[int]:
        words: list[Argument] = [_now(), int(self.autocreate), int(reset)]
        for account, update in updates:
            words += (
                account, update.name, update.mtime, update.dtime, update.bucket,
                update.objects, update.bytes, update.damaged_objects, update.missing_chunks,
            )  # fmt: skip
        return list(self._run(self._scripts.update, *words))

    def show_container(self, account: str, name: str, force_master: bool = False) -> dict[str, Any]:
        """Counters of a container; zeros when it is unknown (contract)."""
        raw, replication = _unpacked(self._run_reading(force_master, self._scripts.show_container, account, name))
        info: dict[str, Any] = {"name": name, "mtime": UNKNOWN_TIME, "dtime": UNKNOWN_TIME} | _fields(raw)
        info |= {counter: int(info.get(counter, 0)) for counter in COUNTERS}
        return info | {_REPLICATION: true_value(_text(replication)) if replication else False}

    def list_containers(self, account: str, query: Query, force_master: bool = False) -> list[list[Any]]:
        """Entries ``[name, objects, bytes, is_prefix, mtime]`` in the order of names."""
        entries = list(self._list(self._prefixes.container_list + account, query, force_master))
        names = [entry.name for entry in entries if not entry.is_prefix]
        told = iter(self._describe(self._scripts.describe_containers, (account,), names, force_master))
        return [
            [name, 0, 0, 1, 0] if is_prefix else [name, int(next(told)), int(next(told)), 0, float(next(told))]
            for name, is_prefix in entries
        ]

    # --- buckets ---

    def list_buckets(
        self, account: str, query: Query, force_master: bool = False
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Buckets of an account in the order of names, and the marker of the next page if there is one."""
        key = self._prefixes.bucket_list + account
        limit = query.limit if query.limit >= 0 else LISTING_DEFAULT
        names: list[str] = []
        if limit:
            one_more = replace(query, limit=limit + 1)
            names = [name for name, _ in self._list(key, one_more, force_master)]
        marker = names[limit - 1] if len(names) > limit else None
        del names[limit:]
        told = iter(self._describe(self._scripts.describe_buckets, (), names, force_master))
        listing = [
            {"name": name, "objects": int(next(told)), "bytes": int(next(told)), "mtime": float(next(told))}
            for name in names
        ]
        return listing, marker

    def show_bucket(self, bucket: str, force_master: bool = False) -> dict[str, Any]:
        """Counters and metadata of a bucket. :raises UnknownBucket:"""
        fields = _fields(self._read(force_master, ("HGETALL", self._prefixes.bucket + bucket))[0])
        if not fields:
            raise UnknownBucket(bucket)
        return _bucket_object(fields)

    def update_bucket(self, bucket: str, metadata: Mapping[str, str], to_delete: Sequence[str]) -> dict[str, Any]:
        """Delete, then set metadata of a bucket, known or not. :returns: the bucket.

        :raises ValueError: when the metadata would change what the service itself keeps there.
        """
        reserved = sorted(RESERVED_IN_BUCKETS.intersection([*metadata, *to_delete]))
        if reserved:
            raise ValueError(f"reserved: {', '.join(reserved)}")
        raw = self._run(self._scripts.update_bucket, bucket, *_words(metadata, to_delete))
        return _bucket_object(_fields(raw))

    def refresh_bucket(self, bucket: str) -> None:
        """Compute the counters of a bucket again from its containers, step by step under a lock.

        Updates may come meanwhile. A failure of Redis does not end it at once: how far it is stands in Redis.

        :raises UnknownBucket, BucketLocked:
        """
        token = _now()
        answer = self._run(self._scripts.lock_bucket, bucket, token)
        failures = 0
        while answer in (DONE, MORE):
            try:
                answer = self._run(self._scripts.refresh_bucket, bucket, token, _now(), self.refresh_batch)
            except (RedisConnectionError, RedisTimeoutError):
                failures += 1
                if failures >= REFRESH_TRIES:
                    raise
                time.sleep(REFRESH_PAUSE_S)
                continue
            failures = 0
            if answer == DONE:
                return
        if answer == NO_BUCKET:
            raise UnknownBucket(bucket)
        raise BucketLocked(bucket)

    # --- how Redis is asked ---

    def _account_key(self, account: str) -> str:
        return self._prefixes.account + account

    def _lock(self, account: str) -> str | bool:
        return self.connection.acquire_lock_with_timeout(f"account:{account}", LOCK_WAIT_S, LOCK_LIFETIME_S)

    def _unlock(self, account: str, token: str | bool) -> None:
        try:
            self.connection.release_lock(f"account:{account}", str(token))
        except RedisError as exc:
            log.warning("The lock of account %s stays for %d s: %s", account, LOCK_LIFETIME_S, exc)

    def _list(self, key: str, query: Query, force_master: bool) -> Iterable[Any]:
        def fetch(minimum: bytes, maximum: bytes, count: int) -> list[bytes]:
            command = ("ZRANGEBYLEX", key, minimum, maximum, "LIMIT", 0, count)
            return list(self._read(force_master, command)[0])

        return list_names(fetch, query)

    def _describe(
        self, script: Script, first: tuple[str, ...], names: Sequence[str], force_master: bool
    ) -> list[str]:
        values: list[str] = []
        for start in range(0, len(names), DESCRIBED_AT_ONCE):
            batch = names[start : start + DESCRIBED_AT_ONCE]
            values += _unpacked(self._run_reading(force_master, script, *first, *batch), list[str])
        return values

    def _read(self, force_master: bool, *commands: tuple[Argument, ...]) -> list[Any]:
        """Answers to commands, in one exchange. :raises RedisError: the first error among them."""
        return _raise_first(exchange(self.connection.get_slave_conn(force_master), commands))

    def _run_reading(self, force_master: bool, script: Script, *words: Argument) -> Any:
        return _call(self.connection.get_slave_conn(force_master), script, words)

    def _run(self, script: Script, *words: Argument) -> Any:
        return _call(self.connection.conn, script, words)


def exchange(client: Any, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
    """Send commands at once and give their answers in order, errors among them.

    :raises RedisError: when the connection does not serve.
    """
    pool = client.connection_pool
    connection = pool.get_connection()
    try:
        return list(
            connection.retry.call_with_retry(
                lambda: _exchange_on(connection, commands), lambda _error: connection.disconnect()
            )
        )
    except BaseException:
        # What was not read yet would be taken for the answer to the next request.
        connection.disconnect()
        raise
    finally:
        pool.release(connection)


def _exchange_on(connection: Any, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
    connection.send_packed_command(connection.pack_commands(commands))
    answers: list[Any] = []
    for _ in commands:
        try:
            answers.append(connection.read_response())
        except ResponseError as exc:
            answers.append(exc)
    return answers


def _call(client: Any, script: Script, words: Sequence[Argument]) -> Any:
    """Answer of a script, which is loaded where it is not known (any more)."""
    command = ("EVALSHA", script.sha, 0, *words)
    answers = exchange(client, [command])
    if isinstance(answers[0], NoScriptError):
        answers = exchange(client, [("SCRIPT", "LOAD", script.text), command])
    return _raise_first(answers)[-1]


def _raise_first(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, RedisError):
            raise answer
    return answers


def _outcome(answer: int, account: str, name: str) -> Exception | None:
    if answer == STALE:
        return StaleUpdate(name)
    if answer == NO_ACCOUNT:
        return UnknownAccount(account)
    if answer == TOO_BIG:
        return TooBig(account)
    return UnknownContainer(name) if answer == NO_CONTAINER else None


def _check(answer: int, account: str, name: str) -> None:
    error = _outcome(answer, account, name)
    if error is not None:
        raise error


def _words(metadata: Mapping[str, str], to_delete: Sequence[str]) -> list[Argument]:
    words: list[Argument] = [len(to_delete), *to_delete]
    for key, value in metadata.items():
        words += (key, value)
    return words


def _bucket_object(fields: dict[str, str]) -> dict[str, Any]:
    bucket: dict[str, Any] = {"account": None, "mtime": UNKNOWN_TIME} | fields
    bucket |= {counter: int(fields.get(counter, 0)) for counter in COUNTERS}
    return bucket | {_REPLICATION: true_value(fields.get(_REPLICATION))}


def _fields(raw: Any) -> dict[str, str]:
    """A hash as Redis gives it: names and values in turn, or a mapping in the newer protocol."""
    if isinstance(raw, dict):
        return {_text(key): _text(value) for key, value in raw.items()}
    words = [_text(word) for word in raw]
    return dict(zip(words[::2], words[1::2], strict=True))


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode("utf-8", "replace")


def _unpacked(raw: bytes, kind: Any = Any) -> Any:
    return msgspec.msgpack.decode(raw, type=kind)


def _now() -> str:
    return normalize_time(time.time())


