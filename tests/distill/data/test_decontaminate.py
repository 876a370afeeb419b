"""Tests of decontamination: benchmark problems are found in any markup, and little else is."""
# ruff: noqa: RUF001

import random
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill import records
from dstools_distill.data.benchmarks import EVAL_INDEX
from dstools_distill.data.decontaminate import build_index, decontaminate, index_problems
from dstools_distill.data.ngrams import are_words, hashes_of, tokens
from dstools_distill.figures import SPELLED
from dstools_distill.recipe.settings import Decontaminate
from dstools_distill.recipe.stages import Inputs
from dstools_distill.records import Record
from dstools_distill.store.stage import Report, Work

# ------------------------------------------------------------------------------ two benchmarks

NAMES = ["Ines", "Tomé", "Wanja", "Óskar", "Li", "Amara", "Jörg", "Nadia", "Piet", "Yuki"]
THINGS = ["kayaks", "lanterns", "quinces", "bell-ropes", "maps", "kites", "barrels", "stamps"]
PLACES = ["the lock", "Ålesund", "a hillside market", "the old mill", "platform six", "the quay"]
DOINGS = ["mends", "paints", "sells", "counts", "weighs", "borrows", "wraps", "numbers"]
WHENS = ["every Monday", "before dawn", "in the rain", "twice a month", "after school", "at noon"]
ASKS = [
    "How many {t} are left when she goes home?",
    "What is the share of the {t} that nobody wanted?",
    "After how many days has each of the {t} been seen once?",
    "In how many ways can the {t} be put in a row so that no two red ones touch?",
]


def story(rng: random.Random) -> str:
    """A word problem of about 40 words, drawn at random."""
    t, u = rng.sample(THINGS, 2)
    parts = [
        f"{rng.choice(WHENS).capitalize()} {rng.choice(NAMES)} {rng.choice(DOINGS)} "
        f"{rng.randrange(2, 40)} {t} at {rng.choice(PLACES)}",
        f"{rng.choice(NAMES)} {rng.choice(DOINGS)} {rng.randrange(1000, 99999):,} {u} there",
        f"{rng.choice(PLACES)} has room for {rng.randrange(3, 90)} of them, well-kept or not",
    ]
    rng.shuffle(parts)
    return f"{parts[0]}, while {parts[1]}. As {parts[2]}, think: {rng.choice(ASKS).format(t=t)}"


def formula(rng: random.Random) -> str:
    """A short question of four to nine tokens with LaTeX in it."""
    a, b, c = (rng.randrange(2, 99) for _ in range(3))
    return rng.choice(
        [
            rf"Evaluate $\cos {a}^\circ + {b}$.",
            rf"Compute $\dfrac{{{a}}}{{{b}}} - \sqrt{{{c}}}$.",
            rf"What is the last digit of $7^{{{a}{b}}}$?",
            rf"Solve $x^2 - {a} \leq {b}$.",
            rf"Find $\int_0^{{{a}}} {b}x\,dx$.",
        ]
    )


def long_formula(rng: random.Random) -> str:
    a, b, c, d = (rng.randrange(2, 99) for _ in range(4))
    x, y = rng.sample("xyzuvw", 2)
    return (
        rf"Let ${x} = \dfrac{{{a}}}{{{b}}}$ and $\left({y} - {c}\right)^2 \leq {d}\pi$. "
        rf"{story(rng)[:60].rsplit(' ', 1)[0]}. "
        rf"Which ${y} \in \mathbb{{R}}$ make $\sqrt{{{x}\cdot {y}}}$ "
        rf"the largest {rng.choice(THINGS)}?"
    )


def drill(rng: random.Random) -> str:
    """One of many with the same words and other numbers."""
    a, b, c = (rng.randrange(10, 9999) for _ in range(3))
    return f"State the final answer to the following arithmetic problem: {a} + {b} - {c} ="


def questions(kind: Callable[[random.Random], str], count: int, seed: int) -> list[str]:
    """Distinct questions, no two with the same tokens."""
    rng = random.Random(seed)
    distinct: dict[tuple[str, ...], str] = {}
    while len(distinct) < count:
        text = kind(rng)
        distinct.setdefault(tuple(tokens(text)), text)
    return list(distinct.values())


