"""Safe loading of untrusted files, weights and JSON; the only entry point. Loaded files cannot execute code.

Weights are safetensors, or pickles read by torch with `weights_only=True`, which refuses everything but tensors and plain
containers. This cannot be turned off: convert a file that needs unrestricted unpickling elsewhere, if you trust it.
"""

from __future__ import annotations

import json
import mmap
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcl.errors import UserError
from mmcl.logging import get_logger, note

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = get_logger(__name__)

MAX_JSON_BYTES = 64 * 1024 * 1024
"""Larger than any common tokenizer (about 35 MB), small enough to parse."""

MAX_JSON_DEPTH = 100
"""Python fails at a depth of several hundred; configurations and tokenizers have about ten levels."""

_AVERAGED = ("state_dict_ema", "model_ema", "ema")
_NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
_MAX_DEPTH = 4
_REPEATED_BYTES = 2**20
"""Largest size of a tensor stored as a view of fewer values, such as an expanded row."""
_POINTER = b"version https://git-lfs"
_WRAPPERS = ("module.", "model.", "net.", "network.")
_INNER_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Prefixes that torch.compile and other wrappers insert into parameter names, also in the middle."""


def read_json(path: str | Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Reads a JSON object. Raises UserError if the file is missing, larger than `max_bytes`, or not a JSON object."""
    path = existing_file(path)
    if path.stat().st_size > max_bytes:
        raise UserError(f"{path}: {path.stat().st_size} bytes are too many for a JSON file; at most {max_bytes} are read")
    content = parse_json(path.read_bytes(), str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


def parse_json(text: bytes | str, where: str) -> Any:
    """Parses untrusted JSON. Raises UserError if it is invalid or nested more deeply than `MAX_JSON_DEPTH`."""
    try:
        content = json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); copy or save the file again") from None
    inner = [content] if isinstance(content, dict | list) else []
    for _ in range(MAX_JSON_DEPTH):
        inner = [
            child
            for node in inner
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not inner:
            return content
    raise UserError(f"{where}: JSON that is nested more than {MAX_JSON_DEPTH} levels deep; copy or save the file again")


def read_tensors(path: str | Path, *, names: Iterable[str] = ()) -> dict[str, Tensor]:
    """Reads a state dict from a `.safetensors` or torch file, on the CPU.

    If a checkpoint nests its weights (`state_dict`, `model`, ...), only the weights are returned. If it also has averaged
    weights, those are preferred, as in timm, and a note is logged. Wrapper prefixes (`module.`, `_orig_mod.`, `model.`, ...)
    are removed. An index (`model.safetensors.index.json`) is read together with its shards.

    Args:
        names: parameter names of the model. If most of them occur only behind one common prefix, as in a checkpoint of a model
            and its loss, only the tensors with that prefix are returned, without the prefix.

    Raises:
        UserError: the file is missing or damaged, contains anything but tensors and plain containers, or several models.
    """
    path = existing_file(path)
    read = {".safetensors": read_safetensors, ".json": _read_shards}.get(path.suffix, _read_torch)
    tensors = _unwrapped(_weights(read(path), path))
    _check_storages(tensors, path)
    prefix = _common_prefix(tensors, frozenset(names), path)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a safetensors file, on the CPU. Raises UserError if the file is damaged or of another format."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _refuse_pointer(Path(path))
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged, or not a safetensors file ({error}); copy or save it again") from None


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Copies tensors into a module, which must have exactly these. Raises UserError that names the first mismatch."""
    own = module.state_dict()
    # Files from PyTorch before 0.4.1 lack the counters of batch norms, and PyTorch itself accepts that.
    needed = (name for name in own if not name.endswith("num_batches_tracked"))
    misfits = (
        *(f"{name} is missing" for name in needed if name not in tensors),
        *(f"{name} has no place in it" for name in tensors if name not in own),
        *(
            f"{name} has shape {list(tensors[name].shape)}, not {list(tensor.shape)}"
            for name, tensor in own.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ),
        *(
            f"{name} is of type {tensors[name].dtype}, quantized or damaged"
            for name, tensor in own.items()
            if name in tensors and tensor.is_floating_point() and not tensors[name].is_floating_point()
        ),
    )
    if misfits:
        raise UserError(f"{where}: these weights are not of this architecture ({len(misfits)} differences): {misfits[0]}")
    module.load_state_dict({**own, **tensors})


def reason(error: Exception) -> str:
    """Returns the first line of an exception's message, or its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def existing_file(path: str | Path) -> Path:
    """Returns the path of an existing file. Raises UserError if it does not exist."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'a folder, where a file is expected' if path.is_dir() else 'no such file'}")
    return path


def _refuse_pointer(path: Path) -> None:
    """Raises UserError for a Git LFS pointer file, which a clone without Git LFS has in place of every large file."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise UserError(f"{path}: a pointer of Git LFS and not the file itself; run git lfs pull in its folder")


def _read_shards(path: Path) -> Mapping[str, Any]:
    """Reads all tensors from the safetensors files that an index names, in the same folder."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) and Path(name).name == name for name in places.values()):
        raise UserError(
            f"{path}: not an index of shards, whose weight_map has the file of every tensor; give a file of weights"
        )
    shards = [read_safetensors(existing_file(path.parent / name)) for name in sorted(set(places.values()))]
    return {name: tensor for shard in shards for name, tensor in shard.items()}


def _read_torch(path: Path) -> Mapping[str, Any]:
    import torch

    _refuse_pointer(path)
    try:
        is_archive = zipfile.is_zipfile(path)
        if _names_bytearray(path, is_archive):  # torch lets a pickle create a bytearray of any length
            raise pickle.UnpicklingError
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unusual pickle protocols, which are read or refused anyway
            # A mapped file cannot be read beyond its end, whatever length the pickle states.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except UserError:
        raise
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: contains more than tensors, or is damaged, and was not loaded; ask for a .safetensors file instead"
        ) from None
    except Exception as error:  # the reader may raise anything on arbitrary bytes
        raise UserError(
            f"{path}: the weights cannot be read ({reason(error)}); copy or save it again, as safetensors or by torch.save"
        ) from None
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: expected a dictionary of tensors, found a {type(state).__name__}")
    return state


def _names_bytearray(path: Path, is_archive: bool) -> bool:
    if is_archive:
        with _stored_archive(path) as archive:
            return any(b"bytearray" in archive.read(name) for name in archive.namelist() if name.endswith(".pkl"))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"bytearray") >= 0


@contextmanager
def _stored_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens an archive written by torch.save, which is uncompressed; compressed archives could unpack to any size."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.filename.rpartition("/")[2] == "constants.pkl" for member in members):
            raise UserError(
                f"{path}: a TorchScript archive, which contains code, and was not loaded; if you trust it, save its weights: "
                "torch.save(torch.jit.load(PATH).state_dict(), NEW_PATH)"
            )
        check_unpacked(path, archive, fold=1, spare=0)
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise UserError(f"{path}: is compressed, unlike files of torch.save; save it again by torch.save")
        yield archive


def check_unpacked(path: Path, archive: zipfile.ZipFile, *, fold: int = 4, spare: int = 2**26) -> None:
    """Raises UserError if a zip archive unpacks to more than `fold` times its size plus `spare` bytes."""
    size, unpacked = path.stat().st_size, sum(member.file_size for member in archive.infolist())
    if unpacked > fold * size + spare:
        raise UserError(f"{path}: has {size:,} bytes that unpack to {unpacked:,}, and weights hardly shrink; save it again")


def _weights(state: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Finds the tensors of a checkpoint: under the usual keys, at the top level, or in the only part that has tensors."""
    for _ in range(_MAX_DEPTH):
        average = next((key for key in _AVERAGED if _holds_tensors(state.get(key))), "")
        last = next((key for key in _NESTED if isinstance(state.get(key), Mapping)), "")
        if average and last:
            note(logger, f"{path}: holds {last!r} and {average!r}, a running average of them; the average is taken")
        state = state[average or last] if average or last else state
    parts = {str(key): _tensors(part) for key, part in state.items() if isinstance(part, Mapping) and _tensors(part)}
    tensors = _tensors(state) or (next(iter(parts.values())) if len(parts) == 1 else {})
    if not tensors:
        found = ", ".join(f"{key} ({len(parts[key])} tensors)" if key in parts else str(key) for key in state) or "nothing"
        raise UserError(f"{path}: has no tensors where weights are expected, only {found}; save the weights alone")
    return tensors


def _check_storages(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises UserError for tensors much larger than their data: without storage, or repeating a few stored values."""
    import torch

    limit = max(path.stat().st_size, _REPEATED_BYTES) if path.suffix != ".json" else None
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise UserError(f"{path}: {name} is sparse, quantized or without values; save it as an ordinary tensor")
        if limit is not None and tensor.nbytes > limit:
            raise UserError(f"{path}: {name} has shape {list(tensor.shape)}, for which the file is too small; save it again")


def _holds_tensors(part: object) -> bool:
    """True if a part of a checkpoint contains weights, possibly nested under one more key."""
    return isinstance(part, Mapping) and any(_tensors(held) for held in (part, *part.values()) if isinstance(held, Mapping))


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    import torch

    return {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Removes the prefixes that wrappers add to names."""
    bare = {name: name for name in tensors}
    for wrapper in _INNER_WRAPPERS:
        bare = {name: short.replace(wrapper, "") for name, short in bare.items()}
    while wrapper := next((w for w in _WRAPPERS if all(short.startswith(w) for short in bare.values())), ""):
        bare = {name: short.removeprefix(wrapper) for name, short in bare.items()}
    unique = len(set(bare.values())) == len(bare)
    return {bare[name]: tensor for name, tensor in tensors.items()} if unique else tensors


def _common_prefix(tensors: Iterable[str], names: frozenset[str], path: Path) -> str:
    """Finds the prefix that most of `names` have in the names of the tensors."""
    places = ((name, dot.end()) for name in tensors for dot in re.finditer(r"\.", name))
    found = Counter(name[:end] for name, end in places if name[end:] in names)
    prefixes = [prefix for prefix, count in found.items() if 2 * count > len(names)]
    if any(name in names for name in tensors) or not prefixes:
        return ""
    if len(prefixes) > 1:
        raise UserError(f"{path}: holds several models ({', '.join(prefixes)}); save the weights of one alone")
    return prefixes[0]
