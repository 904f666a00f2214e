"""What a model is worth (perplexity, zero-shot tasks), and what its plans depend on (robustness, study)."""

from .perplexity import SEGMENT, Perplexity, PerplexityResult, perplexity, segment

__all__ = ["SEGMENT", "Perplexity", "PerplexityResult", "perplexity", "segment"]
