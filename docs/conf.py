"""The documentation site: `python -m sphinx -W --keep-going -b html docs docs/_build/html`."""

import os
import sys

import jax.typing

# Tutorials call `semalign` of the environment that builds.
os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])

# In signatures the union of many types that it is reads as its name. Only this process sees it:
# tutorials run in their own.
jax.typing.ArrayLike = type("ArrayLike", (), {"__module__": "jax.typing"})

import semalign_jax  # noqa: E402
from semalign_jax.studies import backend_settings  # noqa: E402

backend_settings.apply(quick_compile=True)  # of the tutorials, which inherit the environment

project = "semalign_jax"
author = "The semalign_jax authors"
copyright = author
version = release = semalign_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
html_theme = "sphinx_book_theme"
html_title = "semalign_jax"
html_theme_options = {"show_toc_level": 2, "navbar_persistent": []}
html_show_sourcelink = False

# Pages.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # as a repository host makes them: page.md#some-heading
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Tutorials are executed where their code has changed; what fails fails the build.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_execution_in_temp = True
nb_merge_streams = True

# The reference. `name` in a docstring is a link where there is such a name.
default_role = "py:obj"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
autodoc_default_options = {
    "members": True,
    "member-order": "groupwise",
    "special-members": "__call__, __rshift__",
}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True


def skip(_app, _what, name, obj, skipped, _options):
    """Leave out the fields of named tuples, which their class describes, and what pydantic adds."""
    return skipped or type(obj).__name__ == "_tuplegetter" or name == "model_config"


def keep_colons(_app, what, _name, _obj, _options, lines):
    """Keep napoleon from taking what is before a colon in the first line for a type."""
    if lines and what in ("attribute", "data"):
        lines[:0] = ["..", ""]  # a comment of reStructuredText


def setup(app):
    """Register what no setting says."""
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", keep_colons, priority=400)  # before napoleon
