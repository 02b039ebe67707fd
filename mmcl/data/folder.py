"""A folder of images, described by a captions file, by a text file beside each image, or by class subfolders."""

from __future__ import annotations

from pathlib import Path

from mmcl.data.captions import caption_lines
from mmcl.data.columns import captions_of, find_columns, image_of
from mmcl.data.source import Sample, SampleList, digest, required_path
from mmcl.data.table_file import read_table
from mmcl.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
CAPTION_FILES = ("captions.csv", "captions.tsv", "captions.jsonl", "metadata.csv", "metadata.jsonl")


class FolderSource(SampleList):
    """All images below a folder, in the order of their paths.

    - With one of `CAPTION_FILES` in it: the images that the file lists, with its captions.
    - With `name.txt` beside `name.jpg`: every line of the text file is a caption.
    - With all images in two or more subfolders, and no captions file: the first subfolder is the label.

    Args:
        path: the folder.
        captions: name of the captions file in it, if it is none of the usual.

    Raises:
        UserError: there is no image, or the captions file names an image that is not there.
    """

    def __init__(self, path: str | None, root: str | None, *, captions: str | None = None):
        self.path = required_path(path, "folder")
        if not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; give the folder, or choose the data source 'table'")
        files = sorted(file for file in self.path.rglob("*") if _is_image(file.relative_to(self.path)))
        if not files:
            raise UserError(f"{self.path}: no image in it; looked for {', '.join(IMAGE_SUFFIXES)}")
        captions_file = find_captions_file(self.path, captions)
        self._samples = self._listed(captions_file) if captions_file else self._all(files)

    def _listed(self, captions_file: Path) -> list[Sample]:
        captions: dict[str, list[str]] = {}
        table = read_table(captions_file)
        columns = find_columns(table.column_names, {}, str(captions_file))
        for kind, column in (("images", columns.image), ("captions", columns.caption)):
            if column is None:
                raise UserError(f"{captions_file}: has no column of {kind}; name it {kind[:-1]}")
        rows = zip(table[columns.image].to_pylist(), table[columns.caption].to_pylist(), strict=True)
        for number, (cell, caption) in enumerate(rows, 1):
            name = image_of(cell)
            if not isinstance(name, str) or not (self.path / name).is_file():
                raise UserError(f"{captions_file}, row {number}: no image {name!r} in {self.path}")
            captions.setdefault(name, []).extend(captions_of(caption))
        if not captions:
            raise UserError(f"{captions_file}: has no rows")
        return [Sample(str(self.path / name), self.path / name, tuple(texts)) for name, texts in captions.items()]

    def _all(self, files: list[Path]) -> list[Sample]:
        subfolders = [file.relative_to(self.path).parts[0] if file.parent != self.path else None for file in files]
        names = sorted({name for name in subfolders if name is not None})
        labelled = len(names) > 1 and None not in subfolders
        self.class_names = names if labelled else None
        return [
            Sample(str(file), file, _captions_beside(file), names.index(subfolder) if labelled and subfolder else None)
            for file, subfolder in zip(files, subfolders, strict=True)
        ]

    @property
    def fingerprint(self) -> str:
        """Of paths within the folder, file sizes and captions, so that a copy of the folder has the same."""
        rows = []
        for sample in self._samples:
            file = Path(sample.name)
            rows.append((file.relative_to(self.path).as_posix(), file.stat().st_size, sample.captions, sample.label))
        return digest(rows)


def find_captions_file(folder: Path, name: str | None = None) -> Path | None:
    """The captions file of a folder. Raises UserError when the given one is missing, or when there are several."""
    if name is not None:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no captions file {name!r} in it")
        return folder / name
    found = [folder / usual for usual in CAPTION_FILES if (folder / usual).is_file()]
    if len(found) > 1:
        raise UserError(f"{folder}: both {found[0].name} and {found[1].name} are in it; set `captions` to one of them")
    return found[0] if found else None


def _is_image(relative: Path) -> bool:
    return relative.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in relative.parts)


def _captions_beside(image: Path) -> tuple[str, ...]:
    text = image.with_suffix(".txt")
    if not text.is_file():
        return ()
    try:
        return caption_lines(text.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{text}: is not UTF-8 text") from None
