"""`python -m mmcl`, and with a launcher `torchrun -m mmcl train` or `accelerate launch -m mmcl train`."""

import sys

from mmcl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
