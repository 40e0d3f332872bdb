"How Sphinx sets the site. The pages are collected, and their links checked, by medseg_nb.paper.site: `make site`."
from medseg_nb import __version__

project, author, release = "medseg_nb", "The medseg_nb authors", __version__
project_copyright = "2026 onwards, The medseg_nb authors"
language = "en"
extensions = ["myst_nb", "medseg_nb.paper.site"]

nb_execution_mode = "off"  # what is executed is executed before, by the kit
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "dollarmath", "fieldlist"]
myst_heading_anchors = 6
myst_dmath_double_inline = True
myst_url_schemes = {"http": None, "https": None, "mailto": None, "site": "{{path}}"}  # site: a file beside the pages
suppress_warnings = ["myst.header",  # a question may stand between levels
                     "ref.python"]   # a type in a signature may have several namesakes

html_theme = "furo"
html_title = "medseg_nb"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_math_renderer = "mathml"
html_copy_source = html_show_sourcelink = False
html_theme_options = {"top_of_page_buttons": []}
add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 76
