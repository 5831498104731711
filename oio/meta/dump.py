# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Images of bases, from one meta service to another: ``GET /v1/dump?base=<name>``.

The answer is a SQLite file, consistent as of a moment of the request, made while the base is read and
written. It is built on disk beside the bases, so that neither end holds it in memory, and its header
``x-oio-dump-hash`` is its blake3 in hex. A transfer that ends early, differs from its hash, or is no sound
base of the wanted type and name is an error of :func:`fetch`, whose caller then has nothing to undo but a
temporary file.
"""

from __future__ import annotations

import os
import threading
import time
from urllib.parse import quote

import apsw
import msgspec
from blake3 import blake3

from oio.common import status
from oio.common.status import StatusError
from oio.http.client import HttpClientError, HttpPool
from oio.http.client_response import ClientResponse
from oio.http.messages import FileBody, Request, Response
from oio.meta.base_type import SCHEMA_VERSION, TOMBSTONE, BaseType
from oio.meta.client import CONNECT_TIMEOUT_S, network_code
from oio.meta.messages import ErrorReply
from oio.meta.repository import Repository
from oio.meta.sqlite_files import translate

ROUTE = "/v1/dump"
HASH_HEADER = "x-oio-dump-hash"
#: Images that a service makes and sends at a time: each takes the size of a base on its disk.
DUMPS_MAX = 4
#: How long a request waits for its turn (seconds).
TURN_TIMEOUT_S = 10.0
#: Longest silence of a service, which makes the whole image before its first byte (seconds).
SILENCE_MAX_S = 300.0
_PIECE_BYTES = 1 << 20
_ERROR_MAX_BYTES = 1 << 16
#: By type of check.
_CHECKS = ("", "PRAGMA quick_check(1)", "PRAGMA integrity_check(1)")
#: Instructions of SQLite between two looks at the deadline.
_CHECK_STEPS = 100_000


class Dumps:
    """The side that has the base: answers the requests for images of a repository."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._turns = threading.BoundedSemaphore(DUMPS_MAX)

    def answer(self, base_name: str, deadline: float | None, draft: str = "") -> Response:
        """An image of a base, or of the draft of one.

        :raises StatusError: 400 bad name, 431 absent, 504 too late, 509 busy.
        """
        if not base_name:
            raise StatusError(status.BAD_REQUEST, "Missing parameter 'base'")
        self._repository.path(base_name)
        if not self._turns.acquire(timeout=TURN_TIMEOUT_S):
            raise StatusError(status.EXCESSIVE_LOAD, f"{DUMPS_MAX} images are being sent already")
        try:
            body, digest = self._draft(draft) if draft else self._image(base_name, deadline)
        except BaseException:
            self._turns.release()
            raise
        headers = [("Content-Type", "application/vnd.sqlite3"), (HASH_HEADER, digest)]
        return Response(200, body, headers, after_sent=self._turns.release)

    def _image(self, base_name: str, deadline: float | None) -> tuple[FileBody, str]:
        with self._repository.workshop_file() as path:
            self._repository.copy_out(base_name, path, deadline)
            try:
                fd = os.open(path, os.O_RDONLY)
            except OSError as exc:
                raise StatusError(status.UNAVAILABLE, f"cannot read {path}: {exc}") from exc
        # The name is gone: whatever happens now, the system frees the space.
        return self._digested(fd)

    def _draft(self, draft: str) -> tuple[FileBody, str]:
        replication = self._repository.replication
        path = replication.drafts.get(draft, "") if replication is not None else ""
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError as exc:
            raise StatusError(status.CONTAINER_NOT_FOUND, f"no draft {draft!r}") from exc
        return self._digested(fd)

    @staticmethod
    def _digested(fd: int) -> tuple[FileBody, str]:
        try:
            digest, size = blake3(), 0
            while piece := os.pread(fd, _PIECE_BYTES, size):
                digest.update(piece)
                size += len(piece)
        except BaseException:
            os.close(fd)
            raise
        return FileBody(fd, 0, size), digest.hexdigest()


def requested_base(request: Request) -> tuple[str, str]:
    """Name of the base that a request wants, and of the draft of it, mostly ''."""
    return request.query.get("base", ""), request.query.get("draft", "")


