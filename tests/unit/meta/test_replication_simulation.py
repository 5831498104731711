# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Copies of bases under faults: many histories that seeds decide, and the ones that went wrong once.

``OIO_SIMULATION_SEEDS=1000:3000`` runs others.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from replication_simulation import Service
from replication_trial import Client, Trial, Violation, trial_of
from simulated_world import Host

from oio.common import status
from oio.common.status import StatusError
from oio.meta.client import Route
from oio.meta.context import Context
from oio.meta.replication.wire import CopyInstall, Voice

_WANTED = os.environ.get("OIO_SIMULATION_SEEDS", "0:20")
SEEDS = range(*map(int, _WANTED.split(":")))
STEP = 10
_LOCAL = Route(local=True)


@pytest.mark.parametrize("first", SEEDS[::STEP])
@pytest.mark.parametrize("peers", [3, 5])
def test_histories(tmp_path: Path, first: int, peers: int) -> None:
    for seed in range(first, min(first + STEP, SEEDS.stop)):
        directory = tmp_path / str(seed)
        directory.mkdir()
        with trial_of(seed, directory, peers) as trial:
            try:
                trial.run()
            except Violation as exc:
                told = "\n".join(list(trial.world.trace)[-60:])
                raise AssertionError(f"seed {seed}: {exc}\n{told}") from exc


def test_same_seed_same_history(tmp_path: Path) -> None:
    traces = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        with trial_of(7, tmp_path / name) as trial:
            trial.run()
            traces.append(list(trial.world.trace))
    assert traces[0] == traces[1]


# --- one by one ---------------------------------------------------------------------------------------------


class Scene:
    """A base with three copies, nothing goes wrong, and a client."""

    base = "base0"

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.world = trial.world
        self.world.switching = self.world.stalling = 0.0
        trial.bases[:] = [self.base]
        trial.cluster.start()
        self.client = Client(trial, "client")
        self.client.create(self.base)
        while self.base not in self.client.masters:
            self.write()
        self.master = self.service(self.client.masters[self.base])
        self.followers = [self.service(name) for name in trial.directory[self.base] if name != self.master.name]

    def service(self, name: str) -> Service:
        return self.trial.cluster.services[name]

    def write(self) -> None:
        self.client.write(self.base)

    def on(self, service: Service, act: Any) -> Any:
        """Run something in a thread of a service."""
        return self.trial.cluster.network.call("nobody", service.name, lambda _: act(), 20.0)

    @property
    def voice(self) -> Voice:
        """The one of the master."""
        lead = self.on(self.master, lambda: self.master.replication.prepare(self.base))
        assert lead is not None
        return lead.voice

    def position(self, service: Service) -> Any:
        content = service.content(self.base)
        return None if content is None else content["position"][0]

    def image(self, service: Service) -> bytes:
        def copy() -> bytes:
            with service.repository.workshop_file() as path:
                service.repository.copy_out(self.base, path)
                return Path(path).read_bytes()

        return self.on(service, copy)


def play(tmp_path: Path, story: Any) -> None:
    """Run a story in a world where nothing happens by itself."""
    with trial_of(0, tmp_path) as trial:
        trial.world.run(lambda: story(Scene(trial)))
        assert trial.world.surprises == []


def test_late_image_undoes_nothing(tmp_path: Path) -> None:
    def story(scene: Scene) -> None:
        follower = scene.followers[0]
        old = scene.position(scene.master)
        image = scene.image(scene.master)
        scene.write()
        scene.world.sleep(1.0)
        now = scene.position(follower)
        assert now.rank > old.rank
        request = CopyInstall(base=scene.base, voice=scene.voice, position=old, image=image)
        reply = scene.on(follower, lambda: follower.handlers[CopyInstall](request, Context()))
        assert reply.done  # what it holds covers it
        assert scene.position(follower) == now

    play(tmp_path, story)


def test_late_image_does_not_bring_a_destroyed_base_back(tmp_path: Path) -> None:
    def story(scene: Scene) -> None:
        follower = scene.followers[0]
        old, image, voice = scene.position(scene.master), scene.image(scene.master), scene.voice
        scene.client.destroy(scene.base)
        scene.world.sleep(1.0)
        for _ in range(2):
            request = CopyInstall(base=scene.base, voice=voice, position=old, image=image)
            reply = scene.on(follower, lambda request=request: follower.handlers[CopyInstall](request, Context()))
            assert not reply.done
            assert not follower.repository.exists(scene.base)
            assert follower.replication.ledger.grave(scene.base) is not None

    play(tmp_path, story)


def test_commit_under_way_is_told_to_the_next_master(tmp_path: Path) -> None:
    """A follower stalls while it commits; meanwhile it promises to another, which must know of that entry."""

    def story(scene: Scene) -> None:
        slow, other = scene.followers
        network, zookeeper = scene.trial.cluster.network, scene.trial.cluster.zookeeper
        stalls = [1.8]

        def on_point(host: Host, what: str) -> None:
            if host is slow.host and what == "before commit" and stalls:
                scene.world.sleep(stalls.pop())

        # Only the slow one hears the master.
        network.cut |= {(scene.master.name, other.name), (other.name, scene.master.name)}
        scene.world.on_point = on_point
        scene.world.spawn(scene.write, name="write")
        scene.world.sleep(1.2)
        key = scene.voice.key if not stalls else ""
        assert key
        zookeeper.remove(key, lambda node: node[1] != other.name)
        reader = Client(scene.trial, "reader")
        reader.masters[scene.base] = other.name
        scene.world.sleep(1.0)
        for _ in range(10):
            reader.read(scene.base)
            scene.world.sleep(0.3)
        network.cut.clear()
        scene.world.sleep(10.0)
        reader.read(scene.base)

    play(tmp_path, story)


def test_file_that_is_being_replaced_is_not_absent(tmp_path: Path) -> None:
    def story(scene: Scene) -> None:
        follower = scene.followers[0]
        image = scene.image(scene.master)
        seen: list[object] = []

        def look() -> None:
            try:
                seen.append(
                    follower.repository.read(scene.base, lambda reader: reader.get("sys.name"), route=_LOCAL)
                )
            except StatusError as exc:
                seen.append(exc.code)

        def on_point(host: Host, what: str) -> None:
            if host is follower.host and what == "before rename" and not seen:
                seen.append("begun")
                scene.world.spawn(look, follower.host, "look")
                scene.world.sleep(0.5)

        def replace() -> bool:
            with follower.repository.workshop_file() as path:
                Path(path).write_bytes(image)
                return follower.repository.replace(scene.base, path, lambda: True)

        scene.world.on_point = on_point
        assert scene.on(follower, replace)
        scene.world.sleep(1.0)
        assert seen == ["begun", scene.base]
        assert status.CONTAINER_NOT_FOUND not in seen

    play(tmp_path, story)
