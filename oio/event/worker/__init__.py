# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""One working process of the event agent; ``python -m oio.event.worker`` is how the agent starts it.

This module imports nothing: the standard library is made green before anything else is imported.
"""
