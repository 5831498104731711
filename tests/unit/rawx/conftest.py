# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Live chunk servers for the tests of this directory."""

import pytest
from rawx_harness import Service


@pytest.fixture
def start(tmp_path):
    """Starts services with given options; all are stopped at the end."""
    services = []

    def launch(**options):
        root = tmp_path / f"volume-{len(services)}"
        root.mkdir(exist_ok=True)
        services.append(Service(root, **options))
        return services[-1]

    yield launch
    for service in services:
        service.close()


@pytest.fixture
def service(start):
    return start()


@pytest.fixture
def client(service):
    return service.client
