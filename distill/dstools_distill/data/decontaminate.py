"""Decontamination: no row goes into training that holds a problem of a benchmark.

`build_index` makes an index of the user's own copies of benchmarks; the stage looks it up for prompts, traces
and answers. A match is a run of ten words, numbers and operators, or a whole short question; what counts
as the same is in ngrams.py. A problem that was reworded is not found.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dstools_converters.errors import DstoolsError
from dstools_distill import records
from dstools_distill.data.contamination import EVAL_INDEX, Index, Kind, Text, save_index, tables
from dstools_distill.data.forms import BadRowError, convert
from dstools_distill.data.ngrams import tokens
from dstools_distill.data.sources import rows
from dstools_distill.recipe.settings import Decontaminate
from dstools_distill.recipe.stages import Inputs
from dstools_distill.store.rows import Chunk, Rows, each_record, map_rows
from dstools_distill.store.stage import Report, Work, file_sha256

NOTE = "Runs of words are compared: a problem that was paraphrased or translated is not found."


def decontaminate(_settings: Decontaminate, inputs: Inputs, work: Work) -> Report:
    """Write the rows without a window of a benchmark as records.jsonl, the others as dropped.jsonl.

    To each row `contamination` is added: [{"benchmark", "row", "where", "window"}], the first window of a
    benchmark's row in the prompt, the reasoning or the answer; [] in what is kept.
    """
    if not inputs.indexes:
        raise DstoolsError(
            "decontaminate.index names no file, and the recipe has no [eval] to keep out",
            "dstools distill index makes one",
        )
    known = Index(inputs.indexes)
    source = inputs.samples / "records.jsonl"
    files = ("records.jsonl", "dropped.jsonl")
    counts = map_rows(source, work, files, _worker, inputs.indexes, source, what="decontaminate")
    return {
        "in": counts["in"],
        "out": counts["in"] - counts["contaminated"],
        "dropped": {"contaminated": counts["contaminated"]},
        "where": {where: counts[f"in {where}"] for where in ("prompt", "reasoning", "answer")},
        "benchmarks": [
            asdict(benchmark) | {"rows_hit": counts[f"of {benchmark.name}"]}
            for benchmark in known.benchmarks
        ],
        "indexes": [file_sha256(path) for path in inputs.indexes],
        "note": NOTE,
    }


def index_problems(problems: Path, folder: Path) -> Report:
    """Write eval.ngrams, the index of a folder of prompts that the student will be measured on, as "eval"."""
    asked = problems / "records.jsonl"
    benchmark, made = tables("eval", file_sha256(asked), _benchmark(asked))
    save_index(folder / EVAL_INDEX, [(benchmark, made)])
    return asdict(benchmark)


def _worker(index: Sequence[Path], source: Path) -> Callable[[Rows], Chunk]:
    known = Index(index)

    def look(lines: Rows) -> Chunk:
        found = list(each_record(source, lines))
        counts, kept, gone = Counter[str](), [], []
        for (_, line), named in zip(lines, known.look(found), strict=True):
            counts["in"] += 1
            if not named:
                kept.append(records.extended(line, {"contamination": []}))
                continue
            counts["contaminated"] += 1
            counts.update({f"of {each['benchmark']}" for each in named})
            counts.update({f"in {each['where']}" for each in named})
            gone.append(
                records.extended(line, {"contamination": named, "drop_reason": "contaminated"})
            )
        return Chunk({"records.jsonl": b"".join(kept), "dropped.jsonl": b"".join(gone)}, counts)

    return look


@dataclass(frozen=True)
class Built:
    """An index that was made."""

    sha256: str  # of the file
    benchmarks: dict[str, int]  # rows of each
    windows: int
    wholes: int  # questions that only all of their words tell from others
    unknown: int  # questions without a word or a number, which cannot be found


def build_index(files: list[Path], out: Path) -> Built:
    """Write an index of benchmarks, each called as its file is; equal files give equal bytes.

    files: JSONL or Parquet in any form that `prompts` reads, questions and answers; or .txt, a question a
    line. Raises DstoolsError, naming file and line, for a row that is no question; where a file has none,
    or two have one name; and where `out` is there already.
    """
    if out.exists():
        raise DstoolsError(f"{out}: is there already", "remove it, or choose another name")
    if not out.parent.is_dir():
        raise DstoolsError(f"{out}: there is no folder {out.parent}", "make it, or name another")
    names = [file.stem for file in files]
    if len(set(names)) < len(names):
        raise DstoolsError(
            f"two of the files are called {max(names, key=names.count)}", "rename one"
        )
    parts = []
    for file in files:
        benchmark, made = tables(file.stem, file_sha256(file), _benchmark(file))
        if not benchmark.windows + benchmark.wholes:
            raise DstoolsError(f"{file}: has no questions", "name a file with questions in it")
        parts.append((benchmark, made))
    save_index(out, parts)
    found = [benchmark for benchmark, _ in parts]
    return Built(
        file_sha256(out),
        {benchmark.name: benchmark.rows for benchmark in found},
        sum(benchmark.windows for benchmark in found),
        sum(benchmark.wholes for benchmark in found),
        sum(benchmark.unknown for benchmark in found),
    )


def _benchmark(file: Path) -> Iterator[Text]:
    if file.suffix == ".txt":
        for number, line in records.lines(file):
            try:
                text = line.decode("utf-8-sig")
            except UnicodeDecodeError:
                raise DstoolsError(
                    f"{file}: line {number}: is not UTF-8",
                    "save it as UTF-8: iconv -f OLD -t UTF-8",
                ) from None
            yield Text(number, tokens(text), "question")
        return
    for number, row in rows(file):
        try:
            question = convert(row)
        except BadRowError as error:
            where = f"{file}: {'row' if file.suffix == '.parquet' else 'line'} {number}"
            raise DstoolsError(f"{where}: {error}", "mend or remove it") from None
        for message in question.messages:
            if message["role"] != "system":
                kind: Kind = "generated" if row.get("task") else "question"
                said = tokens(message["content"])
                yield Text(number, said, kind if message["role"] == "user" else "answer")
        for answer in (question.gold, question.reference):
            if answer is not None:
                yield Text(number, tokens(answer), "answer")
