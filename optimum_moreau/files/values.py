"""What a value that is read or written may be: finite numbers and valid text, bounded in size and depth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import repeat
from typing import Any

from ..errors import MoreauError

MAX_DEPTH = 64
LARGEST = 2**63 - 1  # whole number: what a tensor can hold
LARGEST_OF_TRANSFORMERS = 10**31  # it writes 10³⁰ for a tokenizer without a longest text
_SHOWN = 60  # characters of a wrong value in a message


def check_values(
    values: Any,
    where: object,
    what: str,
    error: type[MoreauError],
    *,
    most: int | None = None,
    largest: int = LARGEST,
) -> None:
    """Refuses what JSON has no value for, and more of it than can be meant."""
    left: Iterator[None] = repeat(None) if most is None else repeat(None, most)
    if found := _problem(values, left, largest, 0):
        field, problem = ".".join(reversed(found[0])), found[1]
        problem = problem or f"more than {most:,} values"
        raise error(f"{where}: cannot be read as {what}: {f'{field[:_SHOWN]}: ' if field else ''}{problem}")


def _problem(value: Any, left: Iterator[None], largest: int, depth: int) -> tuple[list[str], str] | None:
    """What is wrong within a value, and the way to it, from the inside outwards; `left` yields once for each value."""
    if next(left, 0) == 0:
        return [], ""
    if not isinstance(value, (dict, list)):
        words = _problem_of_one(value, largest)
        return ([], words) if words else None
    if depth == MAX_DEPTH:
        return [], f"nested more than {MAX_DEPTH} deep"
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if type(inner) is int and -largest <= inner <= largest and isinstance(value, list) and next(left, 0) is None:
            continue  # most of a plan
        if isinstance(value, dict) and not (isinstance(key, str) and _is_text(key)):
            return [], f"{shown(key)} is no name"
        if found := _problem(inner, left, largest, depth + 1):
            found[0].append(str(key)[:_SHOWN])
            return found
    return None


def _problem_of_one(value: Any, largest: int) -> str:
    if isinstance(value, str):
        return "" if _is_text(value) else "holds half a character (a lone surrogate)"
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{value} is no finite number"
    if isinstance(value, int):
        return "" if abs(value) <= largest else "the number is too large"
    return "" if value is None else f"{shown(value)} is no plain value"


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any) -> str:
    """A wrong value in a message, cut short."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
