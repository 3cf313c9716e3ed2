"""Files of VPT, gated prompt tuning, CLIP-SVD and LoRA at sizes of no recorded set, written here under their names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from models.adapters.adapter import AdapterSettings, adapter_state, add_adapter, load_adapter_state
from models.adapters.gated_prompts import GatedPrompts
from models.adapters.loose import key_of
from models.adapters.lora import LoraLinear
from models.adapters.prompts import Prompts
from models.adapters.seams import added
from models.adapters.singular_values import split
from models.encoder.positions import Table
from models.encoder.tokenizers import Grid
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.heads.predict_sample import PredictSample, SampleHead
from models.published import mae
from models.published.translation import CannotImport
from pipelines.weights.checkpoints import CheckpointError, load_encoder
from pipelines.weights.import_published import import_file, load_imported

SIZE, WIDTH, DEPTH = (24, 24), 18, 5
ADAPTERS = {"shallow": Prompts(num_prompts=3), "deep": Prompts(num_prompts=2, deep=True),
            "gated": GatedPrompts(num_prompts=7, num_gates=4), "few": GatedPrompts(num_prompts=1, num_gates=1,
                                                                                   num_temperatures=3)}


def stir(module: nn.Module) -> None:
    with torch.no_grad():
        for value in module.parameters():
            value += 0.3 * torch.randn_like(value)


def model(adapter: AdapterSettings) -> tuple[Encoder, PredictSample, dict[str, torch.Tensor]]:
    """An encoder with an adapter, its head, and both under the releases' names."""
    torch.manual_seed(0)
    encoder = Encoder(EncoderSettings(tokenizer=Grid(patch=(6, 6)), size=Shape(WIDTH, DEPTH, 3), class_position=True,
                                      positions=Table(grid=(4, 4)), mlp_width=30, last_norm=False), 4).eval()
    head = PredictSample(SampleHead(pool="mean", norm_eps=1e-6), WIDTH, 3).eval()
    stir(encoder)
    stir(head)
    tensors = mae.export(encoder, SIZE, head=head)  # the release's names; its pooling with prompts is not MAE's
    head.settings = SampleHead(pool="mean_with_prompts", norm_eps=1e-6)
    add_adapter(encoder, adapter)
    with torch.no_grad():
        for name, value in added(encoder):
            if not name.endswith("temperature"):
                value += 0.3 * torch.randn_like(value)
            else:
                value.uniform_(0.2, 3.0)
    own = {name: [value for path, value in added(encoder) if path.endswith(name)]
           for name in ("prompts", "gate_logit", "temperature")}
    tensors["prompt_embeddings"] = own["prompts"][0][None]
    if isinstance(adapter, GatedPrompts):
        tensors |= {"gate_logit": torch.cat(own["gate_logit"]), "temp": torch.cat(own["temperature"])}
        tensors |= {f"norm.{name}": tensors.pop(f"fc_norm.{name}") for name in ("weight", "bias")}
    elif adapter.deep:
        tensors["deep_prompt_embeddings"] = torch.stack(own["prompts"][1:])
    return encoder, head, {name: value.detach() for name, value in tensors.items()}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_whole_model_comes_back_at_other_sizes(tmp_path, kind):
    encoder, head, tensors = model(ADAPTERS[kind])
    torch.save({"model": tensors}, tmp_path / "model.pth")
    import_file(tmp_path / "model.pth", tmp_path / "out", given={"num_heads": 3})
    back, record = load_imported(tmp_path / "out")
    x = torch.randn(2, 4, *SIZE)
    patches = encoder.tokenizer.patchify(x)
    with torch.no_grad():
        expected, found = (h(e(patches), patches, x) for e, h in ((encoder, head), (back.encoder, back.head)))
    assert torch.equal(found, expected)
    assert set(record["report"]["mapped"]) == set(tensors)
    assert any(note.startswith("pool = original") for note in record["provenance"]["notes"])
    with pytest.raises(CheckpointError, match="found an encoder with an adapter"):
        load_encoder(tmp_path / "out")


@pytest.mark.parametrize("kind", ["shallow", "deep"])
def test_prompts_alone_fit_the_encoder_that_they_were_learnt_on(tmp_path, kind):
    adapter = ADAPTERS[kind]
    encoder, _, tensors = model(adapter)
    arrays = {"shallow_prompt": tensors["prompt_embeddings"].numpy()}
    if kind == "deep":
        arrays["deep_prompt"] = tensors["deep_prompt_embeddings"].numpy()
    torch.save(arrays, tmp_path / "prompt_ep3.pth")
    record = import_file(tmp_path / "prompt_ep3.pth", tmp_path / "out")
    loose = load_imported(tmp_path / "out")[0].loose
    assert record["loose"]["prompts"]["deep"] is (kind == "deep")
    bare, _, _ = model(adapter)
    for i, block in enumerate(bare.blocks):
        bare.blocks[i] = block.wrapped
    load_adapter_state(bare, [adapter], adapter_state(loose), None)
    patches = encoder.tokenizer.patchify(torch.randn(2, 4, *SIZE))
    assert torch.equal(bare(patches).tokens, encoder(patches).tokens)
    with pytest.raises(CheckpointError, match="found no encoder"):
        load_encoder(tmp_path / "out")


