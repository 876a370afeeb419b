"""docs/reliability.md: the tests that it names exist, and every promise has one."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/reliability.md").read_text()


def test_every_promise_names_tests_that_exist() -> None:
    promises = re.findall(r"^\| (P\d+) \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE)
    assert [name for name, _ in promises] == [f"P{n}" for n in (*range(1, 14), 15, 16)]
    for name, tests in promises:
        paths = re.findall(r"`(tests/[^`]+)`", tests)
        assert paths, name
        for path in paths:
            file, _, test = path.partition("::")
            assert re.search(rf"^def {test or 'test_'}", (ROOT / file).read_text(), re.M), path


def test_the_readme_links_the_page() -> None:
    assert "(docs/reliability.md)" in (ROOT / "README.md").read_text()
