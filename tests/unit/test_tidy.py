# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The style of the house, as far as a machine can check it."""

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "oio").rglob("*.py"))
ALL_PYTHON = sorted([*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "tools").rglob("*.py")])
LONGEST_FILE_LINES = 620

# Rooms by height: a room may import its own height's packages listed here and everything below.
HEIGHTS = [
    {"http"},
    {"common"},
    {"event", "zk"},
    {"api.base", "common.client", "common.http_urllib3"},
    {
        "conscience", "directory", "blob", "container", "content", "account", "rdir", "api",
        "common.storage_functions", "common.tool", "meta.base_messages", "meta.client", "meta.messages",
    },
    {
        "event.agent", "event.worker", "event.pipelines", "event.handlers", "event.filters", "event.client",
        "consistency",
    },
    {"meta", "proxy", "rawx", "ecd"},
    {"sandbox"},
    {"cli"},
]
# Servers talk HTTP to each other; only clients and messages may be shared.
SERVERS = {"meta", "proxy", "rawx", "ecd"}
SHARED_MODULES = re.compile(r"^oio\.(meta\.(client|(base_)?messages)|conscience\.(messages|registry_client))$")
FORBIDDEN = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


def relative(path):
    return str(path.relative_to(ROOT))


def module_name(path):
    return relative(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def imports_of(path):
    """Modules imported at run time (imports for type checkers only are left out)."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name for name in found if name == "oio" or name.startswith("oio.")}


def height(module):
    inner = module.removeprefix("oio.")
    for level, rooms in reversed(list(enumerate(HEIGHTS))):
        for room in rooms:
            if "." in room and (inner == room or inner.startswith(room + ".")):
                return level
    for level, rooms in enumerate(HEIGHTS):
        if inner.split(".")[0] in rooms:
            return level
    return None


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_go_downwards(path):
    here = height(module_name(path))
    if here is None:
        return
    for name in imports_of(path):
        there = height(name)
        if there is not None:
            assert there <= here, f"{relative(path)} imports {name}, which lies above it"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_servers_do_not_import_each_other(path):
    room = module_name(path).split(".")[1] if "." in module_name(path) else ""
    if room not in SERVERS:
        return
    for name in imports_of(path):
        other = name.split(".")[1] if "." in name else ""
        if other in SERVERS - {room}:
            assert SHARED_MODULES.match(name), f"{relative(path)} imports {name}, another server"


@pytest.mark.parametrize("path", ALL_PYTHON, ids=relative)
def test_files_are_short(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST_FILE_LINES, f"{relative(path)} has {lines} lines"


@pytest.mark.parametrize("path", ALL_PYTHON, ids=relative)
def test_files_carry_the_license_and_no_leftover(path):
    text = path.read_text(encoding="utf-8")
    assert "SPDX-License-Identifier: Apache-2.0" in text[:300], relative(path)
    if path != Path(__file__):
        found = FORBIDDEN.search(text)
        assert not found, f"{relative(path)}: {found[0]}"


def test_files_of_tests_have_names_of_their_own():
    """Without packages, pytest refuses to collect two files of the same name."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, number in names.items() if number > 1] == []


def public_definitions(tree):
    """Public modules' functions and classes, and the public methods of public classes."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                for item in node.body:
                    if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
                        yield item


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_public_names_have_a_docstring(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    missing = [node.name for node in public_definitions(tree) if not ast.get_docstring(node)]
    assert not missing, f"{relative(path)}: no docstring for {', '.join(missing)}"


def sample_keys():
    """Keys of the sample files, commented ones included."""
    for sample in sorted((ROOT / "etc").glob("*-sample")):
        for line in sample.read_text(encoding="utf-8").splitlines():
            found = re.match(r"^#?([A-Za-z][\w.-]*)(?:\s*[=:]|\s+\S+$)", line)
            if found and not line.startswith("# "):
                yield sample.name, found[1]


def test_every_key_of_the_samples_is_read_by_the_code():
    code = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES).lower()
    unknown = sorted({f"{name}: {key}" for name, key in sample_keys() if key.lower() not in code})
    # Names that an operator chooses (services, policies, namespaces) are values, not keys.
    chosen = re.compile(r": (SINGLE|TWOCOPIES|THREECOPIES|EC\w*|DUP\w*|NONE|OPENIO)$")
    assert [item for item in unknown if not chosen.search(item)] == []


# How each service reads the keys of its files: (source, samples, patterns of the keys in the source).
READERS = [
    (
        "oio/rawx/config.py", ["rawx.conf"],
        [r'(?:options\.get|flag|number|integer|_advice)\("(\w+)"', r'^    "(\w+)": "'],
    ),
    ("oio/account/settings.py", ["account-server.conf"], [r'section(?:\.get\(|, )"(\w+)"', r'"(redis_\w+)"']),
    ("oio/rdir/main.py", ["rdir.conf"], [r'section(?:\.get(?:int)?\(|\[)"(\w+)"', r'for key in \("(\w+)"']),
    ("oio/directory/indexer.py", ["meta2-indexer.conf"], [r'conf\.get\("(\w+)"']),
    ("oio/ecd/server.py", ["ecd.conf"], [r'section\.get(?:int|boolean)?\("(\w+)"']),
    (
        "oio/event/agent_settings.py", ["event-agent.conf"],
        [r'options(?:\.get\(|\[|, )"(\w+)"', r'"((?:sys)?log_\w+)"'],
    ),
    (
        "oio/conscience/agent_settings.py", ["conscience-agent.yml"],
        [r'(?:options|own|common|described\[name\])(?:\.get\(|\[)"(\w+)"', r'own, "(\w+)"'],
    ),
    ("oio/conscience/agent.py", ["conscience-agent.yml"], [r'settings\.options\.get\("(\w+)"']),
    (
        "oio/conscience/settings.py",
        ["conscience.conf", "conscience-services.conf", "conscience-policies.conf"],
        [r'(?:options\.get\(|plugin\.get\(|_required\(\w+, )"([\w.]+)"'],
    ),
    ("oio/proxy/server.py", ["proxy.conf", "sds.conf"], [r'conf\.get\("([\w.-]+)"']),
    ("oio/meta/server.py", ["meta2.conf", "sds.conf"], [r'conf\.get\("([\w.-]+)"']),
    ("oio/meta/meta1/server.py", ["meta1.conf", "sds.conf"], [r'conf\.get\("([\w.-]+)"']),
]  # fmt: skip


@pytest.mark.parametrize(("source", "samples", "patterns"), READERS, ids=[row[0] for row in READERS])
def test_every_key_that_the_code_reads_is_in_a_sample(source, samples, patterns):
    code = (ROOT / source).read_text(encoding="utf-8")
    keys = {key for pattern in patterns for key in re.findall(pattern, code, re.MULTILINE)}
    assert keys, f"the patterns find no key in {source} any more"
    shown = "\n".join((ROOT / "etc" / f"{name}-sample").read_text(encoding="utf-8") for name in samples)
    missing = sorted(key for key in keys if not re.search(rf"(?<![\w.-]){re.escape(key)}(?![\w.-]*\w)", shown))
    assert not missing, f"{source} reads {', '.join(missing)}, which {', '.join(samples)} does not show"


def test_every_variable_is_read_and_shown():
    from oio.common.variables import DECLARED, WITHOUT_EFFECT

    code = "\n".join(
        path.read_text(encoding="utf-8") for path in SOURCES if path.name != "variables.py"
    )
    shown = {key for name, key in sample_keys() if name.startswith(("proxy.", "meta2.", "sds."))}
    for name in sorted(DECLARED.keys() - WITHOUT_EFFECT.keys()):
        assert f'"{name}"' in code, f"no service reads the variable {name}"
        assert name in shown, f"no sample shows the variable {name}"
    assert WITHOUT_EFFECT.keys() <= DECLARED.keys()


def test_importing_the_package_patches_nothing_and_loads_no_eventlet():
    modules = [module_name(path) for path in SOURCES if path.name not in ("green.py", "__main__.py")]
    code = (
        "import importlib, sys, socket, threading\n"
        "before = (socket.socket, threading.Thread)\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "assert (socket.socket, threading.Thread) == before\n"
        "assert 'eventlet' not in sys.modules, 'eventlet was imported'\n"
    )
    done = subprocess.run(
        [__import__("sys").executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_program_is_installed_as_what_its_file_runs():
    """By an entry point: the first line of a script that pip copies breaks where there is a space in the path."""
    setup = ast.parse((ROOT / "setup.py").read_text())
    (programs,) = (
        ast.literal_eval(one.value) for one in setup.body
        if isinstance(one, ast.Assign) and one.targets[0].id == "PROGRAMS"
    )  # fmt: skip
    runs = {"openio": programs["openio"]}
    for path in sorted((ROOT / "bin").iterdir()):
        imports = [one for one in ast.parse(path.read_text()).body if isinstance(one, ast.ImportFrom)]
        (runs[path.name],) = (f"{one.module}:{one.names[0].name}" for one in imports)
    assert programs == runs
    (call,) = (one.value for one in setup.body if isinstance(one, ast.Expr) and isinstance(one.value, ast.Call))
    assert "scripts" not in {keyword.arg for keyword in call.keywords}
