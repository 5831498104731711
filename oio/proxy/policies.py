# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The storage policy of each container, remembered for a moment.

It is asked for when an upload names no policy. That would cost each upload a request to meta2, so it is
remembered. Who changes the policy of a container through the same proxy sees it at once, through another one a
second later.
"""

from __future__ import annotations

from oio.common.status import StatusError
from oio.meta.messages import ContainerGetProperties, Properties
from oio.proxy.call import Call
from oio.proxy.resolver import Cache

#: Property of a container that names its policy.
STORAGE_POLICY = "sys.m2.policy.storage"
#: Path, for the workers of one proxy among themselves.
FORGET_PATH = "cache/flush/policy"

REMEMBERED_S = 1.0
REMEMBERED_MAX = 10_000


def new_cache() -> Cache:
    """Policies by container id; '' for those that have none."""
    return Cache(lambda: REMEMBERED_MAX, lambda: REMEMBERED_S)


def default_policy(call: Call) -> str:
    """Name of the policy of an object that names none: its container's, else the namespace's.

    A container that does not exist, or does not answer, has none: to choose chunks needs no container.
    """
    proxy, target = call.proxy, call.target
    name: str | None = proxy.policies.get(target.cid)
    if name is None:
        request = ContainerGetProperties(cid=target.cid, account=target.account, name=target.name)
        try:
            reply: Properties = proxy.resolver.call_meta2(request, call, write=False)
            name = reply.properties.get(STORAGE_POLICY, "")
        except StatusError:
            name = ""
        proxy.policies.put(target.cid, name)
    return name or proxy.variables["ns.storage_policy"]


def policy_changed(call: Call, cid: str) -> None:
    """Forget the policy of a container, here and in the other workers of this proxy."""
    call.proxy.policies.drop(cid)
    call.proxy.tell_siblings(call, target=f"/v3.0/{FORGET_PATH}?cid={cid}")
