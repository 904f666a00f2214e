"""A card on the Hub and ours in one: what others wrote stays."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCard, ModelCardData

_MARK = "<!-- optimum-moreau:"
_BEGIN, _END = f"{_MARK} begin -->", f"{_MARK} end -->"


def merged_card(theirs: ModelCard | None, ours: ModelCard) -> str:
    """Our card within theirs: what they wrote stays, what an earlier push wrote is replaced.

    Args:
        theirs: the card on the Hub, if any.
        ours: the card of the folder.
    """
    within = ours.text.strip().replace(_MARK, _MARK.replace("!--", "! --"))  # what data holds ends nothing
    part = f"{_BEGIN}\n\n{within}\n\n{_END}"
    data, text = ours.data.to_dict(), part
    if theirs is not None:
        data = _merged(theirs.data.to_dict(), data)
        before, begun, rest = theirs.text.partition(_BEGIN)
        after = rest.partition(_END)[2] if begun else ""
        text = "\n\n".join(piece.strip() for piece in (before, part, after) if piece.strip())
    return f"---\n{ModelCardData(ignore_metadata_errors=True, **data)}\n---\n\n{text}\n"


def _merged(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Ours over theirs; of lists, all that is in either."""
    found = dict(theirs)
    for key, value in ours.items():
        old = theirs.get(key)
        if isinstance(old, list) and isinstance(value, list) and key != "model-index":
            value = [*old, *(one for one in value if one not in old)]
        found[key] = value
    return found
