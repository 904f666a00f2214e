"""What a model is worth (perplexity, zero-shot tasks), and what its plans depend on (robustness, study)."""

from .perplexity import SEGMENT, PerplexityResult, perplexity, segment

__all__ = ["SEGMENT", "PerplexityResult", "perplexity", "segment"]
