"""One pruning run: text read, a plan made, the model cut or masked in place, and what is saved of it."""
