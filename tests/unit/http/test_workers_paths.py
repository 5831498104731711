# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Where the private sockets of workers are."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from oio.http import workers


def test_sockets_leave_a_temporary_directory_whose_name_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    directory = workers._directory_of_sockets()
    try:
        assert len(f"{directory}/worker-9999.sock") <= 107
        assert os.listdir(deep) == []
    finally:
        os.rmdir(directory)
