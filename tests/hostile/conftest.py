"""The modules of this folder, for its tests to import: `model` and the cases."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
