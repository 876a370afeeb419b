import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dstools_converters.errors import DstoolsError, ShortfallError
from dstools_converters.export.deepseek import Job, Options
from dstools_converters.export.folder import require_export
from dstools_converters.export.trt import engine, rtx
from dstools_converters.export.trt.engine import (
    build_engines,
    lacking,
    own_precision,
    require_kernels,
    require_sizes,
)
from dstools_converters.export.trt.rtx import MOST_ELEMENTS

SHORT = Options(context=128)
HALF = Options("bfloat16", 128)


def test_v3_divides_its_experts_among_two_ranks_at_least() -> None:
    one = 2048 * 7168  # elements of gate_proj of one of its 256 experts
    assert 146 * one <= MOST_ELEMENTS < 147 * one


@pytest.fixture
def fitting(make_checkpoint: ModuleType, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a small model with the latents of V3, with changes."""

    def make(fp8: str | None = None, **changes: object) -> Path:
        config = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_experts_per_tok": 2}
        with pytest.MonkeyPatch.context() as patch:
            tiny = make_checkpoint.CONFIGS["tiny-aligned"]
            patch.setitem(make_checkpoint.CONFIGS, "fitting", tiny | config | changes)
            return Path(make_checkpoint.make("fitting", tmp_path / "model", fp8=fp8))

    return make


@pytest.mark.parametrize("fp8", [None, "float32"])
def test_a_model_that_the_kernels_take_is_not_refused(
    fitting: Callable[..., Path], job: Callable[..., Job], fp8: str | None
) -> None:
    require_kernels(job(fitting(fp8), HALF))


@pytest.mark.parametrize(
    ("fp8", "changes", "options", "words"),
    [
        (None, {}, SHORT, "--trt: the kernels are for BF16, not float32"),
        (None, {}, replace(HALF, dtype="float16"), "--trt: the kernels are for BF16, not float16"),
        (None, {"kv_lora_rank": 256}, HALF, "latents of 256 in 320; the kernels are for 512 in"),
        (None, {"moe_intermediate_size": 132}, HALF, r"gate_proj\S* is \[132, 256\]; .* \[8, 8\]"),
        ("float32", {"moe_intermediate_size": 136}, HALF, r"gate_proj\S* is \[136, .* \[16, 16\]"),
        ("float32", {"q_lora_rank": 136}, HALF, r"q_b_proj\S* is \[\d+, 136\]; .* \[8, 16\]"),
    ],
)
def test_a_model_that_no_kernel_runs_is_refused_by_name(
    fitting: Callable[..., Path],
    job: Callable[..., Job],
    fp8: str | None,
    changes: dict[str, int],
    options: Options,
    words: str,
) -> None:
    with pytest.raises(DstoolsError, match=words):
        require_kernels(job(fitting(fp8, **changes), options))


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("SLOTS", "2 experts a token; .* 1 at most"),
        ("MOST_EXPERTS", r"a rank has \d+ experts; .* 1 at"),
    ],
)
def test_more_experts_than_the_kernels_take_are_refused(
    fitting: Callable[..., Path],
    job: Callable[..., Job],
    limit: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, limit, 1)
    with pytest.raises(DstoolsError, match=words):
        require_kernels(job(fitting(), HALF))


def test_the_limits_are_those_of_the_plugins() -> None:
    plugin = pytest.importorskip("dstools_kernels.plugin")
    from dstools_kernels.ops.triton import combine_triton, moe_gemm_triton, permute_triton

    assert (plugin.RANK, plugin.WIDTH) == engine.LATENT
    assert combine_triton.SLOTS == engine.SLOTS
    assert min(permute_triton.EXPERTS, moe_gemm_triton.EXPERTS) == engine.MOST_EXPERTS


def test_a_tensor_that_is_too_large_is_named(
    job: Callable[..., Job], tiny_fp8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_sizes(job(tiny_fp8))
    monkeypatch.setattr(engine, "MOST_ELEMENTS", 300_000)
    with pytest.raises(DstoolsError, match=r"--trt: model\.\S+ of rank 0 is \[.*\], [\d,]+ elem"):
        require_sizes(job(tiny_fp8))


def test_caches_count_with_all_their_pages(
    job: Callable[..., Job], tiny_fp8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 4096
    planned = job(tiny_fp8, replace(SHORT, max_batch=rows, context=128))
    monkeypatch.setattr(engine, "MOST_ELEMENTS", 2 * rows * 128 * 16)
    with pytest.raises(DstoolsError) as caught:
        require_sizes(planned)
    assert "a cache of the pool is [16384, 64, " in str(caught.value)
    assert caught.value.hint == "lower --context or --max-batch"


def test_the_dtype_of_a_checkpoint_is_that_of_its_embedding(
    job: Callable[..., Job], tiny_fp8: Path
) -> None:
    assert own_precision(job(tiny_fp8).inventory) == "bfloat16"


def test_elsewhere_it_says_what_is_missing_and_what_to_run_there(
    exported: Callable[..., Path], tiny_fp8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "lacking", lambda: ["TensorRT 11 or later", "a GPU"])
    folder = exported(tiny_fp8, SHORT)
    command = "dstools export a b --trt"
    with pytest.raises(ShortfallError) as caught:
        build_engines(folder, require_export(folder), folder / "lib.so", command)
    assert str(caught.value).endswith(
        "graph and plugins are ready; an engine needs TensorRT 11 or later and a GPU"
    )
    assert caught.value.hint == f"run there: {command}"


def test_graphs_that_were_changed_are_refused_before_anything_is_built(
    exported: Callable[..., Path], tiny_fp8: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported(tiny_fp8, SHORT), tmp_path / "copy"))
    (folder / "mtp.onnx").unlink()
    with pytest.raises(ShortfallError, match=r"mtp.onnx: is missing"):
        build_engines(folder, require_export(folder), folder / "lib.so", "")


def test_what_a_machine_lacks_is_told_with_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(engine, "version", absent)
    assert lacking() == ["TensorRT 11 or later", "a GPU of compute capability 9.0"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(engine, "version", lambda name: "10.14.1")
    assert lacking() == [
        "TensorRT 11 or later (there is 10.14.1)",
        "a GPU of compute capability 9.0 (there is 8.9)",
    ]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(engine, "version", lambda name: "11.1.0")
    assert lacking() == []


BUILD = """
import sys
from pathlib import Path
import tensorrt_rtx_bindings as trt
from dstools_converters.export.folder import require_export
from dstools_converters.export.trt import engine, rtx

plain = engine.configure

def for_a_machine_without_gpu(*args):
    config = plain(*args)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    return config

class Runtime:  # a GPU is needed to load an engine
    def __init__(self, log): pass
    def deserialize_cuda_engine(self, plan):
        assert self.engine_host_code_allowed
        assert memoryview(plan).nbytes == plan.nbytes
        return self
    def create_engine_inspector(self): return self
    def get_engine_information(self, form): return form.name

trt.Runtime, engine.configure, engine.lacking = Runtime, for_a_machine_without_gpu, lambda: []
sys.modules["tensorrt"] = trt
folder = Path(sys.argv[1])
engine.build_engines(folder, require_export(folder), Path(sys.argv[2]), "")
"""


@pytest.mark.slow
def test_engines_of_all_graphs_are_built_by_the_interface_of_tensorrt(
    exported: Callable[..., Path], tiny_fp8: Path, library: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported(tiny_fp8, SHORT), tmp_path / "copy"))
    before = require_export(folder)
    command = [sys.executable, "-c", BUILD, str(folder), str(library)]
    links = tmp_path / "links"
    links.mkdir()
    subprocess.run(command, env=rtx._environment(links), check=True)  # RTX is not TensorRT 11
    after = require_export(folder)
    names = {"model.plan", "model.layers.json", "mtp.plan", "mtp.layers.json", "timing.cache"}
    assert set(after.engines) == names
    assert replace(after, engines={}) == before
    for name, digest in after.engines.items():
        assert sha256((folder / name).read_bytes()).hexdigest() == digest
    assert (folder / "mtp.layers.json").read_bytes() == b"JSON"
    weights = (folder / "model.data").stat().st_size
    assert (folder / "model.plan").stat().st_size > weights / 2
