"""Text: sources, calibration windows, instruction records, and the small text that ships."""
