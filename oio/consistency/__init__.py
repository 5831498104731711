# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Proof that a namespace agrees with itself: containers, accounts, reverse directory and chunk files.

``facts`` is a scratch base that holds what each part says, ``gather`` fills it through the services (and the
volumes of this host), ``findings`` names the contradictions, ``main`` is the program ``oio-check-consistency``.
Nothing here changes anything.
"""
