# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What ``make run`` shows: a real file under three policies, two chunk servers lost, the file still there."""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import sys
import time
from pathlib import Path

from oio.sandbox import Sandbox
from oio.sandbox.errors import SandboxError

ACCOUNT = "my_account"
CONTAINER = "demo"
POLICIES = ("SINGLE", "THREECOPIES", "EC")
ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run the demonstration; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", required=True, help="directory of the cluster")
    options = parser.parse_args()
    sandbox = Sandbox(options.home, namespace="OPENIO")
    begin = time.monotonic()
    step(f"Starting a cluster in {options.home}")
    try:
        sandbox.start()
    except SandboxError as exc:
        print(f"Cannot start the cluster: {exc}", file=sys.stderr)
        sandbox.stop()
        return 1
    os.environ.update(sandbox.environment)
    step(f"Ready after {time.monotonic() - begin:.1f} s: {len(sandbox.services())} services")

    source = a_real_file()
    Demonstration(sandbox, source).run()
    epilogue(sandbox, source)
    return 0


def step(text: str) -> None:
    """Announce what happens."""
    print(f"\n── {text}", flush=True)


def a_real_file() -> Path:
    """The largest file of the installed packages: a few MiB of machine code, and always there."""
    import apsw

    packages = Path(apsw.__file__).parents[1]
    return max(packages.rglob("*.so"), key=lambda path: path.stat().st_size)


class Demonstration:
    """Upload, read back, lose two chunk servers, read again."""

    def __init__(self, sandbox: Sandbox, source: Path) -> None:
        from oio import ObjectStorageApi

        self.sandbox = sandbox
        self.source = source
        self.checksum = hashlib.sha256(source.read_bytes()).hexdigest()
        self.api = ObjectStorageApi(sandbox.namespace)

    def run(self) -> None:
        """All the steps."""
        size_mib = self.source.stat().st_size / 2**20
        step(f"Storing {self.source} ({size_mib:.1f} MiB) under {', '.join(POLICIES)}")
        for policy in POLICIES:
            begin = time.monotonic()
            chunks, _size, _etag = self.api.object_create(
                ACCOUNT, CONTAINER, str(self.source), obj_name=self.name(policy), policy=policy
            )
            print(f"   {policy:12} {len(chunks):2} chunks in {time.monotonic() - begin:.2f} s")
        step("Reading back and comparing")
        for policy in POLICIES:
            self.compare(policy)
        step("Where the chunks lie")
        for policy in POLICIES:
            self.show_chunks(policy)
        self.lose_two()

    def name(self, policy: str) -> str:
        """Name of the object stored under a policy."""
        return f"{self.source.name}.{policy.lower()}"

    def compare(self, policy: str) -> None:
        """Read an object back and compare it with the file. :raises SystemExit: when they differ."""
        begin = time.monotonic()
        digest = hashlib.sha256()
        _metadata, stream = self.api.object_fetch(ACCOUNT, CONTAINER, self.name(policy))
        for block in stream:
            digest.update(block)
        if digest.hexdigest() != self.checksum:
            raise SystemExit(f"{policy}: the bytes read are not the bytes stored")
        print(f"   {policy:12} identical, {time.monotonic() - begin:.2f} s")

    def show_chunks(self, policy: str) -> None:
        """Print the servers of the first metachunk."""
        _metadata, chunks = self.api.object_locate(ACCOUNT, CONTAINER, self.name(policy))
        servers = [
            chunk["url"].split("/")[2]
            for chunk in sorted(chunks, key=lambda chunk: [int(part) for part in chunk["pos"].split(".")])
            if chunk["pos"].split(".")[0] == "0"
        ]
        print(f"   {policy:12} {' '.join(server.partition('-')[2] for server in servers)}")

    def lose_two(self) -> None:
        """Stop two servers that hold chunks of the redundant objects, and read them all the same."""
        _metadata, chunks = self.api.object_locate(ACCOUNT, CONTAINER, self.name("THREECOPIES"))
        servers = sorted({chunk["url"].split("/")[2] for chunk in chunks})[:2]
        step(f"Stopping {' and '.join(servers)}, then reading again")
        self.sandbox.stop(*servers)
        try:
            for policy in POLICIES[1:]:
                self.compare(policy)
        finally:
            self.sandbox.start(*servers)
        step(f"{' and '.join(servers)} are back")


def epilogue(sandbox: Sandbox, source: Path) -> None:
    """Print what to try next."""
    binaries = shlex.quote(os.path.dirname(sys.executable))
    environment = " ".join(
        f"{key}={shlex.quote(value)}"
        for key, value in sandbox.environment.items()
        if key in ("OIO_SDS_CONF", "OIO_NS")
    )
    name = f"{source.name}.ec"
    print(
        f"""
The cluster is running. Try next:

  export PATH={binaries}:$PATH {environment} OIO_ACCOUNT={ACCOUNT}
  openio cluster list
  openio object list {CONTAINER}
  openio object locate {CONTAINER} {shlex.quote(name)}
  openio object create {CONTAINER} README.md
  openio object save {CONTAINER} README.md --file /tmp/README.copy
  oio-sandbox --home {shlex.quote(sandbox.home)} status

make stop ends it.""",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
