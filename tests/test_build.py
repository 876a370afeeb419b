"""The build: a wheel with the compiled kernels where there is a compiler, and a pure one elsewhere.

Each test builds a wheel of a small project of its own, with the real hook and a tiny cpu.cpp: the
hook does not read the source, and the real one takes seconds to compile.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = "dstools_kernels/cpu/libdstools_cpu.so"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="needs hatchling, the build backend"
)
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler"
)

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "small"
version = "1"
requires-python = ">=3.11"
[tool.hatch.build.targets.wheel]
packages = ["kernels/dstools_kernels"]
[tool.hatch.build.targets.wheel.hooks.custom]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    package = tmp_path / "kernels/dstools_kernels"
    (package / "csrc/cpu").mkdir(parents=True)
    (package / "cpu").mkdir()
    (package / "__init__.py").touch()
    (package / "csrc/cpu/cpu.cpp").write_text('extern "C" int answer() { return 42; }\n')
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / ".gitignore").write_text("*.so\n")  # the wheel must hold what git ignores
    shutil.copy(ROOT / "hatch_build.py", tmp_path)
    return tmp_path


def build(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: os.environ[name] for name in os.environ if name not in ("CXX", "DSTOOLS_NATIVE")
    }
    return subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"],
        cwd=project,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def wheel(project: Path) -> tuple[str, list[str]]:
    """The tag of the one wheel that was built, and the files in it."""
    [path] = (project / "dist").iterdir()
    return path.stem.removeprefix("small-1-"), zipfile.ZipFile(path).namelist()


@needs_compiler
def test_a_compiler_gives_a_wheel_for_every_python_of_this_platform(project: Path) -> None:
    assert build(project, DSTOOLS_NATIVE="require").returncode == 0
    tag, files = wheel(project)
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert tag == f"py3-none-{platform}"
    assert LIBRARY in files
    assert (project / "kernels" / LIBRARY).exists()  # what an editable install uses


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"DSTOOLS_NATIVE": "0"}, "skipped: DSTOOLS_NATIVE=0"),
        ({"CXX": "no-such-compiler"}, "no C++ compiler found"),
        ({"PATH": "/nowhere"}, "no C++ compiler found"),
    ],
)
def test_without_a_compiler_the_wheel_is_pure_and_says_so(
    project: Path, environment: dict[str, str], reason: str
) -> None:
    stale = project / "kernels" / LIBRARY
    stale.write_text("of an older source")
    done = build(project, **environment)
    assert done.returncode == 0
    assert f"no CPU kernels, numpy is used instead: {reason}" in done.stdout + done.stderr
    tag, files = wheel(project)
    assert (tag, LIBRARY in files, stale.exists()) == ("py3-none-any", False, False)


@needs_compiler
def test_a_failed_compile_gives_a_pure_wheel_and_shows_the_compilers_words(project: Path) -> None:
    (project / "kernels/dstools_kernels/csrc/cpu/cpu.cpp").write_text("int broken = ;\n")
    done = build(project)
    assert done.returncode == 0
    assert "cpu.cpp:1" in done.stdout + done.stderr
    tag, files = wheel(project)
    assert tag == "py3-none-any"
    assert not [name for name in files if "libdstools" in name]  # nor half of one


@pytest.mark.parametrize("environment", [{"CXX": "no-such-compiler"}, {"CXX": "false"}])
def test_require_fails_where_nothing_can_be_compiled(
    project: Path, environment: dict[str, str]
) -> None:
    done = build(project, DSTOOLS_NATIVE="require", **environment)
    assert done.returncode != 0
    assert "DSTOOLS_NATIVE=require, and no CPU kernels" in done.stdout + done.stderr
    assert not [*project.rglob("*.whl")]


@needs_compiler
def test_cxx_names_the_compiler_with_its_arguments(project: Path) -> None:
    compiler = next(filter(shutil.which, ("c++", "g++", "clang++")))
    source = project / "kernels/dstools_kernels/csrc/cpu/cpu.cpp"
    source.write_text('#ifndef WANTED\n#error no\n#endif\nextern "C" int answer() { return 1; }\n')
    assert build(project, CXX=compiler, DSTOOLS_NATIVE="require").returncode != 0
    done = build(project, CXX=f"{compiler} -DWANTED", DSTOOLS_NATIVE="require")
    assert done.returncode == 0
