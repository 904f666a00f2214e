"""One pruning run: what is done to a model in place, and the record of it."""
