# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The guide of the API: its examples run, and it tells of every method."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from fake_cluster import NS, FakeCluster

from oio import ObjectStorageApi

GUIDE = (Path(__file__).parents[3] / "docs" / "python-api.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES[1:], ids=["tour", "conditions"])
def test_examples(api: ObjectStorageApi, example: str) -> None:
    names = {"api": api}
    exec(compile(example, "docs/python-api.md", "exec"), names)
    if "data" in names:
        assert names["data"] == b"hello"
        assert names["names"] == ["a.txt"]


def test_the_first_example_builds_the_api(cluster: FakeCluster) -> None:
    assert EXAMPLES[0].count("ObjectStorageApi(") == 2
    assert ObjectStorageApi(NS, endpoint=cluster.proxy.address).namespace == NS


def test_every_method_is_in_the_guide() -> None:
    public = [
        name for name, _ in inspect.getmembers(ObjectStorageApi, inspect.isfunction) if not name.startswith("_")
    ]
    assert [name for name in public if f"`{name}" not in GUIDE] == []
