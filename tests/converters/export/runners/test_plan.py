"""Engines on the loop, with a stand-in for TensorRT: its calls, their order, and their errors."""

import inspect
import json
import random
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from dstools_converters.errors import DstoolsError
from dstools_converters.export.deepseek import Options
from dstools_converters.export.folder import CHUNK, EXPORT, require_export
from dstools_converters.export.runners.plan import PlanSession
from dstools_converters.export.runners.session import OnnxSession, require_runnable
from dstools_converters.export.trt.plans import require_plans
from dstools_converters.runtime.decode import Loop, Model, Request
from dstools_converters.runtime.pages import Batch, Pool
from dstools_converters.runtime.sampling import Sampling

SHORT = Options(context=512)  # four rows: engines decode up to eight tokens a step
PICKS = replace(SHORT, picks_rows=True)
PAGES = 24
pytestmark = pytest.mark.usefixtures("one_thread")
Exported = Callable[..., Path]
Built = Callable[..., Path]


def opened(folder: Path, *, mtp: bool = True) -> PlanSession:
    limits, _ = require_plans(folder, require_export(folder), mtp=mtp)
    return PlanSession(folder, limits, PAGES, mtp=mtp, device=torch.device("cpu"))


def on_onnx_runtime(folder: Path) -> OnnxSession:
    limits = require_runnable(folder, require_export(folder), mtp=True)
    return OnnxSession(folder, limits, PAGES, mtp=True)


