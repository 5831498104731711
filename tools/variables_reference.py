# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Writes the table of ``docs/variables.md`` from the declarations: ``python -m tools.variables_reference``.

What stands above the marker is written by hand and left alone. With ``--check`` nothing is written; the exit code
is 1 when the page is out of date.
"""

from __future__ import annotations

import sys

from oio.common.variables import DECLARED, WITHOUT_EFFECT, Variable
from tools.written_page import WrittenPage

_UNITS_S = (("d", 86400.0), ("h", 3600.0), ("m", 60.0), ("s", 1.0), ("ms", 1e-3))
_UNITS_BYTES = (("Ei", 2**60), ("Pi", 2**50), ("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10))


def table() -> str:
    """A line for each variable, by name."""
    lines = ["| variable | kind | default | bounds | |", "|---|---|---|---|---|"]
    for name, variable in sorted(DECLARED.items()):
        text = f"No effect: {WITHOUT_EFFECT[name]}" if name in WITHOUT_EFFECT else variable.doc
        kind = "duration" if variable.kind == "epoch" else variable.kind
        default = f"`{written(variable, variable.default)}`" if variable.default != "" else ""
        cells = [f"`{name}`", kind, default, _bounds(variable), text]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def written(variable: Variable, value: object) -> str:
    """A value as a configuration file would hold it.

    >>> written(DECLARED["ns.chunk_size"], 2**20), written(DECLARED["meta2.retention_period"], 604800.0)
    ('1Mi', '7d')
    """
    if variable.kind in ("duration", "epoch") and isinstance(value, (int, float)):
        return _with_unit(float(value), _UNITS_S) or f"{value:g}s"
    if variable.kind == "size" and isinstance(value, (int, float)):
        return _with_unit(float(value), _UNITS_BYTES) or f"{value:g}"
    if variable.kind == "bool":
        return variable.text(value)
    if isinstance(value, float):
        return f"{value:.0f}" if value == int(value) else f"{value:g}"
    return str(value)


def _with_unit(value: float, units: tuple[tuple[str, float], ...]) -> str:
    """With the largest unit that makes an integer of it; empty when none does."""
    for unit, size in units:
        if value >= size and value % size == 0:
            return f"{value / size:.0f}{unit}"
    return "0" if value == 0 else ""


def _bounds(variable: Variable) -> str:
    if variable.minimum is None or variable.maximum is None:
        return ""
    return f"{written(variable, variable.minimum)} to {written(variable, variable.maximum)}"


PAGE = WrittenPage("variables.md", "variables_reference", "oio/common/variables.py", table)

if __name__ == "__main__":
    sys.exit(PAGE.main(__doc__))
