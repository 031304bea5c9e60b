"""Each module imports only from the levels below it (see the list), and the core stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import semalign_jax as sa

PACKAGE = Path(sa.__file__).parent
#: Modules and packages of the library, each level importing only from those above it.
LEVELS = [
    {"_core"},
    {"_documents", "_processes"},
    {"maps", "_samples"},
    {"_classification", "_ranking", "_similarity"},
    {"_retrieval"},
    {"metrics"},
    {"heads", "intervals"},
    {"sweeps", "stitching"},
    {"stitching_pairs", "zeroshot"},
    {"prompts", "baselines"},
    {"protocol"},
    {"_chunks"},
    {"store"},
    {"distributed"},
]
#: Likewise within the packages of the core.
INSIDE = {
    "_core": [{"typing", "files"}, {"checks", "linalg"}],
    "maps/_solvers": [{"float64", "products"}, {"least_squares", "polar"}],
    "maps": [
        {"_solvers", "options", "adam", "stats"},
        {"affine_map"},
        {"fit", "io"},
        {"fit_from_stats"},
    ],
    "sweeps": [{"anchors"}, {"one_pair"}, {"_shared"}, {"many_pairs"}],
}
EXTERNAL = {"jax", "numpy", "optax", "safetensors", "semalign_jax"}
#: Imported when they are used.
IN_FUNCTIONS = {
    "_chunks": {"filelock"},
    "_documents": {"yaml"},
    "store": {"h5py", "pyarrow"},
}
#: The package of data sets, above the modules; pydicom and others are imported when they are used.
DATA_LEVELS = [
    {"_dataset", "_reports"},
    {"_files", "pixels"},
    {"mimic", "open_i", "rsna", "splits", "tables", "vindr"},
]
DATA_EXTERNAL = {"numpy", "PIL", "pydicom", "pyarrow"}


def level(module, levels=LEVELS):
    return next(i for i, names in enumerate(levels) if module in names)


def imports(path):
    """(module, whether it is one of ours) of every import statement; ours from the package on."""
    folder = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or "", False
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((".".join((*base, name)), True) for name in names)


CORE = [path for path in PACKAGE.glob("*.py") if path.stem != "__init__"]
CORE += [path for folder in INSIDE for path in (PACKAGE / folder).glob("*.py")]


@pytest.mark.parametrize("path", sorted(CORE), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_import_only_from_below(path):
    inside = path.relative_to(PACKAGE)
    unit = inside.parts[0].removesuffix(".py")
    folder = str(inside.parent)
    for name, ours in imports(path):
        top = name.split(".")[0]
        if not ours:
            known = EXTERNAL | IN_FUNCTIONS.get(path.stem, set())
            assert top in known or top in sys.stdlib_module_names, f"{inside}: {name}"
        elif top != unit:
            assert level(top) < level(unit), f"{inside} imports {name}, which is not below it"
        elif path.stem != "__init__":
            rest = name.split(".")[len(inside.parts) - 1 :]
            if name.startswith(folder.replace("/", ".") + "."):
                levels = INSIDE[folder]
                below = level(rest[0], levels) < level(path.stem, levels)
                assert below, f"{inside} imports {name}, which is not below it"


ENCODERS = PACKAGE / "encoders"
ENCODER_EXTERNAL = EXTERNAL | {"filelock", "flax", "huggingface_hub", "PIL", "rich", "transformers"}


@pytest.mark.parametrize("path", sorted(ENCODERS.rglob("*.py")), ids=lambda path: path.stem)
def test_encoders_import_only_what_they_may(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        elif isinstance(node, ast.ImportFrom):
            # Of the core: only checks and files. A family does not import what loads it.
            inside = node.level - len(path.relative_to(ENCODERS).parts)
            core = ("_core.checks", "_core.files", "_chunks", "_processes")
            assert inside < 1 or node.module in core, f"{path.name}: {node.module}"
            if path.parent.name == "families":
                assert node.module not in ("_encoder", "_embed", "_preprocess", "_hub")
            continue
        else:
            continue
        for name in names:
            top = name.split(".")[0]
            known = top in ENCODER_EXTERNAL or top in sys.stdlib_module_names
            assert known, f"{path.name}: {name}"


#: The studies stand on everything else; the rest of the package does not know them.
STUDIES = [
    {"backend_settings", "files", "inputs", "report", "cells"},
    {"demo", "figures"},
    {"outputs"},
    {"common"},
    {"stitching", "zero_shot"},
]
STUDIES_EXTERNAL = EXTERNAL | {"filelock", "matplotlib", "pydantic", "rich", "threadpoolctl"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "studies").glob("*.py")), ids=lambda p: p.stem)
def test_studies_import_only_from_below(path):
    def study_level(module):
        return next(i for i, names in enumerate(STUDIES) if module in names)

    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                assert study_level(name) < study_level(path.stem), f"{path.name}: {name}"
        elif isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level):
            names = [alias.name for alias in node.names]
            for name in names if isinstance(node, ast.Import) else [node.module or ""]:
                top = name.split(".")[0]
                known = top in STUDIES_EXTERNAL or top in sys.stdlib_module_names
                assert known, f"{path.name}: {name}"


#: The command stands on all else. What its help needs imports nothing but typer; the rest is
#: imported when a command runs.
CLI_QUICK = ["__init__", "__main__", "_app", "_console", "_distributed", "_options"]
CLI_QUICK += ["embed", "files", "maps", "studies", "sweeps"]
CLI_LATER = ["_settings", "_sources"]
CLI_EXTERNAL = {"jax", "numpy", "pydantic", "rich", "typer"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda p: p.stem)
def test_the_command_imports_little_before_it_runs(path):
    assert path.stem in CLI_QUICK + CLI_LATER
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level):
            names = [alias.name for alias in node.names]
            for name in names if isinstance(node, ast.Import) else [node.module or ""]:
                top = name.split(".")[0]
                known = top in CLI_EXTERNAL or top in sys.stdlib_module_names
                assert known, f"{path.name}: {name}"
    if path.stem in CLI_LATER:
        return
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"{path.name}: {node.module}"
            names = [node.module] if node.module else [alias.name for alias in node.names]
            assert all(name in (*CLI_QUICK, "main") for name in names), f"{path.name}: {names}"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            for name in names if isinstance(node, ast.Import) else [node.module or ""]:
                top = name.split(".")[0]
                assert top == "typer" or top in sys.stdlib_module_names, f"{path.name}: {name}"


def test_nothing_stands_on_the_command():
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent.name != "cli":
            assert "cli" not in {(name or "").split(".")[0] for name, ours in imports(path) if ours}


@pytest.mark.parametrize("path", sorted((PACKAGE / "data").glob("*.py")), ids=lambda p: p.stem)
def test_data_modules_import_only_from_below(path):
    def data_level(module):
        return next(i for i, names in enumerate(DATA_LEVELS) if module in names)

    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 2:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            assert all(level(name.split(".")[0]) >= 0 for name in names)
        elif isinstance(node, ast.ImportFrom) and node.level == 1:
            if path.stem != "__init__":
                assert data_level(node.module) < data_level(path.stem), f"{path}: {node.module}"
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
            for top in (name.split(".")[0] for name in names):
                known = top in DATA_EXTERNAL or top in sys.stdlib_module_names
                assert known, f"{path.name}: {top}"


@pytest.mark.parametrize("module", ["semalign_jax", "semalign_jax.data"])
def test_import_is_light_and_starts_no_device(module):
    code = (
        f"import sys, {module}\n"
        "heavy = {'flax', 'transformers', 'PIL', 'matplotlib', 'torch', 'scipy.linalg'}\n"
        "heavy |= {'pydicom', 'gdcm', 'pyarrow', 'pandas', 'yaml'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_agree():
    assert sa.__all__ == sorted(sa.__all__)
    assert all(hasattr(sa, name) for name in sa.__all__)
    public = {name for name in vars(sa) if not name.startswith("_")}
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert public - modules <= set(sa.__all__)


def run_as_a_user(code, **options):
    # Without the settings of this test suite.
    environment = {"PATH": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, **options
    )
    assert done.returncode == 0, done.stderr


def readme_examples():
    readme = (PACKAGE.parent / "README.md").read_text()
    return [part.split("```")[0] for part in readme.split("```python\n")[1:]]


def test_readme_example_runs_with_default_settings():
    example = readme_examples()[0]
    assert len(example.strip().splitlines()) <= 10
    run_as_a_user(example + "\nassert abs(float(loss(x))) < 1e-9 and jnp.isfinite(gradient).all()")


def test_readme_example_of_streaming_runs(tmp_path):
    x = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    np.save(tmp_path / "images.npy", x)
    np.save(tmp_path / "reports.npy", x[:, ::-1])
    check = "\nassert np.allclose(mapping(x), y, atol=1e-5)"
    run_as_a_user(readme_examples()[2] + check, cwd=tmp_path)


def test_readme_example_of_pairs_runs():
    setup = (
        "import jax, jax.numpy as jnp, numpy as np\n"
        "def accuracy(scores, labels): return jnp.mean(jnp.argmax(scores, 1) == labels)\n"
        "rng = np.random.default_rng(0)\n"
        "labels, test_labels = np.arange(300) % 3, np.arange(30) % 3\n"
        "means = 4 * rng.standard_normal((3, 5))\n"
        "side = lambda y: (means[y] + rng.standard_normal((len(y), 5))).astype('f')\n"
        "train = {name: side(labels) for name in 'ab'}\n"
        "test = {name: side(test_labels) for name in 'ab'}\n"
    )
    check = "\nassert result.values['accuracy'].shape == (2, 4, 3, 5)"
    check += "\nassert result.values['accuracy'][:, 0, 2].min() > 0.8"
    run_as_a_user(setup + readme_examples()[1] + check)
