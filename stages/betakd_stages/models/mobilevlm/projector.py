"""LDPv2, MobileVLM V2's projector: from a tower's patches to a quarter as many tokens of the language model.

B images, S patches per side, D width of the tower, H width of the language model.
"""

import math

from torch import Tensor, nn


class LightweightDownsampleProjector(nn.Module):
    """Two linear layers, a mean over 2 x 2 patches, and a depthwise convolution that encodes positions.

    Source: MobileVLM V2 (Chu et al. 2024), section 3.2.
    """

    def __init__(self, vision_size: int, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(vision_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))
        self.pool = nn.AvgPool2d(2)
        self.position = nn.Conv2d(hidden_size, hidden_size, kernel_size=3, padding=1, groups=hidden_size)

    def forward(self, patches: Tensor) -> Tensor:
        """Visual tokens `[B, S * S / 4, H]`, row by row, of patches `[B, S * S, D]`, S even."""
        side = math.isqrt(patches.shape[1])
        assert side * side == patches.shape[1], f"{patches.shape[1]} patches form no square"
        image = self.mlp(patches).transpose(1, 2).unflatten(2, (side, side))
        pooled = self.pool(image)
        return (pooled + self.position(pooled)).flatten(2).transpose(1, 2)
