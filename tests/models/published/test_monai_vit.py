import pytest
import torch

from models.encoder.chance import chance_of
from models.encoder.patches import Mask
from models.encoder.positions import Table
from models.encoder.tokenizers import Grid
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.heads.predict_sample import PredictSample, SampleHead
from models.objectives.decoders import DecoderSettings
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from models.published.mae import blocks_back, layer_back, linear_to_kernel
from models.published.monai_vit import MONAI_BLOCK, export
from models.published.translation import CannotImport
from pipelines.weights.import_published import import_file, load_imported

GRID, PATCH = (2, 3, 1), (4, 2, 6)
GIVEN = {"num_heads": 3, "grid": list(GRID)}
TOLD = {"patch": list(PATCH)}
"""What a linear layer does not tell and a convolution does."""
SHAPE = tuple(count * step for count, step in zip(GRID, PATCH, strict=True))


def encoder(class_token=True, **changes):
    torch.manual_seed(0)
    return Encoder(EncoderSettings(tokenizer=Grid(patch=PATCH), size=Shape(18, 3, 3), mlp_width=22, norm_eps=1e-5,
                                   positions=Table(grid=GRID), class_token=class_token, **changes), 2).eval()


def vit(model, perceptron=False):
    """The encoder under MONAI's names, with what its blocks carry along unused."""
    project = model.tokenizer.project
    embedding = "patch_embedding.patch_embeddings" + (".1" if perceptron else "")
    weight = project.weight if perceptron else linear_to_kernel(project.weight, PATCH, 2)
    out = {"patch_embedding.position_embeddings": model.place_code.rows[None], f"{embedding}.weight": weight,
           f"{embedding}.bias": project.bias, **blocks_back(model.blocks, "blocks", MONAI_BLOCK)}
    if model.class_token is not None:
        out["cls_token"] = model.class_token
    for i in range(len(model.blocks)):
        out |= {f"blocks.{i}.norm_cross_attn.weight": torch.randn(18), f"blocks.{i}.cross_attn.to_q.weight":
                torch.randn(18, 18)}
    return out


def write(path, tensors):
    torch.save({name: value.detach().clone() for name, value in tensors.items()}, path)
    return path


@pytest.mark.parametrize(("class_token", "perceptron", "qkv_bias"), [(True, True, False), (False, False, True)])
def test_a_vit_of_any_size_comes_back_as_the_same_function(tmp_path, class_token, perceptron, qkv_bias):
    model = encoder(class_token, qkv_bias=qkv_bias)
    tensors = vit(model, perceptron) | layer_back(model.norm, "norm")
    given = GIVEN | TOLD if perceptron else GIVEN
    record = import_file(write(tmp_path / "vit.pth", tensors), tmp_path / "out", given=given)
    assert record["family"] == "monai_vit"
    assert len(record["report"]["dropped"]) == 6 and all("cross_attn" in name for name in record["report"]["dropped"])
    made, _ = load_imported(tmp_path / "out")
    x = torch.randn(2, 2, *SHAPE)
    one, two = (each(each.tokenizer.patchify(x)) for each in (model, made.encoder))
    assert torch.equal(one.tokens, two.tokens) and torch.equal(one.summary, two.summary)
    exported = export(made.encoder, SHAPE)
    kept = {name: value for name, value in exported.items() if "cross_attn" not in name}
    if not perceptron:
        assert set(kept) == {name for name in tensors if "cross_attn" not in name}
        assert all(torch.equal(kept[name], tensors[name]) for name in kept)


@pytest.mark.parametrize(("name", "activation"), [("classification_head.0", "tanh"), ("classification_head", "none")])
def test_a_classifier_ends_in_a_tanh_where_its_layer_is_numbered(tmp_path, name, activation):
    model = encoder()
    head = PredictSample(SampleHead(pool="summary", norm="none", activation=activation), 18, 5)
    tensors = vit(model) | layer_back(model.norm, "norm") | layer_back(head.output, name)
    import_file(write(tmp_path / "vit.pth", tensors), tmp_path / "out", given=GIVEN)
    made, _ = load_imported(tmp_path / "out")
    x = torch.randn(2, 2, *SHAPE)
    patches = model.tokenizer.patchify(x)
    logits = made.head(made.encoder(patches), patches, x)
    assert torch.equal(logits, head(model(patches), patches, x))
    assert made.head.settings.activation == activation
    assert f"{name}.weight" in export(made.encoder, SHAPE, head=made.head)


