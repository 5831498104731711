# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The language of the scores."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oio.conscience.expression import ExpressionError, UndefinedValue, compile_expression

DISK = (
    "((num stat.cpu)>0) * ((num stat.io)>0) * ((num stat.space)>1)"
    " * root(3,((num stat.cpu)*(num stat.space)*(num stat.io)))"
)
BEANSTALKD = "root(3, ((num stat.cpu) * (num stat.space) * (100 - root(3, (num stat.jobs_ready)))))"


@pytest.mark.parametrize(
    ("text", "tags", "value"),
    [
        ("100", {}, 100),
        ("-3 + 5", {}, 2),
        ("1 + 2 * 3", {}, 7),
        ("(1 + 2) * 3", {}, 9),
        ("10 - 3 - 2", {}, 5),
        ("100 / 8 / 2", {}, 6.25),
        ("7 / 0", {}, 7),
        ("2 > 1", {}, 1),
        ("2 > 2", {}, 0),
        ("2 >= 2", {}, 1),
        ("2 < 2", {}, 0),
        ("2 <= 2", {}, 1),
        ("2 == 2", {}, 1),
        ("2 != 2", {}, 0),
        ('tag.zone == "east"', {"tag.zone": "east"}, 1),
        ('tag.zone != "east"', {"tag.zone": "west"}, 1),
        ("num stat.cpu", {"stat.cpu": "42"}, 42),
        ("num tag.up", {"tag.up": True}, 1),
        ("num tag.up", {"tag.up": False}, 0),
        ("root(3, 100 * 100 * 100)", {}, 100),
        ("root(2, 0)", {}, 0),
        ("stat.cpu * (tag.up == 1)", {"stat.cpu": 12.5, "tag.up": True}, 12.5),
        (DISK, {"stat.cpu": 100, "stat.io": 100, "stat.space": 100}, 100),
        (DISK, {"stat.cpu": 0, "stat.io": 100, "stat.space": 100}, 0),
        (DISK, {"stat.cpu": 50, "stat.io": 0, "stat.space": 100}, 0),
        (DISK, {"stat.cpu": 50, "stat.io": 50, "stat.space": 1}, 0),
        (DISK, {"stat.cpu": 8, "stat.io": 27, "stat.space": 64}, 24),
        ("(num stat.cpu)", {"stat.cpu": 61.5}, 61.5),
        ("(1 + (num stat.cpu))", {"stat.cpu": 0}, 1),
        (BEANSTALKD, {"stat.cpu": 100, "stat.space": 100, "stat.jobs_ready": 0}, 100),
        (BEANSTALKD, {"stat.cpu": 100, "stat.space": 100, "stat.jobs_ready": 1000000}, 0),
    ],
)
def test_values(text, tags, value):
    assert compile_expression(text)(tags) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    ["", " ", "(1", "1)", "1.5", "cpu", "1 +", "root(2)", "root 2", "stat.cpu stat.io", "$", '"open',
     "(" * 100 + "1" + ")" * 100, "-" * 100 + "1", "1" + " + 1" * 5000, "__import__('os')"],
)  # fmt: skip
def test_refused_texts(text):
    with pytest.raises(ExpressionError):
        compile_expression(text)


@pytest.mark.parametrize("text", ["num stat.cpu", "root(0, 4)", 'num "abc"', "1 + tag.loc"])
def test_undefined(text):
    with pytest.raises(UndefinedValue):
        compile_expression(text)({"tag.loc": "rack.1"})


def test_root_of_negative_is_not_a_number():
    assert math.isnan(compile_expression("root(2, -4)")({}))


@given(st.text(alphabet='0123456789+-*/<>=!(),". statgroum\n\\x', max_size=40))
def test_any_text_compiles_or_is_refused(text):
    try:
        evaluate = compile_expression(text)
    except ExpressionError:
        return
    try:
        assert isinstance(evaluate({}), float)
    except UndefinedValue:
        return
