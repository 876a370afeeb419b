"""Identifiers of licences in the front matter of a card, and how a free text is written there.

Source: huggingface/hub-docs, docs/hub/repositories-licenses.md at 242f4a1, 2026-08-22. A licence
that is not in the list is `license: other`, with license_name and license_link.
"""

import re

LICENCES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m
    bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause
    bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0
    cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0
    epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0
    gpl-3.0 grok2-community h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2
    llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1
    openmdw-1.0 openmdw-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense
    wtfpl zlib
    """.split()  # noqa: SIM905 # one word a cell is easier to compare with the source
)


def identifier(licence: str) -> str | None:
    """Return the identifier that a licence's usual names stand for, None for another licence.

    "MIT", "Apache License 2.0", "GPLv3", "gpl-3.0-or-later" are names of licences in the list.
    """
    return _BY_WORDS.get(_words(licence))


def licence_name(licence: str) -> str:
    """Return a licence's text as a license_name: "my-own-terms" of "My own: terms"."""
    return re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-.") or "unnamed"


def _words(licence: str) -> str:
    """Return what tells two licences apart: letters and digits, 2.0 as 2, without filling words."""
    plain = re.sub(r"\b(the|licen[cs]e|version|or[ -]later|only)\b", " ", licence.lower())
    plain = re.sub(r"v(?=\d)|(?<=\d)\.0\b", "", plain)
    return re.sub(r"[^a-z0-9.+]", "", plain)


_BY_WORDS = {_words(name): name for name in sorted(LICENCES)}
