# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The databases of an rdir: listings against a model, tombstones, growth, and what fails."""

import threading

import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oio.common import status
from oio.common.status import StatusError
from oio.rdir import engine, keys, records, store, tables
from oio.rdir.store import Store, change, directory_name

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

containers = st.sampled_from(["0" * 64, "0" * 63 + "1", "A" * 64, "F" * 64, "a" * 64, "short", "é"])
contents = st.sampled_from(["0" * 32, "B" * 32, "b" * 32, "c" * 700, "c" * 600 + "d", ""])
chunks = st.sampled_from(["0" * 64, "9" * 64, "E" * 64, "x", "y" * 500])
ids = st.tuples(containers, contents, chunks)


@pytest.fixture
def base(tmp_path):
    """A new volume, its synchronizations off: what is tested is not the disk."""
    opened = Store(str(tmp_path), sync=False)
    yield opened.chunks("v", create=True)
    opened.close()


def empty(base):
    base.clear(True, False, False)


def read_all(base, limit, **options):
    """All the pages: items, and how many requests that took."""
    items, marker, requests = [], options.pop("start", None), 0
    while True:
        requests += 1
        page = base.fetch(marker, options.get("prefix", ""), limit, options.get("rebuild", False))
        assert len(page.items) <= limit
        items += page.items
        if page.marker is None:
            return items, requests
        marker = page.marker


