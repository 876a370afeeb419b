"""The wheel: what it installs runs outside of the checkout, presets included."""

import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ["dstools", "kernels", "converters", "distill", "tests/data"]
FILES = ["pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"]
PRESETS = ["toy-cpu", "r1-toy"]  # those that need nothing but the wheel

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="needs hatchling, the build backend"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel, and with the dependencies of this one.

    The wheel is built from a copy: the build deletes a library that was compiled in place.
    """
    project = tmp_path_factory.mktemp("project")
    for name in SOURCES:
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("*.so"))
    for name in FILES:
        shutil.copy(ROOT / name, project)
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", cwd=project, DSTOOLS_NATIVE="0")
    (wheel,) = (project / "dist").iterdir()
    assert wheel.stat().st_size < 10e6
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment)
    paths = {"base": str(environment), "platbase": str(environment)}
    packages = Path(sysconfig.get_path("purelib", vars=paths))
    # a path in a .pth file is not searched for .pth files: an editable dstools stays out
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python")]
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel), cwd=environment)
    return environment / "bin"


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    clean = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(cwd)} | environment
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def test_the_command_runs_from_the_wheel_and_not_from_the_checkout(
    installed: Path, tmp_path: Path
) -> None:
    names = "dstools, dstools_distill, dstools_converters, dstools_kernels"
    places = run(installed / "python", "-c", f"import {names}; print({names})", cwd=tmp_path)
    assert places.count(str(installed.parent)) == 4
    assert str(ROOT) not in places
    assert run(installed / "dstools", "--version", cwd=tmp_path).startswith("dstools, version ")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_printed_in_an_empty_folder_has_all_that_it_names(
    preset: str, installed: Path, tmp_path: Path
) -> None:
    """The libraries of a dry run keep caches in the home folder."""
    folder, home = tmp_path / "empty", {"HOME": str(tmp_path)}
    folder.mkdir()
    init = ("distill", "init", "--preset", preset)
    (folder / "toy.toml").write_text(run(installed / "dstools", *init, cwd=folder, **home))
    dry = ("distill", "run", "toy.toml", "--dry-run")
    shown = run(installed / "dstools", *dry, cwd=folder, **home)
    assert re.search(r"^(\S+/)?sft +would run ", shown, re.MULTILINE)
    assert [path.name for path in folder.iterdir()] == ["toy.toml"]


def test_the_teacher_of_the_presets_is_in_the_wheel_whole(installed: Path, tmp_path: Path) -> None:
    code = "from dstools_distill.recipe.presets import bundled; print(bundled('dstools:sample-v3'))"
    folder = run(installed / "python", "-c", code, cwd=tmp_path).strip()
    assert Path(folder).is_relative_to(installed.parent)
    ours = ROOT / "tests" / "data" / "sample-v3"
    assert {p.name: p.read_bytes() for p in Path(folder).iterdir()} == {
        path.name: path.read_bytes() for path in ours.iterdir()
    }


def test_the_sources_of_the_plugin_library_are_in_the_wheel(
    installed: Path, tmp_path: Path
) -> None:
    """Whoever builds an engine compiles them there, against the headers of that machine."""
    code = "import dstools_kernels; print(dstools_kernels.__path__[0])"
    package = Path(run(installed / "python", "-c", code, cwd=tmp_path).strip())
    ours = ROOT / "kernels/dstools_kernels/csrc/plugin"
    shipped = {path.name for path in (package / "csrc/plugin").iterdir()}
    assert shipped == {path.name for path in ours.iterdir()}
    assert {"exports.map", "plugin.cpp", "launch.h"} <= shipped
