"""Try a trained speaker on single images: `python scripts/demo.py RUN`. The command is dixit.play.demo."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dixit.common import run_main  # noqa: E402
from dixit.play.commands import demo  # noqa: E402

if __name__ == "__main__":
    run_main(demo)
