"""Every public name is on a page of the reference, and examples in docstrings run."""

import doctest
import inspect
import re
from pathlib import Path
from types import ModuleType

import jax
import pytest

import semalign_jax as sa

PAGES = Path(sa.__file__).parents[1] / "docs" / "api"
REFERENCE = "".join(page.read_text() for page in sorted(PAGES.glob("*.md")))
NAMESPACES = [getattr(sa, name) for name in sa.__all__ if isinstance(getattr(sa, name), ModuleType)]
NAMESPACES += [sa.metrics.intervals]
NAMES = [name for name in sa.__all__ if not isinstance(getattr(sa, name), ModuleType)]


@pytest.mark.parametrize("module", NAMESPACES, ids=lambda module: module.__name__)
def test_each_public_name_is_on_a_reference_page(module):
    """`automodule` shows functions and classes of `__all__` that have a docstring, no others."""
    assert f"automodule:: {module.__name__}\n" in REFERENCE
    for name in module.__all__:
        member, full = getattr(module, name), f"{module.__name__}.{name}"
        if isinstance(member, ModuleType):
            assert f"automodule:: {full}\n" in REFERENCE
        elif inspect.isclass(member) or inspect.isfunction(inspect.unwrap(member)):
            assert inspect.getdoc(member)
        else:
            assert f"autodata:: {full}\n" in REFERENCE


def test_what_a_page_leaves_out_is_on_another():
    for names in re.findall(r":exclude-members: (.*)", REFERENCE):
        # scikit-learn's own methods are on its pages.
        for name in set(names.split(", ")) - {
            "set_fit_request", "set_score_request", "get_metadata_routing",
        }:  # fmt: skip
            assert sum(name in module.__all__ for module in NAMESPACES) > 1


def test_the_first_page_of_the_reference_lists_the_names_of_the_package():
    page = (PAGES / "index.md").read_text()
    listed = re.findall(r"^   (\w+)\.(\w+)$", page, flags=re.MULTILINE)
    assert sorted(name for _, name in listed) == NAMES
    assert all(getattr(getattr(sa, space), name) is getattr(sa, name) for space, name in listed)


RUN = [name for name in NAMES if inspect.isfunction(getattr(sa, name))] + ["AffineMap"]


@pytest.mark.parametrize("name", RUN)
def test_the_example_in_a_docstring_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.DocTestFinder(recurse=False).find(getattr(sa, name), name, globs={})
    assert found
    assert found[0].examples
    failures: list[str] = []
    with jax.enable_x64(False):  # as users have it
        doctest.DocTestRunner().run(found[0], out=failures.append)
    assert not failures, "".join(failures)
