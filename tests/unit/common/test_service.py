# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What daemons share."""

import pytest

from oio.common.service import parse_address


def test_addresses():
    assert parse_address("10.0.0.1:65535") == ("10.0.0.1", 65535)
    assert parse_address("[::1]:0") == ("::1", 0)


@pytest.mark.parametrize("text", ["", ":80", "host", "host:", "host:x", "host:-1", "host:65536", "host:٣"])
def test_what_is_no_address(text):
    with pytest.raises(ValueError, match=r"not IP:PORT|the port"):
        parse_address(text)


def test_lowest_port():
    with pytest.raises(ValueError, match="the port"):
        parse_address("host:0", port_min=1)
