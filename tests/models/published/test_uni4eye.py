import pytest
import torch

from models.encoder.chance import chance_of
from models.encoder.grid_2d_3d import Grid2D3D
from models.encoder.masking import RandomMasking
from models.encoder.positions import ImageAndVolume, NoPositions, Table
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.objectives.decoders import DecoderSettings
from models.objectives.dynamic_head import DynamicHead, DynamicHeadSettings
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from models.published.mae import blocks_back, layer_back, linear_to_kernel
from models.published.translation import CannotImport
from pipelines.weights.import_published import import_file, load_imported

GRID, PATCH, CUBE = (2, 4), (4, 4), (4, 4, 2)
TABLES = ImageAndVolume(image=Table(grid=GRID, learnt=False), volume=NoPositions())
GIVEN = {"num_heads": 5, "decoder_num_heads": 3, "grid": list(GRID)}


def encoder(positions=TABLES):
    torch.manual_seed(0)
    settings = EncoderSettings(tokenizer=Grid2D3D(patch=PATCH, cube=CUBE), size=Shape(20, 3, 5), positions=positions,
                               mlp_width=30)
    return Encoder(settings, 2)


def decoder(positions=TABLES):
    return DecoderSettings(width=18, depth=2, num_heads=3, positions=positions, mlp_width=22)


def table(code, width):
    """Rows of a place code under the release's names, the class token's first."""
    rows = code.rows if hasattr(code, "rows") else torch.zeros(6, width)
    return torch.cat([torch.zeros(1, 1, width), rows[None]], 1)


def published(model) -> dict[str, torch.Tensor]:
    encoder, decoder = model.encoder, model.decoder
    out = {"cls_token": encoder.class_token, "mask_token": decoder.mask_token,
           "pos_embed2": table(encoder.place_code.image, 20), "pos_embed3": table(encoder.place_code.volume, 20),
           "decoder_pos_embed2": table(decoder.place_code.image, 18),
           "decoder_pos_embed3": table(decoder.place_code.volume, 18),
           "patch_embed.proj2.weight": linear_to_kernel(encoder.tokenizer.image.weight, PATCH, 2),
           "patch_embed.proj2.bias": encoder.tokenizer.image.bias,
           "patch_embed.proj3.weight": linear_to_kernel(encoder.tokenizer.volume.weight, CUBE, 2),
           "patch_embed.proj3.bias": encoder.tokenizer.volume.bias,
           **blocks_back(encoder.blocks, "blocks"), **layer_back(encoder.norm, "norm"),
           **layer_back(decoder.embed, "decoder_embed"), **blocks_back(decoder.blocks, "decoder_blocks"),
           **layer_back(decoder.norm, "decoder_norm"), "mlp.weight": torch.zeros(2, 7), "mlp.bias": torch.zeros(2)}
    if isinstance(model, DynamicHead):
        out |= {"controller.weight": model.controller.weight[..., None], "controller.bias": model.controller.bias,
                **layer_back(model.readout.project, "decoder_pred2"),
                **layer_back(model.readout.project, "decoder_pred3")}
    else:
        out |= {**layer_back(model.readout.image.project, "decoder_pred2"),
                **layer_back(model.readout.volume.project, "decoder_pred3")}
    return {name: value.detach().clone() for name, value in out.items()}


def imported(tmp_path, model, given=GIVEN):
    torch.save({"model": published(model)}, tmp_path / "pretrain.pth")
    record = import_file(tmp_path / "pretrain.pth", tmp_path / "out", given=given)
    return load_imported(tmp_path / "out")[0].objective, record


def chance():
    ids = torch.arange(2)
    return chance_of(0, 0, 0, ids, 0 * ids)


def test_a_dynamic_head_of_any_size_comes_back_as_the_same_function(tmp_path):
    model = DynamicHead(DynamicHeadSettings(grid=GRID, num_tasks=4, decoder=decoder(), released_relu=True),
                        encoder()).eval()
    back, record = imported(tmp_path, model)
    assert back.settings.num_tasks == 4
    assert set(record["report"]["dropped"]) == {"pos_embed3", "decoder_pos_embed3", "decoder_pred3.weight",
                                                "decoder_pred3.bias", "mlp.weight", "mlp.bias"}
    x = torch.randn(2, 2, 8, 16)
    assert torch.equal(model.reconstruct(x, None, chance()).predicted, back.reconstruct(x, None, chance()).predicted)


@pytest.mark.parametrize("size", [(8, 16), (4, 8, 6)])
def test_a_file_without_the_head_reads_images_and_volumes(tmp_path, size):
    both = ImageAndVolume(image=Table(grid=GRID), volume=Table(grid=(1, 2, 3)))
    settings = MaskedAutoencoderSettings(masking=RandomMasking(ratio=0.5), decoder=decoder(both))
    model = MaskedAutoencoder(settings, encoder(both)).eval()
    back, record = imported(tmp_path, model, GIVEN | {"volume_grid": [1, 2, 3]})
    assert set(record["report"]["dropped"]) == {"mlp.weight", "mlp.bias"}
    x = torch.randn(2, 2, *size)
    assert torch.equal(model.reconstruct(x, None, chance()).predicted, back.reconstruct(x, None, chance()).predicted)


def test_a_head_for_another_grid_is_refused_with_what_it_takes(tmp_path):
    model = DynamicHead(DynamicHeadSettings(grid=GRID, decoder=decoder()), encoder())
    tensors = published(model) | {"controller.weight": torch.zeros(90, 20, 1), "controller.bias": torch.zeros(90)}
    torch.save({"model": tensors}, tmp_path / "edited.pth")
    with pytest.raises(CannotImport, match="found 20 numbers in and 90 out, expected more than 9 in and 72 out"):
        import_file(tmp_path / "edited.pth", tmp_path / "out", given=GIVEN)


def test_two_positions_of_one_class_token_are_refused(tmp_path):
    model = DynamicHead(DynamicHeadSettings(grid=GRID, decoder=decoder()), encoder())
    tensors = published(model)
    tensors["pos_embed2"][:, 0] = 1.0
    torch.save({"model": tensors}, tmp_path / "edited.pth")
    with pytest.raises(CannotImport, match="two positions of the class token"):
        import_file(tmp_path / "edited.pth", tmp_path / "out", given=GIVEN)
