# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What clients of simulated services know of each base, and what must never be."""

from __future__ import annotations

from simulated_world import World


class Violation(AssertionError):
    """Something that must never happen."""


class Life:
    """One incarnation of a base, from its creation to its destruction."""

    def __init__(self, birth: str, asked_at: float) -> None:
        self.birth = birth
        self.asked_at = asked_at
        #: When somebody was told, or saw, that it exists.
        self.known_at: float | None = None
        self.dying_at: float | None = None
        self.dead_at: float | None = None
        self.acknowledged: dict[str, float] = {}
        self.refused: set[str] = set()
        self.seen: list[str] = []


class History:
    """What clients know of one base."""

    def __init__(self, name: str, world: World) -> None:
        self.name = name
        self.world = world
        self.lives: dict[str, Life] = {}

    def fail(self, text: str) -> None:
        self.world.note(f"VIOLATION {self.name}: {text}")
        raise Violation(f"base {self.name}: {text}")

    def asked(self, birth: str) -> None:
        self.lives[birth] = Life(birth, self.world.now)

    def created(self, birth: str, begun_at: float) -> None:
        for life in self.lives.values():
            if (
                life.birth != birth
                and life.known_at is not None
                and life.known_at < begun_at
                and life.dying_at is None
            ):
                self.fail(f"{birth} is created though {life.birth} lives")
        self.exists(birth, begun_at)

    def exists(self, birth: str, begun_at: float) -> Life:
        life = self.lives.get(birth)
        if life is None:
            self.fail(f"{birth} was never created")
        assert life is not None
        if life.dead_at is not None and life.dead_at < begun_at:
            self.fail(f"{birth} is seen after its destruction at {life.dead_at - 1000:.3f}")
        if life.known_at is None:
            life.known_at = self.world.now
        return life

    def existed(self, begun_at: float) -> None:
        """A creation was told that there is one."""
        if not any(life.dead_at is None or life.dead_at >= begun_at for life in self.lives.values()):
            self.fail("said to exist, though all were destroyed")

    def absent(self, begun_at: float) -> None:
        for life in self.lives.values():
            if life.known_at is not None and life.known_at < begun_at and life.dying_at is None:
                self.fail(f"said to be absent though {life.birth} lives")

    def dying(self, birth: str) -> None:
        life = self.lives[birth]
        if life.dying_at is None:
            life.dying_at = self.world.now

    def destroyed(self, births: set[str]) -> None:
        if len(births) == 1:
            life = self.lives[next(iter(births))]
            if life.dead_at is None:
                life.dead_at = self.world.now

    def acknowledged(self, birth: str, op: str, begun_at: float) -> None:
        self.exists(birth, begun_at).acknowledged.setdefault(op, self.world.now)

    def refused(self, op: str) -> None:
        for life in self.lives.values():
            life.refused.add(op)

    def read(self, birth: str, ops: list[str], begun_at: float, seen: list[str]) -> None:
        """A read that began at a moment, when ``seen`` were the longest list that others had been told."""
        life = self.exists(birth, begun_at)
        there = set(ops)
        if len(there) < len(ops):
            twice = sorted({op for op in ops if ops.count(op) > 1})
            self.fail(f"made twice: {twice}")
        missing = [op for op, at in life.acknowledged.items() if at < begun_at and op not in there]
        if missing:
            self.fail(f"{missing} were acknowledged, and are not read at {begun_at - 1000:.3f}")
        if ops[: len(seen)] != seen:
            self.fail(f"what was read before is gone: {seen} then {ops}")
        if there & life.refused:
            self.fail(f"refused, and read: {sorted(there & life.refused)}")
        if len(ops) > len(life.seen):
            life.seen = ops
