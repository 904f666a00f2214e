"""What a model is worth: perplexity."""

from .perplexity import SEGMENT, Perplexity, PerplexityResult, perplexity, segment

__all__ = ["SEGMENT", "Perplexity", "PerplexityResult", "perplexity", "segment"]
