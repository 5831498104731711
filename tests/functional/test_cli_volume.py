# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio volume``, ``openio rdir`` and ``openio events``, on volumes that nobody uses."""

import json

import pytest
from cli_program import OpenioProgram
from support import ACCOUNT, eventually

ASSIGNMENT = ("Rdir", "Rawx", "Rdir location", "Rawx location")


@pytest.fixture
def openio(cluster, tmp_path):
    return OpenioProgram(cluster, tmp_path)


@pytest.fixture
def volume(openio, api, container):
    """A volume with a chunk that its rdir knows; left without lock nor incident."""
    api.object_create(ACCOUNT, container, data=b"x", obj_name="o", policy="SINGLE")
    chunk = api.object_locate(ACCOUNT, container, "o")[1][0]
    name = chunk["url"].split("/")[2]
    cid = api.container_get_properties(ACCOUNT, container)["system"]["sys.name"].split(".")[0]
    eventually(lambda: f"container.{cid}" in openio.json("volume", "show", name))
    yield name
    openio("volume", "admin", "unlock", name)
    openio("volume", "admin", "clear", name)


def test_a_volume_counts_its_chunks(openio, volume):
    shown = openio.json("volume", "show", volume)
    assert shown["chunk"]["total"] >= 1 and next(iter(shown)) == "chunk"
    assert all(json.loads(text)["total"] >= 1 for key, text in shown.items() if key.startswith("container."))
    assert "No rdir assigned" in openio.error("volume", "show", "no-such-volume")


def test_locks_and_incidents(openio, volume):
    assert openio.json("volume", "admin", "lock", volume, "--key", "me") == [{"Volume": volume, "Success": True}]
    error = openio.error("volume", "admin", "lock", volume, "--key", "other", "--request-id", "my-lock")
    assert "Already locked by me" in error and error.endswith("(reqid=my-lock)")
    rows = openio.formats_of_list(
        "volume", "admin", "incident", volume, "--date", "123", columns=("Volume", "Date")
    )
    assert rows == [{"Volume": volume, "Date": 123}]
    shown = openio.json("volume", "admin", "show", volume)
    assert list(shown.items()) == [("volume", volume), ("incident_date", "123"), ("lock", "me")]
    assert openio.json("volume", "admin", "unlock", volume) == [{"Volume": volume, "Success": True}]
    openio("volume", "admin", "incident", volume)
    assert "to_rebuild" in openio.json("volume", "show", volume)["chunk"]
    (row,) = openio.json("volume", "admin", "clear", volume)
    assert row == {"Volume": volume, "Success": True, "Message": {"removed": 0, "repaired": 0, "errors": 0}}
    assert list(openio.json("volume", "admin", "show", volume)) == ["volume"]
    assert openio("volume", "admin", "lock", volume, status=2).stdout == ""


def test_a_volume_that_cannot_be_cleared_is_a_failed_row_in_every_format(openio):
    for name in ("json", "yaml", "csv", "value", "table"):
        done = openio("volume", "admin", "clear", "no-such-volume", "-f", name, status=1)
        assert "No rdir assigned to volume no-such-volume" in done.stdout.replace("\n   ", "")


def test_assignments(openio):
    rows = openio.formats_of_list("rdir", "assignments", "rawx", columns=ASSIGNMENT)
    assert rows == sorted(rows, key=lambda row: tuple(row.values()))
    (first, *_) = openio.json("rdir", "assignments", "meta2")
    assert list(first) == ["Rdir", "Meta2", "Rdir location", "Meta2 location"]
    grouped = openio.json("rdir", "assignments", "rawx", "--aggregated")
    assert list(grouped[0]) == ["Rdir", "Number of bases", "Bases"]
    assert sum(row["Number of bases"] for row in grouped) == len(rows)
    assert openio.json("rdir", "bootstrap", "rawx") == rows
    assert openio.json("rdir", "bootstrap", "rawx", "--dry-run", "--min-dist", "1") == rows
    done = openio("rdir", "bootstrap", "rawx", "--service-id", "nobody", status=1)
    assert "nobody isn't a rawx" in done.stderr
    error = openio.error("rdir", "bootstrap", "no-such-type", "--request-id", "my-id")
    assert "not managed" in error and "(reqid=my-id)" in error
    done = openio("volume", "assignation", "--aggregated", "-f", "json")
    assert json.loads(done.stdout) == grouped and "openio rdir assignments rawx" in done.stderr
    assert "openio rdir bootstrap rawx" in openio("volume", "admin", "bootstrap").stderr


def test_events(openio):
    # Others may exist: tests that break chunks on purpose make the one of the rebuilder.
    assert {"Tubes": "oio"} in openio.json("events", "tubes")
    jobs = [f"current-jobs-{state}" for state in ("buried", "delayed", "ready", "reserved")]
    shown = openio.formats_of_show("events", "stats", moving=jobs)
    assert shown["name"] == "oio" and set(jobs) <= set(shown)
    # In the main tube, events of other tests may wait for what never comes.
    assert openio.json("events", "exhume", "--limit", "1", "--tube", "other") == {"Exhumed": 0}
    assert openio.json("events", "stats", "--tube", "other")["name"] == "other"
