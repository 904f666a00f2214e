"""What a model is worth: perplexity."""

from .perplexity import Perplexity, PerplexityResult, perplexity

__all__ = ["Perplexity", "PerplexityResult", "perplexity"]
