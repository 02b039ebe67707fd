"""`accelerate launch scripts/train.py [CONFIG] [--name value ...]`: the same as `mmcl train`, as a file."""

import sys

from mmcl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
