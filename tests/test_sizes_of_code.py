"""No module is above 350 lines, and no function above 50."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "optimum_moreau"
LINES_OF_MODULE, LINES_OF_FUNCTION = 350, 50


def too_long():
    """What is too long, as path or path:function, with its lines."""
    for file in sorted(PACKAGE.rglob("*.py")):
        text, name = file.read_text(encoding="utf-8"), file.relative_to(PACKAGE).as_posix()
        if (lines := len(text.splitlines())) > LINES_OF_MODULE:
            yield name, lines
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if (lines := node.end_lineno - node.lineno + 1) > LINES_OF_FUNCTION:
                yield f"{name}:{node.name}", lines


def test_no_module_and_no_function_is_too_long():
    assert not dict(too_long())
