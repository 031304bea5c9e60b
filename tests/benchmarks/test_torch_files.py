"""Files of `torch.save` are read as data; nothing in them is run."""

import os
import pickle
import struct

import numpy as np
import pytest
from demo_embeddings import torch_files


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def write(path, state, tail=b""):
    header = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    parts = [pickle.dumps(value, protocol=2) for value in (*header, state, [])]
    path.write_bytes(b"".join(parts) + tail)


def test_nothing_is_run(tmp_path):
    marker = tmp_path / "made"
    write(tmp_path / "bad.pth", {"w": Hostile(str(marker))})
    with pytest.raises(torch_files.TorchFileError, match="mkdir"):
        torch_files.read_tensors(tmp_path / "bad.pth")
    assert not marker.exists()


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    for content in (b"", b"PK\x03\x04", pickle.dumps(3, protocol=2)):
        path.write_bytes(content)
        with pytest.raises(torch_files.TorchFileError):
            torch_files.read_tensors(path)
    write(path, {"no": "tensor"})
    assert torch_files.read_tensors(path) == {}
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(torch_files.TorchFileError, match="malformed or cut"):
        torch_files.read_tensors(path)


def test_a_tensor_outside_of_its_values_is_refused():
    tensor = torch_files._Tensor(torch_files._Storage(np.dtype("<f4"), "0"), 2, (2, 2), (2, 1))
    with pytest.raises(torch_files.TorchFileError, match="lies outside"):
        tensor.of(np.zeros(5, np.float32))
    assert tensor.of(np.arange(6.0)).tolist() == [[2, 3], [4, 5]]


@pytest.mark.parity
def test_tensors_equal_those_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra parity")
    w = torch.arange(24.0).reshape(2, 3, 4)
    state = {"w": w, "view": w.transpose(0, 2), "n": torch.tensor(7), "row": w[1, 2]}
    path = tmp_path / "w.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    found = torch_files.read_tensors(path)
    assert found.keys() == state.keys()
    assert all(np.array_equal(found[name], state[name].numpy()) for name in state)
    content = path.read_bytes()
    path.write_bytes(content[: -struct.calcsize("<8f")])
    with pytest.raises(torch_files.TorchFileError):
        torch_files.read_tensors(path)
