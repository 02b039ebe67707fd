"""SimCLR from Python: learn images of digits without labels, then classify by nearest neighbors.

python examples/simclr_mnist.py --root ~/data             # MNIST, downloaded below --root unless it is there
python examples/simclr_mnist.py --offline                 # scikit-learn's digits instead
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mmcl

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offline", action="store_true", help="scikit-learn's digits, which need no download")
    parser.add_argument("--root", help="where MNIST lies, or is downloaded to")
    parser.add_argument("--run_dir", default="runs/simclr_example")
    parser.add_argument("--steps", type=int, help="shorter or longer than the configuration")
    arguments = parser.parse_args()

    flags = ["--run_dir", arguments.run_dir]
    if arguments.root:
        flags += ["--data.root", arguments.root]
    if arguments.steps:
        flags += ["--train.steps", str(arguments.steps)]
    config = CONFIGS / ("simclr_digits.yaml" if arguments.offline else "simclr_mnist.yaml")
    result = mmcl.train(mmcl.load_config(config, flags))
    for metric in result.report.metrics:
        if metric.metric == "knn5_top1":
            print(f"{metric.data}: 5 nearest neighbors, {metric.model}: {metric.value:.2%}")


if __name__ == "__main__":
    main()
