"""Which weights decay, and how fast each layer moves; and that micro-batches make the update of their batch."""

from pathlib import Path

import pytest
import torch
from torch import nn

from domains.store import open_prepared
from models.encoder.chance import Chance
from models.encoder.positions import Table
from models.encoder.tokenizers import Bands, Grid
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.heads.predict_sample import SampleHead
from models.heads.tuned import Tuned, build_head, build_loss
from models.objectives.decoders import DecoderSettings
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from pipelines.training.batches import Batch, Source, domain_code
from pipelines.training.schedule import learning_rate_share, parameter_groups
from pipelines.training.training import Job, Machine, Optimisation, fit
from tests.fabricate import prepare

PLAN = Optimisation(steps=10, learning_rate=1.0, weight_decay=0.05, layer_decay=0.5)


def tuned(depth: int = 3) -> Tuned:
    encoder = Encoder(EncoderSettings(tokenizer=Grid(patch=(4, 4)), size=Shape(8, depth, 2), class_position=True,
                                      positions=Table(grid=(4, 4))), 1)
    return Tuned(encoder, build_head(SampleHead(), 8, 2), build_loss(SampleHead(), "single_label", 2))


def by_name(model: nn.Module, plan: Optimisation, depth: int) -> dict[str, tuple[float, float]]:
    """(learning rate, weight decay) of each weight."""
    found = {id(weight): (group["lr"], group["weight_decay"]) for group in parameter_groups(model, plan, depth)
             for weight in group["params"]}
    return {name: found[id(weight)] for name, weight in model.named_parameters()}


def test_matrices_decay_and_biases_norms_tokens_and_positions_do_not():
    bands = Encoder(EncoderSettings(tokenizer=Bands(patch=(4, 4)), size=Shape(8, 2, 2)), 3)
    model = MaskedAutoencoder(MaskedAutoencoderSettings(decoder=DecoderSettings(width=8, depth=1, num_heads=2)), bands)
    for one in (model, tuned()):
        for name, (_, decay) in by_name(one, PLAN, 2).items():
            last = name.split(".")[-1]
            plain = last == "weight" and ("norm" not in name and ".channel." not in name)
            assert decay == (0.05 if plain else 0.0), name
    names = [name for one in (model, tuned()) for name in by_name(one, PLAN, 2)]
    for needed in ("class_token", "class_position", "rows", "mask_token", "channel.weight", "norm.weight", "bias"):
        assert any(name.endswith(needed) for name in names), needed


def test_a_layer_moves_by_the_decay_to_the_power_of_its_distance_from_the_head():
    rates = {name: rate for name, (rate, _) in by_name(tuned(), PLAN, 3).items()}
    assert rates["head.output.weight"] == rates["encoder.norm.weight"] == 1.0
    assert [rates[f"encoder.blocks.{i}.mlp.0.weight"] for i in range(3)] == pytest.approx([1 / 8, 1 / 4, 1 / 2])
    for name in ("tokenizer.project.weight", "class_token", "class_position", "place_code.rows"):
        assert rates[f"encoder.{name}"] == pytest.approx(1 / 16)


def test_the_cosine_ends_at_its_final_share():
    plan = Optimisation(steps=1000, warmup=0.0, final_share=0.2)
    assert learning_rate_share(plan, 0) == 1
    assert learning_rate_share(plan, 500) == pytest.approx(0.6)
    assert learning_rate_share(plan, 1000) == pytest.approx(0.2)


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_micro_batches_make_the_update_of_their_batch_and_gradients_are_clipped_to_their_norm(tmp_path: Path,
                                                                                              clip: float) -> None:
    data = open_prepared(prepare(tmp_path / "data"))
    source = Source(data, data.contract, domain_code("medical"), data.rows(split="train", task="bright"),
                    data.labels("bright"))
    weights = []
    for accumulate in (1, 4):
        torch.manual_seed(0)
        model = tuned()
        grown: list[float] = []

        def losses(batch: Batch, chance: Chance, model: Tuned = model) -> dict[str, torch.Tensor]:
            return {"task": model.mistakes(batch.x, batch.known, batch.labels)}

        def watch(step: int, model: Tuned = model, grown: list[float] = grown) -> bool:
            grown.append(float(torch.stack([w.grad.norm() for w in model.parameters() if w.grad is not None]).norm()))
            return False
        plan = Optimisation(steps=3, batch_size=8, learning_rate=1e-3, clip=clip, warmup=0.0)
        assert fit(Job(model=model, losses=losses, source=source, augment=None, optimisation=plan,
                       machine=Machine(accelerator="cpu", accumulate=accumulate), seed=0,
                       num_blocks=3, every=1, watch=watch)) == 3
        assert all(norm <= 1.01 * clip for norm in grown) if clip else max(grown) > 0.1
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5)
