"""Cards for the tests, and their parts."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from dstools.hub.frontmatter import check_card, read_card
from dstools_converters.markdown import BEGIN, END

Cards = Callable[..., str]
BASE = "deepseek-ai/DeepSeek-V3"
PERSON = f"---\nlicense: mit\nbase_model: {BASE}\n---\n# By hand\n\nMy notes.\n"
DISTILL = Path(__file__).parents[2] / "distill" / "cards" / "golden" / "README.md"


def metadata(card: str) -> dict[str, Any]:
    """The front matter, which must be right, and the same for the Hub's client."""
    found = read_card(card.encode()).metadata
    assert ModelCard(card).data.to_dict() == found
    files = [*re.findall(r"license_link: (\S+)", card), "README.md"]
    assert check_card(found, files) == []
    return found


def outside(card: str) -> str:
    """The text outside of the generated part."""
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", "", read_card(card.encode()).body,
                  flags=re.DOTALL)  # fmt: skip


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
