"""What a recipe asks for, and how one that is wrong is refused."""

from pathlib import Path

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.recipe.recipe import Recipe, read_recipe
from dstools_distill.recipe.settings import Lora

SOURCE = '[[prompts.source]]\npath = "a.jsonl"\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def read(tmp_path: Path, text: str) -> Recipe:
    return read_recipe(write(tmp_path, text))


def test_stages_come_in_the_order_data_flows_whatever_the_order_of_the_tables(
    tmp_path: Path,
) -> None:
    recipe = read(tmp_path, f'[verify]\n[generate]\nbackend = "replay"\n{SOURCE}')
    (chain,) = recipe.chains
    assert list(chain.stages) == ["prompts", "generate", "verify"]
    assert chain.name == ""
    assert recipe.card is None


def test_a_table_keeps_its_defaults_and_takes_what_it_says(tmp_path: Path) -> None:
    text = (
        '[student]\nmodel = "m"\n[render]\n'
        "[sft]\nlearning_rate = 1\nlora = { rank = 4 }\nbetas = [0.5, 1.0]\n"
    )
    sft = read(tmp_path, text).chains[0].stages["sft"]
    assert (sft.learning_rate, sft.betas, sft.lora) == (1.0, (0.5, 1.0), Lora(rank=4))
    assert type(sft.learning_rate) is float
    assert sft.weight_decay == 0.0


def test_arms_and_seeds_multiply_and_say_only_what_differs(tmp_path: Path) -> None:
    text = (
        'seeds = [0, 7]\n[student]\nmodel = "m"\n[select]\nper_prompt = 2\n[sft]\n'
        '[arms.verified]\n[arms.unfiltered]\nselect = { keep = "all" }\n'
    )
    chains = {chain.name: chain.stages for chain in read(tmp_path, text).chains}
    assert list(chains) == ["verified-0", "verified-7", "unfiltered-0", "unfiltered-7"]
    assert chains["verified-7"]["sft"].seed == 7
    assert chains["verified-7"]["select"].keep == "all-correct"
    assert chains["unfiltered-0"]["select"].keep == "all"
    assert chains["unfiltered-0"]["select"].per_prompt == 2


def test_a_phase_has_the_tables_it_names_over_the_shared_ones(tmp_path: Path) -> None:
    text = (
        '[student]\nmodel = "m"\n[sft]\nlearning_rate = 0.5\nepochs = 2\n'
        '[[phase]]\nname = "cold-start"\nsft = { epochs = 3 }\n'
        '[[phase]]\nname = "rl"\ngrpo = {}\nstudent = { model = "phase:cold-start/sft" }\n'
    )
    cold, rl = read(tmp_path, text).chains
    assert list(cold.stages) == ["sft"]
    assert (cold.stages["sft"].learning_rate, cold.stages["sft"].epochs) == (0.5, 3.0)
    assert list(rl.stages) == ["grpo"]
    assert (cold.student.model, rl.student.model) == ("m", "phase:cold-start/sft")


def test_a_recipe_changes_and_removes_what_its_preset_says(tmp_path: Path) -> None:
    text = 'preset = "r1-distill-qwen-7b"\ndecontaminate = false\nsft = { epochs = 5 }\n'
    chain = read(tmp_path, text).chains[0]
    assert "decontaminate" not in chain.stages
    assert (chain.stages["sft"].epochs, chain.stages["sft"].learning_rate) == (5.0, 8e-5)


