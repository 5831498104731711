# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Filter ``meta2_index``: the part of ``volume_index`` that is about containers."""

from __future__ import annotations

from oio.event.filters.base import make_filter_factory
from oio.event.filters.volume_index import CHUNK_DELETED, CHUNK_NEW, VolumeIndexFilter


class Meta2IndexFilter(VolumeIndexFilter):
    """Indexes the containers of meta2 services, and goes on; leaves chunks alone."""

    actions = {
        kind: action
        for kind, action in VolumeIndexFilter.actions.items()
        if kind not in (CHUNK_NEW, CHUNK_DELETED)
    }


filter_factory = make_filter_factory(Meta2IndexFilter)
