"""How Sphinx builds the documentation: `sphinx-build -W -q docs docs/_build`. Nothing is read from the network."""

import os
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS / "extensions"), str(DOCS.parent), str(DOCS.parent / "backends")]
os.environ["GRADFLOW_DEVICE"] = "cpu"  # pictures and outputs are those of the CPU

project = "gradflow"
author = "The gradflow authors"
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
extensions += ["docstrings", "formulas", "names", "notebooks", "objects", "pictures", "repository"]  # in extensions/
exclude_patterns = ["_build", "README.ko.md"]

myst_enable_extensions = ["colon_fence", "dollarmath", "amsmath"]
myst_heading_anchors = 3
default_role = "py:obj"  # `name` in a docstring: a link, if there is such a name
autodoc_typehints = "none"
autodoc_member_order = "bysource"
add_function_parentheses = True
toc_object_entries = False  # with them, each page takes three times as long
python_use_unqualified_type_names = True

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "gradflow"
html_static_path = ["static"]
html_css_files = ["gradflow.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {"sidebar_hide_name": False}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
