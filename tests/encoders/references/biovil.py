"""BioViL and BioViL-T on one image in plain PyTorch, with the names of hi-ml-multimodal.

Compared once with version 0.2.2 of that package, which needs torchvision: see `timm`.
"""

import torch
from torch import nn

from .timm import ResNet


class BioViL(nn.Module):
    """Returns the maps, the patches, their average and the average of the projected ones."""

    def __init__(self, config):
        super().__init__()
        widths = [width // 4 for width in config["hidden_sizes"]]
        width = config["hidden_sizes"][-1]
        self.encoder = nn.Module()
        self.encoder.encoder = ResNet("bottleneck", config["depths"], widths)
        self.temporal = config["model_type"] == "biovil-t"
        if self.temporal:
            self.encoder.backbone_to_vit = nn.Conv2d(width, 256, 1, bias=False)
            self.encoder.missing_previous_emb = nn.Parameter(torch.zeros(1, 256, 1, 1))
            width = 512
        layers = nn.Conv2d(width, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU()
        self.projector = nn.ModuleDict({"model": nn.Sequential(*layers, nn.Conv2d(128, 128, 1))})

    def forward(self, pixel_values):
        states, x, _ = self.encoder.get_submodule("encoder")(pixel_values)
        if self.temporal:
            x = self.encoder.get_submodule("backbone_to_vit")(x)
            missing = self.encoder.get_parameter("missing_previous_emb")
            x = torch.cat([x, missing.expand(len(x), -1, *x.shape[2:])], 1)
        return states, x, x.mean((2, 3)), self.projector["model"](x).mean((2, 3))
