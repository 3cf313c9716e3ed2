import math

import pytest
import torch

from models.encoder.carry import carry_to_points
from models.encoder.positions import GridPositions, Projections, SinCos, Table, Waves
from models.encoder.projections import VIEWS, ProjectedPositions, between, project
from models.encoder.tokenizers import Grid, Groups
from models.encoder.transformer import Encoder, EncoderSettings, Shape

SHAPE = Shape(24, 2, 4)
POINTS = EncoderSettings(tokenizer=Groups(num_groups=8, group_size=4, widths=(8, 8, 8)), size=SHAPE)


def image(**more) -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderSettings(tokenizer=Grid(patch=(4, 4)), size=SHAPE, **more), 1).eval()


def in_sphere(count: int) -> torch.Tensor:
    ways = torch.nn.functional.normalize(torch.randn(2, count, 3, dtype=torch.float64), dim=-1)
    return ways * torch.rand(2, count, 1)


def test_a_view_turns_space_about_its_upright_axis_and_tilts_it():
    torch.manual_seed(0)
    place = in_sphere(5)
    seen = project(place)
    assert seen.shape == (2, len(VIEWS), 5, 2)
    for w, (azimuth, elevation) in enumerate(VIEWS):
        turn, tilt = math.radians(azimuth), math.radians(elevation)
        for b in range(2):
            for i in range(5):
                x, y, z = place[b, i].tolist()
                depth, right = x * math.cos(turn) + y * math.sin(turn), -x * math.sin(turn) + y * math.cos(turn)
                up = z * math.cos(tilt) - depth * math.sin(tilt)
                assert seen[b, w, i].tolist() == pytest.approx([(1 - up) / 2, (1 + right) / 2])


def test_a_table_between_its_rows_is_bilinear_and_at_them_it_is_the_row():
    torch.manual_seed(0)
    rows, grid = torch.randn(12, 5, dtype=torch.float64), (3, 4)
    whole = torch.tensor([[y, x] for y in range(3) for x in range(4)], dtype=torch.float64)
    assert torch.equal(between(rows, grid, whole), rows), "on a row the code is not 0, as it is in the release"
    for y, x in ((0.25, 1.5), (1.9, 2.999), (2.0, 0.3), (1.0, 3.0)):
        total = torch.zeros(5, dtype=torch.float64)
        for i in range(3):
            for j in range(4):
                total += max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j)) * rows[4 * i + j]
        torch.testing.assert_close(between(rows, grid, torch.tensor([[y, x]], dtype=torch.float64))[0], total)


@pytest.mark.parametrize("plane", [None, SinCos(first_axis_first=True), Table(grid=(6, 7))],
                         ids=["none", "sin_cos", "table"])
def test_the_code_of_a_place_is_the_mean_over_views_and_knows_nothing_of_its_companions(plane):
    torch.manual_seed(0)
    code = ProjectedPositions(16, Projections(grid=(6, 7), plane=plane))
    place = in_sphere(5).float()
    out = code(place)
    assert out.shape == (2, 5, 16)
    at = project(place) * torch.tensor([5.0, 6.0])
    each = [between(code.plane.rows, (6, 7), at[:, w]) if isinstance(plane, Table) else
            GridPositions(16, 2, plane is not None)(at[:, w]) for w in range(len(VIEWS))]
    torch.testing.assert_close(out, sum(each) / len(VIEWS))
    torch.testing.assert_close(code(place[1:, 2:3]), out[1:, 2:3])


def test_mirror_images_and_turned_places_are_told_apart():
    code = ProjectedPositions(32, Projections(grid=(14, 14)))
    place = torch.tensor([[[0.5, 0.3, 0.2]]])
    for flipped in ([-1, 1, 1], [1, -1, 1], [1, 1, -1], [-1, -1, 1], [-1, -1, -1]):
        other = code(place * torch.tensor(flipped))
        assert (code(place) - other).abs().max() > 0.05, flipped


@pytest.mark.parametrize("positions", [None, Table(grid=(4, 6)), Table(grid=(4, 6), learnt=False)],
                         ids=["sin_cos", "table", "fixed_table"])
def test_all_but_the_tokenizer_is_the_image_encoders(positions):
    trunk = image(positions=positions)
    state = torch.random.get_rng_state()
    new = carry_to_points(trunk, POINTS, (16, 24), 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert new.settings.positions == Projections(grid=(4, 6), plane=positions)
    own, theirs = new.state_dict(), trunk.state_dict()
    for name, value in theirs.items():
        if not name.startswith("tokenizer."):
            assert torch.equal(own[name.replace("place_code.", "place_code.plane.")], value), name
    assert {name.split(".")[0] for name in own if name not in theirs and "plane" not in name} == {"tokenizer"}
    again = carry_to_points(trunk, POINTS, (16, 24), 3).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in own.items())
    assert new(new.tokenizer.patchify(torch.randn(2, 32, 3))).tokens.shape == (2, 8, 24)
    fixed = {name for name, value in new.named_parameters() if not value.requires_grad}
    assert fixed == ({"place_code.plane.rows"} if positions is not None and not positions.learnt else set())


def test_what_cannot_be_carried_is_refused():
    with pytest.raises(ValueError, match="encoder.size: found .*width=12.*expected .*width=24"):
        carry_to_points(image(), EncoderSettings(tokenizer=Groups(), size=Shape(12, 2, 2)), (16, 16), 3)
    volume = Encoder(EncoderSettings(tokenizer=Grid(patch=(4, 4, 4)), size=SHAPE), 1)
    with pytest.raises(ValueError, match="expected grid with two sizes"):
        carry_to_points(volume, POINTS, (16, 16, 16), 3)
    with pytest.raises(ValueError, match="positions projections are for groups of points"):
        image(positions=Projections())
    with pytest.raises(ValueError, match="the same as the table"):
        Projections(grid=(3, 3), plane=Table(grid=(4, 4)))
    assert Encoder(EncoderSettings(tokenizer=Groups(), size=SHAPE, positions=Waves()), 3)
