"""Zero-shot classification: images and label names in, probabilities out; no training.

    python examples/zero_shot_classification.py cat.png --model runs/clip_emoji --labels cat dog car

`--model` takes a run directory, `open_clip:ViT-B-32/laion2b_s34b_b79k` or `hf:openai/clip-vit-base-patch32`.
"""

from __future__ import annotations

import argparse

import mmcl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--model", default="runs/clip_emoji")
    parser.add_argument("--labels", nargs="+", required=True)
    parser.add_argument("--templates", nargs="+", default=["a picture of a {}", "a small icon showing a {}"])
    arguments = parser.parse_args()

    model = mmcl.load_model(arguments.model)
    # The label texts are encoded once, here; each label's vector is the mean over the templates.
    classifier = mmcl.ZeroShotClassifier(model, candidate_labels=arguments.labels, templates=arguments.templates)
    for path, predictions in zip(arguments.images, classifier(arguments.images, top_k=3), strict=True):
        print(path)
        for prediction in predictions:
            print(f"  {prediction['score']:6.1%}  {prediction['label']}")


if __name__ == "__main__":
    main()
