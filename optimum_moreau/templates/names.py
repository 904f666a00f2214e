"""The names that a template takes from what it is given."""

from __future__ import annotations

from collections.abc import Iterator

from jinja2 import Environment, meta, nodes

Path = tuple[str, ...]


def names_used(environment: Environment, source: str) -> list[Path]:
    """Names and the keys that are read from them: `("summary", "dtype")` for `summary.dtype`, and `("summary",)`.

    Without what the template asks for itself, somewhere: with `is defined`, `default` or `in`.

    Raises:
        TemplateError: it is no template.
    """
    tree = environment.parse(source)
    own = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    own |= {macro.name for macro in tree.find_all(nodes.Macro)}  # blocks see both, wherever they are set
    given, asked = meta.find_undeclared_variables(tree) - own, set(_asked(tree))
    used = {_path(node) for node in tree.find_all((nodes.Name, nodes.Getattr, nodes.Getitem))}
    heads = {path: {path[:i] for i in range(1, len(path) + 1)} for path in used if path}
    return sorted(path for path, before in heads.items() if path[0] in given and not before & asked)


def _asked(tree: nodes.Template) -> Iterator[Path]:
    for node in tree.find_all((nodes.Test, nodes.Filter)):
        if node.name in ("defined", "undefined", "default", "d"):
            yield _path(node.node)
    for comparison in tree.find_all(nodes.Compare):
        for operand in comparison.ops:
            if operand.op in ("in", "notin") and isinstance(comparison.expr, nodes.Const) and _path(operand.expr):
                yield (*_path(operand.expr), str(comparison.expr.value))


def _path(node: nodes.Node | None) -> Path:
    """Of a name and the keys after it; empty for any other expression."""
    if isinstance(node, nodes.Name):
        return (node.name,)
    key = node.attr if isinstance(node, nodes.Getattr) else None
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
        key = node.arg.value
    before = _path(node.node) if isinstance(node, (nodes.Getattr, nodes.Getitem)) else ()
    return (*before, key) if before and key is not None else ()
