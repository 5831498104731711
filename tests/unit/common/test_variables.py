# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Variables that configuration files may still set."""

from oio.common.variables import DECLARED, WITHOUT_EFFECT, Variables


def test_what_has_no_effect_is_told_and_kept():
    variables = Variables({"core.sds.strict_utf8": "off", "ns.worm": "on"})
    (error,) = variables.errors
    assert error.startswith("core.sds.strict_utf8 has no effect")
    assert variables["ns.worm"] is True
    assert variables.as_text()["core.sds.strict_utf8"] == "off"
    assert WITHOUT_EFFECT.keys() <= DECLARED.keys()
