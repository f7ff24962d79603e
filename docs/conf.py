"""What Sphinx reads to build the site. Nothing is executed here: the pages show what the notebooks hold."""

project = "The low-rank workbook"
html_title = project
extensions = ["myst_nb", "sphinx_copybutton", "sphinx-mathjax-offline", "sphinx.ext.autodoc"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_domain_indices = False
html_static_path = ["_own"]
html_css_files = ["own.css"]
copybutton_exclude = ".linenos, .gp, .go"
suppress_warnings = ["mystnb.unknown_mime_type", "misc.highlighting_failure"]

# ---- the reference: signatures with type hints, docstrings as they are read in Python
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100


def setup(app):
    from lowrank_utils.workbook import reference

    def read(app, what, name, thing, options, lines):
        lines[:] = reference.as_rst(lines)

    app.connect("autodoc-process-docstring", read)
