"""Swin UNETR's files: what each layout says, what it cannot say, and there and back at other sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.encoder.swin import SwinEncoder, SwinSettings
from models.objectives.objective import build_objective
from models.objectives.swin_proxy_tasks import SwinProxyTasks, SwinProxyTasksSettings
from models.published.swin_unetr import export, relative_index
from models.published.translation import CannotImport
from pipelines.weights.import_published import import_file, load_imported

SMALL = SwinSettings(feature_size=4, depths=(1, 2, 3, 1), num_heads=(1, 2, 4, 2), window=(2, 2, 2), mlp_ratio=3.0,
                     merging="legacy")


def objective_of(encoder: SwinSettings, restore: str = "interpolated", num_channels: int = 2) -> SwinProxyTasks:
    torch.manual_seed(0)
    return build_objective(SwinProxyTasksSettings(code=24, restore=restore), SwinEncoder(encoder, num_channels)).eval()


def published_layout(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The encoder's tensors as model_swinvit.pt has them."""
    return {"module." + name.removeprefix("swinViT.").replace("mlp.linear", "mlp.fc"): value
            for name, value in tensors.items() if name.startswith("swinViT.")}


@pytest.mark.parametrize(("encoder", "restore", "given"), [
    (SMALL, "interpolated", {}), (replace(SMALL, merging="current"), "transposed", {}),
    (replace(SMALL, window=(2, 3, 4)), "transposed", {"window": [2, 3, 4]}),
    (replace(SMALL, patch=(4, 4), window=(3, 3)), "interpolated", {})], ids=["cubes", "current", "boxes", "images"])
def test_what_is_exported_comes_back_bit_for_bit_and_computes_the_same(tmp_path, encoder, restore, given):
    made = objective_of(encoder, restore)
    tensors = export(made.encoder, (), made)
    torch.save({"epoch": 3, "state_dict": tensors}, tmp_path / "run.pt")
    import_file(tmp_path / "run.pt", tmp_path / "out", given={"merging": encoder.merging, **given})
    back, record = load_imported(tmp_path / "out")
    assert back.encoder.settings == encoder and back.objective.settings.restore == restore
    again = export(back.encoder, (), back.objective)
    assert set(again) == set(tensors) and all(torch.equal(again[name], tensors[name]) for name in tensors)
    x = torch.rand(2, 2, *((128, 64) if len(encoder.patch) == 2 else (64, 32, 32)))
    with torch.no_grad():
        for ours, theirs in zip(made.answer(x), back.objective.answer(x), strict=True):
            assert torch.equal(ours, theirs)
    dropped = record["report"]["dropped"]
    assert len(dropped) == sum(encoder.depths) and all("checked" in reason for reason in dropped.values())


def test_the_published_layout_is_taken_for_legacy_and_the_notes_say_so(tmp_path):
    made = objective_of(SMALL, num_channels=1)
    torch.save({"state_dict": published_layout(export(made.encoder, ()))}, tmp_path / "model_swinvit.pt")
    record = import_file(tmp_path / "model_swinvit.pt", tmp_path / "out")
    back, _ = load_imported(tmp_path / "out")
    assert back.encoder.settings == SMALL and back.objective is None
    assert any(note.startswith("merging = legacy") for note in record["provenance"]["notes"])
    import_file(tmp_path / "model_swinvit.pt", tmp_path / "other", given={"merging": "current"})
    assert load_imported(tmp_path / "other")[0].encoder.settings.merging == "current"


def test_a_run_of_one_s_own_does_not_import_until_the_wiring_is_given(tmp_path):
    made = objective_of(SMALL)
    tensors = {name.replace("swinViT.", "swin_vit."): value for name, value in export(made.encoder, (), made).items()}
    torch.save({"state_dict": tensors}, tmp_path / "run.pt")
    with pytest.raises(CannotImport, match="--set merging="):
        import_file(tmp_path / "run.pt", tmp_path / "out")
    with pytest.raises(CannotImport, match="found merging 'old'"):
        import_file(tmp_path / "run.pt", tmp_path / "out", given={"merging": "old"})
    import_file(tmp_path / "run.pt", tmp_path / "out", given={"merging": "current"})


def test_windows_that_are_no_cubes_are_asked_for_and_wrong_ones_refused(tmp_path):
    made = objective_of(replace(SMALL, window=(2, 3, 4)))
    torch.save(export(made.encoder, ()), tmp_path / "run.pt")
    with pytest.raises(CannotImport, match="--set window="):
        import_file(tmp_path / "run.pt", tmp_path / "out", given={"merging": "legacy"})
    with pytest.raises(CannotImport, match="another index"):
        import_file(tmp_path / "run.pt", tmp_path / "out", given={"merging": "legacy", "window": [4, 3, 2]})


@pytest.mark.parametrize("window", [(3, 3, 3), (2, 3, 4), (4, 2)])
def test_the_index_that_is_checked_is_the_one_that_the_encoder_uses(window):
    encoder = SwinEncoder(replace(SMALL, patch=(2,) * len(window), window=window), 1)
    assert torch.equal(relative_index(window), encoder.blocks[0].blocks[0].attn.relative_position_index)


def test_a_tensor_that_has_no_place_is_refused_by_name(tmp_path):
    tensors = export(objective_of(SMALL).encoder, ()) | {"swinViT.layers1c.0.layer.weight": torch.zeros(3)}
    torch.save(tensors, tmp_path / "run.pt")
    with pytest.raises(CannotImport, match="layers1c"):
        import_file(tmp_path / "run.pt", tmp_path / "out", given={"merging": "legacy"})


def test_a_classifier_has_no_place_in_the_layout():
    with pytest.raises(CannotImport, match="no place for a head"):
        export(objective_of(SMALL).encoder, (), head=torch.nn.Linear(2, 2))
