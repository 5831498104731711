# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""meta1: the references, their properties and the services linked to them."""
