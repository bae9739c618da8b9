"""The examples are imported as their readers do: with examples/ as the working directory."""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"

sys.path.insert(0, str(EXAMPLES))
