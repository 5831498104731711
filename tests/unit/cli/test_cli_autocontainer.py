# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Containers computed from the names of objects: ``--auto`` and ``--flat-bits``."""

import argparse
import hashlib

import pytest

from oio.cli.clientmanager import ClientManager
from oio.cli.common.autocontainer import (
    add_object,
    add_object_container,
    add_objects,
    check_object_container,
    make_flat_builder,
    objects_of,
)
from oio.cli.object import DeleteObject
from oio.cli.object_create import CreateObject
from oio.common.autocontainer import HashedContainerBuilder
from oio.common.exceptions import CommandError


def parse(add, *args, rest=None):
    parser = argparse.ArgumentParser()
    add(parser)
    if rest:
        parser.add_argument(rest, nargs="+")
    return parser.parse_args(args)


# --- the rule of names ----------------------------------------------------------------------------


def test_the_bits_come_from_the_namespace_or_the_option():
    options = {"flat_bitlength": "17"}
    assert make_flat_builder(options)("fstab") == "06EE0"
    assert {len(make_flat_builder(options, 8)(name)) for name in ("fstab", "passwd", "é/x")} == {2}
    assert make_flat_builder({}, 17)("fstab") == "06EE0"
    assert make_flat_builder({"flat_bitlength": 17})("fstab") == "06EE0"


def test_offset_and_size_of_the_namespace():
    options = {"flat_bitlength": "16", "flat_hash_offset": "2", "flat_hash_size": "3"}
    expected = hashlib.sha256(b"cde").hexdigest()[:4].upper()
    assert make_flat_builder(options)("abcdefgh") == expected
    # The offset counts characters, the size bytes.
    expected = hashlib.sha256("éx".encode()).hexdigest()[:4].upper()
    assert make_flat_builder(options)("éàéxyz") == expected


@pytest.mark.parametrize(
    ("options", "bits", "message"),
    [
        ({}, None, "Namespace not configured for autocontainers"),
        ({"flat_bitlength": "0"}, None, "Namespace not configured for autocontainers"),
        ({"flat_bitlength": "many"}, None, "Invalid autocontainer config: bits"),
        ({"flat_bitlength": "300"}, None, "Invalid autocontainer config: bits"),
        ({"flat_hash_offset": "a"}, 8, "Invalid autocontainer config: offset/size"),
        ({"flat_hash_offset": "-1"}, 8, "Invalid autocontainer config: offset/size"),
        ({"flat_hash_size": "a"}, 8, "Invalid autocontainer config: offset/size"),
        ({"flat_hash_size": "0"}, 8, "Invalid autocontainer config: offset/size"),
    ],
)
def test_a_wrong_configuration_is_told(options, bits, message):
    with pytest.raises(CommandError, match=message):
        make_flat_builder(options, bits)


@pytest.mark.parametrize("text", ["0", "257", "-1", "many", "", "1.5", "٣"])
def test_wrong_bits_are_a_mistake_of_the_command_line(text, capsys):
    with pytest.raises(SystemExit) as told:
        parse(add_object, "--auto", f"--flat-bits={text}", "fstab")
    assert told.value.code == 2
    expected = f"argument --flat-bits: a number from 1 to 256 is expected, not {text!r}"
    assert expected in capsys.readouterr().err


def test_a_session_asks_the_namespace_once_and_heeds_each_number_of_bits():
    class Conscience:
        calls = 0

        def info(self, reqid):
            assert reqid == "first"
            self.calls += 1
            return {"options": {"flat_bitlength": "17"}}

    manager = ClientManager({"namespace": "NS"})
    manager.conscience = Conscience()
    asked = [(None, "first"), (8, "second"), (12, "third"), (None, "fourth")]
    names = [manager.flat_builder(bits, reqid)("fstab") for bits, reqid in asked]
    assert names == ["06EE0", "06", "06E", "06EE0"] and manager.conscience.calls == 1


# --- one object, or several files -----------------------------------------------------------------


def test_the_only_name_is_the_object_s():
    parsed = parse(add_object, "--auto", "fstab")
    assert (parsed.container, parsed.object, parsed.auto, parsed.flat_bits) == (None, "fstab", True, None)
    parsed = parse(add_object, "box", "fstab", "--object-version", "5")
    assert (parsed.container, parsed.object, parsed.auto, parsed.object_version) == ("box", "fstab", False, 5)


def test_the_first_of_several_names_is_the_container_s_even_when_ignored():
    parsed = parse(add_object_container, "--auto", "--flat-bits", "8", "_", "f1", "f2", rest="files")
    assert (parsed.container, parsed.files, parsed.flat_bits) == ("_", ["f1", "f2"], 8)
    parsed = parse(add_object_container, "--auto", "f1", rest="files")
    assert (parsed.container, parsed.files) == (None, ["f1"])
    parsed = parse(add_object_container, "--cid", "C", "f1", rest="files")
    assert (parsed.is_cid, parsed.container, parsed.files) == (True, "C", ["f1"])


@pytest.mark.parametrize("args", [["fstab"], ["", "fstab"]])
def test_a_container_or_the_flag_is_needed(args):
    with pytest.raises(CommandError, match=r"^Missing value for container or --auto$"):
        check_object_container(parse(add_object, *args))
    check_object_container(parse(add_object, "--auto", *args))


@pytest.mark.parametrize("command", [CreateObject, DeleteObject])
def test_commands_on_several_objects_have_the_options(command):
    options = command(None, None).get_parser("x").parse_args(["--auto", "--flat-bits", "4", "_", "a", "b"])
    assert (options.auto, options.flat_bits, options.container) == (True, 4, "_")


# --- administration -------------------------------------------------------------------------------


def found(*args):
    return list(objects_of(parse(add_objects, *args), lambda bits: HashedContainerBuilder(bits=bits or 17)))


def test_objects_of_a_container():
    assert found("box", "a", "b") == [("box", "a", None), ("box", "b", None)]
    assert found("box", "a", "--object-version", "12") == [("box", "a", "12")]
    assert found("C" * 64, "a", "--cid") == [("C" * 64, "a", None)]


def test_the_first_of_computed_objects_comes_last():
    assert [name for _container, name, _version in found("--auto", "a", "b", "c")] == ["b", "c", "a"]
    assert found("--auto", "fstab") == [("06EE0", "fstab", None)]
    assert found("--auto", "--flat-bits", "8", "fstab") == [("06", "fstab", None)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Missing value for container_name or --auto"),
        (["box"], "Missing value for object_name"),
        (["--auto"], "Missing value for object_name"),
    ],
)
def test_missing_names_are_told(args, message):
    with pytest.raises(CommandError, match=f"^{message}$"):
        found(*args)
