"""Logits that no token can be drawn from must be an error with the row's place; a tiny temperature and top_p must not be.

usage: python sampling_edges.py MODULE:FUNCTION   (on PYTHONPATH)
FUNCTION(logits [rows, vocabulary] float32, top_p, uniform [rows] float64) -> ids [rows]; a temperature is divided out before, as the caller does.
Right: an id in range, or an exception that says "finite" for non-finite logits. Wrong: an id out of range (the next step then reads
past the embedding, on a GPU without a word), id 0 for ever (argmax of NaN), or an IndexError about something else.
"""

import importlib
import sys

import torch

name, _, function = sys.argv[1].partition(":")
draw = getattr(importlib.import_module(name), function)
V = 2000
torch.manual_seed(0)
plain = torch.randn(3, V)
plain[:, 7] = 20.0
uniform = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
one_nan, plus_inf = plain.clone(), plain.clone()
one_nan[0, 3], plus_inf[0, 3] = float("nan"), float("inf")
masked = plain.clone()
masked[:, 1000:] = -float("inf")  # a mask of ids is not an error
CASES = [  # name, logits, top_p, what is right: the ids, or None for an error about finite logits
    ("plain", plain, 0.9, [7, 7, 7]),
    ("top_p 0 is greedy", plain, 0.0, [7, 7, 7]),
    ("top_p 1e-9 is greedy", plain, 1e-9, [7, 7, 7]),
    ("temperature 1e-30 is greedy", plain / 1e-30, 1.0, [7, 7, 7]),
    ("temperature 1e-40 is greedy or refused", plain / 1e-40, 0.9, "either"),
    ("ids masked with -inf", masked, 0.9, [7, 7, 7]),
    ("one NaN", one_nan, 0.9, None),
    ("all NaN, no nucleus", plain * float("nan"), 1.0, None),
    ("+inf", plus_inf, 0.9, None),
    ("all -inf", torch.full((3, V), -float("inf")), 1.0, None),
]
failed = 0
for label, logits, top_p, right in CASES:
    try:
        got = draw(logits, top_p, uniform).tolist()
        good = got == right or (right == "either" and got == [7, 7, 7])
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        good = right in (None, "either") and "finite" in str(error)
    failed += not good
    print("PASS" if good else "FAIL", label, "->", str(got)[:90])
sys.exit(bool(failed))