def batch_of(tokens: int) -> Batch:
    ends, past = torch.tensor([[0, tokens], [0, 0]], dtype=torch.int32)
    table = torch.tensor([[3, 1, 2, 4, 5, 6, 7, 0, 8][: -(-tokens // 64)]], dtype=torch.int32)
    return Batch(torch.arange(tokens) % 300 + 5, table, ends, past[:1])


def edit(folder: Path, name: str, content: bytes) -> None:
    """Replace an engine, and its sha256 in export.json."""
    (folder / name).write_bytes(content)
    export = require_export(folder)
    engines = export.engines | {name: sha256(content).hexdigest()}
    (folder / EXPORT).write_bytes(replace(export, engines=engines).to_bytes())


def refused(run: Callable[[], Any], folder: Path) -> tuple[str, str]:
    """Return the error and the hint, each on one line."""
    with pytest.raises(DstoolsError) as caught:
        run()
    message, hint = str(caught.value), caught.value.hint
    assert "\n" not in message + hint
    assert hint
    return message.replace(str(folder), "OUT"), hint


# ----------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("options", [SHORT, PICKS], ids=["all logits", "picked"])
@pytest.mark.parametrize("drafts", [0, 1])
def test_answers_are_those_of_the_graphs(
    options: Options, drafts: int, exported: Exported, built: Built, tensorrt: Any, tmp_path: Path
) -> None:
    """Prompts of 1 to 130 tokens in three rows: chunks that end no prompt, both profiles."""
    numbers = random.Random(3)
    prompts = [numbers.choices(range(3, 320), k=count) for count in (1, 70, 130, 7, 64)]
    requests = [Request(i, ids, 12) for i, ids in enumerate(prompts)]
    folder = built(exported(options=options), tmp_path / "a")

    def answers(model: Model) -> list[list[int]]:
        loop = Loop(model, Pool(PAGES), Sampling(), frozenset(), rows=3, drafts=drafts, chunk=64)
        found: list[list[int]] = [[] for _ in requests]
        for piece in loop.run(requests):
            found[piece.prompt_index] += piece.ids
        return found

    assert answers(opened(folder)) == answers(on_onnx_runtime(exported(options=options)))


@pytest.mark.parametrize("options", [SHORT, PICKS], ids=["all logits", "picked"])
def test_steps_and_drafts_have_the_numbers_of_the_graphs(
    options: Options, exported: Exported, built: Built, tensorrt: Any, tmp_path: Path
) -> None:
    """Sums in another order alone: 1e-5 of logits of 22. No row's logits are a shape, too."""
    ours = opened(built(exported(options=options), tmp_path / "a"))
    theirs = on_onnx_runtime(exported(options=options))
    assert (ours.vocab_size, ours.positions) == (theirs.vocab_size, theirs.positions) == (320, 512)
    batch, rows = batch_of(70), torch.tensor([69, 3])
    for at in (rows, rows[:1], rows[:0]):
        logits, states = ours.step(batch, at)
        wanted, hidden = theirs.step(batch, at)
        assert (logits.shape, states.shape) == (wanted.shape, hidden.shape)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, wanted, rtol=0, atol=2.2e-4)
        torch.testing.assert_close(states, hidden, rtol=0, atol=2.2e-4)
        shifted = torch.empty(70 * states.shape[1] + 1)[1:].view(states.shape).copy_(states)
        drafted, onward = ours.draft(batch, shifted, at)  # memory that TensorRT would not take
        wanted, state = theirs.draft(batch, hidden, at)
        assert onward.shape == state.shape
        torch.testing.assert_close(drafted, wanted, rtol=0, atol=2.2e-4)
        torch.testing.assert_close(onward, state, rtol=0, atol=2.2e-4)


# ------------------------------------------------------------------------------------------- calls


def test_few_tokens_take_the_profile_for_decoding_and_caches_are_bound_on_a_switch(
    exported: Exported, built: Built, tensorrt: Any, tmp_path: Path
) -> None:
    session = opened(built(exported(), tmp_path / "a"), mtp=False)
    (runtime,) = tensorrt.made
    (context,) = runtime.engine.contexts  # one workspace
    caches = {name for name in runtime.engine.inputs if name.startswith("past_key_values.")}
    assert len(caches) == 4
    for tokens, profile, is_switch in (
        (8, 0, True),
        (1, 0, False),
        (9, 1, True),
        (CHUNK, 1, False),
        (2, 0, True),
    ):
        context.calls.clear()
        session.step(batch_of(tokens), torch.tensor([0]))
        kinds = [kind for kind, _ in context.calls]
        assert context.profile == profile
        assert kinds[0] == ("profile" if is_switch else "shape")
        assert kinds.count("profile") == is_switch
        assert kinds[-1] == "execute"
        assert kinds.count("execute") == 1
        shaped = {name for kind, name in context.calls if kind == "shape"}
        assert caches <= shaped if is_switch else not caches & shaped
        for name in caches:
            written = name.replace("past_key_values", "present")
            assert context.addresses[name] == context.addresses[written]
            assert context.shapes[name][0] == PAGES


def test_each_engine_has_a_runtime_and_both_have_one_logger(
    exported: Exported, built: Built, tensorrt: Any, tmp_path: Path
) -> None:
    opened(built(exported(), tmp_path / "a"))
    main, draft = tensorrt.made
    assert main.log is draft.log
    assert main.engine_host_code_allowed
    assert draft.engine_host_code_allowed


def test_an_input_that_an_engine_lacks_is_not_bound(
    exported: Exported, built: Built, tensorrt: Any, tmp_path: Path
) -> None:
    session = opened(built(exported(), tmp_path / "a", without=["attention_metadata"]), mtp=False)
    logits, _ = session.step(batch_of(5), torch.tensor([4]))
    assert logits.shape == (1, 320)


def test_the_stand_in_has_calls_that_tensorrt_has(tensorrt: Any) -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX")
    own = {"refuse"}
    for ours, theirs in (
        (tensorrt.runtime, trt.Runtime),
        (tensorrt.engine, trt.ICudaEngine),
        (tensorrt.context, trt.IExecutionContext),
    ):
        for name, each in vars(ours).items():
            if inspect.isfunction(each) or isinstance(each, property):
                assert name in own or hasattr(theirs, name), name
                for argument in inspect.signature(each).parameters if callable(each) else ():
                    known = f"{argument}:" in str(getattr(theirs, name, None).__doc__)
                    assert name in own or name[0] == "_" or known or argument in {"self", "content"}
    assert hasattr(trt.Runtime, "engine_host_code_allowed")


# ------------------------------------------------------------------------------------------ errors


def test_an_engine_of_another_version_is_one_error(
    exported: Exported, built: Built, tensorrt: Any, tmp_path: Path
) -> None:
    folder = built(exported(), tmp_path / "a")
    edit(folder, "model.plan", b"of another version")
    message, hint = refused(lambda: opened(folder), folder)
    assert message == (
        "OUT/model.plan: TensorRT cannot load it in version 11.1.0: "
        "The engine plan file is not compatible, expecting 10.14"
    )
    assert "in a new folder: dstools export CKPT NEW --onnx --trt" in hint


def test_a_context_that_is_not_made_is_one_error(
    exported: Exported, built: Built, tensorrt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt.engine, "create_execution_context", lambda engine: None)
    folder = built(exported(), tmp_path / "a")
    message, hint = refused(lambda: opened(folder), folder)
    assert message == "OUT/model.plan: TensorRT cannot allocate its workspace"
    assert hint == "free memory of the GPU"


def test_a_step_that_tensorrt_refuses_is_one_error(
    exported: Exported, built: Built, tensorrt: Any, tmp_path: Path
) -> None:
    folder = built(exported(), tmp_path / "a")
    session = opened(folder, mtp=False)
    (context,) = tensorrt.made[0].engine.contexts
    context.refuse("an older one")
    step = lambda tokens: lambda: session.step(batch_of(tokens), torch.tensor([0]))  # noqa: E731
    message, _ = refused(step(CHUNK + 1), folder)
    wanted = "OUT/model.plan: TensorRT cannot take input_ids of [513]: Static dimension mismatch"
    assert message.startswith(wanted)
    context.set_tensor_address = lambda name, memory: True  # as if it had forgotten all
    context.addresses.clear()
    message, hint = refused(step(4), folder)
    assert message.startswith(
        "OUT/model.plan: TensorRT cannot run a step: Address is not set for input tensor "
    )
    assert "shorter prompts" in hint


def test_an_engine_that_export_json_does_not_name_is_not_loaded(
    exported: Exported, built: Built, tensorrt: Any, tmp_path: Path
) -> None:
    folder = built(exported(), tmp_path / "a")
    table = json.loads((folder / "mtp.plan").read_bytes())
    (folder / "mtp.plan").write_text(json.dumps(table | {"other": 1}))
    message, _ = refused(lambda: opened(folder), folder)
    assert message.startswith("OUT/mtp.plan: is not the engine that export.json names")
    assert len(tensorrt.made) == 1  # that of model.plan
