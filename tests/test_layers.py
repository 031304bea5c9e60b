"""Each folder imports only from those below it, and the core stays light."""

import ast
import graphlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import semalign_jax as sa

PACKAGE = Path(sa.__file__).parent
#: The folders of the library; each imports only from those above it.
LEVELS = (
    {"_core"},
    {"maps", "metrics", "stores", "data"},
    {"sweeps", "distributed"},
    {"stitching", "encoders"},
    {"zeroshot", "plot"},
    {"studies"},
    {"cli"},
)
#: What each imports from others, as its modules are imported, and when something is used.
LIBRARIES = {
    "_core": ({"jax", "numpy"}, {"PIL", "pandas", "rich", "yaml"}),
    "maps": ({"jax", "numpy", "optax", "safetensors"}, {"huggingface_hub"}),
    "metrics": ({"jax", "numpy"}, set()),
    "stores": ({"jax", "numpy", "safetensors"}, {"filelock", "h5py", "pyarrow"}),
    "data": ({"numpy"}, {"PIL", "pydicom", "pyarrow"}),
    "sweeps": ({"jax", "numpy"}, set()),
    "distributed": ({"jax", "numpy"}, set()),
    "stitching": ({"jax", "numpy", "optax"}, set()),
    "encoders": (
        {"filelock", "flax", "jax", "numpy", "optax", "safetensors", "semalign_jax"},
        {"huggingface_hub", "PIL", "rich", "torch", "transformers"},  # PyTorch to convert only
    ),
    "zeroshot": ({"jax", "numpy", "optax"}, set()),
    "plot": ({"numpy"}, {"matplotlib"}),
    "studies": (
        {"filelock", "jax", "numpy", "optax", "pydantic", "rich", "safetensors", "threadpoolctl"},
        {"matplotlib"},
    ),
    # The list of commands is shown before anything slow is imported.
    "cli": (
        {"click"},
        {"huggingface_hub", "jax", "numpy", "pydantic", "rich", "threadpoolctl", "yaml"},
    ),
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def level(folder):
    return next(i for i, folders in enumerate(LEVELS) if folder in folders)


def imports(path, nodes):
    """(module, whether it is one of ours) of import statements; ours from the package on."""
    folder = path.relative_to(PACKAGE).parts[:-1]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or "", False
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((".".join((*base, name)), True) for name in names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_import_only_from_below(path):
    folder = path.relative_to(PACKAGE).parts[0]
    tree = ast.parse(path.read_text())
    always, later = LIBRARIES[folder]
    for name, ours in imports(path, ast.walk(tree)):
        top = name.split(".")[0]
        if not ours:
            assert top in always | later or top in sys.stdlib_module_names, f"{path}: {name}"
        elif top != folder:
            assert level(top) < level(folder), f"{path} imports {name}, which is not below it"
    # Of the command, what lists its commands; others are imported when they are used.
    if folder == "cli" and path.stem not in ("__init__", "_app", "_console", "_signals"):
        return
    for name, ours in imports(path, tree.body):
        top = name.split(".")[0]
        if not ours:
            assert top in always or top in sys.stdlib_module_names, f"{path}: {name} at once"
        elif folder == "cli":
            assert top == "cli", f"{path}: {name} at once"


@pytest.mark.parametrize("folder", sorted(LIBRARIES))
def test_no_module_imports_itself_by_others(folder):
    graph = {}
    for path in (PACKAGE / folder).rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if path.stem != "__init__":
            nodes = ast.parse(path.read_text()).body
            graph[module] = {name for name, ours in imports(path, nodes) if ours}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_a_family_does_not_know_what_loads_it():
    for path in (PACKAGE / "encoders" / "families").glob("*.py"):
        found = {
            name for name, ours in imports(path, ast.walk(ast.parse(path.read_text()))) if ours
        }
        loaders = {
            f"encoders.{name}"
            for name in ("_encoder", "_embed", "_hub", "_images", "_preprocess", "_texts")
        }
        assert not found & loaders


#: All that the names of the package itself, which are imported when they are used, come from.
USED = "maps sweeps stitching zeroshot stores metrics distributed plot".split()


@pytest.mark.parametrize(
    "module", [", ".join(f"semalign_jax.{name}" for name in USED), "semalign_jax.data"]
)
def test_import_is_light_and_starts_no_device(module):
    code = (
        f"import sys, {module}\n"
        "heavy = {'flax', 'transformers', 'PIL', 'matplotlib', 'torch', 'scipy.linalg'}\n"
        "heavy |= {'pydicom', 'gdcm', 'pyarrow', 'pandas', 'yaml'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "none"},  # where a start of devices fails
    )
    assert done.returncode == 0, done.stderr


NAMESPACES = [sa, sa.maps, sa.metrics, sa.stitching, sa.stores, sa.sweeps, sa.zeroshot]
NAMESPACES += [sa.distributed, sa.encoders, sa.data, sa.plot, sa.studies]
NAMESPACES += [sa.metrics.intervals]


@pytest.mark.parametrize("module", NAMESPACES, ids=lambda module: module.__name__)
def test_public_names_agree(module):
    """What `__all__` names is there, and nothing else shows up but the modules of the folder."""
    assert module.__all__ == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)
    public = {name for name in dir(module) if not name.startswith("_")}
    folders = getattr(module, "__path__", [])
    modules = {path.stem for folder in folders for path in Path(folder).iterdir()}
    assert public - modules <= set(module.__all__)


@pytest.mark.slow  # compiles as users do
def test_readme_snippets_run_as_printed(tmp_path):
    """In a user's settings, each on its own, and with the accuracies that the text names."""
    readme = (PACKAGE.parent / "README.md").read_text()
    snippets = [part.split("```")[0] for part in readme.split("```python\n")[1:]]
    assert len(readme.splitlines()) <= 120
    assert len(snippets) == 3
    code = "".join(f"exec({snippet!r}, {{}})\n" for snippet in snippets)
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": "", "JAX_PLATFORMS": "cpu"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    named = re.search(r"accuracies of (.*), (.*) and (.*), and (.*) as", readme)
    assert named is not None
    for line, expected in zip(lines, named.groups(), strict=False):
        assert float(line.split()[-1]) == pytest.approx(float(expected), abs=0.004)
