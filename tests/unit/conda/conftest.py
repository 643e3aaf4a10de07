from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[2]
for folder in (TESTS / "conda_channel", TESTS / "unit/conda"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
