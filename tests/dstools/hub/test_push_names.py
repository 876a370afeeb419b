"""703 files with every kind of name, through a pull request and in one commit."""

import unicodedata
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dstools_converters.sidefiles.sums import SUMS, format_sums

if TYPE_CHECKING:
    from fakehub import FakeHub

Here = Callable[..., Any]
REPO = "alice/model"
FILES = 703
LFS_AT = 10_000  # bytes, of the local Hub
ODD = [
    *("a b.txt", " leading.txt", "trailing ", "two  spaces.txt", "#1.txt", "c#.json", "100%.txt"),
    *("%20.txt", "%2F.txt", "%", "why?.md", "a?b=c&d.txt", "a+b.txt", "[1].txt", "acc[fp8].txt"),
    *("{1}.txt", "(1).txt", "-rf", "--yes", "-", "~x", "*", "a*.txt", "!x", "'quoted'", '"quoted"'),
    *(
        "a;b",
        "a|b",
        "a&b",
        "$HOME",
        "`x`",
        "a:b",
        "a@b",
        "a=b",
        "a,b",
        "<x>",
        "^",
        "...",
        ".hidden",
    ),
    *("ü+&=.txt", unicodedata.normalize("NFD", "é.txt"), unicodedata.normalize("NFC", "é.txt")),
    *("模型.txt", "модель.txt", "مثال.txt", "🤗.txt", "README.MD", "readme.txt", "main", "refs"),
    *("x" * 255, "é" * 127 + "x", "/".join("d" * 20) + "/deep.txt", "-d/-f", "a b/[1] #%?.txt"),
]


@pytest.fixture
def many(small: Path) -> Path:
    """A model and files whose list is SHA256SUMS, 703 in all with the card and the list."""
    names = [*ODD, "empty.txt", "also-empty.bin"]
    sizes = {"below.txt": LFS_AT - 1, "exact.txt": LFS_AT, "above.txt": LFS_AT + 1}
    present = len(list(small.iterdir())) + 1  # SHA256SUMS
    numbered = FILES - present - len(names) - len(sizes)
    names += [f"part/{number % 7}/{number:04}.json" for number in range(numbered)]
    for name in names:
        path = small / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if "empty" in name else f"{{{name!r}}}")
    for name, size in sizes.items():
        (small / name).write_bytes(name.encode() * size)
        (small / name).write_bytes((small / name).read_bytes()[:size])
    digests = {
        str(path.relative_to(small)): sha256(path.read_bytes()).hexdigest()
        for path in small.rglob("*")
        if path.is_file() and path.name != "README.md"
    }
    (small / SUMS).write_bytes(format_sums(digests))
    return small


@pytest.mark.parametrize("by", ["a pull request", "one commit", "a branch"])
def test_703_files_with_odd_names_arrive_byte_for_byte(
    by: str, hub: "FakeHub", here: Here, many: Path
) -> None:
    hub.page_size = 150
    (many / "NOTICE").write_text("to make the repository\n")
    assert here(many, "--revision", "first").code == 0
    (many / "NOTICE").unlink()
    hub.rules["no_prs"] = by == "one commit"
    hub.log.clear()
    ref, options = ("fp8", ["--revision", "fp8"]) if by == "a branch" else ("main", [])
    done = here(many, *options)
    assert done.code == 0, done.stderr
    held = hub.head(REPO, ref)[1]
    assert len(held) - 1 == FILES  # .gitattributes
    for path in many.rglob("*"):
        name = str(path.relative_to(many))
        if path.is_file() and name not in ("README.md", SUMS):
            assert hub.content(REPO, name, ref) == path.read_bytes(), name
    for name, is_large in {"below.txt": False, "exact.txt": True, "empty.txt": False}.items():
        assert bool(held[name]["sha256"]) is is_large
    commits = [entry for entry in hub.log if "/commit/" in entry["p"]]
    assert len(commits) == (-(-FILES // 100) if by == "a pull request" else 1)
    assert "up to date" in here(many, *options).stdout


def test_a_lost_answer_in_the_middle_of_703_files_loses_and_repeats_nothing(
    hub: "FakeHub", here: Here, many: Path
) -> None:
    hub.faults += [
        {"match": "/commit/", "skip": 2, "drop": "after"},
        {"match": "/commit/", "skip": 4, "status": 500},
        {"match": "/commit/", "skip": 5, "drop": "body"},
    ]
    done = here(many)
    assert done.code == 0, done.stderr
    made = [commit["title"] for commit in hub.commits.values()]
    assert [title for title in made if title.startswith("Upload")] == [
        *(f"Upload with dstools ({number} of 8)" for number in range(1, 9)),
        "Upload with dstools (#1)",
    ]
    assert len(hub.head(REPO)[1]) - 1 == FILES
