import pytest
import torch

from models.encoder.chance import chance_of
from models.encoder.positions import GridPositions, Table
from models.encoder.tokenizers import Grid
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.objectives.decoders import DecoderSettings
from models.objectives.hierarchical_decoder import HierarchicalDecoderSettings
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from models.objectives.readouts import PixelReadout
from models.published.hi_end_mae import export
from models.published.translation import CannotImport
from pipelines.weights.import_published import import_file, load_imported

GRID, PATCH, SIZE = (2, 3, 2), (4, 2, 6), (8, 6, 12)


def made(taps=(6, 3), self_attention=True) -> MaskedAutoencoder:
    """A model of other sizes, axes of different lengths, two channels, another MLP."""
    torch.manual_seed(0)
    table = Table(grid=GRID, learnt=False)
    encoder = Encoder(EncoderSettings(tokenizer=Grid(patch=PATCH), size=Shape(20, 7, 5), positions=table,
                                      mlp_width=36), 2)
    decoder = HierarchicalDecoderSettings(width=12, depth=3, num_heads=4, taps=taps, positions=table, mlp_width=28,
                                          self_attention=self_attention)
    readout = PixelReadout(normalise_patch=True, biased_variance=True)
    return MaskedAutoencoder(MaskedAutoencoderSettings(decoder=decoder, readout=readout), encoder).eval()


def published(model: MaskedAutoencoder) -> dict[str, torch.Tensor]:
    """Its weights under the release's names."""
    return {f"module.{name}": value for name, value in export(model.encoder, SIZE, model).items()}


def write(path, model):
    torch.save({"epoch": 3, "state_dict": published(model), "optimizer": {}, "scaler": {}}, path)
    return path


GIVEN = {"num_heads": 5, "decoder_num_heads": 4, "grid": list(GRID)}


@pytest.mark.parametrize("self_attention", [True, False])
def test_a_file_of_any_size_comes_back_as_the_same_function(tmp_path, self_attention):
    model = made(self_attention=self_attention)
    record = import_file(write(tmp_path / "pretrain.pth", model), tmp_path / "out", given=GIVEN)
    assert record["family"] == "hi_end_mae" and not record["report"]["dropped"]
    back, _ = load_imported(tmp_path / "out")
    x, ids = torch.randn(2, 2, *SIZE), torch.arange(2)
    chance = chance_of(0, 0, 0, ids, 0 * ids)
    one, two = (each.reconstruct(x, None, chance).predicted for each in (model, back.objective))
    assert torch.equal(one, two)
    assert torch.equal(model(x, None, chance)["reconstruction"], back.objective(x, None, chance)["reconstruction"])


def test_taps_are_those_of_the_release_or_the_users(tmp_path):
    path = write(tmp_path / "pretrain.pth", made())
    import_file(path, tmp_path / "released", given=GIVEN)
    import_file(path, tmp_path / "own", given=GIVEN | {"taps": [5, 2]})
    decoders = [load_imported(tmp_path / name)[0].objective.decoder for name in ("released", "own")]
    assert [decoder.taps for decoder in decoders] == [(6, 3), (5, 2)]


def test_what_weights_do_not_tell_is_asked_for(tmp_path):
    path = write(tmp_path / "pretrain.pth", made())
    with pytest.raises(CannotImport, match="--set grid="):
        import_file(path, tmp_path / "out", given={"num_heads": 5, "decoder_num_heads": 4})
    with pytest.raises(CannotImport, match="the number of heads"):
        import_file(path, tmp_path / "out", given={"grid": list(GRID)})
    with pytest.raises(CannotImport, match=r"found \[2, 2, 2\], expected 3 numbers whose product is 12"):
        import_file(path, tmp_path / "out", given=GIVEN | {"grid": [2, 2, 2]})


def test_a_projection_too_many_is_refused(tmp_path):
    model = made()
    tensors = published(model) | {"module.encoder_to_decoder.3.weight": torch.zeros(12, 20)}
    torch.save({"state_dict": tensors}, tmp_path / "edited.pth")
    with pytest.raises(CannotImport, match="found 4 projections encoder_to_decoder and 2 cross_attention_blocks"):
        import_file(tmp_path / "edited.pth", tmp_path / "out", given=GIVEN)


def test_an_encoder_alone_comes_back_and_a_decoder_of_another_kind_is_left_out(tmp_path):
    model = made()
    plain = MaskedAutoencoder(MaskedAutoencoderSettings(decoder=DecoderSettings(width=12, depth=1, num_heads=2)),
                              model.encoder)
    torch.save(export(model.encoder, SIZE, plain), tmp_path / "encoder.pth")
    import_file(tmp_path / "encoder.pth", tmp_path / "out", given={"num_heads": 5, "grid": list(GRID)})
    back, _ = load_imported(tmp_path / "out")
    assert back.objective is None
    patches = model.encoder.tokenizer.patchify(torch.randn(1, 2, *SIZE))
    assert torch.equal(back.encoder(patches).tokens, model.encoder(patches).tokens)


def test_what_the_layout_has_no_place_for_is_not_exported():
    encoder = Encoder(EncoderSettings(tokenizer=Grid(patch=PATCH), size=Shape(20, 1, 5), norm_eps=1e-5), 1)
    with pytest.raises(CannotImport, match="norms with 1e-6"):
        export(encoder, SIZE)


def test_the_window_in_hounsfield_units_goes_into_the_contract(tmp_path):
    import_file(write(tmp_path / "pretrain.pth", made()), tmp_path / "out", given=GIVEN)
    from domains import contract
    kept = contract.load(tmp_path / "out/contract.json")
    assert [(c.low, c.high, c.mean, c.std) for c in kept.channels] == [(-175, 250, -175, 425)] * 2
    assert kept.size == (8, 6, 12)


def test_fixed_positions_can_be_made_without_the_file():
    """first_axis_first is the release's order, so a table of its sines can be had at any size."""
    place = torch.tensor([[[1.0, 2.0, 3.0]]])
    ours = GridPositions(12, 3, first_axis_first=True)(place)[0, 0]
    frequency = 10000 ** (-torch.arange(2) / 2)
    expected = torch.cat([torch.cat([(at * frequency).sin(), (at * frequency).cos()]) for at in (1.0, 2.0, 3.0)])
    torch.testing.assert_close(ours, expected)
