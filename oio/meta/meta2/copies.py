# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""A container as a copy of another one, whose base is read from the service that has it.

The copy has names, peers and status of its own. It refers to the chunks of the source: it is frozen until somebody
gives it its own chunks, and what is deleted from it before that deletes no chunk. It appears whole or not at all.
What waited in the outbox of the source is told by the source alone.
"""

from __future__ import annotations

from oio.common import status
from oio.common.status import StatusError
from oio.http.client import HttpPool
from oio.meta import dump
from oio.meta.context import Context
from oio.meta.messages import ContainerCopy
from oio.meta.meta2 import events, rules, schema, states
from oio.meta.repository import Repository
from oio.meta.transaction import Transaction

#: Settings that the announcement of a new container tells.
_TOLD = (
    schema.QUOTA, schema.POLICY, schema.MAX_VERSIONS, schema.DELETE_EXCEEDING, schema.KEEP_DELETED,
    schema.BUCKET,
)  # fmt: skip

_LEND = f"UPDATE chunks SET ctime = {schema.LENT}"


def copy(
    repository: Repository,
    settings: rules.Settings,
    context: Context,
    request: ContainerCopy,
    service_id: str,
) -> None:
    """Create a container from another. :raises StatusError: 433 when it exists, 431 without source."""
    rules.check_writable_namespace(settings, context)
    _check(request)
    base_name, source = schema.base_name(request.cid), schema.base_name(request.source_cid)
    route = context.route._replace(peers=request.peers) if request.peers else context.route
    if repository.present(base_name, context.deadline, route) and not repository.end_destruction(base_name):
        raise _exists()
    with repository.workshop_file() as path, HttpPool(max_idle_per_address=0) as pool:
        dump.fetch(
            pool, request.source_address, repository.type, source, path,
            reqid=context.reqid, deadline=context.deadline,
        )
        if not repository.install(
            base_name, path, lambda tx: _become(tx, context, request, service_id), context.deadline, route
        ):
            raise _exists()


def _check(request: ContainerCopy) -> None:
    if request.cid == request.source_cid:
        raise StatusError(status.BAD_REQUEST, "A container cannot be a copy of itself")
    for field in ("account", "name", "namespace"):
        if not getattr(request, field):
            raise StatusError(status.BAD_REQUEST, f"Missing field '{field}'")


def _exists() -> StatusError:
    return StatusError(status.CONTAINER_EXISTS, "Container already exists")


def _become(tx: Transaction, context: Context, request: ContainerCopy, service_id: str) -> None:
    """Turn the base of the source into that of the copy."""
    rules.check_initialised(tx.get)
    tx.set("sys.name", schema.base_name(request.cid))
    tx.set(schema.NAMESPACE, request.namespace)
    tx.set(schema.ACCOUNT, request.account)
    tx.set(schema.USER, request.name)
    tx.set(schema.COPY_OF, request.source_cid)
    tx.execute(_LEND)
    tx.set(schema.STATUS, states.FROZEN_VALUE)
    if request.peers:
        tx.set(schema.PEERS, ",".join(sorted(request.peers)))
    else:
        tx.unset(schema.PEERS)
    admin = tx.all_admin()
    data = {
        "system": {key: admin[key] for key in _TOLD if key in admin},
        "properties": {key[5:]: value for key, value in admin.items() if key.startswith("user.")},
        "peers": events.peers_from(service_id, request.peers),
        "bucket": tx.get(schema.BUCKET),
    }
    events.emit_container(tx, context, request, "new", data)
    tx.emit_state()
