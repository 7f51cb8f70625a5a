"""Files of weights, read without running anything in them: `.npz`, `.safetensors`, Caffe's `.caffemodel`,
and torch's state dicts.
"""

import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name; of a caffemodel `<layer>.weight` `(out, in, kh, kw)` and `<layer>.bias` `(out,)`.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: of no known kind, or damaged; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"backbone.weights={path}: there is no such file")
    readers: dict[str, Callable[[Path], dict[str, Tensor]]] = {
        ".npz": _read_npz,
        ".safetensors": load_file,
        ".caffemodel": _read_caffemodel,
    }
    if path.suffix not in readers:
        raise ValueError(f"backbone.weights={path}: give a file of the kind {', '.join(readers)}")
    try:
        return readers[path.suffix](path)
    except (ValueError, IndexError, KeyError, EOFError, struct.error, zipfile.BadZipFile, SafetensorError) as error:
        raise ValueError(f"backbone.weights={path} is damaged or no {path.suffix} file: {error}") from error


def load_state(network: nn.Module, path: Path, besides: tuple[str, ...] = ()) -> None:
    """Load a whole state dict, strictly, but for what begins with one of `besides`, which the network need not have.

    Raises:
        FileNotFoundError, ValueError: no such file, damaged, or another network's; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"backbone.weights={path}: there is no such file")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        network.load_state_dict({name: weight for name, weight in state.items() if not name.startswith(besides)})
    except Exception as error:  # each format and each mismatch raises its own kind
        raise ValueError(f"backbone.weights={path} does not fit: {' '.join(str(error).split())[:300]}") from error


def _read_npz(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _read_caffemodel(path: Path) -> dict[str, Tensor]:
    """The blobs of a binary `NetParameter`, of today's layers (field 100) or the older `V1` ones (field 2).

    Protocol buffers are a sequence of (field number, wire type, value); of Caffe's schema only names, blobs and their
    shapes matter here. See caffe.proto: LayerParameter, V1LayerParameter, BlobProto.
    """
    tensors: dict[str, Tensor] = {}
    for field, layer in _fields(memoryview(path.read_bytes())):
        if field not in (2, 100) or isinstance(layer, int):
            continue
        name_field, blobs_field = (1, 7) if field == 100 else (4, 6)
        parts = list(_fields(layer))
        names = [
            bytes(value).decode() for number, value in parts if number == name_field and not isinstance(value, int)
        ]
        blobs = [_blob(value) for number, value in parts if number == blobs_field and not isinstance(value, int)]
        for suffix, blob in zip(("weight", "bias"), blobs, strict=False):
            # Older files write a bias as (1, 1, 1, out).
            tensors[f"{names[0]}.{suffix}"] = blob.flatten() if suffix == "bias" else blob
    if not tensors:
        raise ValueError("no layer with weights in it")
    return tensors


def _blob(message: memoryview) -> Tensor:
    data, shape, legacy = bytearray(), [], {}
    for field, value in _fields(message):
        if field == 5 and not isinstance(value, int):  # data, packed or one by one
            data += value
        elif field == 7 and not isinstance(value, int):  # shape
            for number, dim in _fields(value):
                if number == 1:
                    shape += [dim] if isinstance(dim, int) else list(_varints(dim))
        elif field in (1, 2, 3, 4) and isinstance(value, int):  # num, channels, height, width
            legacy[field] = value
    shape = shape or [legacy.get(field, 1) for field in (1, 2, 3, 4)]
    values = np.frombuffer(bytes(data), dtype="<f4")
    if math.prod(shape) != len(values):
        raise ValueError(f"a blob of shape {shape} has {len(values)} numbers")
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        wire = key & 7
        if wire == 0:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        if wire == 2:
            length, position = _varint(message, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if position + length > len(message):
            raise EOFError(f"truncated at byte {len(message)}")
        yield key >> 3, message[position : position + length]
        position += length


def _varints(message: memoryview) -> Iterator[int]:
    position = 0
    while position < len(message):
        value, position = _varint(message, position)
        yield value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
