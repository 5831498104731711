# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The queues behind ``oio.event.queue`` and ``oio.event.source``: Redis, beanstalkd, files of a spool."""
