"""What is published of a folder, what is left out, and what stops a push."""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from dstools.hub.selection import Selection, is_weights, select
from dstools_converters.sidefiles.sums import SUMS, format_sums

KNOWN = [
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("tokenizer.model", "vocab.json", "merges.txt", "special_tokens_map.json", "recipe.yaml"),
    *("added_tokens.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja"),
    *("model-00001-of-00002.safetensors", "model.safetensors.index.json", "qwen.tiktoken"),
    *("README.md", "LICENSE", "LICENSE-MODEL", "LICENCE.txt", "NOTICE", "eval.json"),
    *("report.html", "report.md", "plots/acc[fp8].png", "loss.svg", ".eval_results/gsm8k.yaml"),
    *("manifest.json", "calibration.json", "expert_load.json", "preprocessor_config.json"),
]
UNKNOWN = [
    *("training_args.bin", "optimizer.pt", "rng_state.pth", "trainer_state.json", "scheduler.pt"),
    *("export_metadata.json", "n[12].txt", "notes.txt", ".gitattributes", ".DS_Store"),
    *("pytorch_model.bin", "model.gguf", "data/rows.jsonl", "sub/config.json", "out.log"),
    *("sub/model.safetensors", "tokenizer_corpus.parquet", "vocab_training_data.jsonl"),
    *("aws_config.json", "kubeconfig.json", "notice_to_self.xlsx", "LICENSE-notes.docx"),
    *("tmpl_chatml", "tokens.txt"),
]


def fill(folder: Path, *names: str, content: bytes = b"x") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def with_sums(folder: Path, *names: str) -> Path:
    fill(folder, *names)
    digests = {name: sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / SUMS).write_bytes(format_sums(digests))
    return folder


def faults(selection: Selection) -> dict[str, str]:
    return {finding.where: finding.code for finding in selection.faults}


def test_without_a_list_kinds_of_files_are_published_and_others_are_left_out(
    tmp_path: Path,
) -> None:
    fill(tmp_path, *KNOWN, *UNKNOWN, "checkpoint-10/model.safetensors", "runs/events.1")
    fill(tmp_path, ".git/config", ".cache/huggingface/x.json", "__pycache__/a.pyc")
    chosen = select(tmp_path)
    assert sorted(chosen.files) == sorted(KNOWN)
    assert chosen.left_out == sorted([*UNKNOWN, "checkpoint-10/", "runs/"])
    assert not chosen.faults
    assert chosen.nbytes == len(KNOWN)


def test_with_sums_what_they_list_is_published_and_what_was_added_since(tmp_path: Path) -> None:
    listed = ["config.json", "notes.txt", "modeling_x.py", "sub/a.bin"]
    with_sums(tmp_path, *listed)
    added = ["README.md", "eval.json", "report.html", "LICENSE", "plots/a.png"]
    fill(tmp_path, *added, "n1.txt")
    chosen = select(tmp_path)
    assert sorted(chosen.files) == sorted([*listed, *added])
    assert chosen.listed_by == SUMS
    assert chosen.sums.keys() == set(listed)
    assert chosen.left_out == ["n1.txt"]
    assert not chosen.faults


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors.index.json", "b.safetensors"]
)
def test_a_file_of_the_model_that_sums_do_not_list_stops_the_push(
    name: str, tmp_path: Path
) -> None:
    """As sums of the weights alone, which would publish a model that nobody can load."""
    with_sums(tmp_path, "a.safetensors")
    fill(tmp_path, name)
    assert faults(select(tmp_path)) == {name: "unlisted"}


def test_of_a_stage_its_outputs_are_published(tmp_path: Path) -> None:
    outputs = {"model.safetensors": {"bytes": 1, "sha256": sha256(b"x").hexdigest()}}
    fill(tmp_path, "model.safetensors", "timing.json", "other.bin")
    manifest = {"stage": "sft", "outputs": outputs}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    chosen = select(tmp_path)
    assert list(chosen.files) == ["model.safetensors"]
    assert chosen.sums == {"model.safetensors": outputs["model.safetensors"]["sha256"]}
    assert chosen.left_out == ["other.bin"]


@pytest.mark.parametrize("name", [".cache/x.json", "runs/events.1", "__pycache__/a.pyc"])
def test_a_listed_file_in_a_folder_that_is_not_looked_into_is_told_as_that(
    name: str, tmp_path: Path
) -> None:
    with_sums(tmp_path, "config.json", name)
    (found,) = select(tmp_path).faults
    assert found.where == name
    assert "a folder that is never published" in found.message


