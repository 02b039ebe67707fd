"""Train a CLIP from Python: the same configuration and engine as the command line, then use the model at once.

python examples/train_clip_from_python.py --steps 300 --run_dir runs/from_python
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mmcl

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "clip_emoji.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--run_dir", default="runs/from_python")
    arguments = parser.parse_args()

    # Every setting of the YAML file can be overridden, here with the words that a command line would use.
    flags = ["--train.steps", str(arguments.steps), "--run_dir", arguments.run_dir]
    result = mmcl.train(mmcl.load_config(CONFIG, flags))
    for metric in result.report.metrics:
        if metric.metric == "text_to_image_R@1":
            print(f"{metric.data}, {metric.model}: text -> image R@1 {metric.value:.3f}")

    model = mmcl.load_model(result.run_dir)
    texts = ["red apple", "sports car", "smiling cat"]
    embeddings = model.encode_text(texts)
    print("how alike the texts are:")
    for text, row in zip(texts, embeddings @ embeddings.T, strict=True):
        print(f"  {text:<12}", " ".join(f"{value:6.3f}" for value in row))


if __name__ == "__main__":
    main()
