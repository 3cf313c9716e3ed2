import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from models.encoder.patch_resize import project_patches, resize_kernel, resize_matrix


def resized(patch: torch.Tensor, new: tuple[int, ...]) -> torch.Tensor:
    """*old C -> *new C, axis by axis."""
    for axis, size in enumerate(new):
        matrix = resize_matrix(patch.shape[axis], size)
        patch = torch.tensordot(patch, matrix, dims=([axis], [1])).movedim(-1, axis)
    return patch


@pytest.mark.parametrize(("old", "new"), [((8, 8), (12, 12)), ((8, 8), (8, 8)), ((16, 12), (5, 30)), ((7, 9), (3, 4))])
def test_the_matrix_is_bilinear_interpolation(old, new):
    picture = torch.randn(*old, 3).double()
    theirs = interpolate(picture.movedim(-1, 0)[None], size=new, mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(resized(picture, new), theirs[0].movedim(0, -1))


@pytest.mark.parametrize(("old", "new"), [((4, 4), (8, 8)), ((4, 6), (7, 9)), ((3, 4, 5), (6, 4, 7))])
def test_a_patch_that_grows_is_answered_exactly_as_before(old, new):
    patch, weight = torch.randn(*old, 2).double(), torch.randn(5, torch.Size(old).numel() * 2).double()
    grown = resize_kernel(weight, old, new) @ resized(patch, new).flatten()
    torch.testing.assert_close(grown, weight @ patch.flatten())


def test_resizing_the_weights_like_a_picture_answers_something_else():
    patch, weight = torch.randn(4, 4, 1).double(), torch.randn(1, 16).double()
    like_a_picture = resized(weight.reshape(4, 4, 1), (8, 8)).flatten()
    assert not torch.allclose(like_a_picture @ resized(patch, (8, 8)).flatten(), weight[0] @ patch.flatten(), rtol=0.5)


def test_for_a_patch_that_shrinks_no_weights_answer_nearer_to_before():
    old, new = (8, 6), (4, 5)
    weight = torch.randn(1, 48).double()
    shrink = torch.kron(resize_matrix(8, 4), resize_matrix(6, 5))           # P' P
    # the mean over patches x of independent values of (w x - w' R x)^2 is the squared length of w - w' R
    best = torch.linalg.lstsq(shrink.T, weight.T).solution.T
    torch.testing.assert_close(resize_kernel(weight, old, new), best)


def test_at_the_stored_size_the_layer_is_left_alone_and_at_others_gradients_reach_it():
    layer = nn.Linear(2 * 16, 5)
    values = torch.randn(3, 7, 32)
    assert torch.equal(project_patches(values, layer, (4, 4), (4, 4)), layer(values))
    project_patches(torch.randn(3, 7, 2 * 36), layer, (4, 4), (6, 6)).sum().backward()
    assert layer.weight.grad is not None and bool(layer.weight.grad.any()) and bool(layer.bias.grad.any())
