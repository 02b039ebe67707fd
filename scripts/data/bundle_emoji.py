"""Copies the emoji pairs into the package and the tests, and writes their checksums.

    python scripts/data/bundle_emoji.py FOLDER

FOLDER holds `emoji/px64/<vendor>.parquet` (64 x 64 pixels, WebP of quality 80, one vendor and so one license per file),
`emoji/tiny/<vendor>.parquet` (128 concepts, 32 x 32 pixels, lossless), `emoji/concepts.parquet`, `emoji/splits/*.json` and
`LICENSES/*`. They were made from these public npm packages: emoji-datasource-google 16.0.0 (Noto), emoji-datasource-twitter
16.0.0 (Twemoji), openmoji 17.0.0, @lobehub/fluent-emoji-3d 1.1.0 (of which only the images that
@iconify-json/fluent-emoji-flat 1.2.6 lists as Microsoft's), and emojibase-data 17.0.0 for names and keywords. Every image was
composited on white, resized and re-encoded. `mmcl/data/bundled/NOTICE.md` has the licenses.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BUNDLED = REPOSITORY / "mmcl" / "data" / "bundled"
FIXTURE = REPOSITORY / "tests" / "fixtures" / "emoji_tiny"
CHECKSUMS = "SHA256SUMS"


def copy_files(source: Path) -> None:
    """Copies what is bundled. Raises FileNotFoundError when the source folder lacks a part."""
    parts = {
        BUNDLED / "emoji": [*sorted(source.glob("emoji/px64/*.parquet")), source / "emoji" / "concepts.parquet"],
        BUNDLED / "emoji" / "splits": sorted(source.glob("emoji/splits/*.json")),
        BUNDLED / "LICENSES": sorted(source.glob("LICENSES/*.txt")),
        FIXTURE: sorted(source.glob("emoji/tiny/*.parquet")),
    }
    for target, files in parts.items():
        if not files:
            raise FileNotFoundError(f"{source} has nothing for {target.relative_to(REPOSITORY)}")
        target.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, target / file.name)


def checksums(folder: Path) -> str:
    """One line for every file below a folder but the list itself, as `sha256sum` prints it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != CHECKSUMS)
    return "".join(
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder).as_posix()}\n" for file in files
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder described above")
    copy_files(parser.parse_args().folder)
    (BUNDLED / CHECKSUMS).write_text(checksums(BUNDLED), encoding="utf-8")


if __name__ == "__main__":
    main()