@QUICK
@given(
    st.dictionaries(ids, st.integers(1, 20), max_size=12),
    st.integers(1, 4),
    st.one_of(st.none(), ids, st.just(("zz", "", ""))),
    st.sampled_from(["", "0", "0" * 64, "0" * 64 + "|", "A", "a", "é", "short|", "Z", "0" * 64 + "|" + "c" * 600]),
    st.integers(0, 20),
)
def test_pages_visit_what_matches_once_and_in_order(base, found, limit, start, prefix, incident):
    empty(base)
    base.push([change(*key, mtime=mtime) for key, mtime in found.items()])
    base.set_incident(incident)
    model = {keys.text(*key): mtime for key, mtime in found.items()}
    marker = None if start is None else keys.text(*start)
    for rebuild in (False, True):
        expected = [
            (key, mtime)
            for key, mtime in sorted(model.items(), key=lambda item: item[0].encode())
            if key.startswith(prefix) and (marker is None or key > marker)
            and not (rebuild and not 0 < mtime <= incident)
        ]  # fmt: skip
        items, requests = read_all(base, limit, start=marker, prefix=prefix, rebuild=rebuild)
        assert items == expected
        assert requests == max(1, -(-len(expected) // limit))


def test_pages_are_stable_while_others_write(base):
    """What was there before the first request and is not touched meanwhile is seen once."""
    stay = [change(f"{number:064X}", "B" * 32, "C" * 64, 5) for number in range(0, 300, 3)]
    base.push(stay)
    stop = threading.Event()

    def disturb():
        moving = [change(f"{number:064X}", "B" * 32, "C" * 64, 6) for number in range(1, 300, 3)]
        while not stop.is_set():
            base.push(moving)
            base.delete(moving)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(20):
            items, _requests = read_all(base, 7)
            found = [key for key, _mtime in items]
            assert found == sorted(set(found))
            assert [key for key, mtime in items if mtime == 5] == [keys.unpack(item.packed) for item in stay]
    finally:
        stop.set()
        thread.join()


def test_a_long_search_takes_several_transactions(base, monkeypatch):
    monkeypatch.setattr(store, "SCAN_RECORDS", 3)
    young = [change(f"{number:064X}", "B" * 32, "C" * 64, 50) for number in range(20)]
    old = change("F" * 64, "B" * 32, "C" * 64, 5)
    base.push([*young, old, change("F" * 64, "b", "c", 5)])
    base.set_incident(10)
    page = base.fetch(None, "", 1, rebuild=True)
    assert [key for key, _ in page.items] == ["F" * 64 + "|" + "B" * 32 + "|" + "C" * 64]
    assert page.marker is not None
    assert base.fetch(page.marker, "", 1, rebuild=True).items == [("F" * 64 + "|b|c", 5)]
    assert len(read_all(base, 2)[0]) == 22


def test_a_marker_that_is_only_a_prefix_skips_a_record(base):
    """As clients of the 7.x series know it; only whole keys are ever sent."""
    base.push([change("A" * 64, "B" * 32, chunk * 64, 1) for chunk in "0123"])
    assert len(base.fetch("A" * 64, "", 10).items) == 3
    assert len(base.fetch("", "", 10).items) == 3
    assert len(base.fetch("9", "A", 10).items) == 4


def test_a_page_of_status(base):
    base.push([change("A" * 64, "B" * 32, chunk * 64, int(chunk)) for chunk in "1234"])
    base.push([change("B" * 64, "B" * 32, "9" * 64, 9)])
    one, two = "A" * 64, "B" * 64
    expected = {"chunk": {"total": 5}, "container": {one: {"total": 4}, two: {"total": 1}}}
    assert base.status(None, "", 10) == (expected, None)
    base.set_incident(2)
    answer, marker = base.status(None, "", 3)
    assert answer == {
        "chunk": {"total": 3, "to_rebuild": 2},
        "container": {one: {"total": 3, "to_rebuild": 2}},
        "rebuild": {"incident_date": 2},
    }
    assert base.status(marker, "", 3)[0]["container"] == {one: {"total": 1}, two: {"total": 1}}


def test_undecodable_records_are_skipped_and_counted(base):
    good, bad = change("A" * 64, "B" * 32, "1" * 64, 7), change("A" * 64, "B" * 32, "0" * 64, 7)
    base.push([good, change("x", "y", "z", 7)])
    base.engine.write(lambda txn: txn.put(bad.packed, b"???", db=base.engine.dbs["chunk"]))
    assert len(base.fetch(None, "", 10).items) == 2
    assert base.status(None, "", 10)[0]["chunk"] == {"total": 2}
    assert base.clear(False, False, True) == {"removed": 0, "repaired": 2, "errors": 1}
    base.push([bad])
    assert len(base.fetch(None, "", 10).items) == 3


def test_clear(base, monkeypatch):
    monkeypatch.setattr(store, "CLEAR_RECORDS", 2)
    mixed = [change(f"{number:064X}", "B" * 32, "C" * 64, number) for number in range(1, 8)]
    mixed += [change("x", "y", str(number), number) for number in range(1, 8)]
    base.push(mixed)
    base.set_incident(3)
    assert base.clear(False, False, False) == {"removed": 0, "repaired": 0, "errors": 0}
    assert base.show() == {}
    assert base.clear(False, True, False) == {"removed": 0, "repaired": 0, "errors": 0}
    base.set_incident(3)
    assert base.clear(False, True, True) == {"removed": 6, "repaired": 8, "errors": 0}
    base.lock("somebody")
    with pytest.raises(StatusError, match="Already locked by somebody") as raised:
        base.clear(True, False, False)
    assert raised.value.code == status.FORBIDDEN
    base.unlock()
    base.lock(store.CLEAR_OWNER)  # left by a service that died meanwhile
    assert base.clear(True, False, False) == {"removed": 8, "repaired": 0, "errors": 0}
    assert base.show() == {}


def test_tombstones_of_both_kinds_of_keys_and_their_end(base):
    usual, other = ("A" * 64, "B" * 32, "C" * 64), ("a", "b", "c" * 505)
    for ids_ in (usual, other):
        base.delete([change(*ids_, when=9_000_000)])
        base.push([change(*ids_, mtime=8, when=8_000_000)])
        base.push([change(*ids_, mtime=9, when=9_000_000)])
    assert base.fetch(None, "", 10).items == []
    assert base.engine.info()["grave"] == base.engine.info()["other-grave"] == 1
    now_s = int(store.time.time())
    assert base.sweep(now_s) == 0
    assert base.sweep(now_s + records.TOMBSTONE_S + 1) == 2
    base.push([change(*usual, mtime=8, when=8_000_000)])
    assert len(base.fetch(None, "", 10).items) == 1
    base.push([change(*usual, mtime=10, when=10_000_000)])
    base.delete([change(*usual, when=9_000_000)])
    assert [mtime for _key, mtime in base.fetch(None, "", 10).items] == [10]
    base.delete([change(*usual)])
    assert base.fetch(None, "", 10).items == []


def test_the_sweep_goes_by_small_steps(base, monkeypatch):
    monkeypatch.setattr(store, "SCAN_RECORDS", 4)
    monkeypatch.setattr(store, "CLEAR_RECORDS", 3)
    base.delete([change(f"{number:064X}", "B" * 32, "C" * 64, when=5) for number in range(10)])
    assert base.sweep(int(store.time.time()) + records.TOMBSTONE_S + 1) == 10


@QUICK
@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from("ab"), st.sampled_from([490, 499, 500, 501, 700]),
                       st.sampled_from(["", "x", "y", "\0", "xy"])), max_size=20),
    st.tuples(st.sampled_from("ab"), st.sampled_from([0, 499, 500, 501, 700]), st.sampled_from(["", "x", "\0"])),
)  # fmt: skip
def test_tables_hold_keys_of_any_length_in_order(base, operations, position):
    db, model = base.engine.dbs["other"], {}
    empty(base)

    def work(txn):
        for number, (add, letter, length, end) in enumerate(operations):
            key, value = (letter * length + end).encode(), b"%d" % number
            if add:
                tables.put(txn, db, key, value)
                model[key] = value
            else:
                assert tables.delete(txn, db, key) == (model.pop(key, None) is not None)
            assert tables.get(txn, db, key) == model.get(key)

    base.engine.write(work)
    start = (position[0] * position[1] + position[2]).encode()
    found = base.engine.read(lambda txn: list(tables.scan(txn, db, start)))
    assert found == sorted((key, value) for key, value in model.items() if key >= start)


