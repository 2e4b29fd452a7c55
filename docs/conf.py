"""The documentation as a site: Markdown in, pages out that need no network, neither to be built nor to be read."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "Glow service"
copyright = "Glow service, MIT licence"
version = release = version_of("glow-service")
language = "en"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "mathml",
    "offline",
    "plain_docstrings",
    "routes",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["pictures"]

html_theme = "furo"
html_title = f"Glow service {version}"
html_static_path = ["_static"]
html_css_files = ["formulas.css"]
html_show_sourcelink = False
html_math_renderer = "mathml"

# Headings have GitHub's anchors; $...$ and ```math are formulas, as they are there.
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
myst_fence_as_directive = ["math"]
myst_dmath_allow_labels = False

autodoc_member_order = "bysource"
autodoc_default_options = {
    "exclude-members": "model_config, set_predict_proba_request",  # pydantic's and scikit-learn's own
}
autodoc_typehints_format = "short"
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 100

# Names of other packages have no page here, and none is looked for on the network.
nitpick_ignore_regex = [
    ("py:.*", r"(?!(common|model|service)\.).*"),
    ("py:.*", r".*\._.*|service\.client\.Http"),
]
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
