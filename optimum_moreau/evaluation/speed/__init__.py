"""How fast a model is here, beside its base: measured in fresh processes by turns, and what the figures say."""

from .measurement import SpeedSettings, measure_speed
from .records import SPEED_NAME, Row, Series, Side, Speed, Spread

__all__ = ["SPEED_NAME", "Row", "Series", "Side", "Speed", "SpeedSettings", "Spread", "measure_speed"]
