"""Index of a tar shard: its samples and the byte ranges of their images, as columns of a memory-mapped file.

A shard is scanned once. Its index is an Arrow file in a cache folder, which opens quickly and is shared between processes.
Captions are in the index, images are not. An index is valid for a shard's size and time; a changed shard is scanned again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from mmcl.data.sample import Sample
from mmcl.data.sources.shards.paths import stated_samples
from mmcl.data.sources.shards.tar import BrokenTarError, Member, members
from mmcl.data.sources.sidecar import MAX_TEXT_BYTES, RECORD_SUFFIX, TEXT_SUFFIXES, kind_of_member, read_captions
from mmcl.data.usage import Unused, count_unused
from mmcl.errors import UserError, first_line
from mmcl.files.atomic import staged
from mmcl.files.byte_range import FilePart, LocalFile
from mmcl.files.digest import digest
from mmcl.files.listing import IMAGE_SUFFIXES, reason_unused, valid_name
from mmcl.files.remote import RemoteFile
from mmcl.terminal import counted

FORMAT = 4

_NAME = re.compile(r"(?:\./)?((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_SCHEMA = pa.schema(
    [("key", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("label", pa.int64())]
    + [("captions", pa.list_(pa.string())), ("problem", pa.string())]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFacts:
    """Facts about a whole shard.

    Attributes:
        format: version of the index format.
        bytes, version: size and version of the shard when it was scanned.
        fingerprint: digest of its members' names, sizes and times, and of all texts.
        broken: why it could not be read to its end; None if it could.
        failed: number of samples that img2dataset could not download, which the shard therefore lacks.
        members: number of members that belong to samples.
        other: unused members, by suffix.
    """

    format: int
    bytes: int
    version: str
    fingerprint: str
    broken: str | None
    failed: int
    members: int
    other: dict[str, Unused]

    @classmethod
    def from_json(cls, text: str) -> ShardFacts:
        """Parses the output of `json.dumps(asdict(facts))`. Raises KeyError, TypeError or ValueError for anything else."""
        stored = json.loads(text)
        other = {reason: Unused(part["count"], tuple(part["examples"])) for reason, part in stored.pop("other").items()}
        return cls(other=other, **stored)


class Shard:
    """An indexed shard.

    Args:
        file: the tar file.
        index: path of the Arrow file.

    Attributes:
        path: path or URL of the tar file.
        facts: facts about the whole shard.
        columns: one row per sample; offset and size are -1 without an image, label is -1 without a label.
    """

    def __init__(self, file: LocalFile | RemoteFile, index: Path):
        self.file, self.path, self._index = file, file.path, index
        reader = pa.ipc.open_file(pa.memory_map(str(index)))
        self.facts = ShardFacts.from_json(reader.schema.metadata[b"facts"].decode())
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
    """Opens a shard through its index; None if there is no up-to-date index.

    Args:
        file: the tar file.
        cache: folder of the indices.
        fields: see `index_shard`.
    """
    try:
        shard = Shard(file, _index_file(file, cache, fields))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None  # Missing, of another version, or damaged: it is built again.
    same = (shard.facts.format, shard.facts.bytes, shard.facts.version) == (FORMAT, file.size, file.version)
    return shard if same else None


def index_shard(file: LocalFile | RemoteFile, cache: Path, fields: Sequence[str] | None) -> Shard:
    """Scans a shard and writes its index. A remote shard is copied first.

    Args:
        file: the tar file.
        cache: folder of the indices.
        fields: caption fields of a sample's .json. None uses the lines of its .txt or, without one, a usual field such as
            "caption".

    Raises:
        UserError: the shard cannot be opened, or its index cannot be written. A damaged shard is indexed up to the damage.
    """
    rows, facts = scan_shard(file, fields)
    columns = [pa.array([getattr(row, column.name) for row in rows], column.type) for column in _SCHEMA]
    schema = _SCHEMA.with_metadata({"facts": json.dumps(asdict(facts))})
    index = _index_file(file, cache, fields)
    with staged(index) as stage, pa.ipc.new_file(str(stage), schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    return Shard(file, index)


def _index_file(file: LocalFile | RemoteFile, cache: Path, fields: Sequence[str] | None) -> Path:
    place = os.path.abspath(file.path) if isinstance(file, LocalFile) else file.path
    return cache / f"{Path(place).stem}-{digest(place, fields and list(fields))[:16]}.arrow"


@dataclass(slots=True)
class _ShardSample:
    """A sample whose members are being collected."""

    key: str
    offset: int = -1
    size: int = -1
    label: int = -1
    captions: tuple[str, ...] = ()
    problem: str | None = None
    has_text: bool = False
    members: list[str] = field(default_factory=list)


def scan_shard(shard: LocalFile | RemoteFile, fields: Sequence[str] | None) -> tuple[list[_ShardSample], ShardFacts]:
    """Reads the headers and texts of a shard. Raises UserError if it cannot be opened."""
    samples: dict[str, _ShardSample] = {}
    other: list[tuple[str, str]] = []
    state, broken = hashlib.sha256(), None
    try:
        with open(shard.local(), "rb", buffering=0) as file:
            try:
                for member in members(file, shard.size):
                    state.update(f"{member.name}\0{member.size}\0{member.mtime}\0".encode(errors="surrogateescape"))
                    if not _add(member, file, samples, fields, state):
                        other.append((_reason_unused(member.name), member.name))
            except BrokenTarError as error:
                broken = str(error)
    except OSError as error:
        raise UserError(f"{shard.path}: cannot be read: {error.strerror}") from None
    stated = stated_samples(shard.path)
    if stated and not broken and stated[0] != len(samples):
        broken = f"has {counted(len(samples), 'sample')}, and img2dataset wrote {stated[0]}"
    return list(samples.values()), ShardFacts(
        format=FORMAT,
        bytes=shard.size,
        version=shard.version,
        fingerprint=state.hexdigest(),
        broken=broken,
        failed=stated[1] if stated else 0,
        members=sum(len(sample.members) for sample in samples.values()),
        other=count_unused(other),
    )


def _reason_unused(name: str) -> str:
    """Returns the suffix of an unused member, and notes an earlier dot in the name, at which the key ends."""
    reason = reason_unused(name)
    return f"{reason} whose names have another dot" if name.rpartition("/")[2].lstrip(".").count(".") > 1 else reason


def _add(member: Member, file: BinaryIO, samples: dict[str, _ShardSample], fields: Sequence[str] | None, state: Any) -> bool:
    """Adds a member to its sample. Returns false if it belongs to none."""
    match = _NAME.fullmatch(member.name)
    extension = match[2].lower() if match else ""
    kind = "image" if f".{extension}" in IMAGE_SUFFIXES else ".cls" if extension == "cls" else kind_of_member(extension)
    if match is None or kind is None:
        return False
    key = valid_name(match[1])
    sample = samples.setdefault(key, _ShardSample(key))
    which = kind if kind == "image" else f".{extension}"
    if which in sample.members:
        sample.problem = f"the shard has two members of kind {which} under its key"
    elif kind == "image":
        sample.offset, sample.size = member.offset, member.size
    else:
        _read_text(member, kind, file, sample, fields, state)
    sample.members.append(which)
    return True


def _read_text(
    member: Member, kind: str, file: BinaryIO, sample: _ShardSample, fields: Sequence[str] | None, state: Any
) -> None:
    if member.size > MAX_TEXT_BYTES:
        sample.problem = f"its {kind} has {member.size} bytes, more than the limit of {MAX_TEXT_BYTES}"
        return
    file.seek(member.offset)
    raw = file.read(member.size)
    state.update(raw)
    try:
        if kind == ".cls":
            sample.label = _class_number(raw.decode("utf-8-sig"))
        elif kind == RECORD_SUFFIX and (fields is not None or not sample.has_text):
            sample.captions = read_captions(kind, raw, fields)
        elif kind in TEXT_SUFFIXES and fields is None:
            before = sample.captions if sample.has_text else ()  # Captions in a text take precedence over those in a record.
            sample.captions, sample.has_text = tuple(dict.fromkeys([*before, *read_captions(kind, raw)])), True
    except (ValueError, RecursionError) as error:
        sample.problem = f"its {kind} cannot be read: {first_line(error)}"


def _class_number(text: str) -> int:
    if not text.strip().isdecimal() or len(text) > 18:
        raise ValueError(f"{text.strip()[:20]!r} is not a class number")
    return int(text)
