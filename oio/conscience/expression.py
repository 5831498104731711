# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The small language that turns the tags of a service into a score.

>>> score = compile_expression("root(2, (num stat.cpu) * (num stat.io))")
>>> score({"stat.cpu": 81, "stat.io": 100})
90.0

Grammar: integers, ``"strings"``, accessors (``stat.cpu``, ``tag.up``), ``num X``, ``root(n, x)``,
``+ - * /``, comparisons (``< <= > >= == !=``, worth 1 or 0) and parentheses. The usual precedence applies:
comparisons bind loosest, then ``+ -``, then ``* /``, then the unary operators; equal ones nest to the left.

An expression is compiled once, into nested closures, and evaluates in a few microseconds. Evaluation never
runs Python code taken from the configuration, and only ever raises :class:`UndefinedValue`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

Value = float | str
Tags = Mapping[str, object]
Evaluator = Callable[[Tags], Value]

# Longer or deeper texts are mistakes, and depth is bounded by the interpreter's stack anyway.
LENGTH_MAX = 8192
DEPTH_MAX = 64

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>\d+(?![\w.]))
      | (?P<string>"[^"]*")
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*)
      | (?P<op><=|>=|==|!=|[-+*/<>(),])
    )""",
    re.VERBOSE,
)

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


class ExpressionError(ValueError):
    """Raised when the text of an expression cannot be compiled; says what and at which column."""


class UndefinedValue(Exception):
    """Raised by an evaluation that meets a missing tag, text where a number is needed, or ``root(0, x)``."""


def compile_expression(text: str) -> Callable[[Tags], float]:
    """Compile ``text``; the result maps the tags of a service to a number (possibly NaN)."""
    evaluator = _Parser(text).parse()

    def evaluate(tags: Tags) -> float:
        return _number(evaluator(tags))

    return evaluate


class _Parser:
    """Recursive descent; each method returns the closure of what it consumed."""

    def __init__(self, text: str) -> None:
        if len(text) > LENGTH_MAX:
            raise ExpressionError(f"expression of {len(text)} characters, at most {LENGTH_MAX} allowed")
        self._text = text
        self._tokens = _tokenize(text)
        self._index = 0
        self._depth = 0

    def parse(self) -> Evaluator:
        evaluator = self._comparison()
        kind, value, column = self._tokens[self._index]
        if kind != "end":
            raise self._error(f"unexpected {value!r}", column)
        return evaluator

    def _comparison(self) -> Evaluator:
        left = self._sum()
        while (symbol := self._accept(*_COMPARE)) is not None:
            left = _comparison_of(_COMPARE[symbol], left, self._sum())
        return left

    def _sum(self) -> Evaluator:
        left = self._product()
        while (symbol := self._accept("+", "-")) is not None:
            left = _arithmetic(operator.add if symbol == "+" else operator.sub, left, self._product())
        return left

    def _product(self) -> Evaluator:
        left = self._unary()
        while (symbol := self._accept("*", "/")) is not None:
            left = _arithmetic(operator.mul if symbol == "*" else _divide, left, self._unary())
        return left

    def _unary(self) -> Evaluator:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise ExpressionError(f"expression nested deeper than {DEPTH_MAX} levels")
        try:
            return self._operand()
        finally:
            self._depth -= 1

    def _operand(self) -> Evaluator:
        kind, value, column = self._next()
        if kind == "number":
            return _constant(float(value))
        if kind == "string":
            return _constant(value[1:-1])
        if value == "-":
            return _negation(self._unary())
        if value == "(":
            inner = self._comparison()
            self._expect(")")
            return inner
        if kind == "name":
            return self._named(value, column)
        raise self._error("unexpected end" if kind == "end" else f"unexpected {value!r}", column)

    def _named(self, name: str, column: int) -> Evaluator:
        if name == "num":
            return _numeric(self._unary())
        if name == "root":
            self._expect("(")
            degree = self._comparison()
            self._expect(",")
            radicand = self._comparison()
            self._expect(")")
            return _arithmetic(_root, degree, radicand)
        if "." not in name:
            raise self._error(f"unknown word {name!r}", column)
        return _accessor(name)

    def _next(self) -> tuple[str, str, int]:
        token = self._tokens[self._index]
        if token[0] != "end":
            self._index += 1
        return token

    def _accept(self, *symbols: str) -> str | None:
        kind, value, _ = self._tokens[self._index]
        if kind == "op" and value in symbols:
            self._index += 1
            return value
        return None

    def _expect(self, symbol: str) -> None:
        if self._accept(symbol) is None:
            _, value, column = self._tokens[self._index]
            raise self._error(f"{symbol!r} expected" + (f", not {value!r}" if value else ""), column)

    def _error(self, message: str, column: int) -> ExpressionError:
        return ExpressionError(f"{message} at column {column + 1} of {self._text!r}")


def _tokenize(text: str) -> list[tuple[str, str, int]]:
    tokens = []
    position = 0
    end = len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            rest = text[position:].lstrip()
            column = len(text) - len(rest) + 1
            raise ExpressionError(f"cannot read {rest[:20]!r} at column {column} of {text!r}")
        kind = str(match.lastgroup)
        tokens.append((kind, match.group(kind), match.start(kind)))
        position = match.end()
    tokens.append(("end", "", end))
    return tokens


def _constant(value: Value) -> Evaluator:
    return lambda tags: value


def _accessor(name: str) -> Evaluator:
    def read(tags: Tags) -> Value:
        value = tags.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, (int, float)):
            return float(value)
        raise UndefinedValue(f"tag {name} is not defined")

    return read


def _numeric(operand: Evaluator) -> Evaluator:
    return lambda tags: _number(operand(tags))


def _negation(operand: Evaluator) -> Evaluator:
    return lambda tags: -_number(operand(tags))


def _arithmetic(function: Callable[[float, float], float], left: Evaluator, right: Evaluator) -> Evaluator:
    return lambda tags: function(_number(left(tags)), _number(right(tags)))


def _comparison_of(compare: Callable[[Any, Any], bool], left: Evaluator, right: Evaluator) -> Evaluator:
    def evaluate(tags: Tags) -> Value:
        one, two = left(tags), right(tags)
        if not (isinstance(one, str) and isinstance(two, str)):
            one, two = _number(one), _number(two)
        return 1.0 if compare(one, two) else 0.0

    return evaluate


def _number(value: Value) -> float:
    if isinstance(value, float):
        return value
    try:
        return float(value)
    except ValueError:
        raise UndefinedValue(f"{value[:40]!r} is not a number") from None


def _divide(left: float, right: float) -> float:
    # A division by zero keeps its left operand (contract: conscience, score expressions).
    return left / right if right else left


def _root(degree: float, radicand: float) -> float:
    if degree == 0:
        raise UndefinedValue("root of degree 0")
    if radicand == 0:
        return 0.0
    if radicand < 0:
        return math.nan
    try:
        value = math.pow(radicand, 1.0 / degree)
    except OverflowError:
        return math.inf
    # The cubic root of 100³ is 99.999… in floating point, and scores are rounded down.
    nearest = round(value)
    return float(nearest) if abs(value - nearest) < 1e-9 * max(1.0, value) else value
