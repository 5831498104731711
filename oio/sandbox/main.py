# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Command line of the local cluster: ``oio-sandbox [options] COMMAND [targets]``.

Targets: nothing for the whole cluster, ``@rawx`` for a type, ``@host2`` for a host, ``NS-rawx-2`` for a service.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from oio.common.service import command_line
from oio.sandbox.cluster import START_TIMEOUT_S, Sandbox, default_home
from oio.sandbox.errors import SandboxError
from oio.sandbox.options import TYPES, load_file, merge
from oio.sandbox.supervision import tail

_COMMANDS = {
    "init": "lay the cluster out and write its configuration",
    "start": "start services and wait until they serve (lays out first if needed)",
    "stop": "stop services; everything without targets",
    "restart": "stop, then start",
    "kill": "end processes at once; they are started again",
    "pause": "stop processes where they are, as a machine that hangs",
    "resume": "let them go on",
    "cut": "cut isolated hosts off (--from: only from another one)",
    "heal": "undo all that was cut; of all hosts without targets",
    "status": "show the services",
    "run": "start, stay in the foreground, stop at Ctrl-C",
    "env": "print what a shell needs to use the cluster: eval \"$(oio-sandbox env)\"",
    "destroy": "stop and remove everything, data included",
}
#: Commands that need targets.
_PART_COMMANDS = ("kill", "pause", "cut")
#: Commands that take no targets.
_WHOLE_COMMANDS = ("init", "env", "destroy")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # paths may be no text
    args = _parser().parse_intermixed_args(argv)
    try:
        return _run(args)
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (SandboxError, OSError) as err:  # such as a home that cannot be made, or a full disk
        print(f"oio-sandbox: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = command_line(
        "oio-sandbox",
        "A local cluster. Options describe it when it is laid out; later commands find it again.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "\n".join(f"  {name:9}{text}" for name, text in _COMMANDS.items())
        + "\n\ntargets: nothing or @NS (everything), @rawx (a type), @host2 (a host), NS-rawx-2 (a service)",
    )
    # Options are accepted before, after and between the command and its targets.
    parser.add_argument("command", choices=sorted(_COMMANDS), metavar="COMMAND")
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    add = parser.add_argument
    add("--home", default=None, help=f"directory of the cluster ({default_home()})")
    add("-c", "--conf", action="append", default=[], metavar="FILE", help="YAML options, repeatable")
    add("-n", "--namespace", help="name of the namespace (OPENIO)")
    add("-p", "--port", dest="base_port", type=int, help="first port (6000); used ones are skipped")
    add("-D", "--data", dest="data_dir", help="directory of the volumes")
    add("--replicas", type=int, metavar="N", help="copies of the directory and of containers (1)")
    add("--host-groups", type=int, metavar="N", help="services are spread over @host1..@hostN")
    for type_ in TYPES:
        add(f"--{type_}", type=int, metavar="N", help=f"number of {type_}")
    add("--proxy-workers", type=int, metavar="N", help="processes of the proxy (2)")
    add("--storage-policy", metavar="NAME", help="default storage policy (THREECOPIES)")
    add("--chunk-size", type=int, metavar="BYTES", help="size of chunks (10485760)")
    add("--durability", choices=("durable", "relaxed"), help="what an acknowledgement means (durable)")
    add("--compression", choices=("off", "zlib"), help="of the chunks of even-numbered rawx (off)")
    add("--meta1-digits", type=int, metavar="N", help="significant digits of prefixes (2)")
    add("--isolate-hosts", action="store_true", default=None,
        help="each host in a network namespace, so that it can be cut off (root)")  # fmt: skip
    add("--from", dest="peer", default="", metavar="@HOST", help="cut: from this one only")
    add("--one-way", action="store_true", help="cut: only what goes to the host of --from is lost")
    add("--no-service-id", dest="service_ids", action="store_false", default=None,
        help="meta2 and rawx are known by their addresses")  # fmt: skip
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="variable for sds.conf")
    add("--timeout", type=float, default=START_TIMEOUT_S, metavar="S", help="time allowed to a start")
    add("--json", action="store_true", help="status as JSON")
    add("-q", "--quiet", action="store_true", help="no progress")
    return parser


