"""ChannelViT's files at sizes of no recorded set, written here under their names."""

import pytest
import torch
from torch import Tensor

from models.encoder.positions import Table
from models.encoder.tokenizers import Bands
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.published import mae
from models.published.families import translate
from models.published.mae import blocks_back, layer_back
from models.published.rebuild import rebuild
from models.published.translation import CannotImport, Published
from pipelines.weights.import_published import contract_of

GRID, PATCH, CHANNELS = (3, 5), (2, 6), 4


def encoder() -> Encoder:
    torch.manual_seed(0)
    made = Encoder(EncoderSettings(tokenizer=Bands(patch=PATCH), size=Shape(20, 3, 5), class_position=True,
                                   positions=Table(grid=GRID, channelvit_resize=True), mlp_width=28), CHANNELS).eval()
    with torch.no_grad():
        for value in made.parameters():
            value += 0.3 * torch.randn_like(value)
    return made


def under_their_names(made: Encoder, sampled: bool) -> dict[str, Tensor]:
    code = made.place_code
    channels = code.channel.weight
    codes = ({"patch_embed.channel_embed.weight": channels} if sampled else
             {"patch_embed.channel_embed": channels.T[None, :, :, None, None]})
    out = {"cls_token": made.class_token, "pos_embed": torch.cat([made.class_position, code.grid.rows[None]], 1),
           "patch_embed.proj.weight": made.tokenizer.project.weight.unflatten(1, (1, 1, *PATCH)),
           "patch_embed.proj.bias": made.tokenizer.project.bias, **codes, **blocks_back(made.blocks, "blocks"),
           **layer_back(made.norm, "norm")}
    return {name: value.detach().clone() for name, value in out.items()}


@pytest.mark.parametrize("sampled", [True, False])
def test_a_file_comes_back_bit_for_bit_and_none_of_it_is_left(sampled):
    made = encoder()
    file = Published(under_their_names(made, sampled), given={"num_heads": 5, "grid": list(GRID)})
    found = translate(file)
    assert found.family == "channelvit" and set(found.names) == set(file.tensors) and not mae.recognise(file)
    back = rebuild(found).encoder
    assert back.settings == made.settings and back.num_channels == CHANNELS
    for name, value in made.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    for channels in ([0, 1, 2, 3], [2, 0], [3]):
        x = torch.randn(2, len(channels), 8, 18)
        for model in (made, back):
            model.tokenizer.read_channels(channels)
        torch.testing.assert_close(back(back.tokenizer.patchify(x)).summary, made(made.tokenizer.patchify(x)).summary)


def test_an_embedding_is_the_same_convolution_for_every_channel():
    made = encoder()
    x = torch.randn(2, CHANNELS, 8, 18)
    patches = made.tokenizer.patchify(x)
    kernel = under_their_names(made, True)["patch_embed.proj.weight"]
    expected = torch.nn.functional.conv3d(x[:, None], kernel, made.tokenizer.project.bias, stride=(1, *PATCH))
    torch.testing.assert_close(made.tokenizer.embed(patches.values), expected.flatten(2).transpose(1, 2))


def test_a_position_is_the_place_s_own_whatever_else_is_seen():
    """A mask changes which patches are embedded, not where they are; the release never has to tell."""
    for grid, size in (((4, 4), (1, 8, 24)), (GRID, (4, 6, 30)), ((4, 4), (1, 12, 12))):
        made = Encoder(EncoderSettings(tokenizer=Bands(patch=PATCH), size=Shape(20, 1, 5), positions=Table(
            grid=grid, channelvit_resize=True)), size[0])
        patches = made.tokenizer.patchify(torch.randn(2, *size))
        whole = made.place_code(patches.place, patches.grid)
        some = torch.randperm(whole.shape[1])[:7]
        torch.testing.assert_close(made.place_code(patches.place[:, some], patches.grid), whole[:, some])


def test_what_weights_do_not_tell_is_asked_for():
    tensors = under_their_names(encoder(), True)
    with pytest.raises(CannotImport, match="--set grid="):
        translate(Published(tensors, given={"num_heads": 5}))
    with pytest.raises(CannotImport, match="--set num_heads="):
        translate(Published(tensors, given={"grid": list(GRID)}))
    with pytest.raises(CannotImport, match="found 2 names, expected 4"):
        translate(Published(tensors, given={"grid": list(GRID), "num_heads": 5, "channels": ["B2", "B3"]}))


def test_the_contract_names_the_channels_as_far_as_they_are_known():
    tensors = under_their_names(encoder(), True)
    given = {"grid": list(GRID), "num_heads": 5}
    unnamed = translate(Published(tensors, given=given))
    assert contract_of(unnamed).names == tuple(f"channel {i}" for i in range(4))
    assert any("--set channels" in note for note in unnamed.notes)
    named = translate(Published(tensors, given={**given, "channels": ["B2", "B3", "B4", "B8"]}))
    assert contract_of(named).names == ("B2", "B3", "B4", "B8")
    codes = torch.zeros(18, 20)
    so2sat = contract_of(translate(Published({**tensors, "patch_embed.channel_embed.weight": codes}, given=given)))
    assert so2sat.names[8:10] == ("B2", "B3") and so2sat.channels[8].mean == pytest.approx(1244.2, abs=0.1)
