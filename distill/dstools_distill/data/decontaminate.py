"""The decontaminate stage: drops rows that contain a problem of a benchmark.

`build_index` makes an index of the user's own copies of benchmarks, see benchmarks.py; the stage
searches prompts, traces and answers for its entries. contamination.py says what a match is, and
ngrams.py defines equality.
"""

import re
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from dstools_converters.errors import DstoolsError
from dstools_distill import records
from dstools_distill.data.benchmarks import (
    EVAL_INDEX,
    Kind,
    Text,
    build_tables,
    common_windows,
    save_index,
)
from dstools_distill.data.contamination import Index
from dstools_distill.data.ngrams import tokens
from dstools_distill.data.sources import Reading, questions
from dstools_distill.recipe.settings import Decontaminate
from dstools_distill.recipe.stages import Inputs
from dstools_distill.store.rows import Chunk, Rows, each_record, map_rows
from dstools_distill.store.stage import Report, Work, file_sha256

SHARES = ("under 60%", "60% to 80%", "80% to 95%", "95% or more")
SHARES_FROM = (0.0, 0.6, 0.8, 0.95)
OPTIONS = re.compile(  # A., A) or (A) in front of a line, or (A) within one; then B and C
    ".+?".join(rf"(?:^[ \t]*\(?|(?<!\w)\(){letter}[).:]" for letter in "ABC"),
    re.DOTALL | re.MULTILINE,
)
NOTE = (
    "Words are compared: a copy is found with up to a quarter of its words replaced, a part of it "
    "by ten words in a row. A problem that was paraphrased or translated is not found."
)
NO_INDEX = (
    "decontaminate.index names no file, and the recipe has no [eval] to keep out",
    "make an index with `dstools distill index`",
)


def decontaminate(_settings: Decontaminate, inputs: Inputs, work: Work) -> Report:
    """Write rows without a text of a benchmark to records.jsonl, the others to dropped.jsonl.

    Adds `contamination` to each row, the matches of `Index.search`: [] in rows that are kept.
    Raises DstoolsError if there is no index.
    """
    if not inputs.indexes:
        raise DstoolsError(*NO_INDEX)
    index = Index(inputs.indexes)
    source = inputs.samples / "records.jsonl"
    files = ("records.jsonl", "dropped.jsonl")
    counts = map_rows(source, work, files, _worker, inputs.indexes, source, what="decontaminate")
    return {
        "in": counts["in"],
        "out": counts["in"] - counts["contaminated"],
        "dropped": {"contaminated": counts["contaminated"]},
        "where": {where: counts[f"in {where}"] for where in ("prompt", "reasoning", "answer")},
        # of the words of the benchmark's text, the largest share in each dropped row
        "rows_by_share": {share: counts[f"share {share}"] for share in SHARES},
        "benchmarks": [
            asdict(benchmark) | {"rows_hit": counts[f"of {benchmark.name}"]}
            for benchmark in index.benchmarks
        ],
        "indexes": [file_sha256(path) for path in inputs.indexes],
        "note": NOTE,
    }


def index_problems(problems: Path, folder: Path) -> Report:
    """Write eval.ngrams, the index of a folder of evaluation prompts; return its description."""
    asked = problems / "records.jsonl"
    texts = list(_texts(asked))
    benchmark, tables = build_tables("eval", file_sha256(asked), texts, common_windows(texts))
    save_index(folder / EVAL_INDEX, [(benchmark, tables)])
    return asdict(benchmark)


def _worker(index_files: Sequence[Path], source: Path) -> Callable[[Rows], Chunk]:
    index = Index(index_files)

    def process(lines: Rows) -> Chunk:
        counts, kept, dropped = Counter[str](), [], []
        all_matches = index.search(list(each_record(source, lines)))
        for (_, line), matches in zip(lines, all_matches, strict=True):
            counts["in"] += 1
            if not matches:
                kept.append(records.extended(line, {"contamination": []}))
                continue
            counts["contaminated"] += 1
            counts.update({f"of {match['benchmark']}" for match in matches})
            counts.update({f"in {match['where']}" for match in matches})
            share = max(match["share"] for match in matches)
            counts[f"share {SHARES[bisect(SHARES_FROM, share) - 1]}"] += 1
            fields = {"contamination": matches, "drop_reason": "contaminated"}
            dropped.append(records.extended(line, fields))
        return Chunk({"records.jsonl": b"".join(kept), "dropped.jsonl": b"".join(dropped)}, counts)

    return process


@dataclass(frozen=True)
class Built:
    """The description of a new index."""

    sha256: str  # of the file
    benchmarks: dict[str, int]  # name -> rows
    windows: int
    wholes: int  # questions indexed as a whole
    unknown: int  # questions without a word or a number, which cannot be found


def build_index(files: list[Path], out: Path) -> Built:
    """Write an index of benchmarks, named after their files; equal files give equal bytes.

    files: JSONL or Parquet in any form that `prompts` reads, with questions and answers; or .txt
    with one question per line. Raises DstoolsError, naming file and line, for a row that is not a
    question; for a file without questions; for two files of one name; and if `out` exists.
    """
    if out.exists():
        raise DstoolsError(f"{out}: already exists", "remove it, or choose another name")
    if not out.parent.is_dir():
        raise DstoolsError(f"{out}: there is no folder {out.parent}", "make it, or name another")
    name, count = Counter(file.stem for file in files).most_common(1)[0]
    if count > 1:
        raise DstoolsError(f"two of the files are named {name}", "rename one")
    texts = {file: list(_texts(file)) for file in files}
    common = common_windows(chain(*texts.values()))
    parts = []
    for file in files:
        benchmark, tables = build_tables(file.stem, file_sha256(file), texts[file], common)
        if not benchmark.windows + benchmark.wholes:
            raise DstoolsError(f"{file}: has no questions", "name a file with questions in it")
        parts.append((benchmark, tables))
    save_index(out, parts)
    benchmarks = [benchmark for benchmark, _ in parts]
    return Built(
        file_sha256(out),
        {benchmark.name: benchmark.rows for benchmark in benchmarks},
        sum(benchmark.windows for benchmark in benchmarks),
        sum(benchmark.wholes for benchmark in benchmarks),
        sum(benchmark.unknown for benchmark in benchmarks),
    )


def _texts(file: Path) -> Iterator[Text]:
    """Yield the questions and answers in a file of a benchmark."""
    if file.suffix == ".txt":
        for number, line in records.lines(file):
            try:
                text = line.decode("utf-8-sig")
            except UnicodeDecodeError:
                hint = "save it as UTF-8: iconv -f OLD -t UTF-8"
                raise DstoolsError(f"{file}: line {number}: is not UTF-8", hint) from None
            yield Text(number, tokens(text), "question")
        return
    for number, row, question in questions(file, "auto", Reading()):
        kind: Kind = "generated" if row.get("task") else "question"
        for message in question.messages:
            if message["role"] != "system":
                content, of_user = message["content"], message["role"] == "user"
                yield Text(number, tokens(content), kind if of_user else "answer")
                if of_user and kind == "question" and (options := OPTIONS.search(content)):
                    yield Text(number, tokens(content[: options.start()]), "stem")
        for answer in (question.gold, question.first_reply):
            if answer is not None:
                yield Text(number, tokens(answer), "answer")