BENCHMARK = [
    *questions(story, 120, 1),
    *questions(long_formula, 40, 2),
    *questions(formula, 60, 3),
    *questions(drill, 40, 4),
]
DRILLS = 220  # from here on, only a whole question identifies a problem

# ----------------------------------------------------------------------------------- its variants


def wide(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" and c != "\\" else c for c in text)


def bold(text: str) -> str:
    return re.sub("[a-z]", lambda c: chr(0x1D41A + ord(c[0]) - 97), text)


VARIANTS: dict[str, Callable[[str], str]] = {
    "verbatim": lambda text: text,
    "upper case": lambda text: re.sub(
        r"\\[a-zA-Z]+|.", lambda m: m[0] if m[0][0] == "\\" else m[0].upper(), text
    ),
    "no punctuation": lambda text: re.sub(r"[?.,:](?=\s|$)", "", text),
    "more punctuation": lambda text: re.sub(r"(?<=[a-z]) (?=[a-z])", ", ", text),
    "dashes": lambda text: re.sub(r", | (?=while)", " — ", text),
    "hyphens gone": lambda text: re.sub("(?<=[a-z])-(?=[a-z])", " ", text),
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "full width": wide,
    "mathematical bold": bold,
    "no-break blanks": lambda text: text.replace(" ", "\u00a0"),
    "wrapped lines": lambda text: re.sub(" (?=[a-z])", "\r\n\t ", text),
    "soft hyphens": lambda text: (
        re.sub("([a-z]{3})(?=[a-z]{2})(?<!frac)", "\\1\u00ad", text) if "\\" not in text else text
    ),
    "quotes": lambda text: f"“{text}”",
    "markdown": lambda text: f"> **{text}**",
    "emphasis": lambda text: re.sub(r"\b(many|share|final|last)\b", r"*\1*", text),
    "brackets for dollars": lambda text: re.sub(r"\$([^$]*)\$", r"\\( \1 \\)", text),
    "display math": lambda text: re.sub(r"\$([^$]*)\$", r"$$\\displaystyle \1$$", text),
    "tfrac": lambda text: text.replace(r"\dfrac", r"\tfrac"),
    "frac without braces": lambda text: re.sub(r"\\dfrac\{(\d)\}\{(\d)\}", r"\\frac\1\2", text),
    "no left and right": lambda text: text.replace(r"\left", "").replace(r"\right", ""),
    "spaces in math": lambda text: re.sub(
        r"\$([^$]*)\$", lambda m: m[0].replace(" ", r" \, ").replace("+", r"\;+\;"), text
    ),
    "signs for commands": lambda text: (
        text.replace(r"\leq", "≤")
        .replace(r"^\circ", "°")
        .replace(r"\pi", "π")
        .replace(r"\cdot ", "·")
        .replace(r"\in ", "∈ ")
    ),
    "words in math": lambda text: re.sub(r"\b(Let|Solve|Compute)\b", r"$\\text{\1}$", text),
    "minus sign": lambda text: text.replace("- ", "− "),
    "raised": lambda text: text.replace("^2", "²"),
    "numbers without commas": lambda text: re.sub(r"(?<=\d),(?=\d{3})", "", text),
    "numbers in LaTeX": lambda text: re.sub(r"(?<=\d),(?=\d{3})", "{,}", text),
    "numbers with blanks": lambda text: re.sub(r"(?<=\d),(?=\d{3})", "\u202f", text),
    "instructions": lambda text: (
        rf"Solve the problem step by step. {text} Put the answer in \boxed{{}}."
    ),
    "few shots": lambda text: f"Q: What is 2 + 2?\nA: 4\n\nQ: {text}\nA:",
    "all at once": lambda text: wide(
        f"Question 7. {text.upper() if chr(92) not in text else text} Think!"
    ).replace(" ", "\u2003"),
}
CUTS: dict[str, Callable[[str], str]] = {  # of long ones; more than a window is left
    "the beginning": lambda text: " ".join(text.split()[:14]),
    "the end": lambda text: " ".join(text.split()[-16:]),
    "the middle": lambda text: " ".join(text.split()[6:22]),
}
TRACE = "Okay, so I have to look at this. {} Hmm, wait. Let me check that again, it is 7 + 8 = 15."


def planted() -> list[tuple[int, str, str]]:
    """Number of the question, part of the row and text of every variant of every question."""
    made = []
    for number, question in enumerate(BENCHMARK):
        for n, (name, change) in enumerate((VARIANTS | CUTS).items()):
            if name in CUTS and (number >= DRILLS or len(question.split()) < 24):
                continue
            where = ("prompt", "reasoning", "answer")[(n + number) % 3]
            made.append((number, where, change(question)))
    return made


def record(where: str, text: str) -> Record:
    """A sample with that text in one place."""
    prompt = text if where == "prompt" else "What do you see in the picture of the harbour?"
    reasoning = TRACE.format(text) if where == "reasoning" else "A boat, and gulls over it."
    answer = f"\n\nYou asked: {text}" if where == "answer" else "\n\nA boat."
    messages = [{"role": "user", "content": prompt}]
    return {"id": "x", "messages": messages, "reasoning": reasoning, "answer": answer}


# ------------------------------------------------------------------------------------- the stage


def benchmark(path: Path, texts: list[str], **more: str) -> Path:
    records.write(path, ({"question": text, **more} for text in texts))
    return path


def indexed(path: Path, texts: list[str], **more: str) -> Path:
    out = path.with_suffix(".ngrams")
    build_index([benchmark(path, texts, **more)], out)
    return out


def run(
    folder: Path, rows: list[Record], *index: Path, workers: int = 1, problems: Path | None = None
) -> Report:
    (folder / "in").mkdir(parents=True, exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)
    records.write(folder / "in" / "records.jsonl", rows)
    if problems:
        index_problems(problems, folder)
        index = (*index, folder / EVAL_INDEX)
    inputs = Inputs(samples=folder / "in", indexes=index)
    return decontaminate(Decontaminate(), inputs, Work(folder / "out", workers))


def read(folder: Path, name: str) -> list[Record]:
    return list(records.read(folder / "out" / name))


def shown(text: str) -> list[str]:
    """The tokens of a text, as a match shows them."""
    return [token.removeprefix(SPELLED) for token in tokens(text)]


def words(text: str) -> list[str]:
    """The words of a text, without letters and signs."""
    spoken = shown(text)
    return [
        word for word, is_word in zip(spoken, are_words(hashes_of(spoken)), strict=True) if is_word
    ]


def is_within(part: list[str], text: list[str]) -> bool:
    """Whether a text has these tokens in a row."""
    return f" {' '.join(part)} " in f" {' '.join(text)} "


def lettered(text: list[str]) -> list[str]:
    """Tokens whose single letters are numbered: formulas in other letters are the same."""
    letters = dict.fromkeys(token for token in text if len(token) == 1 and token.isalpha())
    numbered = {letter: f"letter {n}" for n, letter in enumerate(letters)}
    return [numbered.get(token, token) for token in text]


def is_within_but_for_letters(part: list[str], text: list[str]) -> bool:
    """Whether a text has these tokens in a row, but with other letters in the same places."""
    parts = (text[at : at + len(part)] for at in range(len(text) - len(part) + 1))
    return any(lettered(part) == lettered(other) for other in parts)


@pytest.mark.slow  # 8,000 of them
def test_every_planted_variant_is_caught(tmp_path: Path) -> None:
    variants = planted()
    assert len(BENCHMARK) >= 200
    assert len(variants) >= 8000
    report = run(
        tmp_path,
        [{**record(where, text), "id": f"{n}"} for n, (_, where, text) in enumerate(variants)],
        indexed(tmp_path / "ours.jsonl", BENCHMARK),
    )
    missed = [variants[int(row["id"])] for row in read(tmp_path, "records.jsonl")]
    assert missed == []
    tokens_of = [shown(question) for question in BENCHMARK]
    words_of = [words(question) for question in BENCHMARK]
    for row in read(tmp_path, "dropped.jsonl"):
        number, where, text = variants[int(row["id"])]
        hits = [hit for hit in row["contamination"] if hit["where"] == where]
        own = [hit for hit in hits if hit["row"] == number + 1]
        assert own
        assert all(is_within(hit["window"].split(), tokens_of[number]) for hit in own)
        for hit in hits:
            window, asked = hit["window"].split(), tokens_of[hit["row"] - 1]
            assert is_within(window, asked) or is_within_but_for_letters(window, asked), hit
            share = len(words(hit["window"])) / len(words_of[hit["row"] - 1])
            assert round(share, 2) <= hit["share"] <= 1, hit  # of all windows
        if where == "prompt" and is_within(words_of[number], words(text)):
            assert max(hit["share"] for hit in own) == 1.0, (text, own)
        assert row["drop_reason"] == "contaminated"
    assert report["dropped"] == {"contaminated": len(variants)}
    assert report["benchmarks"][0]["rows_hit"] == len(variants)
    assert sum(report["where"].values()) == len(variants)
    assert "paraphrased" in report["note"]


TASKS = [
    "chain_sum",
    "basic_arithmetic",
    "gcd",
    "lcm",
    "simple_equations",
    "spell_backward",
    "fraction_simplification",
    "number_sorting",
    "decimal_chain_sum",
    "propositional_logic",
]
STORIES = ["leg_counting", "time_intervals", "bitwise_arithmetic", "gsm_symbolic"]  # few sentences


def drawn(task: str, count: int, seed: int) -> list[str]:
    """Questions of a reasoning-gym task. Its problem n of seed s is problem n + 1 of seed s - 1."""
    from reasoning_gym.factory import create_dataset

    problems = create_dataset(task, size=count, seed=seed)
    return [problems[n]["question"] for n in range(count)]


def evaluated(folder: Path, texts: list[str]) -> Path:
    """A folder of prompts that a program made."""
    folder.mkdir()
    messages = ([{"role": "user", "content": text}] for text in texts)
    records.write(
        folder / "records.jsonl", ({"messages": m, "task": {"name": "x"}} for m in messages)
    )
    return folder


@pytest.mark.slow  # draws 28,000 problems
def test_clean_rows_are_hit_less_than_once_in_a_thousand(tmp_path: Path) -> None:
    """Other numbers make another problem of a benchmark's task; so does another task."""
    index = [indexed(tmp_path / f"{task}.jsonl", drawn(task, 200, seed=1)) for task in TASKS]
    index.append(indexed(tmp_path / "ours.jsonl", BENCHMARK))
    problems = [text for task in STORIES for text in drawn(task, 200, seed=1)]
    known = {tuple(tokens(text)) for task in TASKS for text in drawn(task, 200, seed=1)}
    known |= {tuple(tokens(text)) for text in problems + BENCHMARK}
    clean = [text for task in TASKS + STORIES for text in drawn(task, 1800, seed=100_000)]
    clean += questions(drill, 2000, 5)
    clean = [text for text in clean if tuple(tokens(text)) not in known]
    assert len(clean) >= 20_000
    rows = [record("prompt", text) for text in clean]
    report = run(tmp_path, rows, *index, problems=evaluated(tmp_path / "eval", problems))
    assert report["dropped"]["contaminated"] < len(clean) / 1000


def test_generated_problems_are_found_as_a_whole(tmp_path: Path) -> None:
    """Other problems of the task, with the same sentences, may be trained on."""
    problems = drawn("time_intervals", 50, seed=1)
    folder = evaluated(tmp_path / "eval", problems)
    others = [record("prompt", text) for text in drawn("time_intervals", 200, seed=100_000)]
    report = run(tmp_path, others, problems=folder)
    assert report["dropped"] == {"contaminated": 0}
    dressed = [record("reasoning", VARIANTS["all at once"](text)) for text in problems]
    report = run(tmp_path / "dressed", dressed, problems=folder)
    assert report["dropped"] == {"contaminated": 50}
    assert report["benchmarks"][0]["name"] == "eval"


# ------------------------------------------------------------------------------------- matches


def test_a_hit_names_benchmark_row_place_and_window(tmp_path: Path) -> None:
    text = "Ines rows many kilometres up the river and rests at a lock on the way"
    ours = indexed(tmp_path / "ours.jsonl", ["What is 2 + 2?", text])
    theirs = indexed(tmp_path / "theirs.txt.jsonl", [text.upper()])
    rows = [record("answer", f"So: {text}."), record("prompt", "Who rows?")]
    report = run(tmp_path, rows, ours, theirs)
    window = " ".join(text.lower().split())
    assert read(tmp_path, "dropped.jsonl") == [
        rows[0]
        | {
            "contamination": [
                {"benchmark": "ours", "row": 2, "where": "answer", "window": window, "share": 1.0},
                {
                    "benchmark": "theirs.txt",
                    "row": 1,
                    "where": "answer",
                    "window": window,
                    "share": 1.0,
                },
            ],
            "drop_reason": "contaminated",
        }
    ]
    assert read(tmp_path, "records.jsonl") == [rows[1] | {"contamination": []}]
    assert (report["in"], report["out"], report["where"]["answer"]) == (2, 1, 1)
    assert {share: n for share, n in report["rows_by_share"].items() if n} == {"95% or more": 1}
    assert [benchmark["rows_hit"] for benchmark in report["benchmarks"]] == [1, 1]
    assert len(set(report["indexes"])) == 2


@pytest.mark.parametrize(
    ("question", "text", "where", "is_hit"),
    [
        ("7^2?", "7²", "prompt", True),  # three tokens: where they are all of a prompt
        ("7^2?", "What is 7^2?", "prompt", False),
        ("7^2?", "7^2", "reasoning", False),
        ("What is 7^2?", "Now, what is 7^2? Let me see", "reasoning", True),
        ("What is 12 + 7?", "What is 12 + 7 + 9?", "prompt", False),  # part of a longer question
        ("What is 12 + 7?", "What is 12 + 7 = ?", "prompt", True),
        ("What is 12 + 7?", "What is 12 + 71?", "prompt", False),
        ("What is 12 + 7?", "What is 12 - 7?", "prompt", False),
        (
            "one two three four five six seven eight nine ten",
            "zero one two three four five six seven eight nine",
            "prompt",
            False,
        ),
    ],
)
def test_a_short_question_counts_as_a_whole(
    tmp_path: Path, question: str, text: str, where: str, is_hit: bool
) -> None:
    row = record("answer", "no") | record(where, text)
    if where == "reasoning":
        row["reasoning"] = text
    report = run(tmp_path, [row], indexed(tmp_path / "ours.jsonl", [question]))
    assert report["dropped"] == {"contaminated": int(is_hit)}


CHOICES = ["a harbour of the north", "the mouth of a river", "an inland canal", "a lock of 12 m"]
CHOSEN = "Where do the barges of the spring fleet lie while the ice on the upper river breaks?"


@pytest.mark.parametrize("indexed_with", [True, False])
@pytest.mark.parametrize("asked_with", [True, False])
@pytest.mark.parametrize("form", ["{}. {}", "{}) {}", "({}) {}"])
def test_a_question_is_found_with_and_without_its_options(
    tmp_path: Path, indexed_with: bool, asked_with: bool, form: str
) -> None:
    of_index = {"options": CHOICES} if indexed_with else {}
    lines = [form.format(*option) for option in zip("ABCD", CHOICES, strict=True)]
    inline = {"question": "\n".join([CHOSEN, *lines])}
    for n, row in enumerate(({"question": CHOSEN} | of_index, inline)):
        records.write(tmp_path / f"{n}.jsonl", [row])
        build_index([tmp_path / f"{n}.jsonl"], tmp_path / f"{n}.ngrams")
        text = "\n".join([CHOSEN, *(lines[::-1] if asked_with else [])])
        report = run(tmp_path / f"run{n}", [record("prompt", text)], tmp_path / f"{n}.ngrams")
        assert report["dropped"] == {"contaminated": 1}


def test_an_index_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match=r"x\.ngrams: there is no folder .*absent"):
        build_index([benchmark(tmp_path / "b.jsonl", ["Why?"])], tmp_path / "absent" / "x.ngrams")


