# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Linking services to references: the load balancer proposes, meta1 decides.

The proposal travels with every request because what is linked already wins under the lock of the base: two proxies
that link the same reference at once get the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from oio.common import status
from oio.common.status import StatusError
from oio.meta.messages import ReferenceLink, ServiceLink, ServiceLinks
from oio.proxy.call import Call, Target
from oio.proxy.lb.pool import UpdatePolicy, parse_update_policy

#: Linking failures that no retry mends: their HTTP status is 403.
IMPOSSIBLE_CODES = frozenset(
    {
        status.POLICY_NOT_SUPPORTED,
        status.POLICY_NOT_SATISFIABLE,
        status.NAMESPACE_NOT_MANAGED,
        status.SERVICE_ALREADY_LINKED,
    }
)


def link_services(
    call: Call,
    target: Target,
    service_type: str,
    *,
    autocreate: bool,
    dryrun: bool = False,
    renew: bool = False,
    replace: bool = False,
    only: Sequence[str] = (),
) -> ServiceLinks:
    """Services of a type linked to a reference, choosing them when there is none yet.

    :param renew: add a set to those that are linked; with ``replace``, in their place.
    :param only: meta1 services to ask, when the directory must not decide.
    :raises StatusError: 453 for a type that the namespace does not have; 481 when something had to be chosen and
        there are not enough services; 406 without the reference (unless ``autocreate``).
    """
    proposed, failure = [], None
    try:
        proposed = propose(call, service_type)
    except StatusError as exc:
        if exc.code != status.POLICY_NOT_SATISFIABLE or renew:
            raise
        failure = exc
    request = ReferenceLink(
        cid=target.cid,
        account=target.account,
        name=target.name,
        type=service_type,
        proposed=proposed,
        # Nothing must be created for a link that cannot be made.
        autocreate=autocreate and bool(proposed),
        dryrun=dryrun,
        renew=renew,
        replace=replace,
    )
    try:
        links: ServiceLinks = call.proxy.resolver.call_meta1(request, call, write=True, only=only)
    except StatusError as exc:
        nothing_linked = exc.code == status.NO_SERVICE_LINKED or (
            exc.code == status.REFERENCE_NOT_FOUND and autocreate
        )
        if failure is not None and nothing_linked:
            raise failure from exc
        raise
    return links


def renew_services(
    call: Call,
    target: Target,
    service_type: str,
    *,
    autocreate: bool,
    dryrun: bool,
    only: Sequence[str] = (),
) -> ServiceLinks:
    """Link again, after the update policy of the type: keep, add a set, or replace the former ones.

    What is linked is kept by ``KEEP`` even when the services do not answer now: a base stays where it is.
    """
    policies = parse_update_policy(call.proxy.variables["ns.service_update_policy"])
    mode = policies.get(service_type, UpdatePolicy()).mode
    links = link_services(
        call,
        target,
        service_type,
        autocreate=autocreate,
        dryrun=dryrun,
        renew=mode != "KEEP",
        replace=mode == "REPLACE",
        only=only,
    )
    call.proxy.resolver.forget(target.cid, service_type)
    return links


def whole_sets(links: Sequence[ServiceLink]) -> list[ServiceLink]:
    """Links as they are stored, one for each set: answers have one for each host of a set.

    >>> whole_sets([ServiceLink(type="meta2", host="a"), ServiceLink(type="meta2", host="b")])[0].host
    'a,b'
    """
    hosts: dict[tuple[int, str, str], list[str]] = {}
    for link in links:
        hosts.setdefault((link.seq, link.type, link.args), []).append(link.host)
    return [
        ServiceLink(seq=seq, type=type_, host=",".join(those), args=args)
        for (seq, type_, args), those in hosts.items()
    ]


def propose(call: Call, service_type: str) -> list[str]:
    """Ids of services of a type chosen by the load balancer."""
    call.proxy.feed.check_type(service_type)
    pool = call.proxy.world.pool(service_type)
    if pool is None:
        raise StatusError(status.POLICY_NOT_SATISFIABLE, f"pool [{service_type}] not found")
    return [choice.item.id for choice in pool.poll().choices]
