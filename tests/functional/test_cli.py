# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The ``openio`` program, run as a user runs it."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ACCOUNT, ROOT, eventually


@pytest.fixture
def openio(cluster, tmp_path):
    """Run ``openio`` with these arguments; returns the finished process."""

    def run(*args, check=True, account=ACCOUNT, **kwargs):
        environment = dict(os.environ) | cluster.environment | {"OIO_ACCOUNT": account}
        environment["PYTHONPATH"] = str(ROOT)
        done = subprocess.run(
            [sys.executable, "-m", "oio.cli.openio", *args], cwd=tmp_path, env=environment,
            capture_output=True, text=True, check=False, timeout=60, **kwargs,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, done.stderr + done.stdout
        return done

    def run_json(*args, **kwargs):
        return json.loads(run(*args, "-f", "json", **kwargs).stdout)

    run.json = run_json
    return run


@pytest.fixture
def a_file(tmp_path):
    path = tmp_path / "a file.txt"
    path.write_bytes(b"content of the file\n" * 1000)
    return path


def test_the_cluster_is_shown(openio, cluster):
    shown = openio.json("cluster", "show")
    assert shown["namespace"] == cluster.namespace
    assert "storage_policy.THREECOPIES" in shown and shown["flat_bitlength"] == 17
    rows = openio.json("cluster", "list", "rawx")
    assert len(rows) == 12
    assert list(rows[0]) == ["Type", "Addr", "Service Id", "Volume", "Location", "Slots", "Up", "Score", "Locked"]
    assert all(row["Up"] is True and row["Score"] > 0 for row in rows)


def test_waiting_for_services(openio):
    rows = openio.json("cluster", "wait", "rawx", "meta2", "-n", "13", "-d", "20")
    assert {row["Type"] for row in rows} == {"rawx", "meta2"}
    late = openio("cluster", "wait", "rawx", "-s", "101", "-d", "0.2", check=False)
    assert late.returncode == 1 and "Timeout (0.2s)" in late.stderr


def test_an_unknown_type_is_an_error_and_a_failed_row(openio):
    done = openio("cluster", "list", "nosuchtype", check=False)
    assert done.returncode == 1
    assert "Service type [nosuchtype] not managed (HTTP 404) (STATUS 453)" in done.stderr


def test_containers(openio, container):
    first, second = container + "-x", container + "-y"
    assert openio.json("container", "create", first) == [{"Name": first, "Created": True}]
    assert openio.json("container", "create", first, second) == [
        {"Name": first, "Created": False}, {"Name": second, "Created": True},
    ]  # fmt: skip
    shown = openio.json("container", "show", first)
    assert sorted(shown) == [
        "account", "base_name", "bytes_usage", "container", "ctime", "damaged_objects", "max_versions",
        "missing_chunks", "objects", "quota", "stats.freelist_count", "stats.page_count", "stats.page_size",
        "stats.space_wasted", "status", "storage_policy",
    ]  # fmt: skip
    assert (shown["status"], shown["quota"], shown["objects"]) == ("Enabled", "Namespace default", 0)
    by_id = openio.json("container", "show", "--cid", shown["base_name"])
    assert by_id["container"] == first
    assert openio("container", "delete", first, second).stdout == ""
    gone = openio("container", "show", first, check=False)
    assert gone.returncode == 1 and "Traceback" not in gone.stderr


def test_containers_of_the_account_are_listed(openio, container):
    account = container[-25:]
    openio("container", "create", "one", "two", account=account)

    def listed():
        done = openio("container", "list", "-f", "json", account=account, check=False)
        return done.returncode == 0 and len(rows := json.loads(done.stdout)) == 2 and rows

    rows = eventually(listed, what="both containers are listed")
    assert [row["Name"] for row in rows] == ["one", "two"]
    assert list(rows[0]) == ["Name", "Bytes", "Count", "Mtime", "CID"]


def test_settings_of_a_container(openio, container):
    openio("container", "create", "--max-versions", "-1", "--quota", "1000", "--property", "k=v", container + "-s")
    shown = openio.json("container", "show", container + "-s")
    assert (shown["max_versions"], shown["quota"], shown["meta.k"]) == ("-1", "1000", "v")


def test_an_object_goes_in_and_comes_out(openio, container, a_file, tmp_path):
    data = a_file.read_bytes()
    rows = openio.json("object", "create", container, str(a_file), "--policy", "THREECOPIES")
    checksum = hashlib.md5(data).hexdigest().upper()
    assert rows == [{"Name": a_file.name, "Size": len(data), "Hash": checksum, "Status": "Ok"}]
    assert openio.json("object", "list", container)[0]["Hash"] == checksum
    assert len(openio.json("object", "list", "--long", container)[0]) == 9
    chunks = openio.json("object", "locate", container, a_file.name)
    assert len(chunks) == 3
    assert list(chunks[0]) == ["Pos", "Id", "Metachunk size", "Metachunk hash"]
    detailed = openio.json("object", "locate", "--chunk-info", container, a_file.name)
    assert {row["Chunk hash"] for row in detailed} == {checksum}
    assert openio("object", "save", container, a_file.name, "--file", "sub/copy").stdout == ""
    assert (tmp_path / "sub/copy").read_bytes() == data
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["copy"]


def test_properties_of_an_object(openio, container, a_file):
    openio("object", "create", container, str(a_file), "--name", "o", "--property", "a=1")
    openio("object", "set", container, "o", "--property", "b=2", "--tagging", '{"t": "<v>"}')
    shown = openio.json("object", "show", container, "o")
    assert (shown["meta.a"], shown["meta.b"], shown["size"]) == ("1", "2", str(a_file.stat().st_size))
    assert "<Key>t</Key><Value>&lt;v&gt;</Value>" in shown["meta.x-object-sysmeta-swift3-tagging"]
    openio("object", "unset", container, "o", "--property", "a", "--tagging")
    assert [key for key in openio.json("object", "show", container, "o") if key.startswith("meta.")] == ["meta.b"]
    assert openio("object", "set", container, "o", "--tagging", "[]", check=False).returncode == 1


def test_deleting_objects(openio, container, a_file):
    openio("object", "create", container, str(a_file), str(a_file), "--name", "x", "--name", "y")
    assert openio.json("object", "delete", container, "x", "absent", "y") == [
        {"Name": "x", "Deleted": True}, {"Name": "absent", "Deleted": False}, {"Name": "y", "Deleted": True},
    ]  # fmt: skip
    assert openio("object", "delete", container, "x", check=False).returncode == 1
    assert openio("object", "list", container).stdout == "\n"
    assert openio("object", "list", container, "-f", "value").stdout == ""


def test_a_file_that_cannot_be_opened_is_a_failed_row(openio, container, a_file):
    done = openio("object", "create", container, "absent", str(a_file), "-f", "json", check=False)
    assert done.returncode == 1
    assert [row["Status"] for row in json.loads(done.stdout)] == ["Failed", "Ok"]
    assert "Too many errors" in done.stderr and "Traceback" not in done.stderr


def test_the_container_may_be_computed(openio, a_file):
    openio("object", "create", "--auto", str(a_file), "--name", "fstab")
    assert openio.json("object", "show", "--auto", "fstab")["container"] == "06EE0"
    openio("object", "delete", "--auto", "fstab")


def test_a_missing_container_is_not_made_when_forbidden(openio, container, a_file):
    done = openio("object", "create", "--no-autocreate", container + "-absent", str(a_file), check=False)
    assert done.returncode == 1


@pytest.mark.parametrize("position", ["first", "middle", "last"])
def test_global_options_may_stand_anywhere(openio, container, position):
    words = {
        "first": ["--oio-account", ACCOUNT, "container", "show", container],
        "middle": ["container", "--oio-account", ACCOUNT, "show", container],
        "last": ["container", "show", container, "-a", ACCOUNT],
    }[position]
    assert openio(*words, account="").returncode == 0


def test_what_is_missing_is_said(openio, container):
    done = openio("container", "show", container, account="", check=False)
    assert done.returncode == 1 and "Set an account name with --account, OIO_ACCOUNT" in done.stderr
    assert openio("object", "create", check=False).returncode == 2
    assert openio("no", "such", "command", check=False).returncode == 2


def test_a_proxy_that_is_away_is_one_line(openio):
    done = openio("--oio-proxy", "127.0.0.1:1", "container", "show", "c", check=False)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 and "127.0.0.1:1" in done.stderr


def test_a_batch_of_lines_exits_0(openio, container, a_file):
    upload = f"object create {container} '{a_file}' --name one"
    lines = [upload, "container show absent", f"object list {container}"]
    done = openio(input="\n".join(lines) + "\n")
    assert "one" in done.stdout


def test_options_hold_for_a_batch_of_lines(openio, container, a_file):
    openio("object", "create", container, str(a_file), "--name", "one")
    done = openio("-a", ACCOUNT, "-q", account="", input=f"object list {container} -f value -c Name\n")
    assert (done.stdout.strip(), done.stderr) == ("one", "")


def test_the_examples_of_the_readme_run(cluster, openio):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.S)[1].replace('"OPENIO"', f'"{cluster.namespace}"')
    environment = dict(os.environ) | cluster.environment | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shell = re.findall(r"^openio (.*)$", text, re.M)
    assert shell
    for line in shell:
        words = line.split()
        words = [str(Path(ROOT, word)) if word == "README.md" and "create" in words else word for word in words]
        openio(*words, account="my_account")


