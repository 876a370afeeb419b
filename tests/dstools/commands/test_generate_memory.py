"""A model that does not fit is refused before it is read, with hints that work."""

import re

import pytest

from dstools import machine
from dstools.commands.generate_memory import Held, make_pool, require_memory
from dstools_converters.errors import DstoolsError
from dstools_converters.runtime.decode import Request

REQUEST = Request(0, [5] * 100, 1000)
LIMIT = 1100
MB = 1_000_000


def refused(held: Held, asked: int | None, step: int) -> tuple[str, str]:
    """Return message and hint."""
    with pytest.raises(DstoolsError) as error:
        require_memory(held, make_pool(REQUEST, LIMIT, asked), REQUEST, LIMIT, step)
    return str(error.value), error.value.hint


@pytest.fixture(autouse=True)
def hundred_mb_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(1 << 40, 100 * MB, None))


@pytest.mark.parametrize(
    ("weights", "token", "step", "asked", "hint"),
    [
        # 95 MB - 50 MB hold 45,000 tokens of 1 kB, in 703 pages
        (50, 1000, 0, 10**14, "--pool 44992"),
        # 35 MB hold 350 tokens of 100 kB, in 5 pages: 320, of which the prompt takes 100
        (60, 100_000, 0, None, "--max-tokens 221, or --precision bfloat16"),
        (60, 100_000, 0, 10**14, "--pool 320 --max-tokens 221"),
        (110, 1000, 0, None, "--precision bfloat16"),
        # 95 % of 80 MB - 60 MB hold 160 tokens of 100 kB, in 2 pages
        (60, 100_000, 20, None, "--max-tokens 29"),
        (60, 1000, 45, None, "--precision bfloat16"),
        (11_500_000, 1000, 0, None, "free memory or take a larger machine; an engine can divide it "
         "among several GPUs"),
    ],
)  # fmt: skip
def test_a_hint_names_only_what_would_fit(
    weights: int, token: int, step: int, asked: int | None, hint: str
) -> None:
    held = Held("float32", "cpu", weights * MB, token, "--precision bfloat16")
    message, given = refused(held, asked, step * MB)
    assert "100 MB of memory is free" in message
    assert given == hint
    if match := re.search(r"--pool (\d+)$", given):
        require_memory(held, make_pool(REQUEST, LIMIT, int(match[1])), REQUEST, LIMIT, step * MB)
    if match := re.search(r"--max-tokens (\d+)", given):
        shorter = 100 + int(match[1])
        require_memory(held, make_pool(REQUEST, shorter, None), REQUEST, shorter, step * MB)
    if "bfloat16" in given:
        halved = Held("bfloat16", "cpu", weights * MB // 2, token // 2, "")
        require_memory(halved, make_pool(REQUEST, LIMIT, asked), REQUEST, LIMIT, step * MB // 2)


def test_what_fits_is_not_refused() -> None:
    require_memory(
        Held("float32", "cpu", 50 * MB, 1000, ""),
        make_pool(REQUEST, LIMIT, None),
        REQUEST,
        LIMIT,
        0,
    )


def test_a_pool_too_small_names_the_tokens_that_work() -> None:
    with pytest.raises(
        DstoolsError, match=r"need a cache of 1,099 tokens; --pool 200 has room"
    ) as e:
        make_pool(REQUEST, LIMIT, 200)
    assert e.value.hint == "--pool 1099, or --max-tokens 157"
    assert make_pool(REQUEST, LIMIT, 1099).count == 18
    assert make_pool(REQUEST, 100 + 157, 200).count == 4
    with pytest.raises(DstoolsError) as e:
        make_pool(REQUEST, LIMIT, 64)
    assert e.value.hint == "--pool 1099"
