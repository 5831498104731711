# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