def test_computed_containers_are_listed_together(openio, tmp_path):
    account = "auto-listing"
    names = [f"flat-{number}" for number in range(5)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    openio("object", "create", "--auto", "_", *names, account=account)
    openio("container", "create", "not-computed", account=account)

    def listed(*args):
        return [row["Name"] for row in openio.json("object", "list", "--auto", *args, account=account)]

    def all_listed():
        done = openio("object", "list", "--auto", "-f", "json", account=account, check=False)
        return done.returncode == 0 and len(json.loads(done.stdout)) == len(names)

    eventually(all_listed)
    ordered = listed()
    assert sorted(ordered) == names
    assert listed("--limit", "2") == ordered[:2]
    assert listed("--marker", ordered[1]) == ordered[2:]
    assert listed("--prefix", "flat-3") == ["flat-3"]
    assert listed("--flat-bits", "4") == []


def test_wrong_naming_is_told_once_before_anything_is_uploaded(openio, tmp_path):
    account = "wrong-naming"
    names = ["first", "second", "third"]
    for name in names:
        (tmp_path / name).write_text(name)

    def refused(*args):
        done = openio("object", "create", *args, *names, account=account, check=False)
        assert done.stdout == "" and "Traceback" not in done.stderr
        return done.returncode, done.stderr

    for bits in ("0", "257", "-4", "many"):
        code, told = refused("--auto", "_", "--flat-bits", bits)
        expected = f"argument --flat-bits: a number from 1 to 256 is expected, not {bits!r}\n"
        assert code == 2 and told.endswith(expected) and told.count("--flat-bits: ") == 1
    code, told = refused("--cid", "A" * 64)
    assert code == 1 and told.count("does not exist") == len(told.splitlines()) == 1
    code, told = refused("--oio-proxy", "127.0.0.1:1", "--auto", "_")
    assert code == 1 and told.count("cannot connect: ") == len(told.splitlines()) == 1
    done = openio("container", "list", account=account, check=False)
    assert (done.returncode, done.stderr.count("does not exist")) == (1, 1)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["object", "show", "{c}", "absent"], "Object 'absent' does not exist."),
        (["object", "locate", "{c}", "absent"], "Object 'absent' does not exist."),
        (["object", "save", "{c}", "absent"], "Object 'absent' does not exist."),
        (["object", "delete", "{c}", "absent"], "Object 'absent' does not exist."),
        (["object", "set", "{c}", "absent", "--property", "k=v"], "Object 'absent' does not exist."),
        (["object", "unset", "{c}", "absent"], "Object 'absent' does not exist."),
        (["object", "list", "{c}-absent"], "-absent' does not exist."),
        (["object", "show", "{c}", "o" * 9000], "does not exist."),
        (["object", "show", "{c}", "absent", "--object-version", "-1"], "Invalid version -1"),
        (["object", "list", "{c}", "--marker", "\udcff"], "Invalid parameter 'marker', not UTF-8"),
        (["container", "show", "--cid", "A" * 64], "Container '" + "A" * 64 + "' does not exist."),
        (["container", "show", "--cid", "ZZ"], "'cid' is not a container id"),
        (["container", "create", "x" * 2048], "Invalid parameter 'ref', more than"),
        (["container", "create", ""], "missing parameter 'ref'"),
        (["container", "create", "{c}-p", "--stgpol", "NOPE"], "Storage policy [NOPE] not supported"),
        (["container", "delete", "{c}-absent"], "-absent' does not exist."),
        (["-a", "no-such-account", "container", "list"], "Account 'no-such-account' does not exist."),
        (["cluster", "wait", "nosuch"], "Service type [nosuch] not managed (HTTP 404) (STATUS 453)"),
        (["--oio-proxy", "127.0.0.1:1", "object", "list", "{c}"], "host=127.0.0.1:1"),
    ],
)
def test_one_line_tells_what_went_wrong_and_in_which_request(openio, container, words, text):
    words = [word.replace("{c}", container) for word in words]
    done = openio("--request-id", "MY-REQUEST", *words, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert text in line and line.count("reqid=MY-REQUEST") == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--oio-proxy", "http://", "object", "list", "{c}"], "Invalid address of the proxy: 'http://'"),
        (["--oio-proxy", "127.0.0.1:99999", "cluster", "show"], "Invalid address of the proxy"),
        (["--request-id", "a\nb", "object", "list", "{c}"], "Invalid request id 'a\\nb'"),
        (["--log-file", "/nowhere/log", "object", "list", "{c}"], "/nowhere/log"),
        (["object", "create", "{c}", "file", "--name", ""], "--name wants a name"),
        (["object", "create", "", "file"], "Missing value for container or --auto"),
        (["object", "list", "{c}", "--limit", "-1"], "--limit wants a positive number"),
        (["container", "list", "--limit", "x"], "--limit wants a positive number"),
        (["object", "set", "{c}", "o", "--tagging", "[1]"], "--tags: Not a JSON object"),
        (["object", "delete", "{c}", "a", "b", "--object-version", "1"], "Cannot specify a version"),
        (["container", "show", "{c}", "-c", "nope"], "No recognized column names in ['nope']"),
    ],
)
def test_what_is_wrong_with_the_command_line_is_one_line(openio, container, tmp_path, words, text):
    (tmp_path / "file").write_bytes(b"x")
    done = openio(*[word.replace("{c}", container) for word in words], check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert text in line
    assert openio.json("object", "list", container) == []


def test_what_cannot_be_uploaded_is_a_failed_row(openio, container, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    for words, text in (
        (["folder"], "Is a directory: 'folder'"),
        (["absent"], "No such file or directory: 'absent'"),
        (["file", "--policy", "NOPE"], "Storage policy [NOPE] not supported (HTTP 500) (STATUS 480) (reqid="),
        (["file", "--name", "n" * 1024], "more than"),
        (["file", "--mime-type", "a\nb"], "Invalid mime type 'a\\nb'"),
        (["file", "--property", "=v"], "'' is not a name"),
    ):
        done = openio("object", "create", container, *words, "-f", "json", check=False)
        assert done.returncode == 1
        (row,) = json.loads(done.stdout)
        assert (row["Size"], row["Hash"], row["Status"]) == (0, None, "Failed")
        first, second = done.stderr.splitlines()
        assert text in first and second == "Too many errors occured"
    assert openio.json("object", "list", container) == []


def test_a_profile_that_cannot_be_saved_is_told(openio):
    done = openio("--profile", "/nowhere/profile", "cluster", "show", "-c", "namespace", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "/nowhere/profile" in done.stderr


def test_a_folder_is_not_overwritten_by_a_download(openio, container, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    openio("object", "create", container, "file")
    done = openio("object", "save", container, "file", "--file", "folder", check=False)
    assert done.returncode == 1 and "Is a directory: 'folder'" in done.stderr
    assert list((tmp_path / "folder").iterdir()) == []


# --- formats


def test_every_format_of_a_list(openio, container, a_file):
    openio("object", "create", container, str(a_file), "--name", "o", "--property", "k=v", "--property", "l=w")
    version = openio.json("object", "show", container, "o")["version"]
    checksum = hashlib.md5(a_file.read_bytes()).hexdigest().upper()
    line = f"o {a_file.stat().st_size} {checksum} {version}\n"
    assert openio("object", "list", container, "-f", "value").stdout == line
    assert openio("object", "list", container, "--no-paging").stdout == line
    assert openio("object", "list", container, "-f", "json", "--full").stdout == line
    assert len(openio.json("object", "list", container, "--full")) == 1
    header, row = openio("object", "list", container, "-f", "csv").stdout.splitlines()
    assert header == '"Name","Size","Hash","Version"'
    assert row == f'"o",{a_file.stat().st_size},"{checksum}",{version}'
    assert openio("object", "list", container, "-c", "Size", "-c", "Name", "-c", "No", "-f", "value").stdout == (
        f"o {a_file.stat().st_size}\n"
    )
    (entry,) = openio.json("object", "list", container, "--long")
    assert list(entry) == [
        "Name", "Size", "Hash", "Version", "Deleted", "Content-Type", "Last-Modified", "Policy", "Properties",
    ]  # fmt: skip
    assert (entry["Deleted"], entry["Properties"]) == (False, {"k": "v", "l": "w"})
    assert re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}", entry["Last-Modified"])
    assert openio("object", "list", container, "--long", "-f", "value").stdout.endswith(" k=v l=w\n")
    assert openio("object", "list", container, "--prefix", "z", "-f", "csv").stdout.splitlines() == [header]
    assert openio("object", "list", container, "--prefix", "z", "-f", "json").stdout == "[]\n"


def test_delete_markers_and_markers_are_shown(openio, container, a_file):
    name = container + "-v"
    openio("container", "create", name, "--versioning", "-1")
    openio("object", "create", name, str(a_file), str(a_file), "--name", "a", "--name", "b")
    openio("object", "delete", name, "b")
    rows = openio.json("object", "list", name, "--versions")
    assert [(row["Name"], row["Size"], row["Hash"]) for row in rows[1:]] == [
        ("b", "deleted", None), ("b", a_file.stat().st_size, rows[0]["Hash"]),
    ]  # fmt: skip
    done = openio("-v", "object", "list", name, "--versions", "--limit", "1", "-f", "value", "-c", "Name")
    assert (done.stdout, done.stderr) == ("a\n", "Next marker: a\n")


def test_a_container_with_all_settings(openio, container):
    name = container + "-all"
    openio(
        "container", "create", name, "--bucket-name", "bk", "--stgpol", "SINGLE",
        "--delete-exceeding-versions", "yes", "--property", "a=b=c", "--property", "gone=1", "--property", "gone",
    )  # fmt: skip
    shown = openio.json("container", "show", name)
    assert (shown["bucket"], shown["storage_policy"], shown["meta.a"]) == ("bk", "SINGLE", "b=c")
    assert shown["delete_exceeding_versions"] is True and "meta.gone" not in shown
    assert (type(shown["ctime"]), shown["bytes_usage"]) == (float, 0)
    assert re.fullmatch(r" *[0-9]+\.[0-9]{2}% \(est\. .*\)", shown["stats.space_wasted"])
    table = openio("container", "show", name, "-c", "bytes_usage", "-c", "ctime").stdout
    assert re.search(r"\| bytes_usage +\| 0B +\|", table) and re.search(r"\| ctime +\| [0-9]{10} +\|", table)
    bad = openio("container", "create", name, "--delete-exceeding-versions", "maybe", check=False)
    assert bad.returncode == 2 and bad.stdout == ""


def test_ids_of_containers(openio, container, a_file):
    cid = openio("container", "show", container, "-f", "value", "-c", "base_name").stdout.strip()
    openio("object", "create", "--cid", cid, str(a_file), "--name", "o")
    assert openio.json("object", "show", "--cid", cid, "o")["container"] is None
    assert len(openio.json("object", "locate", "--cid", cid, "o")) == 3
    assert openio.json("object", "delete", "--cid", cid, "o", "absent") == [
        {"Name": "o", "Deleted": True}, {"Name": "absent", "Deleted": False},
    ]  # fmt: skip
    assert openio("container", "delete", "--cid", cid).stdout == ""


def test_performance_data(openio, container, a_file):
    words = ("object", "create", container, str(a_file), "--perfdata-column")
    (row,) = openio.json(*words)
    assert row["Perfdata"] == "null"
    done = openio("--dump-perfdata", *words, "-f", "json")
    (row,) = json.loads(done.stdout)
    assert {"proxy", "rawx"} <= set(json.loads(row["Perfdata"]))
    head, _, dumped = done.stderr.partition("Performance data: ")
    assert head == "" and {"proxy", "rawx"} <= set(json.loads(dumped))


def test_words_may_be_shortened_and_near_ones_are_told(openio, container):
    assert openio("cont", "sh", container, "-f", "value", "-c", "container").stdout == container + "\n"
    done = openio("object", check=False)
    assert done.returncode == 2 and "object create" in done.stdout and done.stderr == ""
    assert re.fullmatch(r"openio [0-9.]+\n", openio("--version").stdout)
