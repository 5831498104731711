# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Concurrent clients of a cluster to which misfortunes happen: an order of their operations explains all answers.

``OIO_CHAOS_SEED`` and ``OIO_CHAOS_ROUNDS`` choose another run (``make chaos``), ``OIO_CHAOS_KINDS`` the
misfortunes: words of their names, separated by commas. See docs/testing-faults.md.
"""

import contextlib
import os
import pathlib
import random
import shutil
import tempfile
import time

import pytest
from histories import nemesis
from histories.trial import Trial
from histories.workloads import Sets
from processes import small_disk
from support import chosen_seed

from oio.sandbox import Sandbox

ROUNDS = int(os.environ.get("OIO_CHAOS_ROUNDS", "0"))
KINDS = os.environ.get("OIO_CHAOS_KINDS", "")
#: Room of the disks that are filled up: a long run must not fill them by itself.
SMALL_DISK_MIB = 128 + 4 * ROUNDS
#: Without OIO_CHAOS_ROUNDS nothing lasts longer; it is more than leases and sessions all the same.
SHORT_RUN_LASTS_S = 5.0

#: On a slow machine it lasts as long as it takes; each of its waits has a bound of its own.
pytestmark = pytest.mark.timeout(0 if ROUNDS else 600)


def chosen(kinds):
    """The misfortunes that may happen."""
    words = [word.strip() for word in KINDS.split(",") if word.strip()]
    found = [kind for kind in kinds if not words or any(word in kind.kind for word in words)]
    return found or pytest.skip("none of these misfortunes can happen here")


def run(cluster, kinds, rounds):
    """So many rounds, and the judgement."""
    seed = chosen_seed()
    print(f"\nOIO_CHAOS_SEED={seed} OIO_CHAOS_ROUNDS={rounds}")
    trial = Trial(cluster, seed)
    violations = None
    try:
        lasts_max_s = None if ROUNDS else SHORT_RUN_LASTS_S
        violations = suffered(trial, nemesis.plan(cluster, seed, rounds, chosen(kinds), trial.fixed, lasts_max_s))
        if not violations:
            cluster.wait_ready()
            violations = trial.judge() + trial.judge_agreement()
    finally:
        trial.stop()
        print("\n".join([trial.schedule(), trial.summary(), *(violations or [])]))
        if violations != [] or os.environ.get("OIO_CHAOS_KEEP"):
            file, path = tempfile.mkstemp(".jsonl", f"oio-history-{seed}-")
            os.close(file)
            trial.history.dump(path)
            shutil.copytree(cluster.layout.log_dir, f"{path}.logs")
            print(f"OIO_CHAOS_SEED={seed} OIO_CHAOS_ROUNDS={rounds}\nhistory and logs: {path}*")
    assert not violations, "\n".join(violations)


def suffered(trial, misfortunes):
    """What is wrong after each of them, until something is."""
    trial.start()
    for misfortune in misfortunes:
        trial.suffer(misfortune)
        violations = trial.judge_so_far()
        if violations:
            return violations
    trial.stop()
    return trial.judge_so_far()


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A cluster with one copy of each base, and a small disk for its containers."""
    yield from started(tmp_path_factory.mktemp("single"), rawx=3)


@pytest.fixture(scope="module")
def replicated(tmp_path_factory):
    """A cluster with three copies of each base, on three hosts that can be cut off where this is allowed."""
    yield from started(tmp_path_factory.mktemp("replicated"), rawx=6, replicas=3, isolate_hosts=os.geteuid() == 0)


def started(home, **options):
    """A cluster; the first service of each meta type is on a disk of its own, when that can be had."""
    sandbox = Sandbox(
        str(home), namespace=f"HIST{os.getpid()}", base_port=20000, chunk_size=2**20, prepare_directories=False,
        **options,
    )  # fmt: skip
    sandbox.init()
    with contextlib.ExitStack() as disks:
        for type_ in nemesis.META:
            with contextlib.suppress(pytest.skip.Exception):
                disks.enter_context(small_disk(sandbox.services(type_)[0].volume, SMALL_DISK_MIB))
        try:
            sandbox.start()
            yield sandbox
        finally:
            sandbox.destroy()


def kinds_for(cluster, kinds):
    """Misfortunes that can happen to a cluster."""
    found = list(kinds)
    if cluster.layout.subnet:
        found += nemesis.ISOLATED
    if any(nemesis.is_small(service) for service in cluster.services()):
        found += nemesis.SMALL_DISK
    return found


def test_single_copies(single):
    run(single, kinds_for(single, nemesis.SINGLE), ROUNDS // 4 or 2)


class BackInTime(nemesis.Misfortune):
    """A container is again what it was a moment ago: nothing may be told to be well then."""

    kind = "back in time"
    trial: Trial

    def happen(self):
        (service,) = self.cluster.services("meta2")
        self.cluster.stop(service.name)
        self._volume = service.volume
        shutil.copytree(self._volume, f"{self._volume}.former")
        self.cluster.start(service.name)
        return self.kind

    def last(self):
        # Every part of the work gets something to lose.
        self.trial.await_progress(time.monotonic(), self.kind)

    def end(self):
        (service,) = self.cluster.services("meta2")
        self.cluster.stop(service.name)
        for path in pathlib.Path(self._volume).rglob("*.meta2*"):
            path.unlink()
        shutil.copytree(f"{self._volume}.former", self._volume, dirs_exist_ok=True)
        self.cluster.start(service.name)


def test_a_loss_that_is_made_is_told(single, monkeypatch):
    # A whole container that is lost is told in other words: none is made meanwhile.
    monkeypatch.setattr(Sets, "NAMES_MAX", 10**6)
    trial = Trial(single, "loss", name="loss")
    misfortune = BackInTime(single, random.Random(1), trial.fixed)
    misfortune.trial = trial
    try:
        # What was lost may not have been looked at yet. It is listed; to read all that lost its chunks takes long.
        violations = suffered(trial, [misfortune]) or trial.judge_listings()
    finally:
        trial.stop()
    assert any("not linearizable" in violation for violation in violations), violations


def test_replicated_copies(replicated):
    run(replicated, kinds_for(replicated, nemesis.REPLICATED), ROUNDS or 4)
