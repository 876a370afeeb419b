"""Tests of the search for benchmark texts: what is found in a row, and what is not."""
# ruff: noqa: RUF001

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dstools_distill.data.benchmarks import Kind, Text, build_tables, common_windows, save_index
from dstools_distill.data.contamination import Hit, Index, Part, clean_prompts
from dstools_distill.data.ngrams import tokens
from dstools_distill.records import Record

LONG = (
    "ash birch cedar dogwood elm fir gum hazel ivy juniper kauri larch"  # three runs of ten words
)
CASES = Path(__file__).parents[2] / "cases" / "distill"


def saved(folder: Path, name: str, *texts: str, kind: Kind = "question") -> Path:
    """An index file of one benchmark."""
    rows = [Text(n, tokens(text), kind) for n, text in enumerate(texts, start=1)]
    tables = build_tables(name, "0" * 64, rows, common_windows(rows))
    save_index(folder / f"{name}.ngrams", [tables])
    return folder / f"{name}.ngrams"


def hits(index: Index, text: str, *, is_prompt: bool = False) -> list[Hit]:
    return index.hits([Part(0, "prompt" if is_prompt else "reasoning", text)])


def prompt(text: str) -> Record:
    return {"messages": [{"role": "user", "content": text}]}


def test_a_generated_question_is_found_as_a_whole_only(tmp_path: Path) -> None:
    index = Index([saved(tmp_path, "b", LONG, kind="generated")])
    assert hits(index, f"so {LONG} then") == [Hit(0, 1, 12, "b", 1, 1.0)]
    assert hits(index, LONG.removesuffix(" larch")) == []
    assert hits(index, LONG.replace("birch", "2")) == []
    assert hits(index, f"{LONG} + 1") == []  # part of a longer question


def test_hits_are_sorted_and_name_benchmark_row_and_place(tmp_path: Path) -> None:
    index = Index(
        [saved(tmp_path, "a", "is it two plus two", LONG), saved(tmp_path, "b", "x", LONG)]
    )
    assert [benchmark.name for benchmark in index.benchmarks] == ["a", "b"]
    first_ten = " ".join(LONG.split()[:10])
    parts = [Part(0, "reasoning", f"no {first_ten}"), Part(0, "answer", "is it two plus two")]
    assert index.hits(parts) == [
        Hit(0, 1, 10, "a", 2, 10 / 12),
        Hit(0, 1, 10, "b", 2, 10 / 12),
        Hit(1, 0, 5, "a", 1, 1.0),
    ]


def test_a_question_of_three_tokens_must_be_the_whole_prompt(tmp_path: Path) -> None:
    index = Index([saved(tmp_path, "b", "who is it")])
    assert hits(index, "Who is it?", is_prompt=True) == [Hit(0, 0, 3, "b", 1, 1.0)]
    assert hits(index, "Who is it?", is_prompt=False) == []
    assert hits(index, "So who is it?", is_prompt=True) == []


def test_no_window_spans_two_texts(tmp_path: Path) -> None:
    index = Index([saved(tmp_path, "b", "Ines rows home before the rain")])
    row = prompt("Who is it? Ines rows home") | {"reasoning": "before the rain", "answer": "Ines"}
    assert index.search([row]) == [[]]


def test_a_match_names_its_window_and_share_in_each_part_of_a_row(tmp_path: Path) -> None:
    index = Index([saved(tmp_path, "b", LONG)])
    row = prompt(f"{LONG.upper()}!") | {"reasoning": None, "answer": LONG.removeprefix("ash ")}
    clean = prompt("what?")
    match = {"benchmark": "b", "row": 1}
    in_prompt = match | {"where": "prompt", "window": LONG, "share": 1.0}
    in_answer = match | {"where": "answer", "window": row["answer"], "share": 0.92}
    assert list(index.annotate(iter([row, clean]))) == [(row, [in_prompt, in_answer]), (clean, [])]
    assert Index([]).search([row]) == [[]]


def test_a_question_in_the_system_message_or_an_earlier_turn_is_of_the_prompt(
    tmp_path: Path,
) -> None:
    index = Index([saved(tmp_path, "b", LONG)])
    for role in ("system", "user", "assistant"):
        row = prompt("Do it.")
        row["messages"].insert(0, {"role": role, "content": LONG})
        [[match]] = index.search([row])
        assert (match["where"], match["share"]) == ("prompt", 1.0)


