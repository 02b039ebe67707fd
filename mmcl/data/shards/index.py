"""The index of a tar shard: what its samples are and where their pictures lie, as columns in a file that is mapped, not read.

A shard is scanned once; its index is an Arrow file in a cache folder, which opens in a moment and shares its memory between
processes. Captions are in the index, pictures are not. An index belongs to a shard's size and time: another shard of the same
name is scanned anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from mmcl.data.captions import caption_lines
from mmcl.data.columns import USUAL_NAMES, captions_of
from mmcl.data.file_part import FilePart, LocalFile
from mmcl.data.folder import IMAGE_SUFFIXES
from mmcl.data.remote import RemoteFile
from mmcl.data.shards.paths import stated_samples
from mmcl.data.shards.tar import BrokenTarError, Member, members
from mmcl.data.source import Sample, digest
from mmcl.errors import UserError, first_line

FORMAT = 2
MAX_TEXT_BYTES = 2**20

_NAME = re.compile(r"(?:\./)?((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_SCHEMA = pa.schema(
    [("key", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("label", pa.int64())]
    + [("captions", pa.list_(pa.string())), ("problem", pa.string())]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFacts:
    """What is known of a shard as a whole.

    Attributes:
        format: version of the index's format.
        bytes, version: of the shard when it was scanned.
        fingerprint: digest of its members' names, sizes and times, and of all texts.
        broken: why it could not be read to its end; None where it could.
        failed: samples that img2dataset could not download, and which are therefore not in it.
        other: members that are none of a sample's, by suffix.
    """

    format: int
    bytes: int
    version: str
    fingerprint: str
    broken: str | None
    failed: int
    other: dict[str, int]


class Shard:
    """An indexed shard.

    Args:
        file: the tar file.
        index: of the Arrow file.

    Attributes:
        path: of the tar file, or its URL.
        facts: of the whole.
        columns: a row per sample; offset and size are -1 without a picture, label is -1 without one.
    """

    def __init__(self, file: LocalFile | RemoteFile, index: Path):
        self.file, self.path, self._index = file, file.path, index
        reader = pa.ipc.open_file(pa.memory_map(str(index)))
        self.facts = ShardFacts(**json.loads(reader.schema.metadata[b"facts"]))
        self.columns: pa.RecordBatch = reader.get_batch(0)
        self.offset, self.size, self.label = (self.columns[name].to_numpy() for name in ("offset", "size", "label"))
        self._key, self._captions, self._problem = (self.columns[name] for name in ("key", "captions", "problem"))

    def __reduce__(self) -> Any:
        return Shard, (self.file, self._index)

    def __len__(self) -> int:
        return len(self.offset)

    def __getitem__(self, row: int) -> Sample:
        offset, label, problem = int(self.offset[row]), int(self.label[row]), self._problem[row].as_py()
        return Sample(
            name=f"{self.path}, {self._key[row].as_py()}",
            image=FilePart(self.file, offset, int(self.size[row])) if offset >= 0 else None,
            captions=tuple(self._captions[row].as_py()),
            label=label if label >= 0 else None,
            problem=problem,
        )


def open_shard(file: LocalFile | RemoteFile, cache: Path, fields: Sequence[str] | None) -> Shard | None:
    """A shard by its index; None where there is no index of it as it is now.

    Args:
        file: the tar file.
        cache: folder of the indices.
        fields: see `index_shard`.
    """
    try:
        shard = Shard(file, _index_file(file, cache, fields))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None  # Not there, of another version, or spoilt: it is made anew.
    same = (shard.facts.format, shard.facts.bytes, shard.facts.version) == (FORMAT, file.size, file.version)
    return shard if same else None


def index_shard(file: LocalFile | RemoteFile, cache: Path, fields: Sequence[str] | None) -> Shard:
    """Scans a shard and writes its index. One on a server is copied for that.

    Args:
        file: the tar file.
        cache: folder of the indices.
        fields: of a sample's .json that hold its captions. None takes the lines of its .txt, and, where there is none, a usual
            field such as "caption".

    Raises:
        UserError: the shard cannot be opened, or its index not be written. A damaged shard is indexed up to the damage.
    """
    rows, facts = scan_shard(file, fields)
    columns = [pa.array([getattr(row, column.name) for row in rows], column.type) for column in _SCHEMA]
    schema = _SCHEMA.with_metadata({"facts": json.dumps(asdict(facts))})
    index = _index_file(file, cache, fields)
    stage = index.with_suffix(f".tmp-{os.getpid()}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with pa.ipc.new_file(str(stage), schema) as writer:
            writer.write_batch(pa.record_batch(columns, schema=schema))
        stage.replace(index)
    except OSError as error:
        raise UserError(f"{index}: the index of {file.path} cannot be written: {first_line(error)}") from None
    return Shard(file, index)


def _index_file(file: LocalFile | RemoteFile, cache: Path, fields: Sequence[str] | None) -> Path:
    place = os.path.abspath(file.path) if isinstance(file, LocalFile) else file.path
    return cache / f"{Path(place).stem}-{digest(place, fields and list(fields))[:16]}.arrow"


@dataclass(slots=True)
class _Row:
    """A sample whose members are being found."""

    key: str
    offset: int = -1
    size: int = -1
    label: int = -1
    captions: tuple[str, ...] = ()
    problem: str | None = None
    suffixes: set[str] = field(default_factory=set)


def scan_shard(shard: LocalFile | RemoteFile, fields: Sequence[str] | None) -> tuple[list[_Row], ShardFacts]:
    """Reads the headers and texts of a shard. Raises UserError when it cannot be opened."""
    rows: dict[str, _Row] = {}
    other: Counter[str] = Counter()
    state, broken = hashlib.sha256(), None
    try:
        with open(shard.local(), "rb", buffering=0) as file:
            try:
                for member in members(file, shard.size):
                    state.update(f"{member.name}\0{member.size}\0{member.mtime}\0".encode(errors="surrogateescape"))
                    if not _add(member, file, rows, fields, state):
                        other[os.path.splitext(member.name)[1].lower() or "no suffix"] += 1
            except BrokenTarError as error:
                broken = str(error)
    except OSError as error:
        raise UserError(f"{shard.path}: cannot be read: {error.strerror}") from None
    stated = stated_samples(shard.path)
    if stated and not broken and stated[0] != len(rows):
        broken = f"has {len(rows)} samples, and img2dataset wrote {stated[0]}"
    return list(rows.values()), ShardFacts(
        format=FORMAT,
        bytes=shard.size,
        version=shard.version,
        fingerprint=state.hexdigest(),
        broken=broken,
        failed=stated[1] if stated else 0,
        other=dict(other),
    )


def _add(member: Member, file: BinaryIO, rows: dict[str, _Row], fields: Sequence[str] | None, state: Any) -> bool:
    """Adds a member to its sample. Returns whether it belongs to one."""
    match = _NAME.fullmatch(member.name)
    suffix = f".{match[2].lower()}" if match else ""
    if match is None or suffix not in (*IMAGE_SUFFIXES, ".txt", ".json", ".cls"):
        return False
    key = match[1].encode(errors="backslashreplace").decode()
    row = rows.setdefault(key, _Row(key))
    kind = "picture" if suffix in IMAGE_SUFFIXES else suffix
    if kind in row.suffixes:
        row.problem = f"the shard has two members of kind {kind} under its key"
    elif kind == "picture":
        row.offset, row.size = member.offset, member.size
    else:
        _read_text(member, kind, file, row, fields, state)
    row.suffixes.add(kind)
    return True


def _read_text(member: Member, kind: str, file: BinaryIO, row: _Row, fields: Sequence[str] | None, state: Any) -> None:
    if member.size > MAX_TEXT_BYTES:
        row.problem = f"its {kind} has {member.size} bytes, more than the limit of {MAX_TEXT_BYTES}"
        return
    file.seek(member.offset)
    raw = file.read(member.size)
    state.update(raw)
    try:
        text = raw.decode("utf-8-sig")
        if kind == ".cls":
            row.label = _class_number(text)
        elif kind == ".json" and (fields is not None or ".txt" not in row.suffixes):
            row.captions = _json_captions(json.loads(text), fields)
        elif kind == ".txt" and fields is None:
            row.captions = caption_lines(text)
    except (ValueError, RecursionError) as error:
        row.problem = f"its {kind} cannot be read: {first_line(error)}"


def _class_number(text: str) -> int:
    if not text.strip().isdecimal() or len(text) > 18:
        raise ValueError(f"{text.strip()[:20]!r} is no class number")
    return int(text)


def _json_captions(record: Any, fields: Sequence[str] | None) -> tuple[str, ...]:
    if not isinstance(record, dict):
        raise ValueError("it is no object")
    usual = [name for name in USUAL_NAMES["caption"] if record.get(name)][:1]
    captions = tuple(text for name in (usual if fields is None else fields) for text in captions_of(record.get(name)))
    for text in captions:
        if not isinstance(text, str):
            raise ValueError(f"a caption is of type {type(text).__name__}, not a text")
        text.encode()  # JSON can spell halves of characters; an index, and a tokenizer, cannot.
    return captions
