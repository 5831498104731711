# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The page of the variables is that of the declarations, and what it shows can be written in a file."""

import pytest

from oio.common.variables import DECLARED
from tools.variables_reference import PAGE, written


def test_the_page_is_up_to_date():
    page = PAGE.read()
    assert PAGE.marker in page
    assert page == PAGE.updated(page), "run: python -m tools.variables_reference"


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_values_of_the_page_are_those_of_files(name):
    variable = DECLARED[name]
    for value in (variable.default, variable.minimum, variable.maximum):
        if value is not None:
            assert variable.parse(written(variable, value)) == value
