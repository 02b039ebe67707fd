"""Image-text retrieval over a folder: texts find images, images find images, images find texts.

    python examples/image_text_retrieval.py photos/ "a dog on a beach" --model runs/clip_emoji

If the folder has a captions.csv (columns `image` and `caption`), its captions can be found too.
"""

from __future__ import annotations

import argparse

import mmcl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("query", help="what to look for, in words")
    parser.add_argument("--model", default="runs/clip_emoji")
    parser.add_argument("--index", help="save the index here; a second run could load it with mmcl.Index.load")
    arguments = parser.parse_args()

    model = mmcl.load_model(arguments.model)
    index = mmcl.Index.build(arguments.folder, model, out=arguments.index)
    for bad in index.bad:
        print(f"left out: {bad.reason}")

    print(f"text -> images: {arguments.query!r}")
    hits = index.search(arguments.query, top_k=5)
    for hit in hits:
        print(f"  {hit.score:.3f}  {hit.name}")

    best = hits[0].path
    print(f"image -> images: like {best}")
    for hit in index.search(image=best, top_k=5):
        print(f"  {hit.score:.3f}  {hit.name}")

    if any(sample.captions for sample in index.samples):
        print(f"image -> texts: what describes {best}?")
        for hit in index.search(image=best, target="texts", top_k=3):
            print(f"  {hit.score:.3f}  {hit.caption}")


if __name__ == "__main__":
    main()
