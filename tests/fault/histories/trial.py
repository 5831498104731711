# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""A cluster at work while misfortunes happen to it, and the judgement of all that its clients were told."""

import statistics
import time
from collections import Counter
from typing import NamedTuple

from faults import Hurry
from histories import copies
from histories.checkers import check_counters, check_final, check_registers, without_witnesses_of
from histories.clients import Client, LastReader
from histories.history import REFUSED, History, Outcome
from histories.workloads import Lives, References, Registers, Sets, counters_of
from support import ACCOUNT, eventually

from oio import ObjectStorageApi
from oio.common.exceptions import OioException
from oio.common.utils import cid_from_name
from oio.consistency.main import check_namespace

#: Time within which every part of the work must go on after a misfortune has ended.
RECOVERY_MAX_S = 60.0
#: How long each client waits: some give up early, and go on with the next operation.
PATIENCE_S = (2.0, 5.0, 15.0)
#: How long a service may go on with the destruction of a container after its client gave up.
DESTRUCTION_MAX_S = 30.0
#: Nobody cleans after an upload that was interrupted, or unlinks a container whose creation failed: the next one
#: may be under way, and needs the link.
LEFT_BEHIND = frozenset({"chunk-orphan", "index-unknown", "base-missing"})


def judged(key, operations):
    """What is judged of the operations on a key.

    A container is destroyed in steps, in several services. Its creation that finds it there may have made it
    itself, when it was sent again after the answer of a service was lost. A destruction that fails half-way links
    the container again, and of those that go on beside it several may find that they have done it.
    """
    if key[0] != "container":
        return operations
    for one in operations:
        if one.kind == "create" and one.result is REFUSED:
            one.kind, one.result = "offer", True
    operations = without_witnesses_of("delete", operations, DESTRUCTION_MAX_S)
    given_up_s = [one.start for one in operations if one.kind == "delete" and one.outcome is Outcome.UNKNOWN]
    for one in operations:
        if one.kind == "delete" and any(
            start_s <= one.end and one.start <= start_s + DESTRUCTION_MAX_S for start_s in given_up_s
        ):
            one.kind = "write"
    return operations


class Round(NamedTuple):
    """What happened, and how long it was felt."""

    kind: str
    words: str
    struck_s: float
    healed_s: float
    #: Time from its beginning, and from its end, until every part of the work had gone on.
    after_beginning_s: float
    after_end_s: float
    #: The part that went on last.
    last: tuple


