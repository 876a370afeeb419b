"""Tests of programs and cases: which block is meant, and which gold is test cases."""

import json
import textwrap

import pytest

from dstools_distill.judge.program import Program, blocks, find, read_cases

ADDS = "a, b = map(int, input().split())\nprint(a + b)\n"
CASES = [{"stdin": "2 3\n", "stdout": "5"}, {"stdin": "20 3\n", "stdout": "23\n"}]


@pytest.mark.parametrize(
    "answer",
    [
        f"```python\n{ADDS}```",
        f"``` python\n{ADDS}```\n\nIt prints\n\n```\n5\n```",
        f"```\n2 3\n```\n\n```\n{ADDS}```\n\n```\n5\n```",
        f"```\n{ADDS}```\n\n```text\n5\n```",
        f"~~~py\n{ADDS}~~~",
        f"````{{.python}}\n{ADDS}````",
        f"Answer: ```python3 title='a.py'\n{ADDS.rstrip()}```\n\n```\n5\n```",
        f"```python\n{ADDS}```\n\n```python\n>>> add(2, 3)\n5\n```",
        f"```python\n{ADDS}```\n\n```bash\npython main.py\n```",
        f"```cpp\nint main() {{}}\n```\n\nIn Python:\n\n```python\n{ADDS}```",
        "1. So:\n\n" + textwrap.indent(f"```python\n{ADDS}```", "   "),
        f"```python\n{ADDS}```".replace("\n", "\r\n"),
        ADDS,
    ],
)
def test_the_program_is_told_from_what_stands_beside_it(answer: str) -> None:
    assert find(answer).text.rstrip() == ADDS.rstrip()


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("We sort them first.", Program("", "no-code")),
        ("42", Program("", "no-code")),
        ("So:\n\nprint(5)", Program("", "code-not-found")),
        ("#include <iostream>\nint main() {}", Program("", "code-not-found")),
        ("```python\nprint(5)", Program("", "code-not-found")),  # cut
        ("```json\n{}\n```", Program("", "code-language: json")),
        ("```ruby\nputs 5\n```\n\n```\n5\n```", Program("", "code-language: ruby")),
        ("```C++\nint main() {}\n```", Program("", "code-language: c++")),
        ("```\nprint(5\n```", Program("print(5\n")),  # its own fault
        ("```\n5\n```", Program("5\n")),
        ("```\n" + "(" * 10_000 + "\n```", Program("(" * 10_000 + "\n")),
    ],
)
def test_an_answer_without_a_program_says_why(answer: str, program: Program) -> None:
    assert find(answer) == program


def test_the_indentation_of_a_function_stays() -> None:
    assert blocks("- so\n\n  ```py\n  def f():\n      return 1\n  ```") == [
        ("py", "def f():\n    return 1\n")
    ]


@pytest.mark.parametrize(
    "gold",
    [
        CASES,
        [{"input": case["stdin"], "output": case["stdout"]} for case in CASES],
        [{"input": c["stdin"], "output": c["stdout"], "testtype": "stdin"} for c in CASES],
        {"inputs": ["2 3\n", "20 3\n"], "outputs": ["5", "23\n"]},
        {"inputs": [["2 3", ""], ["20 3", ""]], "outputs": [["5"], ["23", ""]], "fn_name": None},
        {"input": ["2 3\n", "20 3\n"], "output": ["5", "23\n"]},
    ],
)
def test_cases_come_in_many_forms(gold: object) -> None:
    assert read_cases(json.dumps(gold)) == CASES


@pytest.mark.parametrize(
    "gold",
    ["", "5", "[]", "{}", '[{"stdin": "1"}]', '[{"stdin": 1, "stdout": "1"}]', "[" * 10_000,
     '[{"stdin": "1", "stdout": "1", "x": 1}]', json.dumps(CASES * 51),
     '{"inputs": ["1"], "outputs": []}', '{"inputs": [[[1], 3]], "outputs": ["1"]}',
     '{"inputs": [[1]], "outputs": [1], "fn_name": "f"}',
     '{"inputs": ["1"], "outputs": ["1"], "fn_name": "f"}',
     '[{"input": "1", "output": "1", "testtype": "functional"}]'],
)  # fmt: skip
def test_a_gold_that_is_not_cases_of_input_and_output_is_not_read(gold: str) -> None:
    assert read_cases(gold) is None
