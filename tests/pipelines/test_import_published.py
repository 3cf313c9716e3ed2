import argparse
import json
import os
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lacuna import import_weights, main
from models.encoder.patches import see_all
from models.published.translation import CannotImport
from pipelines.weights.checkpoints import CheckpointError, load_encoder
from pipelines.weights.import_published import import_file, load_imported
from pipelines.weights.open_published import open_published
from tests.pipelines.published_files import NAMES, Calls, hostile_files, mae_file, mae_tensors, rebuilt

GIVEN = {"num_heads": 3, "decoder_num_heads": 2}


def tokens(folder: Path, x: torch.Tensor) -> torch.Tensor:
    encoder = load_encoder(folder).encoder.eval()
    patches = encoder.tokenizer.patchify(x)
    return encoder(patches, see_all(patches)).tokens


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_file_is_refused_in_a_sentence_and_nothing_of_it_runs(tmp_path, name):
    canary, path, out = tmp_path / "canary", tmp_path / "file.pth", tmp_path / "out"
    hostile_files(canary)[name](path)
    began = time.monotonic()
    with pytest.raises(CannotImport, match=r"(found|is|cannot) .*expected|Expected") as refused:
        import_file(path, out, given={"num_heads": 3})
    assert not canary.exists() and not out.exists()
    assert str(refused.value).startswith("file.pth") and "\n" not in str(refused.value)
    assert time.monotonic() - began < 5


def test_the_payloads_would_run_if_they_were_let(tmp_path):
    """A canary that cannot be made would prove nothing."""
    for function, given in (Calls(os.system, f"touch {tmp_path / 'canary'}").__reduce__(),
                            Calls(torch.save, {}, str(tmp_path / "canary")).__reduce__()):
        function(*given)
        (tmp_path / "canary").unlink()


def test_the_refusal_names_what_the_file_asked_for(tmp_path):
    path = tmp_path / "file.pth"
    hostile_files(tmp_path / "canary")["a shell as a tensor"](path)
    with pytest.raises(CannotImport, match="it asks for posix.system, which is not let through"):
        open_published(path)


