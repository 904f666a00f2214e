"""Models: families as a table, units, placement over devices, the layer stream, undo."""
