# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Listing of objects: order, pages, prefixes, delimiters."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import ACCOUNT

from oio.common.exceptions import NoSuchContainer

NAMES = sorted(
    ["a", "a/", "a/1", "a/2", "a/b/1", "b", "b-c", "c/1/x", "c/1/y", "c/2", "é", "日本/1"], key=str.encode
)


@pytest.fixture(scope="module")
def listed(cluster):
    from oio import ObjectStorageApi

    api = ObjectStorageApi(cluster.namespace, endpoint=cluster.proxy)
    container = "listed-container"
    for name in NAMES:
        api.object_create(ACCOUNT, container, obj_name=name, data=name.encode(), policy="SINGLE",
                          properties={"p": name})  # fmt: skip
    return api, container


def page_names(page):
    return [entry["name"] for entry in page["objects"]]


def everything(api, container, **kwargs):
    """All the objects and prefixes, following the markers."""
    objects, prefixes, marker = [], [], kwargs.pop("marker", None)
    while True:
        page = api.object_list(ACCOUNT, container, marker=marker, **kwargs)
        objects += page_names(page)
        prefixes += page["prefixes"]
        if not page["truncated"]:
            return objects, prefixes
        marker = page["next_marker"]


def expected(prefix="", delimiter=None, marker=None, end_marker=None):
    objects, prefixes = [], []
    for name in NAMES:
        key = name.encode()
        if not name.startswith(prefix) or (marker and key <= marker.encode()):
            continue
        if end_marker and key >= end_marker.encode():
            continue
        cut = name.find(delimiter, len(prefix)) if delimiter else -1
        if cut < 0:
            objects.append(name)
        elif (group := name[: cut + 1]) != marker and group not in prefixes:
            prefixes.append(group)
    return objects, prefixes


@pytest.mark.parametrize("limit", [1, 2, 5, len(NAMES), 1000])
@pytest.mark.parametrize("delimiter", [None, "/", "-"])
def test_pages_enumerate_everything_once(listed, limit, delimiter):
    api, container = listed
    assert everything(api, container, limit=limit, delimiter=delimiter) == expected(delimiter=delimiter)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prefix=st.sampled_from(["", "a", "a/", "c/", "zz", "é"]),
    delimiter=st.sampled_from([None, "/"]),
    marker=st.sampled_from([None, "a", "a/1", "b", "zz"]),
    end_marker=st.sampled_from([None, "a/2", "c", "é"]),
    limit=st.integers(min_value=1, max_value=6),
)
def test_parameters_combine(listed, prefix, delimiter, marker, end_marker, limit):
    api, container = listed
    found = everything(
        api, container, prefix=prefix, delimiter=delimiter, marker=marker, end_marker=end_marker, limit=limit
    )
    assert found == expected(prefix, delimiter, marker, end_marker)


def test_a_marker_that_is_a_prefix_skips_it(listed):
    api, container = listed
    page = api.object_list(ACCOUNT, container, delimiter="/", marker="a/")
    assert "a/" not in page["prefixes"]


def test_entries_tell_about_the_objects(listed):
    api, container = listed
    entry = next(e for e in api.object_list(ACCOUNT, container, properties=True)["objects"] if e["name"] == "b-c")
    assert entry["size"] == 3 and entry["policy"] == "SINGLE" and entry["deleted"] is False
    assert entry["chunk_method"] == "plain/nb_copy=1" and entry["mime_type"] == "application/octet-stream"
    assert entry["properties"] == {"p": "b-c"} and entry["is_latest"] is True
    assert entry["id"] == entry["content"] and isinstance(entry["version"], int)


def test_the_page_carries_the_container(listed):
    api, container = listed
    page = api.object_list(ACCOUNT, container, limit=1)
    assert page["system"]["sys.user.name"] == container
    assert page["truncated"] is True and page["next_marker"] == NAMES[0]


def test_a_page_that_ends_with_the_last_object_is_not_truncated(listed):
    api, container = listed
    assert api.object_list(ACCOUNT, container, limit=len(NAMES))["truncated"] is False


def test_a_missing_container_is_said(api):
    with pytest.raises(NoSuchContainer):
        api.object_list(ACCOUNT, "no-such-container")
