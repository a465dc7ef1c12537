"""Runs a notebook's code cells in order, in one namespace, and writes what they print and show into it.

``python -m tests.notebook --write`` renews the outputs of ``examples/first_steps.ipynb``. A kernel is not needed: the cells hold
plain Python. What Lightning logs goes to stderr, and is not kept.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_steps.ipynb"


def read(path: Path = NOTEBOOK) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def execute(notebook: dict[str, Any]) -> dict[str, Any]:
    """Run the code cells, and give each its outputs."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(notebook), start=1):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(tree, f"cell {number}", "exec"), names)
            shown = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names) if last else None
        cell["execution_count"] = number
        cell["outputs"] = []
        if text := printed.getvalue():
            cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
        if shown is not None:
            data = {"text/plain": repr(shown).splitlines(keepends=True)}
            if hasattr(shown, "_repr_html_"):
                data["text/html"] = shown._repr_html_().splitlines(keepends=True)
            result = {"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data}
            cell["outputs"].append(result)
    return notebook


if __name__ == "__main__":
    done = json.dumps(execute(read()), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if "--write" in sys.argv:
        NOTEBOOK.write_text(done, encoding="utf-8")