def test_a_batch_with_one_key_too_many_changes_nothing(base, monkeypatch):
    monkeypatch.setattr(tables, "DRAWER_RECORDS_MAX", 3)
    many = [change("c" * 64, "d" * 600, str(number), 5) for number in range(4)]
    with pytest.raises(StatusError) as raised:
        base.push([change("A" * 64, "B" * 32, "C" * 64, 5), *many])
    assert raised.value.code == status.BAD_PARAMETER
    assert base.fetch(None, "", 10).items == []
    base.push(many[:3])
    assert len(base.fetch(None, "", 10).items) == 3


def test_concurrent_writers_share_commits(base):
    started, release = threading.Event(), threading.Event()

    def slow(_txn):
        started.set()
        release.wait(10)

    first = threading.Thread(target=base.engine.write, args=(slow,))
    first.start()
    assert started.wait(10)
    before = base.engine.commits
    threads = [
        threading.Thread(target=base.push, args=([change(f"{number:064X}", "B" * 32, "C" * 64, 5)],))
        for number in range(20)
    ]
    for thread in threads:
        thread.start()
    deadline = store.time.monotonic() + 10
    while len(base.engine._group._queue) < 20 and store.time.monotonic() < deadline:
        release.wait(0.001)
    release.set()
    for thread in [first, *threads]:
        thread.join()
    assert base.engine.commits == before + 2
    assert len(base.fetch(None, "", 100).items) == 20


def test_a_refused_write_does_not_harm_the_others_of_its_commit(base):
    base.lock("me")
    outcomes = []
    started, release = threading.Event(), threading.Event()

    def hold(_txn):
        started.set()
        release.wait(10)

    def try_lock():
        with pytest.raises(StatusError):
            base.lock("you")
        outcomes.append("refused")

    threads = [threading.Thread(target=base.engine.write, args=(hold,))]
    threads[0].start()
    assert started.wait(10)
    threads += [threading.Thread(target=try_lock), threading.Thread(target=base.set_incident, args=(5,))]
    for thread in threads[1:]:
        thread.start()
    release.set()
    for thread in threads:
        thread.join()
    assert outcomes == ["refused"]
    assert base.show() == {"incident_date": "5", "lock": "me"}


def test_the_map_grows_while_others_read(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "MAP_BYTES_FIRST", 1 << 20)
    opened = Store(str(tmp_path), sync=False)
    base, stop = opened.chunks("v", create=True), threading.Event()
    seen = []

    def read():
        while not stop.is_set():
            seen.append(len(read_all(base, 1000)[0]))

    thread = threading.Thread(target=read)
    thread.start()
    for first in range(0, 40000, 2000):
        base.push([change(f"{number:064X}", "B" * 32, "C" * 64, 5) for number in range(first, first + 2000)])
    stop.set()
    thread.join()
    assert seen == sorted(seen)
    assert len(read_all(base, 10000)[0]) == 40000
    assert base.engine.info()["map_bytes"] > 1 << 20
    opened.close()
    again = Store(str(tmp_path), sync=False)
    assert again.open_all() == 0
    assert again.opened_count == 1
    assert len(read_all(again.chunks("v"), 10000)[0]) == 40000
    again.close()


def test_a_full_map_refuses_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "MAP_BYTES_FIRST", 1 << 20)
    opened = Store(str(tmp_path), sync=False, map_bytes_max=3 << 20)
    base, acknowledged = opened.chunks("v", create=True), 0
    with pytest.raises(StatusError) as raised:
        for first in range(0, 100000, 1000):
            base.push([change(f"{number:064X}", "B" * 32, "C" * 64, 5) for number in range(first, first + 1000)])
            acknowledged += 1000
    assert raised.value.code == status.UNAVAILABLE
    assert len(read_all(base, 10000)[0]) == acknowledged > 5000
    base.clear(True, False, False)
    base.push([change("A" * 64, "B" * 32, "C" * 64, 5)])
    assert len(read_all(base, 10)[0]) == 1
    opened.close()