def test_a_masked_autoencoder_of_any_size_comes_back_as_the_same_function(tmp_path):
    decoder = DecoderSettings(width=12, depth=2, num_heads=2, mlp_width=14, qkv_bias=False, norm_eps=1e-5,
                              positions=Table(grid=GRID, learnt=False))
    model = MaskedAutoencoder(MaskedAutoencoderSettings(decoder=decoder), encoder()).eval()
    tensors = vit(model.encoder) | {
        "mask_tokens": model.decoder.mask_token, "decoder_pos_embedding": model.decoder.place_code.rows[None],
        **layer_back(model.encoder.norm, "blocks.3"), **layer_back(model.decoder.embed, "decoder_embed"),
        **blocks_back(model.decoder.blocks, "decoder_blocks", MONAI_BLOCK),
        **layer_back(model.decoder.norm, "decoder_blocks.2"), **layer_back(model.readout.project, "decoder_pred")}
    import_file(write(tmp_path / "mae.pth", tensors), tmp_path / "out", given=GIVEN | {"decoder_num_heads": 2})
    made, _ = load_imported(tmp_path / "out")
    x, ids = torch.randn(2, 2, *SHAPE), torch.arange(2)
    one, two = (each.reconstruct(x, None, chance_of(0, 0, 0, ids, 0 * ids)) for each in (model, made.objective))
    assert torch.equal(one.predicted, two.predicted)
    exported = export(made.encoder, SHAPE, made.objective)
    assert {name for name in exported if "cross_attn" not in name} == {n for n in tensors if "cross_attn" not in n}
    assert all(torch.equal(exported[name], tensors[name]) for name in tensors if "cross_attn" not in name)


def test_a_perceptron_needs_to_be_told_its_patch(tmp_path):
    model = encoder()
    path = write(tmp_path / "vit.pth", vit(model, perceptron=True) | layer_back(model.norm, "norm"))
    with pytest.raises(CannotImport, match="--set patch="):
        import_file(path, tmp_path / "out", given=GIVEN)
    with pytest.raises(CannotImport, match=r"found \[5, 5, 5\], expected two or three numbers whose product divides"):
        import_file(path, tmp_path / "out", given=GIVEN | {"patch": [5, 5, 5]})


VIT = {"in_channels": 3, "img_size": (8, 12, 16), "patch_size": (4, 6, 4), "hidden_size": 18, "mlp_dim": 20,
       "num_layers": 4, "num_heads": 3, "proj_type": "perceptron", "pos_embed_type": "sincos"}
MAE = {"in_channels": 1, "img_size": (16, 24), "patch_size": (8, 4), "hidden_size": 24, "mlp_dim": 32, "num_layers": 3,
       "num_heads": 2, "decoder_hidden_size": 20, "decoder_mlp_dim": 24, "decoder_num_layers": 2,
       "decoder_num_heads": 5, "spatial_dims": 2, "masking_ratio": 0.5}


@pytest.fixture
def nets():
    pytest.importorskip("einops")
    return pytest.importorskip("monai.networks.nets")


def imported(tmp_path, net, shape):
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)                  # norms and tokens begin at 1 and 0
    grid = [size // step for size, step in zip(shape["img_size"], shape["patch_size"], strict=True)]
    given = {"num_heads": shape["num_heads"], "grid": grid}
    given |= {"decoder_num_heads": shape["decoder_num_heads"]} if "decoder_num_heads" in shape else {}
    given |= {"patch": list(shape["patch_size"])} if "proj_type" in shape else {}
    import_file(write(tmp_path / "net.pth", net.state_dict()), tmp_path / "out", given=given)
    made = load_imported(tmp_path / "out")[0]
    if "proj_type" not in shape:                                             # we write convolutions
        net.load_state_dict(export(made.encoder, shape["img_size"], made.objective), strict=True)
    return made, torch.randn(2, shape["in_channels"], *shape["img_size"])


@pytest.mark.slow
@torch.no_grad()
def test_monais_vit_itself_is_the_same_function(tmp_path, nets):
    torch.manual_seed(0)
    net = nets.ViT(**VIT).eval()
    made, x = imported(tmp_path, net, VIT)
    out, hidden = net(x)
    features = made.encoder(made.encoder.tokenizer.patchify(x), layers=range(4))
    for ours, theirs in zip((*features.layers, features.tokens), (*hidden, out), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_monais_masked_autoencoder_itself_predicts_the_same(tmp_path, nets):
    torch.manual_seed(0)
    net = nets.MaskedAutoEncoderViT(**MAE).eval()
    made, x = imported(tmp_path, net, MAE)
    theirs, removed = net(x)
    order = removed.argsort(dim=1, stable=True)
    seen = int((removed == 0).sum(1)[0])
    mask = Mask(order[:, :seen], order[:, seen:])
    patches = made.encoder.tokenizer.patchify(x)
    decoded = made.objective.decoder(made.encoder(patches, mask), patches, mask)
    expected = theirs.gather(1, mask.hidden[..., None].expand(-1, -1, theirs.shape[-1]))
    torch.testing.assert_close(made.objective.readout.project(decoded), expected, rtol=1e-4, atol=1e-5)