def test_long_answers_are_found_and_short_ones_are_not(tmp_path: Path) -> None:
    worked = "Half of what is left after the third day is eleven more than twice the first."
    index = indexed(
        tmp_path / "ours.jsonl", ["What is it?"], solution=worked, answer="the answer is 5"
    )
    for text, count in ((worked, 1), ("So the answer is 5", 0)):
        assert run(tmp_path / text[:4], [record("reasoning", text)], index)["dropped"] == {
            "contaminated": count
        }


def test_a_row_without_a_trace_is_searched(tmp_path: Path) -> None:
    index = indexed(tmp_path / "ours.jsonl", ["Ines rows home before the rain"])
    row = record("answer", "Ines rows home before the rain") | {"reasoning": None}
    assert run(tmp_path, [row], index)["dropped"] == {"contaminated": 1}


def test_the_files_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    index = indexed(tmp_path / "ours.jsonl", BENCHMARK)
    rows = [record(where, text) for _, where, text in planted()[::4]]
    reports = [run(tmp_path / f"{n}", rows, index, workers=n) for n in (1, 2)]
    assert reports[0] == reports[1]
    for name in ("records.jsonl", "dropped.jsonl"):
        assert (tmp_path / "1" / "out" / name).read_bytes() == (
            tmp_path / "2" / "out" / name
        ).read_bytes()


