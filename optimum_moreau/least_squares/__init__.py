"""Least squares of one matrix, from sums over tokens alone: what a fit, or a choice of columns, comes to."""