def test_a_listed_file_that_is_missing_stops_the_push(tmp_path: Path) -> None:
    with_sums(tmp_path, "config.json", "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    assert faults(select(tmp_path)) == {"model.safetensors": "missing"}


@pytest.mark.parametrize(
    "name",
    [
        *(".env", ".env.local", "prod.env", ".netrc", "id_rsa", "id_ed25519.pub", "key.pem"),
        *("sub/server.key", ".git-credentials", "credentials.json", "aws_credentials", "token"),
        *(".pypirc", "secrets.yaml", "x.p12", "sub/.ENV", ".envrc", ".env-prod", "token.txt"),
        *("hf_token", "client_secret.json", ".npmrc", "password.txt", ".token"),
    ],
)
@pytest.mark.parametrize("is_listed", [False, True])
def test_a_file_that_may_hold_a_secret_stops_the_push(
    name: str, is_listed: bool, tmp_path: Path
) -> None:
    fill(tmp_path, "config.json", name)
    if is_listed:
        with_sums(tmp_path, "config.json", name)
    assert faults(select(tmp_path)) == {name: "secret"}


@pytest.mark.parametrize(
    "name",
    [
        *("a.tmp", "model.safetensors.incomplete", ".config.json.partial", "x.swp", "config.json~"),
        *("tmpab12cd34", "sub/b.part", "UP.TMP"),
    ],
)
def test_a_temporary_file_stops_the_push(name: str, tmp_path: Path) -> None:
    fill(tmp_path, "config.json", name)
    assert faults(select(tmp_path)) == {name: "temporary"}


def test_names_that_only_look_like_secrets_or_temporary_files_pass(tmp_path: Path) -> None:
    names = ["tokenizer.json", "special_tokens_map.json", "LICENSE-KEY", "plots/tmp.png"]
    names += ["added_tokens.json", "tokenizer_config.json", "vocab.txt", "tokenizer.model.v3"]
    names += ["tmpl_chatml.jinja", "LICENSE-MODEL", "NOTICE.txt", "quantize_config.json"]
    fill(tmp_path, *names)
    assert not select(tmp_path).faults
    assert sorted(select(tmp_path).files) == sorted(names)


@pytest.mark.parametrize("place", ["", "sub/"])
def test_a_gitignore_stops_the_push(place: str, tmp_path: Path) -> None:
    fill(tmp_path, "config.json", f"{place}.gitignore")
    assert faults(select(tmp_path)) == {f"{place}.gitignore": "gitignore"}


def test_code_that_is_not_listed_stops_the_push_and_so_does_its_auto_map(tmp_path: Path) -> None:
    fill(tmp_path, "modeling_x.py")
    auto_map = {"AutoConfig": "modeling_x.Config", "AutoTokenizer": ["pkg.tok.T", None]}
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": auto_map}))
    found = select(tmp_path).faults
    assert [(finding.where, finding.code) for finding in found] == [
        ("modeling_x.py", "code"), ("config.json", "auto-map"), ("config.json", "auto-map"),
    ]  # fmt: skip
    assert "modeling_x.py" in found[1].message
    assert "pkg/tok.py" in found[2].message


def test_listed_code_and_code_of_another_repository_pass(tmp_path: Path) -> None:
    fill(tmp_path, "modeling_x.py")
    auto_map = {"AutoConfig": "modeling_x.Config", "AutoModel": "org/name--modeling_y.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": auto_map}))
    digests = {
        name: sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("config.json", "modeling_x.py")
    }
    (tmp_path / SUMS).write_bytes(format_sums(digests))
    assert not select(tmp_path).faults


def test_links_that_leave_the_folder_stop_the_push(tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", "a.json", "b.safetensors")
    folder = fill(tmp_path / "model", "tokenizer.json")
    (folder / "config.json").symlink_to(outside / "a.json")
    (folder / "model.safetensors").symlink_to(outside / "b.safetensors")
    (folder / "tokenizer_config.json").symlink_to("tokenizer.json")  # stays inside
    (folder / "vocab.json").symlink_to("nowhere")
    (folder / "plots").symlink_to(outside)
    assert faults(select(folder)) == dict.fromkeys(
        ("config.json", "model.safetensors", "vocab.json", "plots"), "link"
    )


def test_files_of_a_hub_cache_are_links_out_of_their_folder(tmp_path: Path) -> None:
    blobs = fill(tmp_path / "models--o--n/blobs", "a" * 40)
    snapshot = tmp_path / "models--o--n/snapshots/1"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to(blobs / ("a" * 40))
    found = select(snapshot).faults
    assert [finding.code for finding in found] == ["link"]
    assert "cp -rL" in found[0].hint


def test_a_pointer_of_git_lfs_stops_the_push(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    fill(tmp_path, "tokenizer.json", content=pointer)
    assert faults(select(tmp_path)) == {"tokenizer.json": "pointer"}


@pytest.mark.parametrize("name", ["a\nb.png", "a\\b.png", "a\x1bb.svg"])
def test_a_name_that_the_hub_does_not_take_stops_the_push(name: str, tmp_path: Path) -> None:
    fill(tmp_path, name)
    assert [finding.code for finding in select(tmp_path).faults] == ["name"]


@pytest.mark.parametrize(
    ("gigabytes", "levels"), [(199, []), (201, ["warning"]), (501, ["warning", "error"])]
)
def test_files_over_the_hub_s_limits_are_told_by_size(
    gigabytes: int, levels: list[str], tmp_path: Path
) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(gigabytes * 10**9)  # sparse
    chosen = select(tmp_path)
    found = [*chosen.warnings, *chosen.faults]
    assert [finding.level for finding in found] == levels
    assert all(f"{gigabytes} GB" in finding.message for finding in found)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("model.safetensors", True),
        ("original/consolidated.00.pth", True),
        ("pytorch_model.bin", True),
        ("model.safetensors.index.json", True),
        ("x.gguf", True),
        ("training_args.bin", False),
        ("optimizer.pt", False),
        ("config.json", False),
        ("logo.png", False),
    ],
)
def test_weights_and_indexes_are_told_from_other_files(name: str, is_one: bool) -> None:
    assert is_weights(name) is is_one
