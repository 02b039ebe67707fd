"""Train a model: `accelerate launch scripts/train.py [CONFIG.yaml] [--name value ...]`; `--help` shows every setting."""

from __future__ import annotations

import sys
from pathlib import Path

from mmcl.cli.exit import exit_cleanly, without_debug
from mmcl.cli.train import main

if __name__ == "__main__":
    default = Path(__file__).resolve().parent.parent / "configs" / "clip_emoji.yaml"
    words, debug = without_debug(sys.argv[1:])
    sys.exit(exit_cleanly(lambda: main(words, default), debug=debug))
