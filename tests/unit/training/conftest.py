from __future__ import annotations

import sys
from pathlib import Path

# kill_publisher.py is a program that a test starts, and imports.
if str(Path(__file__).parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent))