# ------------------------------------------------------------------------------------- the index


def test_an_index_holds_no_text_and_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        made.append(indexed(tmp_path / folder / "ours.jsonl", BENCHMARK).read_bytes())
    assert made[0] == made[1]
    words = {word for text in BENCHMARK for word in tokens(text) if len(word) > 4}
    assert not [word for word in words - {"benchmark"} if word.encode() in made[0].lower()]


def test_an_index_is_built_of_several_files(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_pylist([{"problem": "Ines rows home before the rain", "answer": "7"}])
    parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.txt").write_text("\nOnly Li counts kayaks in the rain\n!?\n", encoding="utf-8")
    out = tmp_path / "both.ngrams"
    built = build_index([tmp_path / "a.parquet", tmp_path / "b.txt"], out)
    assert (built.benchmarks, built.wholes, built.unknown) == ({"a": 1, "b": 3}, 2, 1)
    run(tmp_path, [record("prompt", "Only Li counts kayaks in the rain")], out)
    hits = read(tmp_path, "dropped.jsonl")[0]["contamination"]
    assert [(hit["benchmark"], hit["row"]) for hit in hits] == [("b", 2)]
    assert list(tmp_path.glob("*.partial")) == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", '{"question": ""}\n', r"a\.jsonl: line 1: question is empty"),
        ("a.jsonl", "{\n", r"a\.jsonl: line 1: is not valid JSON"),
        ("a.jsonl", "\n", r"a\.jsonl: has no questions"),
        ("a.txt", "?!\n", r"a\.txt: has no questions"),
        ("a.txt", b"na\xefve\n", r"a\.txt: line 1: is not UTF-8"),
        ("a.csv", "x\n", r"a\.csv: is not a \.jsonl or \.parquet file"),
    ],
)
def test_a_benchmark_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: str | bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DstoolsError, match=reason):
        build_index([tmp_path / name], tmp_path / "x.ngrams")
    assert not (tmp_path / "x.ngrams").exists()


def test_an_existing_index_and_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    index = indexed(tmp_path / "ours.jsonl", ["What is 2 + 2?"])
    with pytest.raises(DstoolsError, match=r"ours\.ngrams: already exists"):
        build_index([tmp_path / "ours.jsonl"], index)
    with pytest.raises(DstoolsError, match="two of the files are named ours"):
        build_index([tmp_path / "ours.jsonl", tmp_path / "in" / "ours.txt"], tmp_path / "x")


def test_a_stage_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match="names no file"):
        run(tmp_path, [record("prompt", "x")])