WRONG = [
    ("[sft", "is not TOML", ""),
    ("", "names no stage", "init"),
    ("[stf]\n", "stf: no such key", "did you mean sft"),
    ("[verify]\ntimeout = 1\n", "verify.timeout: no such key", "timeout_seconds"),
    ("verify = 3\n", "verify: is not a table", "[verify]"),
    ("[generate]\n", "generate.backend: is missing", "one of hf"),
    (
        '[generate]\nbackend = "vllm"\n',
        "generate.backend: 'vllm' is none of hf, openai",
        "known are hf",
    ),
    ('[student]\nmodel = "."\n[mtp]\nepochs = 0.0\n', "mtp.epochs: is 0, which", "above 0"),
    ('[student]\nmodel = "."\n[sft]\nepochs = 0\n', "sft.epochs: is 0, which", "max_steps"),
    (
        '[generate]\nbackend = "hf"\nsamples = 0\n',
        "generate.samples: 0 is out of range",
        "1 or more",
    ),
    (
        '[generate]\nbackend = "hf"\nsamples = 1.5\n',
        "generate.samples: 1.5 is not a whole number",
        "",
    ),
    (
        '[generate]\nbackend = "hf"\nsamples = true\n',
        "generate.samples: True is not a whole number",
        "",
    ),
    (
        '[generate]\nbackend = "hf"\ntemperature = -1.0\n',
        "generate.temperature: -1.0 is out",
        "0 or",
    ),
    ('[generate]\nbackend = "hf"\ntemperature = inf\n', "generate.temperature: inf is out", ""),
    ('[generate]\nbackend = "hf"\ntemperature = nan\n', "generate.temperature: nan is out", ""),
    (
        "[select]\nmin_pass_rate = 0.9\nmax_pass_rate = 0.1\n",
        r"select\.min_pass_rate: 0\.9 is above max_pass_rate = 0\.1, which leaves nothing",
        "swap the two",
    ),
    (
        '[prompts]\nmin_difficulty = 0.9\nmax_difficulty = 0.1\n[[prompts.source]]\npath = "a"\n',
        r"prompts\.min_difficulty: 0\.9 is above max_difficulty = 0\.1",
        "leave one out",
    ),
    ("[select]\nmax_pass_rate = 1.5\n", "select.max_pass_rate: 1.5 is out of range", "between"),
    ("[prompts]\n", "prompts.source: is missing", ""),
    ("[prompts]\nsource = 3\n", "prompts.source: is not a list", ""),
    ("[prompts]\nsource = [3]\n", r"prompts.source\[0\]: is not a table", ""),
    ("[prompts]\n[[prompts.source]]\nform = 3\n", r"source\[0\].path: is missing|form: 3 is", ""),
    ("[sft]\n", "student.model: is missing, and sft needs it", "init"),
    ('[sft]\n[student]\ninit = { model_type = "qwen2" }\n', "student.tokenizer: is missing", ""),
    ('[sft]\n[student]\nmodel = "m"\ninit = { a = 1 }\n', "has both model and init", ""),
    (
        '[sft]\nbatch_size = 6\nmicro_batch_size = 4\n[student]\nmodel = "m"\n',
        "sft: batch_size = 6 is not a multiple of micro_batch_size x processes = 4",
        "multiple",
    ),
    (
        '[sft]\nparallel = "ddp"\n[student]\nmodel = "m"\n',
        "sft: processes = 1 and parallel = 'ddp'",
        "trial",
    ),
    ('[sft]\nbetas = [0.9]\n[student]\nmodel = "m"\n', "sft.betas: must have 2 items, not 1", ""),
    ("seeds = [0, -1]\n[verify]\n", r"seeds\[1\]: -1 is out of range", ""),
    ("[verify]\n[arms]\nverify = {}\n", "verify is the name of a stage", ""),
    ('[verify]\n[arms."a/b"]\n', "'a/b' is not a name", ""),
    ("[verify]\n[arms.a]\ncard = {}\n", "arms.a.card: no such key", ""),
    ("[verify]\n[arms.a]\n[[phase]]\nname = 'b'\n", "has phases, and arms", ""),
    ("[[phase]]\nverify = {}\n", "phase 1: name: None is not a name", ""),
    ("[[phase]]\nname = 'b'\n[[phase]]\nname = 'b'\n", "two phases are called b", ""),
    ('preset = "none"\n', "none: no such preset", "toy-cpu"),
    ("preset = 3\n", "preset: 3 is not text", ""),
]


@pytest.mark.parametrize(("text", "message", "hint"), WRONG)
def test_a_wrong_recipe_is_refused_by_file_and_key(
    tmp_path: Path, text: str, message: str, hint: str
) -> None:
    with pytest.raises(DstoolsError, match=message) as caught:
        read(tmp_path, text)
    assert hint in caught.value.hint
    assert caught.value.hint
    assert str(caught.value).startswith((str(tmp_path), "none"))


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.toml"):
        with pytest.raises(DstoolsError, match=str(path)):
            read_recipe(path)