def test_clean_prompts_leave_out_and_count_contaminated_ones(tmp_path: Path) -> None:
    rows = [prompt(LONG), prompt("Another one"), prompt(f"Again: {LONG}")]
    (tmp_path / "p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    index = saved(tmp_path, "b", LONG)
    assert clean_prompts(tmp_path / "p.jsonl", [index]) == ([rows[1]], 2)
    assert clean_prompts(tmp_path / "p.jsonl", []) == (rows, 0)


# -------------------------------------------------------------------------------- labelled cases


def labelled() -> list[dict[str, object]]:
    files = (CASES / "decontaminate.jsonl", CASES / "variants" / "decontaminate.jsonl")
    return [json.loads(line) for file in files for line in file.read_text().splitlines() if line]


@pytest.mark.parametrize("case", labelled(), ids=lambda case: str(case["row"])[:40])
def test_a_labelled_case_is_found_or_left_alone(case: dict[str, list[str]], tmp_path: Path) -> None:
    index = Index([saved(tmp_path, "b", *case["benchmark"])])
    [found] = index.search([prompt(str(case["row"]))])
    assert bool(found) == case["contaminated"], found


FLOOR = "denotes the greatest integer less than or equal to that number, for example of 2.7"


def test_a_passage_of_a_trace_that_its_own_prompt_has_is_judged_in_the_prompt(
    tmp_path: Path,
) -> None:
    question = (
        f"How many numbers below 50 have the same floor of a third and a quarter, which {FLOOR}?"
    )
    index = Index([saved(tmp_path, "b", question)])
    row = prompt(f"Solve the equation where the floor {FLOOR}, and its product is 84.")
    assert index.search([row | {"reasoning": f"The floor {FLOOR}. So", "answer": "9"}]) == [[]]
    [[match]] = index.search([prompt("Hi") | {"reasoning": f"It {FLOOR}. So", "answer": "9"}])
    assert (match["where"], match["share"]) == ("reasoning", 0.55)


MULTIPLES = "Find the sum of all multiples of 3 and 7 that are larger than 20 and smaller than 500."


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        (MULTIPLES.replace("larger", "greater"), True),
        # of find, multiples, that, larger, than and smaller half are there
        (MULTIPLES.replace("Find", "Give").replace("larger", "over").replace("small", "low"), True),
        (MULTIPLES.replace("20", "30"), False),
        (MULTIPLES.replace("3 and 7", "3 and 7 and 11"), False),
        (f"Problem 11. {MULTIPLES}", True),
    ],
)
def test_with_other_numbers_it_is_another_problem(
    text: str, is_found: bool, tmp_path: Path
) -> None:
    index = Index([saved(tmp_path, "b", MULTIPLES)])
    assert bool(index.search([prompt(text)])[0]) == is_found


DUCKS = (
    "The ducks of Janet lay 16 eggs per day. She eats three for breakfast and bakes muffins with "
    "four. She sells the remainder daily for $2 per fresh egg. How many dollars does she make?"
)


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        (DUCKS.replace("three", "3").replace("four", "4"), True),
        (DUCKS.replace("16", "sixteen").replace("$2", "two dollars"), True),
        (DUCKS.replace("16", "16.0").replace("three", "3"), True),
        (DUCKS.replace("16", "17"), False),
        (DUCKS.replace("16", "seventeen"), False),
    ],
)
def test_a_copy_may_spell_its_numbers_but_not_change_them(
    text: str, is_found: bool, tmp_path: Path
) -> None:
    for name, asked, copy in (("a", DUCKS, text), ("b", text, DUCKS)):
        index = Index([saved(tmp_path, name, asked)])
        assert bool(index.search([prompt(copy)])[0]) == is_found


def test_a_prompt_that_is_a_part_may_spell_its_numbers(tmp_path: Path) -> None:
    index = Index([saved(tmp_path, "b", f"{DUCKS} {LONG} {LONG.upper()[::-1]}")])
    part = "She eats 3 for breakfast and bakes muffins with 4. She sells the remainder"
    assert index.search([prompt(part)])[0]
    assert not index.search([prompt(part.replace("4", "5"))])[0]


# ------------------------------------------------------------- thousands of problems, as in MATH

