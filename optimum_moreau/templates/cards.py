"""Model cards from elsewhere: their front matter is YAML, which a few lines can make endless."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

_MOST = 2**22  # characters of a card
_MOST_OF_FRONT = 2**18  # of its front matter: results of evaluations stand there
_DEEPEST = 64


def parse_card(text: str, **options: Any) -> ModelCard:
    """Makes a card of its text.

    Args:
        text: of a README.md.
        **options: of `ModelCard`.

    Raises:
        ValueError: it is no card, or its front matter is longer or deeper than one, or repeats a part by aliases.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    if len(text) > _MOST:
        raise ValueError(f"the card is longer than {_MOST:,} characters")
    if block := REGEX_YAML_BLOCK.search(text):
        _check(block[2])
    try:
        return ModelCard(text, **options)
    except (TypeError, AttributeError, LookupError, yaml.YAMLError) as error:  # fields of another kind
        raise ValueError(f"its front matter is none of a card ({type(error).__name__}: {error})") from error


def _check(front: str) -> None:
    """Walks over the front matter without making values of it."""
    depth = 0
    if len(front) > _MOST_OF_FRONT:
        raise ValueError(f"its front matter is longer than {_MOST_OF_FRONT:,} characters")
    try:
        for event in yaml.parse(front, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST:
                raise ValueError("its front matter repeats parts by aliases, or is nested too deep")
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"its front matter is no YAML ({error})") from error
