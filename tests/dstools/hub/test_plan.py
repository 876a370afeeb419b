"""The plan of a push says what stands in the way before anything is read or changed."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dstools.hub import plan as module
from dstools.hub.client import Hub
from dstools.hub.plan import Plan, Target, plan
from dstools_converters.errors import DstoolsError

if TYPE_CHECKING:
    from fakehub import FakeHub

REPO, BASE = "alice/model", "deepseek-ai/DeepSeek-V3"
LICENCE = b"---\nlicense: mit\n---\n"


@pytest.fixture
def leg() -> str:
    """One leg is enough: nothing large is sent here."""
    return "lfs"


@pytest.fixture
def folder(bare: Path) -> Path:
    """A folder that quantize wrote, and its licence."""
    (bare / "README.md").write_bytes(LICENCE)
    return bare


@pytest.fixture
def make(connect: Callable[..., Hub], folder: Path) -> Callable[..., Plan]:
    def make(repo: str = REPO, base: str | None = BASE, **options: object) -> Plan:
        return plan(connect(repo=repo), folder, Target(repo, base=base, **options))  # type: ignore[arg-type]

    return make


def codes(planned: Plan) -> list[str]:
    return [finding.code for finding in planned.refusals]


def test_a_new_repository_is_private_and_filled_by_a_pull_request(
    make: Callable[..., Plan], hub: "FakeHub"
) -> None:
    planned = make()
    assert planned.branch.is_new_repository
    assert planned.branch.private
    assert planned.uses_pull_request
    assert planned.has_base
    assert not planned.refusals
    assert {"README.md", "SHA256SUMS", "config.json"} < planned.selection.names
    assert not hub.repos
    assert not [entry for entry in hub.log if entry["m"] != "GET"]


def test_public_and_private_are_as_asked_for_and_never_changed(
    make: Callable[..., Plan], connect: Callable[..., Hub]
) -> None:
    assert not make(private=False).branch.private
    connect().api.create_repo(REPO, private=False)
    assert not make().branch.private
    assert not make(private=False).branch.private
    with pytest.raises(DstoolsError, match="is public, not private; push does not change") as error:
        make(private=True)
    assert "leave out --private" in error.value.hint


@pytest.mark.parametrize(
    ("pays", "private", "refused"),
    [(False, None, True), (False, True, False), (False, False, False), (True, None, False)],
)
def test_a_free_account_has_no_room_for_a_large_private_repository(
    pays: bool,
    private: bool | None,
    refused: bool,
    make: Callable[..., Plan],
    hub: "FakeHub",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.tokens["hf_good"]["isPro"] = pays
    monkeypatch.setattr(module, "FREE_PRIVATE_BYTES", 1000)
    if refused:
        with pytest.raises(DstoolsError, match="a free account holds 1 kB") as error:
            make(private=private)
        assert "--public" in error.value.hint
    else:
        make(private=private)


def test_one_who_may_not_write_there_is_refused(
    connect: Callable[..., Hub], folder: Path, hub: "FakeHub"
) -> None:
    connect().api.create_repo(REPO, private=False)
    scopes = {REPO: ["repo.content.read"]}
    hub.tokens["hf_fine"] = {"name": "alice", "role": "fineGrained", "scopes": scopes}
    with pytest.raises(DstoolsError, match=f"check that you may write to {REPO}"):
        plan(connect("hf_fine"), folder, Target(REPO, base=BASE))


def test_a_reader_of_an_organization_is_refused_before_its_repository_exists(
    connect: Callable[..., Hub], folder: Path, hub: "FakeHub"
) -> None:
    hub.tokens["hf_good"]["orgs"] = {"acme": "read"}
    with pytest.raises(DstoolsError, match="alice may only read in acme"):
        plan(connect(repo="acme/model"), folder, Target("acme/model", base=BASE))


def test_old_weights_on_the_branch_are_refused_and_with_replace_removed(
    make: Callable[..., Plan], connect: Callable[..., Hub]
) -> None:
    api = connect().api
    api.create_repo(REPO)
    for name in ("old.safetensors", "logo.png"):
        api.upload_file(path_or_fileobj=b"x" * 9, path_in_repo=name, repo_id=REPO)
    planned = make()
    assert codes(planned) == ["contradiction"]
    assert "old.safetensors" in planned.refusals[0].message
    planned = make(replaces=True)
    assert not planned.refusals
    assert planned.contradictions == ["old.safetensors"]


def test_a_branch_that_does_not_exist_begins_at_main_and_has_no_pull_request(
    make: Callable[..., Plan], connect: Callable[..., Hub], hub: "FakeHub"
) -> None:
    connect().api.create_repo(REPO)
    planned = make(revision="fp8")
    assert planned.branch.is_new
    assert planned.branch.commit == hub.head(REPO)[0]
    assert not planned.uses_pull_request


def test_pull_requests_that_are_off_are_known_before_anything_is_sent(
    make: Callable[..., Plan], connect: Callable[..., Hub], hub: "FakeHub"
) -> None:
    connect().api.create_repo(REPO)
    hub.rules["no_prs"] = True
    assert not make().uses_pull_request


def test_everything_that_stands_in_the_way_is_told_at_once(
    make: Callable[..., Plan], folder: Path
) -> None:
    (folder / ".env").write_text("x")
    (folder / "NOTICE").write_text("hf_good\n")
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results/x.yaml").write_text("- dataset: 1\n")
    found = codes(make(base=None))
    assert found[:2] == ["secret", "card"]
    assert found[-1] == "secret"
    assert set(found[2:-1]) == {"eval-results"}


def test_a_hub_that_does_not_answer_hides_no_fault_of_the_folder(
    make: Callable[..., Plan], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def account(hub: Hub) -> str:
        raise DstoolsError("the Hub wants a token", "hf auth login")

    monkeypatch.setattr(Hub, "account", account)
    with pytest.raises(DstoolsError, match=r"the Hub wants a token$"):
        make()
    (folder / ".env").write_text("x")
    with pytest.raises(DstoolsError) as caught:
        make()
    assert str(caught.value) == (
        "the Hub wants a token; and not to be published: .env: may hold a secret"
    )
    assert caught.value.hint == "hf auth login"


def test_the_text_of_the_remote_card_is_kept(
    make: Callable[..., Plan], connect: Callable[..., Hub]
) -> None:
    api = connect().api
    api.create_repo(REPO)
    text = LICENCE.replace(b"mit", b"apache-2.0\nbase_model: a/b") + b"# Mine\n"
    api.upload_file(path_or_fileobj=text, path_in_repo="README.md", repo_id=REPO)
    card = make().card
    assert b"# Mine" in card
    assert b"apache-2.0" in card


def test_a_folder_that_is_missing_is_named(connect: Callable[..., Hub], tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match="nowhere: no such folder"):
        plan(connect(), tmp_path / "nowhere", Target(REPO))


def test_a_text_that_is_not_published_is_warned_of_once(
    make: Callable[..., Plan], folder: Path
) -> None:
    assert not make().selection.warnings
    (folder / "README.md").write_bytes(LICENCE + b"# Mine\n")
    planned = make()
    assert [f"{f.where} {f.message}" for f in planned.selection.warnings] == [
        "README.md is taken for the base's: its text is not published"
    ]
    assert b"# Mine" not in planned.card


def test_what_the_folder_s_card_says_differently_from_the_repository_s_is_a_warning(
    make: Callable[..., Plan], connect: Callable[..., Hub], folder: Path
) -> None:
    api = connect().api
    api.create_repo(REPO)
    remote = f"---\nlicense: llama3\nbase_model: {BASE}\n---\n# There\n".encode()
    api.upload_file(path_or_fileobj=remote, path_in_repo="README.md", repo_id=REPO)
    (folder / "README.md").write_bytes(remote)
    assert not make().selection.warnings
    local = f"---\nlicense: mit\nbase_model: {BASE}\n---\n# Here\n"
    (folder / "README.md").write_text(local)
    (warning,) = make().selection.warnings
    assert "license, the text of this one is not published" in warning.message


def test_files_of_the_repository_that_stay_are_listed(
    make: Callable[..., Plan], connect: Callable[..., Hub]
) -> None:
    api = connect().api
    api.create_repo(REPO)
    for name in ("chat_template.jinja", "old.safetensors", "config.json"):
        api.upload_file(path_or_fileobj=b"x" * 9, path_in_repo=name, repo_id=REPO)
    assert make().stays == ["chat_template.jinja"]


def test_without_a_base_a_card_cannot_be_the_base_s(
    make: Callable[..., Plan], folder: Path
) -> None:
    (folder / "README.md").write_bytes(LICENCE + b"# My text\n")
    assert b"My text" not in make().card
    assert b"My text" in make(base="none").card
