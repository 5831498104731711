# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What the clients do: each workload works on a few keys at a time, and changes them often.

A key is left after some operations, and earlier when several of them are of unknown outcome: each of these may
take effect much later, which the judge must consider again and again.
"""

import hashlib
import logging
import threading
import time

from histories.checkers import check_counters
from histories.clients import never_sent
from support import ACCOUNT

from oio.common.exceptions import (
    ClientException,
    Forbidden,
    NoSuchContainer,
    NoSuchObject,
    NotFound,
    OioException,
)
from oio.common.status import SERVICE_ALREADY_LINKED

logger = logging.getLogger("histories")

#: Operations on a key, and those of unknown outcome, before another key takes its place.
OPERATIONS_MAX, UNKNOWN_MAX = 60, 4
#: Counters may be those of a moment before the objects that are listed with them; they are not so all the time.
COUNTER_READS = 8
COUNTER_PAUSE_S = 0.05
LINK_TYPE = "rdir"


def counters_of(described):
    """Objects and bytes that a container says it holds."""
    system = described["system"]
    return int(system.get("sys.m2.objects", 0)), int(system.get("sys.m2.usage", 0))


class Keys:
    """The keys on which a workload works now."""

    def __init__(self, history, count, name):
        self._history = history
        self._lock = threading.Lock()
        self._name = name
        self._serial = 0
        self._current = []
        self._uses = {}
        self._count = count

    def pick(self, rng):
        """One of them."""
        with self._lock:
            while len(self._current) < self._count:
                self._serial += 1
                self._current.append(self._name(self._serial))
            key = rng.choice(self._current)
            uses = self._uses[key] = self._uses.get(key, 0) + 1
            if uses >= OPERATIONS_MAX or self._history.lost(key) >= UNKNOWN_MAX:
                self._current.remove(key)
            return key

    def all(self):
        """Every key there ever was."""
        with self._lock:
            return sorted({*self._uses, *self._current})


def tag_of(text):
    """Entity tag of an object that holds this text."""
    return hashlib.md5(text.encode()).hexdigest().upper()


class Registers:
    """Objects that are written without and with conditions; their content is their value."""

    def __init__(self, history, containers, policy="SINGLE"):
        self._containers = containers
        self._policy = policy
        self._keys = Keys(history, 2 * len(containers), self._key)

    def _key(self, serial):
        return ("object", self._containers[serial % len(self._containers)], f"r{serial}")

    def prepare(self, api):
        """Make the containers."""
        for container in self._containers:
            api.container_create(ACCOUNT, container)

    def step(self, client):
        """One operation, or a read and the change that follows from it."""
        key = self._keys.pick(client.rng)
        action = client.rng.choice(
            (self._read, self._read, self._put, self._create, self._swap, self._swap, self._remove, self._delete)
        )
        action(client, key)

    def read(self, client, key):
        """The value of a key."""
        return client.read(key, lambda: self._fetch(client, key), (NoSuchObject, NoSuchContainer))

    def _fetch(self, client, key):
        metadata, stream = client.api.object_fetch(ACCOUNT, *key[1:])
        data = b"".join(stream)
        text = data.decode("utf-8", "replace")
        if tag_of(text) != metadata["hash"].upper():
            client.complain(f"{key}: {text!r} has not the hash {metadata['hash']}")
        return text

    def _read(self, client, key):
        self.read(client, key)

    def _upload(self, client, key, kind, argument, text, **conditions):
        return client.change(
            kind, key, argument,
            lambda: client.api.object_create(
                ACCOUNT, key[1], obj_name=key[2], data=text, policy=self._policy, **conditions
            ),
            upload=True,
        )  # fmt: skip

    def _put(self, client, key):
        text = client.token()
        self._upload(client, key, "write", text, text)

    def _create(self, client, key):
        text = client.token()
        self._upload(client, key, "create", text, text, if_none_match="*")

    def _swap(self, client, key):
        former = self.read(client, key)
        if former is not None:
            text = client.token()
            self._upload(client, key, "cas", (former, text), text, if_match=tag_of(former))

    def _remove(self, client, key):
        """Delete what was read, and nothing else."""
        former = self.read(client, key)
        if former is not None:
            client.change(
                "cas", key, (former, None),
                lambda: client.api.object_delete(ACCOUNT, *key[1:], if_match=tag_of(former)),
                refusal=_unfit_or_absent,
            )  # fmt: skip

    def _delete(self, client, key):
        client.change(
            "delete", key, None, lambda: client.api.object_delete(ACCOUNT, *key[1:]), refusal=_unfit_or_absent
        )

    def conclude(self, client):
        """Read every key there ever was."""
        for key in self._keys.all():
            self.read(client, key)

    def containers(self):
        """Those that hold objects now."""
        return list(self._containers)


def _unfit_or_absent(exc):
    if isinstance(exc, (NoSuchObject, NoSuchContainer)):
        return True
    return isinstance(exc, ClientException) and exc.http_status == 412 and not exc.retried


class Sets:
    """Containers whose listing must show what was created and not deleted, and count it exactly."""

    NAMES_MAX = 60

    def __init__(self, history, prefix, policy="SINGLE"):
        self._history = history
        self._prefix = prefix
        self._policy = policy
        self._lock = threading.Lock()
        #: Every container, and what its names hold.
        self._names = {}
        self._current = None

    def prepare(self, api):
        """Make the first container."""
        self._renew(api)

    def _renew(self, api):
        container = f"{self._prefix}{len(self._names)}"
        api.container_create(ACCOUNT, container)
        self._names[container] = {}
        self._current = container

    def step(self, client):
        """Create a name, delete one, or list all."""
        with self._lock:
            if len(self._names[self._current]) >= self.NAMES_MAX:
                try:
                    self._renew(client.api)
                except OioException as exc:
                    logger.warning("the next container is not made: %s", exc)
                    client.pause()
                    return
            container = self._current
        client.rng.choice((self._add, self._add, self._add, self._delete, self._list))(client, container)

    def _add(self, client, container):
        text = client.token() * client.rng.randrange(1, 50)
        name, tag = f"s{tag_of(text)[:6]}", tag_of(text)
        self._names[container][name] = text
        client.change(
            "create", ("name", container, name), tag,
            lambda: client.api.object_create(
                ACCOUNT, container, obj_name=name, data=text, policy=self._policy, if_none_match="*"
            ),
            upload=True,
        )  # fmt: skip

    def _delete(self, client, container):
        names = list(self._names[container])
        if names:
            name = client.rng.choice(names)
            client.change(
                "delete", ("name", container, name), None,
                lambda: client.api.object_delete(ACCOUNT, container, name), refusal=_unfit_or_absent,
            )  # fmt: skip

    def _list(self, client, container):
        """List, again while the counters that come with the objects are those of another moment."""
        wrong = []
        for _ in range(COUNTER_READS):
            page = self._page(client, container)
            if page is None:
                return
            wrong = check_counters(container, counters_of(page), [entry["size"] for entry in page["objects"]])
            if not wrong:
                return
            time.sleep(COUNTER_PAUSE_S)
        client.complain(f"{wrong[0]}, {COUNTER_READS} times in a row")

    def _page(self, client, container):
        started = time.monotonic()
        try:
            page = client.api.object_list(ACCOUNT, container)
        except NoSuchContainer as exc:
            client.complain(f"{container} was made, but: {exc}")
            return None
        except OioException:
            client.pause()
            return None
        ended = time.monotonic()
        found = {entry["name"]: entry["hash"].upper() for entry in page["objects"]}
        known = list(self._names[container])
        for name in set(found) - set(known):
            client.complain(f"{container} lists {name}, which nobody created")
        values = {("name", container, name): found.get(name) for name in known}
        self._history.add_reads(client.name, started, ended, values)
        return page

    def list_all(self, client):
        """List every container."""
        for container in self._names:
            self._list(client, container)

    def conclude(self, client):
        """List every container, and read all that is listed."""
        self.list_all(client)
        for container, names in self._names.items():
            for entry in client.api.object_list(ACCOUNT, container)["objects"]:
                _metadata, stream = client.api.object_fetch(ACCOUNT, container, entry["name"])
                if b"".join(stream).decode() != names[entry["name"]]:
                    client.complain(f"{container}/{entry['name']} is not what was written")

    def containers(self):
        """Every container there ever was."""
        return list(self._names)


class References:
    """Properties and links of references, which the directory holds."""

    def __init__(self, history, references):
        self._references = references
        self._properties = Keys(history, 2 * len(references), self._property)
        self._links = Keys(history, len(references), self._link)

    def _property(self, serial):
        return ("property", self._references[serial % len(self._references)], f"p{serial}")

    def _link(self, serial):
        # Links have the number as their sequence number: one set of services for each.
        return ("link", self._references[serial % len(self._references)], serial)

    def prepare(self, api):
        """Make the references."""
        for reference in self._references:
            api.directory.create(ACCOUNT, reference)

    def step(self, client):
        """One operation on a property or on a link."""
        if client.rng.random() < 0.7:
            key = self._properties.pick(client.rng)
            client.rng.choice((self._set, self._unset, self._get, self._get))(client, key)
        else:
            key = self._links.pick(client.rng)
            client.rng.choice((self._force, self._replace, self._show, self._show))(client, key)

    def _set(self, client, key):
        value = client.token()
        client.change(
            "write", key, value, lambda: client.api.directory.set_properties(ACCOUNT, key[1], {key[2]: value})
        )

    def _unset(self, client, key):
        client.change("write", key, None, lambda: client.api.directory.del_properties(ACCOUNT, key[1], [key[2]]))

    def _get(self, client, key):
        def call():
            found = client.api.directory.get_properties(ACCOUNT, key[1], properties=[key[2]])
            return found["properties"].get(key[2])

        client.read(key, call, NotFound)

    def _force(self, client, key):
        host = client.token()
        client.change("create", key, host, lambda: self._store(client, key, host), refusal=_is_linked)

    def _replace(self, client, key):
        host = client.token()
        client.change("write", key, host, lambda: self._store(client, key, host, replace=True))

    def _store(self, client, key, host, **flags):
        link = {"seq": key[2], "type": LINK_TYPE, "host": host, "args": ""}
        client.api.directory.force(ACCOUNT, key[1], LINK_TYPE, link, **flags)

    def _show(self, client, key):
        def call():
            found = client.api.directory.list(ACCOUNT, key[1], service_type=LINK_TYPE)["srv"]
            return next((link["host"] for link in found if link["seq"] == key[2]), None)

        client.read(key, call, NotFound)

    def conclude(self, client):
        """Read every key there ever was."""
        for key in self._properties.all():
            self._get(client, key)
        for key in self._links.all():
            self._show(client, key)

    def containers(self):
        """None."""
        return []


def _is_linked(exc):
    return isinstance(exc, Forbidden) and exc.status == SERVICE_ALREADY_LINKED


class Lives:
    """Containers that are made, destroyed, and made again under the same name."""

    def __init__(self, history, prefix):
        self._prefix = prefix
        self._keys = Keys(history, 3, self._key)

    def _key(self, serial):
        return ("container", f"{self._prefix}{serial}")

    def prepare(self, api):
        """Nothing is there at first."""

    def step(self, client):
        """Create, destroy or look at a container."""
        key = self._keys.pick(client.rng)
        client.rng.choice((self._create, self._destroy, self._read, self._read))(client, key)

    def _create(self, client, key):
        value = client.token()

        def call():
            if not client.api.container_create(ACCOUNT, key[1], properties={"value": value}):
                raise _Existed()

        client.change("create", key, value, call, refusal=_existed, sure=never_sent)

    def _destroy(self, client, key):
        client.change(
            "delete", key, None, lambda: client.api.container_delete(ACCOUNT, key[1]), refusal=_no_container,
            sure=never_sent,
        )  # fmt: skip

    def _read(self, client, key):
        def call():
            return client.api.container_get_properties(ACCOUNT, key[1])["properties"].get("value", "no value")

        client.read(key, call, NoSuchContainer)

    def conclude(self, client):
        """Look at every container there ever was."""
        for key in self._keys.all():
            self._read(client, key)

    def containers(self):
        """None: they come and go."""
        return []


class _Existed(OioException):
    """Raised when a container was there already."""


def _existed(exc):
    return isinstance(exc, _Existed)


def _no_container(exc):
    return isinstance(exc, NoSuchContainer)
