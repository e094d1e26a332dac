"""Weights are found in whatever other people's trainings wrap them, and averages are told apart."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tessella.checkpoints import CheckpointError
from tessella.importers.checkpoint_file import StoredWeights, read_weights
from tessella.tests.cases import naming, over

State = dict[str, Tensor]


def weights(value: float = 0.0) -> State:
    """Two layers with a norm that counts batches."""
    return {
        "encoder.conv.weight": torch.full((2, 3), value),
        "encoder.norm.running_mean": torch.full((2,), value),
        "encoder.norm.num_batches_tracked": torch.tensor(7),
        "decoder.conv.weight": torch.full((3, 2), value),
        "decoder.conv.bias": torch.full((3,), value),
    }


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


RAW, EMA, OTHER = weights(1.0), weights(2.0), {"conv.weight": torch.full((4, 4), 3.0)}
PARAMETERS = [t for n, t in EMA.items() if "norm" not in n]


def read(tmp_path: Path, content: Any, **words: Any) -> StoredWeights:
    torch.save(content, tmp_path / "file.pt")
    return read_weights(tmp_path / "file.pt", **words)


def same(found: StoredWeights, expected: State) -> bool:
    keys = found.tensors.keys() == expected.keys()
    return keys and all(torch.equal(found.tensors[n], t) for n, t in expected.items())


WRAPPED: dict[str, tuple[Any, str]] = {
    "flat": (RAW, ""),
    "beside numbers": (RAW | {"step": 3, "epoch": torch.tensor(3)}, ""),
    "state_dict": ({"state_dict": RAW, "epoch": 3}, "state_dict"),
    "params": ({"params": RAW}, "params"),
    "nested": ({"trainer": {"unitok": RAW, "step": 3}}, "trainer.unitok"),
    "deep": ({"a": {"b": {"c": RAW}}}, "a.b.c"),
    "module": (prefixed("module.", RAW), ""),
    "compiled in parallel": ({"model": prefixed("module._orig_mod.", RAW)}, "model"),
    "parallel in compiled": (prefixed("_orig_mod.module.", RAW), ""),
    "model": ({"state_dict": prefixed("model.", RAW)}, "state_dict"),
    "beside losses": (prefixed("model.", RAW) | prefixed("loss.disc.", OTHER), "model"),
    "beside a discriminator": ({"discriminator": OTHER, "vqgan": RAW}, "vqgan"),
    "beside an optimizer": ({"model": RAW, "optimizer": {"state": {0: OTHER}}}, "model"),
    "beside moments": ({"model": RAW, "optimizer": {"exp_avg": RAW}}, "model"),
    "two networks": ({"net_g": RAW, "net_d": OTHER}, "net_g"),
    "a word of its own": ({"my_network": RAW}, "my_network"),
}


@over("name", WRAPPED)
def test_weights_are_found_without_what_wraps_them(name: str, tmp_path_factory: Any) -> None:
    content, label = WRAPPED[name]
    found = read(tmp_path_factory.mktemp("case"), content)
    expected = {n: t for n, t in RAW.items() if n in found.tensors} if name == "deep" else RAW
    if name == "beside numbers":
        expected = RAW | {"epoch": torch.tensor(3)}
    assert same(found, expected) and found.section == label and not found.averaged


def test_wrappers_inside_of_names_are_no_part_of_them(tmp_path: Path) -> None:
    inside = {n.replace("encoder.", "encoder._orig_mod."): t for n, t in RAW.items()}
    assert same(read(tmp_path, inside), RAW)
    with pytest.raises(CheckpointError, match="two names are the same without _orig_mod"):
        read(tmp_path, RAW | inside)


AVERAGED: dict[str, tuple[Any, str, str]] = {
    "model_ema": ({"model": RAW, "model_ema": EMA}, "model_ema", "model"),
    "ema": ({"ema": EMA, "state_dict": RAW}, "ema", "state_dict"),
    "ema_state_dict": ({"model": RAW, "ema_state_dict": EMA}, "ema_state_dict", "model"),
    "params_ema": ({"params": RAW, "params_ema": EMA}, "params_ema", "params"),
    "nested": ({"model": RAW, "ema": {"decay": 0.9, "shadow": EMA}}, "ema.shadow", "model"),
    "prefixes": (
        {"state_dict": prefixed("model.", RAW) | prefixed("ema_model.", EMA)},
        "state_dict.ema_model",
        "state_dict.model",
    ),
    "one has a prefix": (RAW | prefixed("model_ema.", EMA), "model_ema", ""),
    "net_g_ema": (prefixed("net_g.", RAW) | prefixed("net_g_ema.", EMA), "net_g_ema", "net_g"),
    "in parallel": (
        {"model": prefixed("module.", RAW), "ema": prefixed("module.", EMA)},
        "ema",
        "model",
    ),
    "with networks": (
        {"g": RAW, "g_ema": EMA, "disc": OTHER, "disc_ema": OTHER},
        "g_ema",
        "g",
    ),
}


@over("name", AVERAGED)
def test_the_average_is_taken_or_the_weights_if_asked_for(name: str, tmp_path_factory: Any) -> None:
    content, average, label = AVERAGED[name]
    folder = tmp_path_factory.mktemp("case")
    found = read(folder, content)
    assert same(found, EMA) and found.section == average and found.averaged
    assert found.ignored[label or "weights of no section"] == "another copy of the weights"
    assert {average, label} <= found.found.keys()
    found = read(folder, content, average=False)
    assert same(found, RAW) and found.section == label and not found.averaged
    assert same(read(folder, content, section=average, average=False), EMA)


@pytest.mark.parametrize("values", [PARAMETERS, [t for t in EMA.values() if t.is_floating_point()]])
def test_an_average_that_is_a_list_gets_the_names(values: list[Tensor], tmp_path: Path) -> None:
    content = {"model": prefixed("module.", RAW), "ema": {"shadow_params": values, "decay": 0.9}}
    found = read(tmp_path, content)
    assert found.section == "ema.shadow_params" and found.averaged
    named = {n for n in RAW if (len(values) == 4 and "tracked" not in n) or "norm" not in n}
    for name, tensor in found.tensors.items():
        with naming(name):
            assert torch.equal(tensor, (EMA if name in named else RAW)[name])
    assert found.completed == 5 - len(values)
    assert same(read(tmp_path, content, average=False), RAW)


def test_an_average_of_parameters_alone_is_completed(tmp_path: Path) -> None:
    part = {n: t for n, t in EMA.items() if "norm" not in n}
    found = read(tmp_path, {"model": RAW, "ema": part})
    assert found.completed == 2 and same(found, RAW | part)


def test_what_cannot_be_told_is_asked_for(tmp_path: Path) -> None:
    two = {"first": RAW, "second": EMA}
    with pytest.raises(CheckpointError, match=r"several .*: 'first', 'second'; .*\(--section\)"):
        read(tmp_path, two)
    assert same(read(tmp_path, two, section="second"), EMA)
    with pytest.raises(CheckpointError, match="no section 'third'; there are 'first', 'second'"):
        read(tmp_path, two, section="third")
    odd = {"model": RAW, "ema": PARAMETERS[::-1]}
    with pytest.raises(CheckpointError, match=r"'ema' is a list of tensors that .*--no-average"):
        read(tmp_path, odd)
    assert same(read(tmp_path, odd, average=False), RAW)


def test_content_that_leads_to_itself_ends(tmp_path: Path) -> None:
    inner: dict[str, Any] = {"config": {"a": 1}}
    for _ in range(40):
        inner = {"one": inner, "two": inner, "three": inner}
    with pytest.raises(CheckpointError, match=r"holds no weights: .*found one, three, two"):
        read(tmp_path, inner)
    assert same(read(tmp_path, {"hyper": inner, "model": RAW}), RAW)


def test_tensors_larger_than_their_file_are_refused(tmp_path: Path) -> None:
    """A few stored numbers that a view repeats, and many names of the same numbers."""
    with pytest.raises(CheckpointError, match=r"take 40,000,000,\d+ bytes, from a file of"):
        read(tmp_path, RAW | {"big.weight": torch.ones(1).expand(10**5, 10**5)})
    shared = torch.ones(1000, 100)
    with pytest.raises(CheckpointError, match="weights are stored in full"):
        read(tmp_path, {f"{i}.weight": shared for i in range(100)})
    with pytest.raises(CheckpointError, match=r"a\.weight is sparse or has no values"):
        read(tmp_path, {"a.weight": torch.eye(3).to_sparse(), "b.weight": torch.ones(2)})
    tied = {"a.weight": shared, "b.weight": shared}
    assert same(read(tmp_path, tied), tied)


def parts(folder: Path, **changes: Any) -> Path:
    """A checkpoint in two files with its index, as libraries of language models write it."""
    folder.mkdir(exist_ok=True)
    names = list(RAW)
    files = {"model-1.safetensors": names[:2], "model-2.safetensors": names[2:]}
    for file, some in files.items():
        save_file(prefixed("model.", {name: RAW[name] for name in some}), folder / file)
    placed = {f"model.{name}": file for file, some in files.items() for name in some}
    index = {"metadata": {"total_size": 1}, "weight_map": placed} | changes
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_checkpoint_in_parts(tmp_path: Path) -> None:
    folder = parts(tmp_path / "parts")
    (folder / "config.json").write_text("{}")
    for path in (folder, folder / "model.safetensors.index.json"):
        found = read_weights(path)
        assert same(found, RAW) and found.container == "2 files (safetensors)"
        assert [file.name for file in found.files][1:] == [
            "model-1.safetensors",
            "model-2.safetensors",
        ]
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of its 2 files are missing: model-2\.safe"):
        read_weights(folder)
    with pytest.raises(CheckpointError, match=r"names '\.\./x'; expected a file beside it"):
        read_weights(parts(folder, weight_map={"a": "../x"}))
    with pytest.raises(CheckpointError, match="has no weight_map"):
        read_weights(parts(folder, weight_map=[]))
    parts(folder)
    save_file(prefixed("model.", RAW), folder / "model-2.safetensors")
    with pytest.raises(CheckpointError, match="has tensors that another file of the checkpoint"):
        read_weights(folder)


def test_a_folder_with_one_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save(RAW, tmp_path / "pytorch_model.bin")
    assert same(read_weights(tmp_path), RAW)
    save_file(EMA, tmp_path / "model.safetensors")
    assert same(read_weights(tmp_path), EMA)  # the one that needs no unpickling
    save_file(EMA, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"a folder; expected the .* model\.safetensors, oth"):
        read_weights(tmp_path)


def test_folders_of_other_kinds_are_named(tmp_path: Path) -> None:
    for name in (".metadata", "__0_0.distcp"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"a distributed checkpoint; .*dcp_to_torch"):
        read_weights(tmp_path)
    for name in ("card.json", "config.yaml"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match="a model folder of tessella's"):
        read_weights(tmp_path)
