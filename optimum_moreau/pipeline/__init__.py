"""The chain: prune, recover, evaluate, publish, from a recipe; it goes on where it stopped."""
