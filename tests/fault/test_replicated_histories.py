# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Concurrent clients of a cluster to which misfortunes happen: an order of their operations explains all answers.

``OIO_CHAOS_SEED`` and ``OIO_CHAOS_ROUNDS`` choose another run (``make chaos``), ``OIO_CHAOS_KINDS`` the
misfortunes: words of their names, separated by commas. See docs/testing-faults.md.
"""

import os
import random
import tempfile

import pytest
from histories import nemesis
from histories.trial import Trial
from support import start_cluster

ROUNDS = int(os.environ.get("OIO_CHAOS_ROUNDS", "0"))
KINDS = os.environ.get("OIO_CHAOS_KINDS", "")


def chosen(kinds):
    """The misfortunes that may happen."""
    words = [word.strip() for word in KINDS.split(",") if word.strip()]
    found = [kind for kind in kinds if not words or any(word in kind.kind for word in words)]
    return found or pytest.skip("none of these misfortunes can happen here")


def run(cluster, kinds, rounds):
    """So many rounds, and the judgement."""
    seed = os.environ.get("OIO_CHAOS_SEED") or str(random.randrange(10**6))
    print(f"\nOIO_CHAOS_SEED={seed} OIO_CHAOS_ROUNDS={rounds}")
    trial = Trial(cluster, seed)
    violations = None
    try:
        violations = suffered(trial, nemesis.plan(cluster, seed, rounds, chosen(kinds), trial.fixed))
        if not violations:
            cluster.wait_ready()
            violations = trial.judge() + trial.judge_agreement()
    finally:
        trial.stop()
        print(trial.summary())
        if violations != []:
            file, path = tempfile.mkstemp(".jsonl", f"oio-history-{seed}-")
            os.close(file)
            trial.history.dump(path)
            print(f"OIO_CHAOS_SEED={seed} OIO_CHAOS_ROUNDS={rounds}\n{trial.schedule()}\nhistory: {path}")
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


@pytest.fixture
def single(tmp_path):
    """A cluster with one copy of each base."""
    sandbox = start_cluster(tmp_path, f"HIST{os.getpid()}", rawx=3, chunk_size=2**20)
    yield sandbox
    sandbox.destroy()


def test_single_copies(single):
    run(single, nemesis.SINGLE, ROUNDS or 3)
