"""Pictures and the page that a reader looks at; needs the extra `report` (matplotlib)."""

from .figures import draw_agreements, draw_insight, draw_map
from .style import check_installed, save_figure

__all__ = ["check_installed", "draw_agreements", "draw_insight", "draw_map", "save_figure"]