def test_arrays_of_objects_are_never_opened(tmp_path):
    torch.save({"shallow_prompt": np.array([{"a": 1}], dtype=object)}, tmp_path / "prompt_ep3.pth")
    with pytest.raises(CannotImport, match="cannot be read safely"):
        import_file(tmp_path / "prompt_ep3.pth", tmp_path / "out")


def test_a_pool_that_no_release_has_is_refused(tmp_path):
    torch.save({"model": model(ADAPTERS["shallow"])[2]}, tmp_path / "model.pth")
    with pytest.raises(CannotImport, match="pool: found 'max'"):
        import_file(tmp_path / "model.pth", tmp_path / "out", given={"num_heads": 3, "pool": "max"})


def test_split_layers_come_back_whatever_their_rank_and_names(tmp_path):
    torch.manual_seed(0)
    layers = {"visual.block.0.fc": nn.Linear(10, 6), "text": nn.Linear(5, 9, bias=False)}
    cut = {name: split(layer) for name, layer in layers.items()}
    tensors = {"plain.weight": torch.randn(3, 2)}
    for name, layer in cut.items():
        rank = len(layer.values) // 4 * 4                                   # the release rounds the rank down
        tensors |= {f"{name}.vector_S": layer.values[None, :rank].detach(), f"{name}.fc_U.weight": layer.left[:, :rank],
                    f"{name}.fc_V.weight": layer.right[:rank]}
        if layer.bias is not None:
            tensors[f"{name}.fc_U.bias"] = layer.bias
    weights = {name: value.detach() for name, value in tensors.items()}
    torch.save({"weights": weights, "metadata": {"kind": "none"}}, tmp_path / "a.pth")
    import_file(tmp_path / "a.pth", tmp_path / "out")
    back = load_imported(tmp_path / "out")[0].loose["layers"]
    assert set(back) == {key_of(name) for name in (*layers, "plain")}
    for name, layer in cut.items():
        x, rank = torch.randn(4, layer.in_features), len(layer.values) // 4 * 4
        weight = layer.left[:, :rank] * layer.values[:rank] @ layer.right[:rank]
        torch.testing.assert_close(back[key_of(name)](x), nn.functional.linear(x, weight, layer.bias))


def lora_file(tmp_path, square: bool = False) -> dict[str, LoraLinear]:
    torch.manual_seed(0)
    inputs = 8 if square else 6
    made = {"a.plain": LoraLinear(nn.Linear(6, 8), 3, 5.0), "stored": LoraLinear(nn.Linear(inputs, 8), 2, 5.0),
            "qkv": LoraLinear(nn.Linear(6, 12), 2, 5.0, (True, False, True)),
            "kv": LoraLinear(nn.Linear(6, 12, bias=False), 4, 5.0, (True, True))}
    tensors = {"norm.weight": torch.randn(3, 3)}
    for name, layer in made.items():
        stir(layer)
        weight = layer.wrapped.weight.T if name == "stored" else layer.wrapped.weight
        tensors |= {f"{name}.weight": weight, f"{name}.lora_A": layer.down, f"{name}.lora_B": layer.up}
        if layer.wrapped.bias is not None:
            tensors[f"{name}.bias"] = layer.wrapped.bias
    torch.save({name: value.detach() for name, value in tensors.items()}, tmp_path / "lora.pth")
    return made


@pytest.mark.parametrize("square", [False, True])
def test_lora_layers_come_back_at_other_sizes(tmp_path, square):
    made = lora_file(tmp_path, square)
    import_file(tmp_path / "lora.pth", tmp_path / "out", given={"alpha": 5, "fan_in_fan_out": ["stored"]})
    back = load_imported(tmp_path / "out")[0].loose["layers"]
    for name, layer in made.items():
        x = torch.randn(4, layer.in_features)
        assert torch.equal(back[key_of(name)](x), layer(x)), name
    assert isinstance(back["norm"], nn.Linear)


def test_what_lora_weights_do_not_tell_is_asked_for(tmp_path):
    lora_file(tmp_path)
    with pytest.raises(CannotImport, match="--set alpha="):
        import_file(tmp_path / "lora.pth", tmp_path / "out")
    with pytest.raises(CannotImport, match="qkv: found a change of 2 out of 3 parts"):
        import_file(tmp_path / "lora.pth", tmp_path / "out", given={"alpha": 5, "enable_lora": [True, False, False]})
    record = import_file(tmp_path / "lora.pth", tmp_path / "out", given={"alpha": 5})
    assert any(note.startswith("qkv: enable_lora = [True, False, True]") for note in record["provenance"]["notes"])
