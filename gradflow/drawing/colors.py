"""The colours of pictures of computational graphs, for light and dark pages.

Forward values are green and gradients red. The green is lighter than the red by enough to tell them apart without
seeing the hue; a test computes this for deuteranopia, protanopia and tritanopia.
"""

from __future__ import annotations

from typing import Final

LIGHT: Final = {
    "page": "#ffffff",
    "ink": "#16191f",
    "muted": "#5a6272",
    "line": "#7b8494",
    "step": "#eef1f5",
    "parameter": "#dfeafb",
    "module": "#f8f9fb",
    "forward": "#17804f",
    "gradient": "#8a0a16",
}
DARK: Final = {
    "page": "#15181e",
    "ink": "#e8eaee",
    "muted": "#a0a8b6",
    "line": "#808a9c",
    "step": "#2a303b",
    "parameter": "#1f3557",
    "module": "#1b1f27",
    "forward": "#9af5c0",
    "gradient": "#f0695c",
}
