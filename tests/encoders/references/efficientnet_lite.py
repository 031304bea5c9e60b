"""EfficientNet-Lite in plain PyTorch, with the tensor names of efficientnet-lite-pytorch."""

import math

import torch
from torch import nn
from torch.nn import functional as F

STAGES = {
    "out_channels": (16, 24, 40, 80, 112, 192, 320),
    "kernel_sizes": (3, 3, 5, 3, 5, 5, 3),
    "strides": (1, 2, 2, 2, 1, 2, 1),
    "expand_ratios": (1, 6, 6, 6, 6, 6, 6),
    "num_block_repeats": (1, 2, 2, 3, 3, 4, 1),
}


class StaticSameConv(nn.Conv2d):
    """Padded as TensorFlow pads a map of the size given here, whatever the input's size is."""

    def __init__(self, width, features, kernel, stride=1, *, size, groups=1):
        super().__init__(width, features, kernel, stride, groups=groups, bias=False)
        self.pad = []
        for n in reversed(size):
            total = max((math.ceil(n / stride) - 1) * stride + kernel - n, 0)
            self.pad += [total // 2, total - total // 2]

    def forward(self, x):
        return super().forward(F.pad(x, self.pad))


class Block(nn.Module):
    def __init__(self, width, features, kernel, stride, expansion, size, residual, eps):
        super().__init__()
        inner = width * expansion
        self.expanded, self.residual = expansion != 1, residual
        if self.expanded:
            self._expand_conv = StaticSameConv(width, inner, 1, size=size)
            self._bn0 = nn.BatchNorm2d(inner, eps)
        self._depthwise_conv = StaticSameConv(inner, inner, kernel, stride, size=size, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, eps)
        self._project_conv = StaticSameConv(inner, features, 1, size=size)
        self._bn2 = nn.BatchNorm2d(features, eps)

    def forward(self, x):
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expanded else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """Returns the maps behind the stem and each block, the head's map and its average."""

    def __init__(self, config):
        super().__init__()
        coefficient = config.get("width_coefficient", 1.0)
        depth = config.get("depth_coefficient", 1.0)
        divisor = config.get("depth_divisor", 8)
        eps = config.get("batch_norm_eps", 1e-3)
        size = config.get("image_size", 224)
        size = (size, size) if isinstance(size, int) else size
        self._conv_stem = StaticSameConv(config.get("num_channels", 3), 32, 3, 2, size=size)
        self._bn0 = nn.BatchNorm2d(32, eps)
        size, width = [math.ceil(n / 2) for n in size], 32
        self._blocks = nn.ModuleList()
        stages = list(zip(*(config.get(name, STAGES[name]) for name in STAGES), strict=True))
        for number, (channels, kernel, stride, expansion, repeats) in enumerate(stages):
            scaled = channels * coefficient
            features = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
            features += divisor if features < 0.9 * scaled else 0
            if 0 < number < len(stages) - 1:
                repeats = math.ceil(repeats * depth)
            for i in range(repeats):
                step = stride if i == 0 else 1
                block = Block(width, features, kernel, step, expansion, size, i > 0, eps)
                self._blocks.append(block)
                size, width = [math.ceil(n / step) for n in size], features
        self._conv_head = StaticSameConv(width, 1280, 1, size=size)
        self._bn1 = nn.BatchNorm2d(1280, eps)
        self._fc = nn.Linear(1280, 2)

    def forward(self, pixel_values):
        x = F.relu6(self._bn0(self._conv_stem(pixel_values)))
        states = [x]
        for block in self._blocks:
            x = block(x)
            states.append(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        return states, x, torch.mean(x, (2, 3))