def test_what_other_packages_have_let_through_is_not_let_through_here_and_comes_back(tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"model": mae_tensors(), "epoch": Path("x")}, path)
    mine = [type(Path("x"))]
    with torch.serialization.safe_globals(mine):
        with pytest.raises(CannotImport, match="it asks for pathlib"):
            open_published(path)
        assert set(mine) <= set(torch.serialization.get_safe_globals())
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("level", ["model", "state_dict", "model_state_dict", "base_model", "weights", "net", None])
def test_every_level_is_taken_off(tmp_path, level):
    tensors = mae_file(tmp_path / "file.pth", level)
    file = open_published(tmp_path / "file.pth")
    assert file.tensors.keys() == tensors.keys() and file.wrappers == ((level,) if level else ())
    assert all(torch.equal(file.tensors[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.encoder.",
                                    "MAE_encoder.", "swinViT.", "backbone.", "encoder.", "module.model.", "model."])
def test_every_prefix_is_taken_off_whatever_the_family(tmp_path, prefix):
    tensors = mae_tensors()
    torch.save({"epoch": torch.tensor(3), "state_dict": {prefix + name: value for name, value in tensors.items()}},
               tmp_path / "file.pth")
    record = import_file(tmp_path / "file.pth", tmp_path / "out", given={"num_heads": 3})
    assert record["family"] == "mae" and "".join(record["provenance"]["wrappers"]) == "state_dict" + prefix
    torch.save({"model": tensors}, tmp_path / "plain.pth")
    import_file(tmp_path / "plain.pth", tmp_path / "plain", given={"num_heads": 3})
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(tokens(tmp_path / "out", x), tokens(tmp_path / "plain", x))


def test_an_encoder_inside_a_larger_model_is_found_and_the_rest_must_be_named(tmp_path):
    tensors = {f"model.encoder.{name}": value for name, value in mae_tensors().items()}
    torch.save({"state_dict": {**tensors, "loss.weight": torch.zeros(3)}}, tmp_path / "file.pth")
    with pytest.raises(CannotImport, match=r"1 tensors have no place here: loss.weight. .*--drop"):
        import_file(tmp_path / "file.pth", tmp_path / "out", given={"num_heads": 3})
    record = import_file(tmp_path / "file.pth", tmp_path / "out", given={"num_heads": 3}, may_drop=["loss.*"])
    assert record["report"]["dropped"] == {"loss.weight": "named with --drop"}
    with pytest.raises(CannotImport, match="--drop lose.weight: found no tensor of this name"):
        import_file(tmp_path / "file.pth", tmp_path / "out", given={"num_heads": 3}, may_drop=["loss.*", "lose.weight"])


def test_safetensors_old_files_views_and_arrays_are_read(tmp_path):
    tensors = mae_tensors()
    save_file(tensors, tmp_path / "named_otherwise.bin")
    torch.save({"model": tensors}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    views = {name: value.repeat_interleave(2, 0)[::2] for name, value in tensors.items()}
    torch.save({"model": views}, tmp_path / "views.pth")
    torch.save({"model": {name: value.numpy() for name, value in tensors.items()}}, tmp_path / "arrays.pth")
    for file in ("named_otherwise.bin", "old.pth", "views.pth", "arrays.pth"):
        found = open_published(tmp_path / file).tensors
        assert all(torch.equal(found[name], tensors[name]) and found[name].is_contiguous() for name in tensors), file


def test_an_honest_view_that_repeats_its_numbers_is_written_out(tmp_path):
    torch.save({"model": {"a": torch.ones(1).expand(1000, 1000), "b": rebuilt((2, 2), (1, 1))}}, tmp_path / "file.pth")
    found = open_published(tmp_path / "file.pth").tensors
    assert found["a"].is_contiguous() and found["a"].sum() == 1e6 and found["b"].shape == (2, 2)


class HiddenMethods(Calls):
    """A state dict whose own methods are covered by attributes."""

    def __reduce__(self):
        hidden = dict.fromkeys(("items", "keys", "values", "get", "__iter__"), torch.Size([1]))
        return OrderedDict, (), hidden, None, iter(self.call[1][0].items())


def test_a_mapping_whose_methods_the_file_has_hidden_is_read_all_the_same(tmp_path):
    tensors = mae_tensors()
    torch.save({"model": HiddenMethods(OrderedDict, tensors)}, tmp_path / "file.pth")
    assert open_published(tmp_path / "file.pth").tensors.keys() == tensors.keys()


def test_of_a_command_line_plain_values_of_a_sane_size_are_kept(tmp_path):
    nested: list = [1]
    for _ in range(60):
        nested = [nested, nested]
    args = argparse.Namespace(mask_ratio=0.6, model="mae", bands=[[0, 1], [2]], device=torch.device("cpu"), big=1 << 80,
                              text="x" * 100_000, nested=nested, odd=float("nan"), weights=torch.zeros(3), none=None)
    torch.save({"model": mae_tensors(), "args": args}, tmp_path / "file.pth")
    found = open_published(tmp_path / "file.pth").args
    assert found == {"mask_ratio": 0.6, "model": "mae", "bands": [[0, 1], [2]], "none": None}
    json.dumps(found)


def test_the_folder_says_where_it_comes_from_and_what_became_of_each_tensor(tmp_path):
    tensors = mae_file(tmp_path / "file.pth", decoder=True)
    record = import_file(tmp_path / "file.pth", tmp_path / "out", given=GIVEN)
    origin, report = record["provenance"], record["report"]
    assert record["kind"] == "imported" and origin["family"] == "mae" and "CC-BY-NC" in origin["licence"]
    assert len(origin["file_sha256"]) == 64 and origin["given"] == GIVEN and origin["wrappers"] == ["model"]
    assert set(report["mapped"]) == set(tensors) and not (report["dropped"] or report["missing"] or report["resized"])
    assert all(found == expected for found, expected in report["coverage"].values()) and "encoder" in report["coverage"]
    text = (tmp_path / "out/report.txt").read_text()
    assert all(name in text for name in (*tensors, origin["licence"], origin["file_sha256"]))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "weights.safetensors", "checkpoint.json", "contract.json", "report.txt", "SHA256SUMS"}


def test_what_weights_do_not_tell_comes_from_the_user_the_file_or_a_published_model_and_is_never_guessed(tmp_path):
    path, out = tmp_path / "file.pth", tmp_path / "out"
    tensors = mae_file(path)
    with pytest.raises(CannotImport, match=r"do not tell the number of heads.*--set num_heads="):
        import_file(path, out)
    torch.save({"model": tensors, "args": argparse.Namespace(num_heads=4)}, path)
    record = import_file(path, out)
    assert record["encoder"]["size"]["num_heads"] == 4
    assert record["provenance"]["notes"] == ["num_heads = 4: of the file's own args."]
    assert import_file(path, out, given={"num_heads": 6})["encoder"]["size"]["num_heads"] == 6, "the user comes first"
    small = mae_tensors(width=384, depth=12, num_heads=6)
    torch.save({"model": small}, path)
    record = import_file(path, out)
    assert record["encoder"]["size"]["num_heads"] == 6 and "published model" in record["provenance"]["notes"][0]


@pytest.mark.parametrize(("given", "said"), [
    ({"num_heads": 5}, "not a multiple of num_heads 5"), ({"num_heads": "many"}, "make no model of the family mae"),
    ({"num_heads": 0}, "make no model"), ({"num_heads": -3}, "make no model"), ({"num_heads": [3]}, "make no model"),
    ({"num_heads": 3, "num_head": 4}, "--set num_head: found no setting .* Did you mean num_heads"),
    ({"num_heads": 3, "grid": [2, 2]}, "found .*, expected"),
    ({"num_heads": 3, "channels": ["R", "G"]}, "--set channels: found .*, expected 3")])
def test_what_cannot_be_used_is_refused(tmp_path, given, said):
    mae_file(tmp_path / "file.pth")
    with pytest.raises(CannotImport, match=said):
        import_file(tmp_path / "file.pth", tmp_path / "out", given=given)
    assert not (tmp_path / "out").exists()


def test_a_setting_that_nothing_asks_for_is_said(tmp_path):
    mae_file(tmp_path / "file.pth")
    record = import_file(tmp_path / "file.pth", tmp_path / "out", given={"num_heads": 3.0, "window": 7})
    assert record["provenance"]["notes"] == ["--set window was not needed: nothing in this file asks for it."]
    assert record["encoder"]["size"]["num_heads"] == 3


def test_less_than_every_weight_is_refused_unless_what_is_missing_is_named(tmp_path):
    path, out = tmp_path / "file.pth", tmp_path / "out"
    tensors = mae_tensors()
    del tensors["norm.weight"], tensors["blocks.1.attn.proj.bias"]
    torch.save({"model": tensors}, path)
    with pytest.raises(CannotImport, match=r"encoder.blocks.1.attention.proj.bias: found none.*\n.*norm.weight"):
        import_file(path, out, given={"num_heads": 3})
    assert not out.exists()
    with pytest.raises(CannotImport, match="norm.weight"):
        import_file(path, out, given={"num_heads": 3}, may_miss=["encoder.blocks.1.attention.proj.bias"])
    with pytest.raises(CannotImport, match="--missing encoder.nrom.weight: found no tensor"):
        import_file(path, out, given={"num_heads": 3}, may_miss=["encoder.blocks.*", "encoder.norm.*",
                                                                 "encoder.nrom.weight"])
    record = import_file(path, out, given={"num_heads": 3}, may_miss=["encoder.blocks.1.*", "encoder.norm.weight"])
    assert record["report"]["missing"] == ["encoder.blocks.1.attention.proj.bias", "encoder.norm.weight"]
    assert record["report"]["coverage"]["encoder"] == [len(tensors), len(tensors) + 2]


@pytest.mark.parametrize(("edit", "said"), [
    (lambda model: model.update({"norm.weight": torch.zeros(25)}), r"norm.weight: found \(25,\), expected \(24,\)"),
    (lambda model: model.update({"pos_embed": torch.zeros(5)}), "make no model of the family mae"),
    (lambda model: model.update({"blocks.5.attn.qkv.weight": torch.zeros(1)}), "without a gap"),
    (lambda model: model["norm.weight"].fill_(float("nan")), "not finite in encoder.norm.weight"),
    (lambda model: model.update(strange=torch.zeros(1)), "1 tensors have no place here: strange")])
def test_tensors_that_fit_nowhere_are_refused(tmp_path, edit, said):
    tensors = mae_tensors()
    edit(tensors)
    torch.save({"model": tensors}, tmp_path / "file.pth")
    with pytest.raises(CannotImport, match=said):
        import_file(tmp_path / "file.pth", tmp_path / "out", given={"num_heads": 3})
    assert not (tmp_path / "out").exists()


def test_an_import_replaces_an_import_and_nothing_else(tmp_path):
    mae_file(tmp_path / "file.pth")
    given = {"num_heads": 3}
    import_file(tmp_path / "file.pth", tmp_path / "out", given=given)
    import_file(tmp_path / "file.pth", tmp_path / "out", given=given)
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(CannotImport, match="--out .*home: found something else there"):
        import_file(tmp_path / "file.pth", precious, given=given)
    (tmp_path / "out/checkpoint.json").write_text(json.dumps({"format_version": 1, "kind": "tuned"}))
    with pytest.raises(CannotImport, match="found tuned there"):
        import_file(tmp_path / "file.pth", tmp_path / "out", given=given)
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_a_patch_is_resized_the_decoder_left_out_and_both_said(tmp_path):
    mae_file(tmp_path / "file.pth", decoder=True, patch=4, side=3)
    record = import_file(tmp_path / "file.pth", tmp_path / "out", given=GIVEN, patch=[8, 8])
    assert record["report"]["resized"] == ["patch kernels resized from 4 x 4 to 8 x 8"]
    assert "decoder_pred.weight" in record["report"]["dropped"] and set(record["report"]["coverage"]) == {"encoder"}
    import_file(tmp_path / "file.pth", tmp_path / "whole", given=GIVEN)
    small, large = (load_encoder(tmp_path / name).encoder for name in ("whole", "out"))
    assert large.settings.tokenizer.patch == (8, 8)
    flat = torch.randn(2, 3, 3, 3)                                          # one colour per patch
    before, after = (encoder.tokenizer.embed(encoder.tokenizer.patchify(
        flat.repeat_interleave(step, 2).repeat_interleave(step, 3)).values)
        for encoder, step in ((small, 4), (large, 8)))
    assert torch.allclose(before, after, atol=1e-5)
    with pytest.raises(CannotImport, match=r"--patch .*expected 2 sizes"):
        import_file(tmp_path / "file.pth", tmp_path / "out", given=GIVEN, patch=[8, 8, 8])


def test_new_channels_begin_with_zeros_and_are_in_the_contract(tmp_path):
    mae_file(tmp_path / "file.pth")
    given = {"num_heads": 3, "channels": ["B4", "B3", "B2"]}
    record = import_file(tmp_path / "file.pth", tmp_path / "out", given=given, new_channels=["B8"])
    assert record["num_channels"] == 4 and "begin with zeros" in record["report"]["resized"][0]
    loaded = load_encoder(tmp_path / "out")
    assert loaded.contract.names == ("B4", "B3", "B2", "B8")
    import_file(tmp_path / "file.pth", tmp_path / "three", given=given)
    x = torch.randn(2, 4, 12, 12)
    assert torch.allclose(tokens(tmp_path / "out", x), tokens(tmp_path / "three", x[:, :3]), atol=1e-6)
    with pytest.raises(CannotImport, match="--new-channels: found B4, which the weights know"):
        import_file(tmp_path / "file.pth", tmp_path / "out", given=given, new_channels=["B4"])


def test_channels_that_nobody_names_are_called_by_number(tmp_path):
    mae_file(tmp_path / "file.pth", num_channels=4)
    record = import_file(tmp_path / "file.pth", tmp_path / "out", given={"num_heads": 3})
    assert load_encoder(tmp_path / "out").contract.names == tuple(f"channel {i}" for i in range(4))
    assert any("--set channels" in note for note in record["provenance"]["notes"])
    import_file(tmp_path / "file.pth", tmp_path / "out", given={"num_heads": 3, "channels": ["B2", "B3", "B4", "B8"]})
    assert load_encoder(tmp_path / "out").contract.names == ("B2", "B3", "B4", "B8")


def test_adapter_weights_alone_are_no_start(tmp_path):
    torch.save({"shallow_prompt": np.zeros((1, 2, 24), np.float32)}, tmp_path / "prompts.pth")
    import_file(tmp_path / "prompts.pth", tmp_path / "out")
    assert load_imported(tmp_path / "out")[0].loose is not None
    with pytest.raises(CheckpointError, match="no encoder"):
        load_encoder(tmp_path / "out")
    with pytest.raises(CannotImport, match="without an encoder"):
        import_file(tmp_path / "prompts.pth", tmp_path / "out", patch=[8, 8])


def test_the_command_and_python_give_the_same_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mae_file(Path("vit.pth"), decoder=True)
    code = main(["import", "vit.pth", "--set", "num_heads=3", "--drop", "decoder*", "--drop", "mask_token"])
    said = capsys.readouterr().out
    assert code == 0 and "read as mae" in said and "CC-BY-NC" in said and "artifacts/import/vit" in said
    folder, record = import_weights("vit.pth", "other", given={"num_heads": 3}, drop=["decoder*", "mask_token"])
    same = [(path / "weights.safetensors").read_bytes() for path in (Path("artifacts/import/vit"), folder)]
    assert same[0] == same[1] and record["report"]["coverage"] == {"encoder": [30, 30]}
    assert main(["import", "vit.pth", "--family", "nobody"]) == 2
    assert "expected auto or one of" in capsys.readouterr().err
    assert main(["import", "nothing.pth"]) == 2 and "no file nothing.pth" in capsys.readouterr().err
    assert main(["import", "vit.pth", "--set", "num_heads"]) == 2 and "found no '='" in capsys.readouterr().err
