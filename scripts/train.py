"""Train: `accelerate launch scripts/train.py CONFIG [key.subkey=value ...]`. The command is dixit.training.main."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dixit.common import run_main  # noqa: E402
from dixit.training.main import main  # noqa: E402

if __name__ == "__main__":
    run_main(main)