NAMES = ("Ana", "Boris", "Chidi", "Dalia", "Emil", "Fumiko", "Grace", "Hugo", "Ilse", "Jamal")
THINGS = ("marbles", "stickers", "pencils", "cookies", "tickets", "bricks", "ribbons", "coins")
SHAPES = ("triangle", "rectangle", "trapezoid", "rhombus", "hexagon", "parallelogram")
PLACES = ("the school fair", "the corner shop", "the summer camp", "the harbor market")
CLOSINGS = (
    "Express your answer as a common fraction in lowest terms.",
    r"The answer is $\frac{m}{n}$ for relatively prime positive integers $m$ and $n$. Find $m+n$.",
    "Express your answer in simplest radical form.",
    "Round your answer to the nearest hundredth.",
    "What is the remainder when this number is divided by 1000?",
)
TEMPLATES = (
    r"Let $f(x) = {a}x^2 - {b}x + {c}$. What is the value of $f({d})$?",
    r"What is the greatest common divisor of {e} and {f}?",
    r"Find the sum of all positive integers less than {e} that are multiples of {a} or {b}.",
    r"How many integers between {e} and {f} are divisible by {a} but not by {b}?",
    r"Solve $\frac{{x + {a}}}{{x - {b}}} = \frac{{{c}}}{{{d}}}$ for $x$.",
    r"If ${a}x + {b}y = {e}$ and ${c}x - {d}y = {f}$, what is the ordered pair $(x, y)$?",
    "The {shape} $ABCD$ has a perimeter of {e} and one of its sides has length {a}. How long is "
    "the side next to it? {closing}",
    "{name} buys {a} {thing} and {b} {other} at {place} for {e} cents. {second} buys {c} {thing} "
    "and {d} {other} there for {f} cents. How much does one of the {thing} cost? {closing}",
    "{name} has {e} {thing} and gives {a} of them to {second} every day. After how many days does "
    "{second}, who begins with {b}, have more {thing} than {name}?",
    "A bag holds {a} red, {b} blue and {c} green {thing}. {name} draws {d} of them at random "
    "without replacement. What is the probability that all have the same color? {closing}",
    "In how many ways can {name} put {a} different {thing} and {b} equal {other} into a row at "
    "{place} so that no two of the {other} are next to each other? {closing}",
    "The diagonals of a {shape} have lengths {e} and {f} and meet at an angle of {a} degrees. Find "
    "the area of the {shape}. {closing}",
    "{name} walks from home to {place} at {a} kilometers per hour and rides back at {b} kilometers "
    "per hour. The whole way takes {e} minutes. How far is it to {place}? {closing}",
    "A sequence begins with {a}, and each later term is {b} more than {c} times the term before. "
    "{name} writes down the first {e} terms. How many are divisible by {d}? {closing}",
)


FIRST = ("Priya", "Lars", "Noor", "Matteo", "Kwame", "Sofia", "Hiro", "Lucia", "Tariq", "Maren")
GOODS = ("oranges", "lanterns", "violins", "textbooks", "tulips", "batteries", "scarves", "muffins")
TRIPS = ("a bakery in Lyon", "the municipal library", "an orchard near the river", "a warehouse")
SOLIDS = ("cylinder", "cone", "prism", "pyramid")
ENDS = ("Give your answer as a decimal rounded to two places.", "", "", r"Report $k$ in $k\pi$.")
KINDS = (
    *("recursive", "continuous", "bounded", "compact", "cyclic", "bipartite", "planar", "convex"),
    *("monotone", "harmonic", "symmetric", "sparse", "ergodic", "linear", "closed", "dense"),
)
OBJECTS = (
    *("function", "graph", "group", "sequence", "matrix", "polygon", "measure", "polynomial"),
    *("lattice", "operator", "tournament", "permutation", "metric", "ring", "field", "algebra"),
)
RELATIONS = ("admits", "extends", "contains", "generates", "dominates", "separates")
LIMITS = ("up to isomorphism", "almost everywhere", "in finitely many steps", "over every field")
CHINESE = ("苹果", "铅笔", "邮票", "玻璃球", "故事书", "气球")
WORKBOOK = (
    "{name} collects {a} {goods} on Monday and {b} more on each following day at {trip}. On which "
    "day does the total first exceed {e}? {end}",
    "The {solid} has a radius of {a} centimeters and a height of {b} centimeters. By what "
    "percentage does its volume grow when the radius is raised by {c}%? {end}",
    r"Let $p$ be a prime such that $p \equiv {a} \pmod{{{b}}}$ and $p > {e}$. Determine the least "
    "possible value of $p^2 - {c}p$.",
    r"Compute $\sum_{{k={a}}}^{{{b}}} \frac{{{c}}}{{k(k+{d})}}$.",
    r"Determine all real solutions of $\log_{{{a}}}(x - {b}) + \log_{{{a}}}(x + {c}) = {d}$.",
    "How many positive divisors does {e} have?",
    "What is the remainder when {e} is divided by {a}?",
    "Find the area enclosed by the curve $y = {a}x^2$ and the line $y = {b}x + {c}$.",
    "A tank is filled by one pipe in {a} hours and by a second one in {b} hours, while a leak "
    "empties it in {c} hours. If all are open, after how many minutes is the tank full? {end}",
    "Prove that among any {a} integers there are two whose difference is divisible by {b}.",
    "Show that every {kind} {object} {relation} a {kind2} {object2} {limit}, unless the {object3} "
    "becomes {kind3} {limit2}. Compare it with {kind4} cases.",
    "{chinese}有{a}个，{chinese2}比{chinese}多{b}个。一共买来{e}个{chinese}，分给{c}个同学，每人分到多少个？",
)


