# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""meta0: which meta1 services are in charge of each prefix of container ids."""
