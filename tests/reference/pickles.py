"""Writes tests/fixtures/pickles: a checkpoint in PyTorch's own format, whole and in shards, and one that would run code.

    pip install torch safetensors
    python tests/reference/pickles.py
"""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file

FIXTURES = Path(__file__).parent.parent / "fixtures"
OUT = FIXTURES / "pickles"


class Evil:
    """Unpickled by a reader that executes what it reads, this makes a file called `executed`."""

    def __reduce__(self):
        return (os.system, ("touch executed",))


def main():
    state = load_file(FIXTURES / "families" / "opt" / "model.safetensors")
    for name in ["single", "sharded", "evil"]:
        (OUT / name).mkdir(parents=True, exist_ok=True)
    torch.save(state, OUT / "single" / "pytorch_model.bin")

    names = sorted(state)
    halves = [names[::2], names[1::2]]
    files = [f"pytorch_model-{i + 1:05}-of-00002.bin" for i in range(2)]
    for half, file in zip(halves, files):
        torch.save({n: state[n] for n in half}, OUT / "sharded" / file)
    index = {"weight_map": {n: file for half, file in zip(halves, files) for n in half}}
    (OUT / "sharded" / "pytorch_model.bin.index.json").write_text(json.dumps(index))

    # A whole checkpoint but for one entry that calls a function when it is unpickled.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    source = zipfile.ZipFile(buffer)
    with zipfile.ZipFile(OUT / "evil" / "pytorch_model.bin", "w") as target:
        for item in source.namelist():
            data = source.read(item)
            if item.endswith("data.pkl"):
                data = pickle.dumps({"model.decoder.embed_tokens.weight": Evil()}, protocol=2)
            target.writestr(item, data)


main()
