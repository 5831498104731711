# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The filters that pipelines of the event agent are made of, one per module; see ``docs/event-filters.md``."""
