# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The rows that the benchmark of large containers writes make a container as any other."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from meta2_bench import CID, Meta2Bench

from oio.meta import messages as m
from oio.meta.meta2.schema import base_name

ROOT = Path(__file__).resolve().parents[3]


def schema_of(reader: Any) -> list[Any]:
    return sorted(reader.execute("SELECT type, name, sql FROM sqlite_schema").fetchall(), key=str)


def test_loaded_objects_are_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    large = importlib.import_module("tools.benchmark.large")
    empty = Meta2Bench(str(tmp_path), None)
    empty.create()
    expected = empty.repository.read(base_name(CID), schema_of)
    path = empty.repository.path(base_name(CID))
    empty.repository.close()
    large.load(path, 3, 5)
    bench = Meta2Bench(str(tmp_path), None)
    try:
        assert bench.repository.read(base_name(CID), schema_of) == expected
        assert bench.check_counters() == (15 * 4096, 15)
        assert bench.listing(delimiter="/").prefixes == [f"prefix-{i:05d}/" for i in range(3)]
        shown = bench.show("prefix-00002/object-00004")
        assert (shown.size, len(shown.chunks)) == (4096, 3)
        bench.call(m.ContainerTouch(cid=CID, missing_chunks=True))
        assert "sys.m2.chunks.missing" not in bench.properties()
        bench.delete(shown.name)
        bench.put(shown.name)
        assert bench.check_counters() == (14 * 4096 + 10, 15)
    finally:
        bench.repository.close()
