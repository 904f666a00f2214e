"""Pictures and the page that a reader looks at; needs the extra `report` (matplotlib)."""

from .figures import check_installed, draw_agreements, draw_insight, draw_map, save_figure

__all__ = ["check_installed", "draw_agreements", "draw_insight", "draw_map", "save_figure"]
