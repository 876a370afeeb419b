"""No code of ours can run what a checkpoint holds: a search of the source.

vLLM let remote code run three times, each time by one call that forgot a flag: CVE-2025-66448,
CVE-2026-22807, CVE-2026-27893.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    path
    for package in ("dstools", "distill", "converters", "kernels", "scripts")
    for path in (ROOT / package).rglob("*.py")
)
RUNS_ITS_INPUT = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "joblib"}  # modules
SAFE_ONLY = {"trust_remote_code": False, "weights_only": True, "allow_pickle": False}
SAFE_ONLY |= {"shell": False}
UNSAFE_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
UNSAFE_CALLS |= {"Environment", "jinja2.Environment", "SandboxedEnvironment"}


def unsafe(source: str) -> Iterator[str]:
    """Yield each place of a module that could run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                if name.partition(".")[0] in RUNS_ITS_INPUT:
                    yield f"line {node.lineno}: import {name}"
        elif isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            if call in UNSAFE_CALLS:
                yield f"line {node.lineno}: {call}("
            if call == "torch.load" and "weights_only" not in given:
                yield f"line {node.lineno}: torch.load( without weights_only=True"
            for name, value in given.items():
                if name in SAFE_ONLY and not _is_constant(value, SAFE_ONLY[name]):
                    yield f"line {node.lineno}: {name}={ast.unparse(value)}"
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in SAFE_ONLY:
                    name = str(key.value)
                    if not _is_constant(value, SAFE_ONLY[name]):
                        yield f"line {node.lineno}: {name}: {ast.unparse(value)}"


def _is_constant(node: ast.expr, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_no_module_runs_what_it_reads() -> None:
    assert len(MODULES) > 200
    found = {
        f"{path.relative_to(ROOT)}: {place}"
        for path in MODULES
        for place in unsafe(path.read_text())
    }
    assert found == set()


@pytest.mark.parametrize(
    "line",
    [
        "AutoModel.from_pretrained(folder, trust_remote_code=True)",
        "AutoModel.from_pretrained(folder, trust_remote_code=trust)",
        "options = {'trust_remote_code': True}",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "import pickle",
        "from pickle import load",
        "import dill.detect",
        "jinja2.Environment().from_string(template)",
        "eval(text)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_the_search_finds(line: str) -> None:
    assert list(unsafe(line))


@pytest.mark.parametrize("line", ["model.eval()", "torch.load(path, weights_only=True)"])
def test_the_search_lets_pass(line: str) -> None:
    assert not list(unsafe(line))