class Trial:
    """Clients at work on a cluster.

    :param seed: what the clients draw follows from it.
    :param clients: how many work at once.
    """

    def __init__(self, cluster, seed, clients=6, lives=True, name="trial"):
        self._cluster = cluster
        self._seed = seed
        self.history = History()
        self._proxies = [service.addr for service in cluster.services("proxy")]
        self._api = ObjectStorageApi(cluster.namespace, endpoint=self._proxies[0], read_timeout=15.0)
        self.fixed = [f"{name}-objects{number}" for number in range(3)]
        self._workloads = [
            Registers(self.history, self.fixed),
            Sets(self.history, f"{name}-list"),
            References(self.history, [f"{name}-reference{number}" for number in range(3)]),
        ]
        if lives:
            self._workloads.append(Lives(self.history, f"{name}-life"))
        self._clients = [self._client(Client, number) for number in range(clients)]
        self.rounds = []

    def _client(self, kind, number):
        proxy = self._proxies[number % len(self._proxies)]
        patience_s = PATIENCE_S[number % len(PATIENCE_S)]
        return kind(number, self._cluster.namespace, proxy, self.history, self._workloads, self._seed, patience_s)

    def start(self):
        """Make what the workloads need, and begin to work."""
        for workload in self._workloads:
            workload.prepare(self._api)
        for client in self._clients:
            client.start()
        self.await_progress(time.monotonic(), "the beginning")

    def stop(self):
        """End the work."""
        for client in self._clients:
            client.stop()
        for client in self._clients:
            if client.is_alive():
                client.wait()

    # --- misfortunes --------------------------------------------------------------------------------

    def suffer(self, misfortune):
        """One round: it happens, it lasts, it ends, and work must go on."""
        struck_s = time.monotonic()
        words = misfortune.happen()
        try:
            misfortune.last()
        finally:
            misfortune.end()
        healed_s = time.monotonic()
        recovery_s = self.await_progress(healed_s, words)
        first = self._first_changes_s(struck_s)
        last = max(first, key=first.get, default=())
        first_s = first.get(last, struck_s) - struck_s
        self.rounds.append(Round(misfortune.kind, words, struck_s, healed_s, first_s, recovery_s, last))

    def _first_changes_s(self, after_s):
        return self.history.first_changes_s(after_s, self._group)

    def _group(self, key):
        return key[:2] if key[0] in ("object", "property") else key[:1]

    def await_progress(self, after_s, words):
        """Wait until a change was acknowledged in each group of keys."""
        groups = {("object", container) for container in self.fixed} | {("property",), ("name",)}

        def went_on():
            found = self._first_changes_s(after_s)
            kinds = {*found, *((name[0],) for name in found)}
            if groups <= kinds or self.complaints():
                return max(found.values(), default=after_s) - after_s + 1e-9  # true
            return None

        try:
            return eventually(went_on, RECOVERY_MAX_S, f"work goes on after {words}")
        except AssertionError:
            done = self._first_changes_s(after_s)
            missing = groups - set(done) - {name[:1] for name in done}
            recent = [one for one in self.history.operations()[-40:] if one.note]
            raise AssertionError(
                f"no change of {missing} within {RECOVERY_MAX_S} s after {words}\n" + self._told(recent)
            ) from None

    def complaints(self):
        """Answers that are wrong by themselves."""
        return [complaint for client in self._clients for complaint in client.complaints]

    # --- judgement ----------------------------------------------------------------------------------

    def judge_so_far(self):
        """Violations on keys that were used since the last time."""
        violations = check_registers(self.history, self.history.touched(), judged)
        return self.complaints() + [violation.told(self.history.origin_s) for violation in violations]

    def judge_listings(self):
        """Violations that show when all is listed once more."""
        reader = self._client(LastReader, 1)
        for workload in self._workloads:
            if isinstance(workload, Sets):
                workload.list_all(reader)
        return reader.complaints + self.judge_so_far()

    def judge(self):
        """All that is wrong, once the work has ended and the cluster is whole."""
        reader = self._client(LastReader, 1)
        for workload in self._workloads:
            workload.conclude(reader)
        found = self.complaints() + reader.complaints
        found += [one.told(self.history.origin_s) for one in check_registers(self.history, view=judged)]
        found += self._judge_last_values()
        found += self._judge_counters()
        found += self._judge_copies()
        return found

    def _judge_last_values(self):
        found = []
        for key, operations in self.history.by_key().items():
            final, operations = operations[-1], judged(key, operations)
            if final.kind == "read" and final.client == "client-1":
                violation = check_final(key, operations, final.result)
                if violation:
                    found.append(violation.told(self.history.origin_s))
        return found

    def _judge_counters(self):
        found = []
        for container in [name for workload in self._workloads for name in workload.containers()]:
            page = self._api.object_list(ACCOUNT, container, limit=10_000)
            counters = counters_of(self._api.container_get_properties(ACCOUNT, container))
            found += check_counters(container, counters, [entry["size"] for entry in page["objects"]])
        return found

    def _judge_copies(self):
        """Copies that were away need a moment: what matters is that they become equal by themselves."""
        left = []
        count = self._cluster.layout.options.container_replicas
        expected = self._expected_containers()

        def equal():
            services = self._cluster.services()
            left[:] = copies.differences(services) + copies.misplaced(services, count, expected)
            return not left

        try:
            eventually(equal, RECOVERY_MAX_S, "equal copies")
        except AssertionError:
            return left[:20]
        return []

    def _expected_containers(self):
        """Container id -> does it exist? Those whose fate nobody knows are left out."""
        expected = {
            cid_from_name(ACCOUNT, name): True for workload in self._workloads for name in workload.containers()
        }
        for key, operations in self.history.by_key().items():
            if key[0] == "container" and all(one.outcome is not Outcome.UNKNOWN for one in operations):
                expected[cid_from_name(ACCOUNT, key[1])] = operations[-1].result is not None
        return expected

    def judge_agreement(self):
        """What containers, accounts and indexes say of each other, as the consistency check finds it."""
        left = []
        hurry = Hurry(self._cluster, given_up=True)

        def agreed():
            try:
                hurry()
                report = check_namespace(self._cluster.namespace, self._proxies[0], passes=1)
                left[:] = [*report.unchecked, *(one for one in report.findings if not self._is_left_behind(one))]
            except OioException as exc:
                left[:] = [exc]
            return not left

        try:
            eventually(agreed, RECOVERY_MAX_S, "agreement")
        except AssertionError:
            return [str(one) for one in left[:20]]
        return []

    def _is_left_behind(self, finding):
        """Is this what nobody cleans after an operation that failed half-way?

        A link that was made for a base that was not is in the index of its service, also when it is removed.
        """
        if finding.kind == "base-unknown":
            return finding.detail in self._half_made()
        return finding.kind in LEFT_BEHIND

    def _half_made(self):
        """Ids of the containers of which nobody knows whether they were made, or destroyed, at some time."""
        return {
            cid_from_name(ACCOUNT, key[1])
            for key, operations in self.history.by_key().items()
            if key[0] == "container" and any(one.outcome is Outcome.UNKNOWN for one in operations)
        }

    # --- words --------------------------------------------------------------------------------------

    def _told(self, operations):
        return "\n".join(f"  {one.key}: {one.told(self.history.origin_s)}" for one in operations)

    def schedule(self):
        """The rounds until now, one a line."""
        origin_s = self.history.origin_s
        return "\n".join(
            f"  {one.struck_s - origin_s:8.3f} … {one.healed_s - origin_s:8.3f}  {one.words};"
            f" all goes on after {one.after_beginning_s:.2f} s, {' '.join(one.last)} at last"
            for one in self.rounds
        )

    def summary(self):
        """Rounds by kind, operations by outcome, times until work went on."""
        lines = ["operations: " + ", ".join(f"{count} {name}" for name, count in self.history.counts().items())]
        for kind, count in sorted(Counter(one.kind for one in self.rounds).items()):
            mine = [one for one in self.rounds if one.kind == kind]
            begun = _spread([one.after_beginning_s for one in mine])
            ended = _spread([one.after_end_s for one in mine])
            lines.append(f"{kind:24} {count:4} rounds; work goes on {begun} after it began, {ended} after its end")
        return "\n".join(lines)


def _spread(times_s):
    return f"p50 {statistics.median(times_s):.2f} s, max {max(times_s):.2f} s"