def contest(rng: random.Random) -> str:
    (name, second), (thing, other) = rng.sample(NAMES, 2), rng.sample(THINGS, 2)
    numbers = {letter: rng.randrange(2, 60) for letter in "abcd"}
    large = {letter: rng.randrange(60, 30000) for letter in "ef"}
    return rng.choice(TEMPLATES).format(
        name=name, second=second, thing=thing, other=other, place=rng.choice(PLACES),
        shape=rng.choice(SHAPES), closing=rng.choice(CLOSINGS), **numbers, **large,
    )  # fmt: skip


def workbook(rng: random.Random) -> str:
    """Other templates than `contest`: without numbers, short, Chinese, nearly all formula."""
    (chinese, chinese2), (limit, limit2) = rng.sample(CHINESE, 2), rng.sample(LIMITS, 2)
    kinds = dict(zip(("kind", "kind2", "kind3", "kind4"), rng.choices(KINDS, k=4), strict=True))
    objects = {f"object{n}".removesuffix("1"): rng.choice(OBJECTS) for n in (1, 2, 3, 4)}
    numbers = {letter: rng.randrange(2, 99) for letter in "abcd"}
    return rng.choice(WORKBOOK).format(
        name=rng.choice(FIRST), goods=rng.choice(GOODS), trip=rng.choice(TRIPS),
        solid=rng.choice(SOLIDS), end=rng.choice(ENDS), relation=rng.choice(RELATIONS),
        limit=limit, limit2=limit2, chinese=chinese, chinese2=chinese2,
        e=rng.randrange(100, 90000), **kinds, **objects, **numbers,
    )  # fmt: skip


def problems(draw: Callable[[random.Random], str], count: int) -> list[str]:
    """Distinct problems; many have the same words and other numbers."""
    rng = random.Random(11)
    distinct: dict[tuple[str, ...], str] = {}
    while len(distinct) < count:
        text = draw(rng).strip()
        distinct.setdefault(tuple(tokens(text)), text)
    return list(distinct.values())


UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def upper(text: str) -> str:
    """A text in capitals; a command of LaTeX would be another one."""
    return re.sub(r"\\[A-Za-z]+|.", lambda m: m[0] if m[0][0] == "\\" else m[0].upper(), text)


