"""Safe reading of files of tensors that PyTorch wrote."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch


def load_tensors(path: Path) -> Any:
    """The content of a file of ``torch.save``: tensors, numbers, texts, and lists and dicts of them, on the CPU.

    Raises:
        ValueError: it is something else, or unpacks to more than its size.
        OSError: it cannot be read.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError("a pipe or a device, expected a file")  # a pipe would wait, and a device never ends
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("not a file of tensors as PyTorch writes it")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        # PyTorch compresses nothing: a compressed entry may unpack to any size.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its entries are compressed, which PyTorch does not do")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its entries are larger than the file")
        return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError:
        # PyTorch's text advises weights_only=False, which would run the file's code.
        raise ValueError("it holds objects other than tensors, numbers and texts") from None
    except (zipfile.BadZipFile, RuntimeError, EOFError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"damaged ({' '.join(str(error).split())[:150]})") from None