def _run(args: argparse.Namespace) -> int:
    sandbox = Sandbox(args.home, _options(args))
    report = (lambda _text: None) if args.quiet else _print_flushed
    targets = args.targets
    if targets and args.command in _WHOLE_COMMANDS:
        raise SandboxError(f"{args.command} concerns the whole cluster, not {' '.join(targets)}")
    if not targets and args.command in _PART_COMMANDS:
        raise SandboxError(f"{args.command} what? Name targets")
    if args.command == "init":
        sandbox.init()
        report(f"{sandbox.namespace} laid out in {sandbox.home}, proxy {sandbox.proxy}")
    elif args.command == "start":
        sandbox.start(*targets, timeout_s=args.timeout, report=report)
        report(f"{sandbox.namespace} is ready, proxy {sandbox.proxy}")
    elif args.command == "stop":
        sandbox.stop(*targets)
    elif args.command == "restart":
        sandbox.restart(*targets, timeout_s=args.timeout, report=report)
    elif args.command == "kill":
        for target in targets:
            sandbox.kill(target)
    elif args.command == "pause":
        sandbox.pause(*targets)
    elif args.command == "resume":
        sandbox.resume(*targets)
    elif args.command == "cut":
        for target in targets:
            sandbox.cut(target, args.peer, args.one_way)
    elif args.command == "heal":
        sandbox.heal(*targets)
    elif args.command == "status":
        return _status(sandbox, targets, args.json)
    elif args.command == "env":
        for name, value in sandbox.environment.items():
            print(f"export {name}={shlex.quote(value)}")
    elif args.command == "destroy":
        sandbox.destroy()
    else:
        return _foreground(sandbox, args, report)
    return 0


def _options(args: argparse.Namespace) -> Any:
    """Options of files and command line; ``None`` when nothing was said."""
    layers = [load_file(path) for path in args.conf]
    for layer in layers:
        for warning in layer.get("", []):
            print(f"oio-sandbox: {warning}", file=sys.stderr)
    names = (
        "namespace", "base_port", "data_dir", "replicas", "host_groups", *TYPES, "proxy_workers", "storage_policy",
        "chunk_size", "durability", "compression", "meta1_digits", "service_ids",
        "isolate_hosts",
    )  # fmt: skip
    given: dict[str, Any] = {
        name: getattr(args, name) for name in names if getattr(args, name) is not None
    }
    config = {}
    for pair in args.set:
        key, equal, value = pair.partition("=")
        if not equal or not key:
            raise SandboxError(f"--set wants KEY=VALUE, not {pair!r}")
        config[key] = value
    if config:
        given["config"] = config
    if not given and not layers:
        return None
    return merge(*layers, given)


def _status(sandbox: Sandbox, targets: list[str], as_json: bool) -> int:
    """Print the services, and the last words of those that do not start; exit code 0 when all run."""
    entries = sandbox.status(*targets)
    orphans = sandbox.orphans()
    if orphans:
        print(
            f"oio-sandbox: the supervisor is gone, {len(orphans)} processes run without it:"
            " start or stop the cluster",
            file=sys.stderr,
        )
    for group in sandbox.cuts():
        print(f"oio-sandbox: @{group} is cut off", file=sys.stderr)
    if as_json:
        print(json.dumps(entries, indent=1))
    else:
        print(f"{'SERVICE':28} {'ADDRESS':22} {'STATE':9} {'PID':>8} {'UPTIME':>8} {'SCORE':>6}")
        for entry in entries:
            score = "" if entry["score"] is None else entry["score"]
            print(
                f"{entry['name']:28} {entry['addr']:22} {entry['state']:9}"
                f" {entry['pid'] or '':>8} {entry['uptime_s'] or '':>8} {score:>6}"
            )
        for entry in entries:
            if entry["state"] in ("BACKOFF", "FATAL"):
                path = os.path.join(sandbox.layout.log_dir, f"{entry['name']}.log")
                print(f"{entry['name']} does not start; end of {path}:")
                print("\n".join(f"    {line}" for line in tail(path, lines=3).splitlines()))
    return 0 if all(entry["state"] == "RUNNING" for entry in entries) else 1


def _foreground(sandbox: Sandbox, args: argparse.Namespace, report: Any) -> int:
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    try:
        sandbox.start(*args.targets, timeout_s=args.timeout, report=report)
        report(f"{sandbox.namespace} is ready, proxy {sandbox.proxy}; Ctrl-C stops it")
        asked.wait()
    finally:
        sandbox.stop()
    return 0


def _print_flushed(text: str) -> None:
    print(text, flush=True)
