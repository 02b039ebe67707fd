"""`mmcl train [CONFIG] [--name value ...]` as a file, for launchers that take none but files."""

import sys

from mmcl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
