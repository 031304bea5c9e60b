"""DenseNet in plain PyTorch, with the tensor names of torchvision."""

import torch
from torch import nn
from torch.nn import functional as F


class DenseLayer(nn.Module):
    def __init__(self, width, growth, bn_size):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, bn_size * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bn_size * growth)
        self.conv2 = nn.Conv2d(bn_size * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        new = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(new)))], 1)


class Transition(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width // 2, 1, bias=False)

    def forward(self, x):
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2, 2)


class DenseNet(nn.Module):
    """Returns the maps behind the stem and each dense block, the last map and its average."""

    def __init__(self, config):
        super().__init__()
        growth, width = config["growth_rate"], config["num_init_features"]
        self.features = nn.Module()
        stem = nn.Conv2d(config.get("in_channels", 3), width, 7, 2, 3, bias=False)
        self.features.add_module("conv0", stem)
        self.features.add_module("norm0", nn.BatchNorm2d(width))
        self.depths = config["block_config"]
        for number, depth in enumerate(self.depths, 1):
            block = nn.Sequential()
            for i in range(1, depth + 1):
                block.add_module(f"denselayer{i}", DenseLayer(width, growth, config["bn_size"]))
                width += growth
            self.features.add_module(f"denseblock{number}", block)
            if number < len(self.depths):
                self.features.add_module(f"transition{number}", Transition(width))
                width //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(width))
        self.classifier = nn.Linear(width, 2)

    def forward(self, pixel_values):
        f = self.features.get_submodule
        x = F.max_pool2d(F.relu(f("norm0")(f("conv0")(pixel_values))), 3, 2, 1)
        states = [x]
        for number in range(1, len(self.depths) + 1):
            x = f(f"denseblock{number}")(x)
            states.append(x)
            if number < len(self.depths):
                x = f(f"transition{number}")(x)
        x = F.relu(f("norm5")(x))
        return states, x, F.adaptive_avg_pool2d(x, 1).flatten(1)