def test_a_mistake_in_a_write_fails_it_alone_and_the_database_lives(base):
    with pytest.raises(ZeroDivisionError):
        base.engine.write(lambda _txn: 1 // 0)
    base.push([change("A" * 64, "B" * 32, "C" * 64, 5)])
    assert len(base.fetch(None, "", 10).items) == 1


def test_a_commit_that_panics_has_the_database_opened_again(base):
    def panic(_txn):
        raise lmdb.PanicError("mdb_put: MDB_PANIC")

    base.push([change("A" * 64, "B" * 32, "C" * 64, 5)])
    with pytest.raises(StatusError) as raised:
        base.engine.write(panic)
    assert raised.value.code == status.UNAVAILABLE
    assert len(base.fetch(None, "", 10).items) == 1
    base.push([change("B" * 64, "B" * 32, "C" * 64, 5)])
    assert len(base.fetch(None, "", 10).items) == 2


def test_the_records_of_containers(tmp_path):
    opened = Store(str(tmp_path), sync=False)
    with pytest.raises(StatusError) as raised:
        opened.containers("m")
    assert raised.value.code == status.NO_HANDLER
    base = opened.containers("m", create=True)
    urls = [f"NS/acme/{name}" for name in ("a", "ab", "b", "z" * 700, "é")]
    for url in reversed(urls):
        base.push(url, "CID", 5, extra="x")
    assert opened.opened_count == 0
    found, truncated = base.fetch("", "", 10)
    assert [record["container_url"] for record in found] == urls
    assert not truncated
    assert found[0] == {"container_id": "CID", "container_url": urls[0], "extra_data": "x", "mtime": 5}
    assert [record["container_url"] for record in base.fetch("NS/acme/a", "", 1)[0]] == urls[:1]
    assert base.fetch("NS/acme/a", "", 1)[1] is True
    assert base.fetch("NS/acme/a", urls[0], 1) == ([{**found[1]}], False)
    assert base.fetch("NS/acme/a", urls[1], 1) == ([], False)
    base.delete(urls[0], when=7)
    base.push(urls[0], "CID", 6, when=6)
    base.delete(urls[1])
    base.delete(urls[1])
    assert [record["container_url"] for record in base.fetch("", "", 10)[0]] == urls[2:]
    base.push(urls[0], "CID2", 8, when=8)
    base.delete(urls[0], when=7)
    assert base.fetch("", "", 1)[0][0]["container_id"] == "CID2"
    assert base.sweep(0) == 0
    opened.close()


@pytest.mark.parametrize(
    "volume", ["../x", ".", "..", "/etc", "a/b", "meta2-x", "%2E", "a b", "127.0.0.1:6010", "é", "-"]
)
def test_names_never_leave_the_directory_nor_meet(volume, tmp_path):
    opened = Store(str(tmp_path / "db"), sync=False)
    (tmp_path / "db").mkdir()
    opened.chunks(volume, create=True).push([change("a", "b", "c", 1)])
    opened.containers(volume, create=True).push("NS/a/b", "CID")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["db"]
    assert len(list((tmp_path / "db").iterdir())) == 2
    opened.close()
    again = Store(str(tmp_path / "db"), sync=False)
    assert again.open_all() == 0
    assert list(again._chunks) == [volume]
    again.close()


def test_too_long_names_are_refused(tmp_path):
    with pytest.raises(StatusError) as raised:
        Store(str(tmp_path)).chunks("v" * 201, create=True)
    assert raised.value.code == status.BAD_PARAMETER
    assert directory_name("", "v" * 200) == "v" * 200
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_a_database_is_not_opened(tmp_path):
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "v").mkdir()  # left by a service that died while it created the database
    opened = Store(str(tmp_path), sync=False)
    assert opened.open_all() == 0
    assert opened.opened_count == 0
    with pytest.raises(StatusError):
        opened.chunks("v")
    opened.chunks("v", create=True).push([change("a", "b", "c", 1)])
    opened.close()


def test_a_damaged_database_does_not_prevent_the_others(tmp_path):
    opened = Store(str(tmp_path), sync=False)
    for volume in ("good", "bad"):
        opened.chunks(volume, create=True)
    opened.close()
    (tmp_path / "bad/data.mdb").write_bytes(b"x" * 100000)
    again = Store(str(tmp_path), sync=False)
    assert again.open_all() == 1
    assert again.opened_count == 1
    with pytest.raises(StatusError) as raised:
        again.chunks("bad")
    assert raised.value.code == status.UNAVAILABLE
    again.close()


def test_a_closed_store_says_so(tmp_path):
    opened = Store(str(tmp_path))
    base = opened.chunks("v", create=True)
    opened.close()
    for call in (base.incident, lambda: base.set_incident(5)):
        with pytest.raises(StatusError) as raised:
            call()
        assert raised.value.code == status.UNAVAILABLE