def fetch(
    pool: HttpPool,
    address: str,
    base_type: BaseType,
    base_name: str,
    path: str,
    *,
    reqid: str = "",
    deadline: float | None = None,
    draft: str = "",
    check_type: int = 1,
) -> None:
    """Get an image of a base from the service at ``address`` into a file that does not exist yet.

    ``draft``: name of one that is not in its place there yet; ``check_type`` as for :func:`verify`.

    :raises StatusError: what the service answered (431: it has no such base), a network code, 9 when the
        bytes are not those that were sent, 511 when they are no sound base.
    """
    where = f"base {base_name} of {address}"
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise StatusError(status.BAD_REQUEST, f"Invalid address {address!r}")
    try:
        connection = pool.acquire(
            host.strip("[]"), int(port), connect_timeout_s=CONNECT_TIMEOUT_S,
            read_timeout_s=SILENCE_MAX_S, deadline=deadline, fresh=True,
        )
        try:
            headers = {"x-oio-req-id": reqid} if reqid else {}
            if deadline is not None:
                left_us = int((deadline - time.monotonic()) * 1e6)
                headers["x-oio-timeout"] = str(max(0, left_us))
            target = f"{ROUTE}?base={quote(base_name, safe='')}"
            connection.put_request("GET", target + (f"&draft={draft}" if draft else ""), headers)
            connection.flush()
            response = connection.getresponse()
            if response.status != 200:
                raise _refusal(response, where)
            _receive(response, path, where)
        finally:
            connection.close()
    except HttpClientError as exc:
        raise StatusError(network_code(exc), f"{where}: {exc}") from exc
    verify(path, base_type, base_name, deadline, check_type)


def verify(
    path: str, base_type: BaseType, base_name: str, deadline: float | None = None, check_type: int = 1
) -> None:
    """Check that a file is a sound base of a type and name. :raises StatusError: 431, 504, 511.

    :param check_type: 0: its hash was enough; 1: SQLite looks at all pages; 2: and at all indexes.
    """
    try:
        # Nobody else has the file: without the WAL that its header announces.
        connection = apsw.Connection(
            f"file:{quote(path)}?immutable=1", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        )
        try:
            if deadline is not None:
                connection.set_progress_handler(lambda: time.monotonic() > deadline, _CHECK_STEPS)
            check = _CHECKS[check_type]
            if check and (found := connection.execute(check).fetchall()) != [("ok",)]:
                raise _unsound(base_name, str(found[0][0]))
            admin = dict(connection.execute("SELECT k, v FROM admin"))
            for table in base_type.tables():
                connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchall()
        finally:
            connection.close()
    except apsw.InterruptError as exc:
        raise StatusError(status.GATEWAY_TIMEOUT, "deadline reached, nothing was done") from exc
    except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError) as exc:
        raise _unsound(base_name, str(exc)) from exc
    except apsw.Error as exc:
        raise translate(exc, base_name) from exc
    if TOMBSTONE in admin:
        raise StatusError(status.CONTAINER_NOT_FOUND, f"base {base_name} is destroyed")
    expected = {"sys.type": base_type.name, "sys.name": base_name}
    for key, value in expected.items():
        if admin.get(key) != value:
            raise _unsound(base_name, f"{key} is {admin.get(key)!r}, not {value!r}")
    version = admin.get(SCHEMA_VERSION)
    if version not in (base_type.schema_version, *base_type.upgrades):
        raise _unsound(base_name, f"its tables are of version {version!r}, not {base_type.schema_version!r}")


def _unsound(base_name: str, reason: str) -> StatusError:
    return StatusError(status.CORRUPT_DATABASE, f"the image of base {base_name} is unsound: {reason}")


def _receive(response: ClientResponse, path: str, where: str) -> None:
    """Write a body to a file, and compare it with its hash."""
    announced = response.getheader(HASH_HEADER)
    if not announced:
        raise StatusError(status.NETWORK_ERROR, f"{where}: no header {HASH_HEADER}")
    digest = blake3()
    view = memoryview(bytearray(_PIECE_BYTES))
    try:
        with open(path, "xb", buffering=0) as file:
            while count := response.readinto(view):
                digest.update(view[:count])
                written = 0
                while written < count:
                    written += file.write(view[written:count])
    except OSError as exc:
        raise StatusError(status.UNAVAILABLE, f"cannot write {path}: {exc}") from exc
    if digest.hexdigest() != announced.lower():
        raise StatusError(
            status.NETWORK_ERROR, f"{where}: received {digest.hexdigest()}, announced {announced}"
        )


def _refusal(response: ClientResponse, where: str) -> StatusError:
    body = response.read_all(_ERROR_MAX_BYTES)
    try:
        reply = msgspec.msgpack.decode(body, type=ErrorReply)
    except msgspec.MsgspecError:
        return StatusError(status.PROXY_ERROR, f"{where}: HTTP {response.status}")
    return StatusError(reply.status, reply.message)
