"""The wheel holds what an installation needs, and nothing else."""

import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source") / "project"
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "demo_output")
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next((source / "dist").glob("optimum_moreau-*.whl")))


def test_the_template_the_default_text_and_the_type_marker_are_inside(wheel):
    names = wheel.namelist()
    for name in (
        "saving/MODEL_CARD_TEMPLATE.md",
        "data/calibration.txt",
        "criteria/papers.bib",
        "py.typed",
        "modeling/modeling_moreau.py",
    ):
        assert f"optimum_moreau/{name}" in names


def test_every_module_is_inside_and_no_test(wheel):
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "optimum_moreau").rglob("*.py")}
    sources = {name for name in sources if "optimum_cli" not in name}
    modules = {name for name in wheel.namelist() if name.endswith(".py")}
    assert modules == sources | {"optimum/commands/register/register_moreau.py"}


def test_the_console_script_and_the_extras_are_declared(wheel):
    info = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")).rsplit("/", 1)[0]
    assert "optimum-moreau = optimum_moreau.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "Name: optimum-moreau" in metadata
    for extra in ("eval", "evaluate", "report", "test"):
        assert f"Provides-Extra: {extra}\n" in metadata
