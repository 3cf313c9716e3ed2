"""Cell masks: whole cells are seen or hidden, on any grid."""

import itertools

import pytest
import torch

from models.encoder.chance import chance_of
from models.encoder.masking_cells import CellMasking
from models.encoder.patches import Patches, take


def on_grid(grid: tuple[int, ...], known: torch.Tensor | None = None, batch: int = 8) -> Patches:
    place = torch.tensor(list(itertools.product(*(range(n) for n in grid)))).float().expand(batch, -1, -1)
    return Patches(torch.zeros(batch, place.shape[1], 1), place, known, grid)


def chance(step: int = 0, batch: int = 8):
    return chance_of(0, step, 0, torch.arange(batch), torch.zeros(batch, dtype=torch.int64))


@pytest.mark.parametrize(("grid", "cell"), [
    ((8, 8), (2, 2)), ((6, 4), (3, 2)), ((7, 5), (2, 2)), ((4, 6, 4), (2, 3, 2)), ((3, 4, 4), (2, 2))])
def test_a_cell_is_seen_as_a_whole_or_hidden_as_a_whole(grid, cell):
    cut = on_grid(grid)
    axes = len(cell)
    for step in range(6):
        mask = CellMasking(ratio=0.6, cell=cell)(cut, chance(step))
        for sample in range(8):
            fate: dict[tuple[int, ...], set[bool]] = {}
            total = 0
            for index, flags, hidden in ((mask.visible, mask.visible_valid, False),
                                         (mask.hidden, mask.hidden_valid, True)):
                row = index[sample] if flags is None else index[sample][flags[sample]]
                total += len(row)
                for place in cut.place[sample, row].long().tolist():
                    inside = tuple(p // c for p, c in zip(place[-axes:], cell, strict=True))
                    fate.setdefault((*place[:-axes], *inside), set()).add(hidden)
            assert all(len(fates) == 1 for fates in fate.values()) and total == cut.place.shape[1]
            seen = sum(fates == {False} for fates in fate.values())
            assert seen == max(int(len(fate) * 0.4), 1), "ceil(cells * ratio) are hidden, as the release counts"


def test_the_larger_the_cells_the_farther_a_hidden_patch_lies_from_what_is_seen():
    cut, away = on_grid((16, 16)), []
    for size in (1, 2, 4):
        mask = CellMasking(ratio=0.5, cell=(size, size))(cut, chance())
        away.append(float(torch.cdist(take(cut.place, mask.hidden), take(cut.place, mask.visible)).amin(-1).mean()))
    assert away == sorted(away) and away[2] > 1.3 * away[0]


def test_masks_differ_between_samples_and_steps_and_repeat_with_their_key():
    cut, masking = on_grid((8, 8)), CellMasking()
    one, again, later = (masking(cut, chance(step)).hidden for step in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, later) and not torch.equal(one[0], one[1])


def test_patches_without_data_are_dropped_and_do_not_count():
    known = torch.ones(8, 64, 1, dtype=torch.bool)
    known[0, :32] = False
    mask = CellMasking(ratio=0.5)(on_grid((8, 8), known), chance())
    seen = mask.visible[0][mask.visible_valid[0]].tolist()
    asked = mask.hidden[0][mask.hidden_valid[0]].tolist()
    assert len(seen) == len(asked) == 16 and min(seen + asked) >= 32


def test_points_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="found patches on no grid"):
        CellMasking()(on_grid((4, 4))._replace(grid=None), chance())
    with pytest.raises(ValueError, match="two or three sizes"):
        CellMasking(cell=(2,))
