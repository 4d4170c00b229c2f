"""The import path is the folder path, and the built distributions contain every module."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from importlib import resources
from pathlib import Path, PurePosixPath

import pytest

import stratalens
from support.paths import ROOT

FOLDERS = ("plugin", "store", "analyses")
FILES = ("*.py", "*.pyi", "py.typed", "assets/*", "templates/*")


def product_files() -> set[str]:
    """Return every file of the package as a path below `stratalens/`."""
    files = {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for pattern in FILES
        for path in (ROOT / folder).rglob(pattern)
        if path.is_file()
    }
    return files | {path.name for path in (ROOT / "src" / "stratalens").iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution and a wheel, built from the tracked files."""
    pytest.importorskip("build")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    inputs = [*FOLDERS, "src", "pyproject.toml", "README.md", "LICENSE"]
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *inputs],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_symlink():
                (source / name).symlink_to((ROOT / name).readlink())
            else:
                (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_wheel_contains_every_file_of_the_package(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {PurePosixPath(name) for name in zipfile.ZipFile(wheel).namelist()}
    packaged = {str(name.relative_to("stratalens")) for name in names if name.parts[0] == "stratalens"}
    assert packaged == product_files()


def test_the_source_distribution_contains_every_file_of_the_package(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
    names = [PurePosixPath(*PurePosixPath(member.name).parts[1:]) for member in members]
    packaged = {str(name.relative_to("src/stratalens")) for name in names if name.is_relative_to("src/stratalens")}
    assert packaged == product_files()


def test_the_package_index_would_take_both_distributions(built: Path) -> None:
    """Valid metadata, and a long description that renders."""
    pytest.importorskip("twine")
    pytest.importorskip("comrak")  # renders Markdown
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, sorted(built.iterdir()))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_the_metadata_say_who_can_use_the_package(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = message_from_bytes(archive.read(name))
    classifiers = set(metadata.get_all("Classifier", []))
    versions = {c.rsplit(" ", 1)[1] for c in classifiers if c.startswith("Programming Language :: Python :: 3.")}
    assert metadata["Requires-Python"] == f">={min(versions, key=lambda v: int(v.split('.')[1]))}"
    assert {"Framework :: Jupyter", "Programming Language :: Python :: 3 :: Only", "Typing :: Typed"} <= classifiers
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert not any(c.startswith("License ::") for c in classifiers)  # an error next to a license expression


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_import_path_is_the_folder_path() -> None:
    package = resources.files(stratalens)
    missing = [name for name in product_files() if not package.joinpath(*PurePosixPath(name).parts).is_file()]
    assert missing == []


def test_every_path_of_the_contributing_guide_exists() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:\w+/)+[\w.-]+\.\w+)`|\]\(([\w/.-]+)\)", guide)
    names = {quoted or linked for quoted, linked in paths} | {"plugin", "store", "analyses"}
    assert len(names) > 20
    assert {name for name in names if not (ROOT / name).exists()} == {"X/y.py"}  # a placeholder


def test_the_suite_imports_the_installed_package() -> None:
    """Folders of the checkout on the import path would hide files that the package is missing."""
    home = Path(stratalens.__file__).parent
    assert home == ROOT / "src" / "stratalens" or "site-packages" in home.parts
