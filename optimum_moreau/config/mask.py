"""`Mask`: single weights become zero, instead of whole units going."""

from __future__ import annotations

import re
from typing import Literal

from ..errors import ConfigError
from .settings import Share, setting, settings

_MOST_OF_GROUP = 1024  # m of n:m


@settings
class Mask:
    """Which weights of the matrices in scope become zero, and what improves the choice."""

    pattern: str = setting(
        "zeros anywhere, or n of every m consecutive inputs stay: unstructured, 2:4, 4:8, …", default="unstructured"
    )
    sparsity: Share | None = setting("share of the weights in scope that become zero, unstructured (0.5)", default=None)
    group: Literal["row", "layer"] | None = setting(
        "weights compared in an unstructured mask: a row, or the whole matrix (the criterion's)",
        default=None,
        was="mask_group",
    )
    refine: Literal["dsnot", "r2-dsnot"] | None = setting(
        "improves the mask without training (masks/refine.py)", default=None
    )
    update: bool = setting(
        "adjust the weights that stay (optimal brain surgeon, masks/obs.py); sparsegpt always does", default=False
    )
    permute: bool = setting("put channels in an order for which an n:m mask keeps more score", default=False)
    feed_forward: bool = setting("what is masked reaches the layers behind before these are scored", default=True)
    damping: float = setting("of the update's Hessian, as a share of its mean diagonal", default=0.01, gt=0)

    def __post_init__(self) -> None:
        found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", self.pattern)
        if self.pattern != "unstructured" and not (found and 0 < int(found[1]) < int(found[2]) <= _MOST_OF_GROUP):
            raise ConfigError(
                f"pattern: '{self.pattern:.40}' is not unstructured, or n:m with 0 < n < m ≤ {_MOST_OF_GROUP}, e.g. 2:4"
            )
        if self.permute and not found:
            raise ConfigError(f"permute: concerns n:m masks, not '{self.pattern}'; give a pattern as well: 2:4, 4:8, …")
        if found and self.group is not None:
            raise ConfigError(
                f"mask_group: '{self.pattern}' compares every {found[2]} inputs; leave '{self.group}' out"
            )
        if found and self.sparsity is not None:
            raise ConfigError(f"sparsity: '{self.pattern}' says itself how many weights stay; leave sparsity out")

    @property
    def structured(self) -> bool:
        """Whether it is n:m."""
        return self.pattern != "unstructured"
