"""Element scores become scores of units; what budgets measure of the layers beside them."""
