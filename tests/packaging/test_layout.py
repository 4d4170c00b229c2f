"""The distribution holds every folder of code, and importing it stays cheap."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def setuptools_table():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def folder_of(package, mapping):
    best = max((name for name in mapping if package == name or package.startswith(name + ".")), key=len)
    return Path(mapping[best], *package[len(best) :].strip(".").split("."))


def test_every_folder_with_an_init_is_packaged(setuptools_table):
    listed = {folder_of(name, setuptools_table["package-dir"]) for name in setuptools_table["packages"]}
    present = {
        init.parent.relative_to(ROOT)
        for top in ("plugin", "store", "analyses")
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert listed == present


def run_fresh(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("module", ["stratalens", "stratalens.store", "stratalens.analyses", "stratalens.cli"])
def test_import_brings_no_torch(module):
    loaded = run_fresh(f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))")
    assert not {"torch", "transformers", "transformer_lens"} & set(loaded)


def test_import_is_light():
    """What makes an import slow is what it imports: none of the heavy libraries come with the bare name."""
    loaded = run_fresh("import sys, json, stratalens; print(json.dumps(sorted(sys.modules)))")
    assert not {"xarray", "zarr", "pandas", "dask", "sklearn", "scipy", "holoviews"} & set(loaded)


def test_every_public_name_resolves():
    import stratalens

    assert {name for name in stratalens.__all__ if getattr(stratalens, name, None) is None} == set()


def test_the_installed_package_is_what_is_tested():
    """The suite must see the installed wheel, not the folders of the checkout."""
    import stratalens

    assert ROOT not in Path(stratalens.__file__).parents or "site-packages" in stratalens.__file__


def test_the_walls_name_every_module_of_the_plugin():
    """A new module of the plugin must be forbidden to store and analyses, too."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    present = {f"stratalens.{path.stem}" for path in (ROOT / "plugin").glob("*.py") if path.stem != "__init__"}
    walls = [set(contract["forbidden_modules"]) for contract in contracts if contract["type"] == "forbidden"]
    assert [present - wall for wall in walls] == [set(), set()]