def replaced(text: str) -> str:
    """A text with a fifth of its words replaced, in any place but formulas and numbers."""
    rng = random.Random(text)
    is_chinese = not text.isascii() and "\\" not in text
    words = re.findall(r"[^\W\d]|\d+|\W", text) if is_chinese else text.split()
    outside = [n for n in range(len(words)) if "".join(words[:n]).count("$") % 2 == 0]
    plain = [n for n in outside if re.fullmatch(r"[^\W\d]+[.,?]?", words[n])]
    count = len([word for word in words if not re.fullmatch(r"\W", word)])
    for n in rng.sample(plain, min(count // 5, len(plain))):
        words[n] = rng.choice(("春", "夏") if is_chinese else ("lorem", "ipsum", "amet", "dolor"))
    return ("" if is_chinese else " ").join(words)


def spelled(number: int) -> str:
    """A number below a million in words."""
    if number < 100:
        tens, ones = divmod(number, 10) if number >= 20 else (0, number)
        words = [TENS[tens - 2]] * bool(tens) + [UNITS[ones]] * bool(ones or not tens)
        return "-".join(words)
    word, size = ("thousand", 1000) if number >= 1000 else ("hundred and", 100)
    many, rest = divmod(number, size)
    return (
        f"{spelled(many)} {word} {spelled(rest)}" if rest else f"{spelled(many)} {word.split()[0]}"
    )


def in_words(text: str) -> str:
    """A text whose numbers are in words, but for formulas."""
    parts = text.split("$")
    for n in range(0, len(parts), 2):
        parts[n] = re.sub(r"\b\d+\b(?!%)", lambda number: spelled(int(number[0])), parts[n])
    return "$".join(parts)


DRESSES: dict[str, Callable[[str], str]] = {
    "case": upper,
    "no markup": lambda text: text.replace("$", ""),
    "markup": lambda text: f"> **Problem 3.** *{text}*".replace("$", "$$"),
    "no punctuation": lambda text: re.sub(r"[.,?!:]+(?=\s|$)", "", text),
    "instructions": lambda text: f"{text}\n\nReason step by step, and end in \\boxed{{}}.",
    "tutor": lambda text: f"You are a patient tutor. Help a pupil with this: {text} Think first.",
    "commas": lambda text: re.sub(r"(?<=\d)(?=(\d{3})+\b)", ",", text),
    "braces": lambda text: re.sub(r"(?<=\d)(?=(\d{3})+\b)", "{,}", text),
    "thin spaces": lambda text: re.sub(r"(?<=\d)(?=(\d{3})+\b)", "\u202f", text),
    "fractions": lambda text: text.replace(r"\frac", r"\dfrac"),
    "words for numbers": in_words,
    "words in capitals": lambda text: upper(in_words(text).replace("ty-", "ty ")),
    "decimals": lambda text: re.sub(r"(?<![\\\w.^])\d+(?=\s|[.?](?:\s|$))", r"\g<0>.0", text),
    "replaced": replaced,
    "replaced in capitals": lambda text: upper(replaced(text)),
    "replaced in a frame": lambda text: f"A task of ours: {replaced(text)} Show all of the work.",
    "all at once": lambda text: (
        f"Question 12. **{DRESSES['commas'](replaced(text)).rstrip('.?')}**"
    ),
}


@pytest.mark.parametrize("draw", [contest, workbook])
def test_of_thousands_of_problems_every_copy_is_found_and_hardly_another(
    draw: Callable[[random.Random], str], tmp_path: Path
) -> None:
    every = problems(draw, 5500)
    benchmark, others = every[:500], every[500:]
    index = Index([saved(tmp_path, "math", *benchmark)])
    for name, dress in DRESSES.items():
        planted = [prompt(dress(text)) for text in benchmark]
        for row, (asked, matches) in enumerate(zip(planted, index.search(planted), strict=True), 1):
            shares = [match["share"] for match in matches if match["row"] == row]
            assert shares, (name, asked)
            assert max(shares) >= (0.6 if "at once" in name or "replaced" in name else 1.0)
    found = index.search([prompt(text) for text in others])
    dropped = [text for text, matches in zip(others, found, strict=True) if matches]
    assert len(dropped) < 0.005 * len(others), dropped[:5]


FRAME = "Okay, so I have to look at this. {} Hmm, wait. Let me think about it step by step."


@pytest.mark.parametrize("draw", [contest, workbook])
def test_a_copy_in_a_trace_is_found_though_a_fifth_of_its_words_are_others(
    draw: Callable[[random.Random], str], tmp_path: Path
) -> None:
    every = problems(draw, 600)
    index = Index([saved(tmp_path, "math", *every[:200])])
    copies = [
        prompt("Hi") | {"reasoning": FRAME.format(DRESSES["all at once"](text)), "answer": "9"}
        for text in every[:200]
    ]
    for row, matches in enumerate(index.search(copies), start=1):
        assert row in [match["row"] for match in matches], every[row - 1]
    others = [prompt(text) | {"reasoning": FRAME.format(text)} for text in every[200:]]
    assert sum(map(bool, index.search(others))) < 0.005 * len(others)
