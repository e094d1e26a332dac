"""What tests of model folders share: signing a changed folder, and comparing two modules."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tessella.checkpoints import fingerprint
from tessella.config import read_yaml
from tessella.files import add_to_marker


def sign(folder: Path) -> None:
    """Give a changed folder the fingerprint of its content, as one who tampers with it would."""
    card = json.loads((folder / "card.json").read_text())
    state = load_file(folder / "model.safetensors")
    card["fingerprint"] = fingerprint(read_yaml(folder / "config.yaml"), state)
    (folder / "card.json").write_text(json.dumps(card))
    add_to_marker(folder, "card.json")


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Every tensor that a module or a part of it has: parameters, buffers, plain attributes."""
    found = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, part in module.named_modules():
        found |= {f"{name}.{k}": v for k, v in vars(part).items() if isinstance(v, Tensor)}
    return found


def assert_same(loaded: nn.Module, saved: nn.Module) -> None:
    """The two have equal tensors, of equal type and place, that equally want gradients."""
    ours, theirs = tensors_of(loaded), tensors_of(saved)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
        for fact in ("dtype", "device", "requires_grad", "is_leaf"):
            assert getattr(ours[name], fact) == getattr(tensor, fact), (name, fact)
        assert type(ours[name]) is type(tensor), name
