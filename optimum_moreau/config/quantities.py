"""Sizes as people write them, `5.5B` parameters, `12GiB`; and how shares of a count are rounded."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError

_COUNTS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_BYTES = {f"{prefix}B": 1000**power for power, prefix in enumerate(("", "K", "M", "G", "T"))}
_BYTES |= {f"{prefix}iB": 1024**power for power, prefix in enumerate(("K", "M", "G", "T"), start=1)} | {"": 1}


def parse_parameters(value: Any) -> int:
    """Reads a number of parameters: a whole number, or `5.5B`, `800M`, `120K`; raises ConfigError for another."""
    return _parse("target_parameters", value, _COUNTS, "5.5B, 800M or 120000")


def parse_bytes(value: Any) -> int:
    """Reads a number of bytes: a whole number, or `12GiB`, `12GB`, `800MB`; raises ConfigError for another."""
    return _parse("target_bytes", value, _BYTES, "12GiB, 12GB or 800MB")


def words_for_bytes(count: float) -> str:
    """`12.3 GiB`: the unit in which the number has one to four digits before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def words_for_parts(parts: Mapping[str, int], parameters: int) -> str:
    """`: layers 5.00 %, mlp 15.00 %` of so many parameters, where there is more than one part."""
    shares = [f"{kind} {100 * count / parameters:.2f} %" for kind, count in parts.items()]
    return f": {', '.join(shares)}" if len(shares) > 1 else ""


def _parse(name: str, value: Any, units: dict[str, int], examples: str) -> int:
    text = str(value).strip() if type(value) in (int, float, str) else ""
    found = re.fullmatch(r"(\d{1,20}(?:\.\d{1,20})?)\s*([a-z]{0,3})", text, re.IGNORECASE | re.ASCII)
    known = {unit.lower(): factor for unit, factor in units.items()}
    if not found or found[2].lower() not in known:
        raise ConfigError(f"{name}: {value!r:.40} is not a size such as {examples}")
    count = round(float(found[1]) * known[found[2].lower()])
    if count < 1:
        raise ConfigError(f"{name}: {value!r} is less than 1")
    return count


def nearest_fewer(x: float) -> int:
    """The whole number nearest to x; on a tie the smaller one."""
    return math.ceil(round(x, 9) - 0.5)  # rounding: 0.3 · 5 must not depend on the last bit
