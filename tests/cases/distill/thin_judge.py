r"""A measuring device, not a proposal to copy: the judge with math-verify and guards in place of its own reader.

The front stays (answers.py, extract.py, one_alphabet, unit_name); formula.py, numeric.py and values.py are not used.
Put `formulas` in place of dstools_distill.judge.answers.formulas, with `limited` for the referee:

    answers.formulas = lambda answer, gold, kind, referee: formulas(answer, gold, kind, limited)
"""

import re, signal, random
from fractions import Fraction
from dstools_distill.judge import answers as A
from dstools_distill.judge.answers import Ruling, RIGHT
from dstools_distill.judge.spelling import one_alphabet, NoUnit, unit_name
# ------------------------------------------------------------------ begin
FRAC = re.compile(r"\\[dtc]?frac\s*(?:\{(\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))")
WORDS = re.compile(r"\\(?:text|mathrm|mbox|textnormal|operatorname)\s*\{[\s~]*([^{}]*?)\s*\}\s*(\^\s*\{?\d\}?)?")
TAIL = re.compile(r"(?<=[\d}])\s*([A-Za-z]{2,}(?:[ /]+[A-Za-z]+)*)\s*(\^\{?\d\}?)?\s*$")
DEGREES = re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc))\s*[({]?\s*(\d+)\s*\^\s*\{?\\circ\}?\s*[)}]?")
def rational(s):
    s = re.sub(r"\{,\}|,?\\!\s*,?|(?<=\d)\\,(?=\d)|(?<=\d),\s(?=\d{3}(?!\d))", ",", s).replace("\\left", "").replace("\\right", "").strip("$ .")
    s = FRAC.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]}", s)
    s = re.sub(r"\s*(?:\\times|\\cdot|×)\s*10\s*\^\s*\{?(-?\d{1,3})\}?$", r"e\1", s)
    if m := re.fullmatch(r"\s*(-?)\s*(\d+)\s+(\d+)/(\d+)", s):
        return (Fraction(int(m[3]), int(m[4])) + int(m[2])) * (-1 if m[1] else 1) if int(m[3]) < int(m[4]) else None
    if m := re.fullmatch(r"\s*(-?)\s*(\d*)\.(\d*)\\overline\s*\{(\d+)\}", s):
        v = Fraction(f"{m[2] or 0}.{m[3] or 0}") + Fraction(int(m[4]), 10 ** len(m[3]) * (10 ** len(m[4]) - 1)); return -v if m[1] else v
    s = re.sub(r"\s*([-/])\s*", r"\1", s.strip())
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", s): s = s.replace(",", "")
    if re.fullmatch(r"-?(\d+\.?\d*|\.\d+)(e-?\d{1,3})?|-?\d+/\d+", s, re.I):
        try: return Fraction(s if "e" in s.lower() else s.rstrip("."))
        except (ValueError, ZeroDivisionError): return None
    return None
def unit(s):
    """Return the names of what stands behind numbers; raise NoUnit for a word that changes one."""
    found = [(m[1], m[2]) for m in WORDS.finditer(s)] or [(m[1], m[2]) for m in TAIL.finditer(s) if "\\" not in m[0]]
    found += [(m, None) for m in re.findall(r"\\?\$|€|£", s)]
    words = [(w.replace("\\", "") + (r or "").replace(" ", "")) for w, r in found if w.lower().strip(" ,") not in ("and", "or", "")]
    return {unit_name(w) for w in words} if re.search(r"\d", s) else set()
def numeric_same(a, b):
    import sympy
    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)): return True
    try:
        a, b = (e.xreplace({f: sympy.Rational(str(f)) for f in e.atoms(sympy.Float)}) for e in (a, b))
        symbols = sorted(a.free_symbols | b.free_symbols, key=str)
        for k in range(3):
            at = {v: sympy.Rational(random.Random(f"{v}{k}").randint(3, 99), 37) for v in symbols}
            x, y = (sympy.N(e.subs(at), 60) for e in (a, b))
            if not (x.is_number and y.is_number): return True
            if abs(x - y) > sympy.Float("1e-30") * max(abs(x), abs(y)): return False
    except Exception: return True
    return True
def library(answer, gold):
    import sympy
    from math_verify import LatexExtractionConfig, parse, verify
    imaginary = {sympy.Symbol("i", real=real): sympy.I for real in (True, False)}
    read = []
    for t in (gold, answer):
        found = parse("\\boxed{%s}" % DEGREES.sub(r"\1(\\frac{\2 \\pi}{180})", t), [LatexExtractionConfig(boxed_match_priority=0)], parsing_timeout=None)
        read.append([e if isinstance(e, str) else e.subs(imaginary) for e in found])
    if not all(read): return None
    if not verify(*read, allow_set_relation_comp=True, timeout_seconds=None): return False
    g, a = (next((e for e in r if not isinstance(e, str)), None) for r in read)
    return True if numeric_same(g, a) else "guard: number"
def formulas(answer, gold, kind, referee):
    if A._squeezed(answer) == A._squeezed(gold): return RIGHT
    answer, gold = one_alphabet(answer), one_alphabet(gold)
    one, other = rational(answer), rational(gold)
    if one is not None and other is not None: return RIGHT if one == other else Ruling("incorrect", "differs", ("exact",))
    if re.search(r"\d\s+\d|\.\.|dots|--", answer) and not re.search(r"dots", gold): return Ruling("unverifiable", "number")
    try: ua, ug = unit(answer), unit(gold)
    except NoUnit: return Ruling("unverifiable", "units")
    if ua and ug and ua != ug: return Ruling("unverifiable", "units")
    if re.findall(r"\d_\{?(\d+)", answer) != re.findall(r"\d_\{?(\d+)", gold): return Ruling("unverifiable", "base")
    na, ng = (re.findall(r"([a-zA-Z])(?:_\{?\d\}?)?\s*=", t) for t in (answer, gold))
    if (len(set(na)) > 1 and not ng and na != sorted(na)) or (len(set(ng)) > 1 and not na and ng != sorted(ng)): return Ruling("unverifiable", "names")
    items = re.split(r",(?!\d{3})", answer.strip("{} \\"))
    if len(items) > 1 and "(" not in answer and len({i.strip() for i in items}) < len(items): return Ruling("unverifiable", "items")
    found = referee(answer, gold)
    if found is None or isinstance(found, str): return Ruling("unverifiable", found or "not read")
    return Ruling("correct" if found else "incorrect", "library", ("math-verify",))
# ------------------------------------------------------------------ end
def limited(answer, gold, seconds=8):
    class T(BaseException): pass
    def h(*_): raise T()
    signal.signal(signal.SIGALRM, h); signal.alarm(seconds)
    try: return library(answer, gold)
    except T: return "timeout"
    except Exception as e: return "error " + type(e).__name__
    finally: signal.alarm(0)
