"""The LDPv2 projector against the published code's numbers."""

import json
import math

import pytest
import torch
from tests.stages.mobilevlm.published import VECTORS
from torch import Tensor

from betakd_stages.models.mobilevlm.projector import LightweightDownsampleProjector

VECTOR = json.loads((VECTORS / "ldpv2_projector.json").read_text())
NAMES = {"mlp.mlp.0": "mlp.0", "mlp.mlp.2": "mlp.2", "peg.peg.0": "position"}


@pytest.fixture(scope="module")
def projector() -> LightweightDownsampleProjector:
    projector = LightweightDownsampleProjector(3, 4).double()
    state = {}
    for number, published in enumerate(VECTOR["param_order"]):
        module, _, kind = published.rpartition(".")
        shape = VECTOR["param_shapes"][published]
        flat = torch.arange(math.prod(shape), dtype=torch.float64)
        state[f"{NAMES[module]}.{kind}"] = (0.5 * torch.sin(0.7 * flat + number)).reshape(shape)
    projector.load_state_dict(state)
    return projector


def patches() -> Tensor:
    return torch.cos(0.01 * torch.arange(576 * 3, dtype=torch.float64)).reshape(1, 576, 3)


def test_the_projector_gives_the_published_codes_numbers(projector: LightweightDownsampleProjector) -> None:
    output = projector(patches())
    assert list(output.shape) == VECTOR["output_shape"]
    for place, key in ((0, "output_first_token"), (13, "output_token_13"), (-1, "output_last_token")):
        torch.testing.assert_close(output[0, place], torch.tensor(VECTOR[key], dtype=torch.float64))
    assert output.sum().item() == pytest.approx(VECTOR["output_sum"], abs=1e-9)
    assert output.abs().sum().item() == pytest.approx(VECTOR["output_abs_sum"], abs=1e-9)


def test_the_convolution_adds_to_the_pooled_features_and_does_not_replace_them(
    projector: LightweightDownsampleProjector,
) -> None:
    without = LightweightDownsampleProjector(3, 4).double()
    without.load_state_dict(projector.state_dict())
    for parameter in without.position.parameters():
        torch.nn.init.zeros_(parameter)
    hidden = without.mlp(patches()).reshape(1, 12, 2, 12, 2, 4)
    torch.testing.assert_close(without(patches()), hidden.mean(dim=(2, 4)).reshape(1, 144, 4))


def test_tokens_follow_the_images_rows(projector: LightweightDownsampleProjector) -> None:
    upper = patches().reshape(1, 24, 24, 3).clone()
    upper[:, 12:] = 0
    changed = projector(upper.reshape(1, 576, 3))
    # The convolution reaches one row of tokens across the border.
    torch.testing.assert_close(changed[:, : 5 * 12], projector(patches())[:, : 5 * 12])
    assert not torch.allclose(changed[:, 6 * 12 :], projector(patches())[:, 6 * 12 :])


def test_each_image_of_a_batch_is_projected_on_its_own(projector: LightweightDownsampleProjector) -> None:
    pair = torch.cat([patches(), patches().flip(1)])
    torch.testing.assert_close(projector(pair)[1:], projector(patches().flip(1)))
