# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Random lives of a container, compared with a model that fits in a dictionary."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from meta2_bench import CID, Meta2Bench

from oio.common.status import StatusError
from oio.meta import messages as m

NAMES = st.sampled_from(["a", "a/1", "a/2", "a/b/c", "b", "b/", "é/1", "\U0001f600"])
VERSIONS = st.integers(min_value=1, max_value=12)


class Container(RuleBasedStateMachine):
    """Puts, deletions and changes of mode; the model keeps name -> {version: size or None (marker)}."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = tempfile.mkdtemp(prefix="meta2-model-")
        self.bench = Meta2Bench(self.volume, None)
        self.mode = 1
        self.model: dict[str, dict[int, int | None]] = {}

    @initialize()
    def create(self) -> None:
        assert self.bench.create()

    def attempt(self, function: Any, *args: Any, **kwargs: Any) -> int:
        try:
            function(*args, **kwargs)
        except StatusError as exc:
            return exc.code
        return 0

    @rule(mode=st.sampled_from([-1, 0, 1, 2]))
    def set_mode(self, mode: int) -> None:
        self.mode = mode
        self.bench.set(sys__m2__policy__version=str(mode))

    @rule(name=NAMES, version=VERSIONS, size=st.integers(0, 100))
    def put(self, name: str, version: int, size: int) -> None:
        versions = self.model.get(name, {})
        latest = max(versions, default=0)
        expected = 0
        if version in versions and (version == latest or self.mode not in (0, 1)):
            expected = 421
        elif version < latest and self.mode in (0, 1):
            expected = 424
        assert self.attempt(self.bench.put, name, version, size) == expected
        if not expected:
            if latest and self.mode in (0, 1):
                del versions[latest]
            self.model.setdefault(name, versions)[version] = size

    @rule(name=NAMES, size=st.integers(1, 9))
    def append(self, name: str, size: int) -> None:
        versions = self.model.get(name, {})
        latest = max(versions, default=0)
        if not latest or versions[latest] is None:
            return
        self.bench.put(name, 1, size, append=True)
        versions[latest] += size  # type: ignore[operator]

    @rule(name=NAMES, version=st.one_of(st.just(0), VERSIONS), marker=st.booleans())
    def delete(self, name: str, version: int, marker: bool) -> None:
        versions = self.model.get(name, {})
        target = version or max(versions, default=0)
        expected = 0
        if self.mode == 0 and version:
            expected = 400
        elif target not in versions:
            expected = 420
        elif marker and (self.mode in (0, 1) or versions[target] is None):
            expected = 400
        else:
            real = self.mode in (0, 1) or version or versions[target] is None
            if real and not marker:
                del versions[target]
                if not versions:
                    del self.model[name]
            elif target + 1 in versions:
                expected = 421
            else:
                versions[target + 1] = None
        code = self.attempt(self.bench.delete, name, version=version, delete_marker=marker)
        assert code == expected

    @rule()
    def reopen(self) -> None:
        self.bench.repository.close()
        self.bench = Meta2Bench(self.volume, None)

    @rule(prefix=st.sampled_from(["", "a", "a/", "b/"]), size=st.integers(1, 4))
    def list_folded(self, prefix: str, size: int) -> None:
        wanted = set()
        for name, versions in self.model.items():
            if name.startswith(prefix) and versions[max(versions)] is not None:
                cut = name.find("/", len(prefix))
                wanted.add(name[: cut + 1] if cut >= 0 else name)
        seen: list[str] = []
        marker = ""
        while True:
            page = self.bench.call(
                m.ContentList(cid=CID, prefix=prefix, delimiter="/", max=size, marker=marker)
            )
            seen += sorted([i["name"] for i in json.loads(page.objects)] + page.prefixes)
            if not page.truncated:
                break
            marker = page.next_marker
        assert seen == sorted(wanted)

    @invariant()
    def agrees(self) -> None:
        if not os.path.exists(f"{self.volume}/C0C"):
            return
        sizes = [s for versions in self.model.values() for s in versions.values() if s is not None]
        assert self.bench.check_counters() == (sum(sizes), len(sizes))
        everything = [
            (name, version, size is None, size)
            for name, versions in sorted(self.model.items())
            for version, size in sorted(versions.items(), reverse=True)
        ]
        found = self.bench.objects(all_versions=True)
        assert [(i["name"], i["version"], i["deleted"], i["size"]) for i in found] == everything
        visible = [
            (name, max(versions))
            for name, versions in sorted(self.model.items())
            if versions[max(versions)] is not None
        ]
        assert [(i["name"], i["version"]) for i in self.bench.objects()] == visible

    def teardown(self) -> None:
        self.bench.repository.close()
        shutil.rmtree(self.volume)


TestContainer = Container.TestCase
TestContainer.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
