"""Point-CMAE's files at sizes other than the recorded ones."""

import pytest
import torch

from models.encoder.chance import chance_of
from models.encoder.masking import RandomMasking
from models.encoder.tokenizers import Groups
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.objectives.decoders import DecoderSettings
from models.objectives.point_cmae import PointCMAE, PointCMAESettings
from models.published.families import translate
from models.published.mae import blocks_back, layer_back
from models.published.point_mae import encoder_back, kernel_back
from models.published.rebuild import rebuild
from models.published.translation import CannotImport, Published

GIVEN = {"num_heads": 5, "decoder_num_heads": 3, "num_groups": 9, "num_points": 50, "mask_ratio": 0.45}


def objective() -> PointCMAE:
    torch.manual_seed(0)
    encoder = Encoder(EncoderSettings(
        tokenizer=Groups(num_groups=9, group_size=7, widths=(6, 10, 14), sampling="pointnet2"), size=Shape(30, 3, 5),
        class_token=False, place_every_block=True, qkv_bias=False, norm_eps=1e-5), 3)
    made = PointCMAE(PointCMAESettings(
        masking=RandomMasking(ratio=0.45, round_hidden="down"), agreement="all_pairs", summary_widths=(20, 16),
        decoder=DecoderSettings(width=30, depth=2, num_heads=3, place_every_block=True, project=False, qkv_bias=False,
                                norm_eps=1e-5)), encoder)
    for value in made.state_dict().values():
        value.copy_(torch.rand(value.shape) + 0.1 if value.is_floating_point() else torch.tensor(17))
    return made.eval()


def their_names(made: PointCMAE) -> dict[str, torch.Tensor]:
    out = encoder_back(made.encoder, "MAE_encoder.")
    for view, token, layer in ((made.first, "1", ""), (made.second, "2", "_")):
        decoder = view.decoder
        out |= {f"MAE_encoder.cls_token{token}": view.class_token, f"MAE_encoder.cls_pos{token}": view.class_position,
                f"mask_token{token}": decoder.mask_token, **layer_back(decoder.norm, f"MAE_decoder{layer}.norm"),
                **blocks_back(decoder.blocks, f"MAE_decoder{layer}.blocks"),
                **layer_back(decoder.place_code[0], f"decoder_pos_embed{token}.0"),
                **layer_back(decoder.place_code[2], f"decoder_pos_embed{token}.2"),
                **kernel_back(view.readout.project, f"increase_dim{layer}.0")}
    out |= {f"MAE_encoder.proj_cls.{name}": value for name, value in made.project_summary.state_dict().items()}
    return {name: value.detach().clone() for name, value in out.items()}


def test_every_tensor_finds_its_place_and_the_losses_are_the_same():
    made = objective()
    tensors = their_names(made)
    assert len(tensors) == len(made.state_dict())
    found = translate(Published(tensors, given=GIVEN))
    assert found.family == "point_cmae" and set(found.names) == set(tensors) and not found.missing
    back = rebuild(found)
    assert all(torch.equal(value, back.objective.state_dict()[name]) for name, value in made.state_dict().items())
    points = torch.randn(4, 50, 3)
    ids = torch.arange(4)
    chance = chance_of(0, 0, 0, ids, 0 * ids)
    torch.testing.assert_close(back.objective(points, None, chance), made(points, None, chance))


def test_decoders_of_different_depths_are_refused():
    tensors = {name: value for name, value in their_names(objective()).items()
               if not name.startswith("MAE_decoder_.blocks.1.")}
    with pytest.raises(CannotImport, match="the two decoders differ"):
        translate(Published(tensors, given=GIVEN))
