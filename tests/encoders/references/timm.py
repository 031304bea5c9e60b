"""timm's models in plain PyTorch, with its tensor names; compared once with timm 1.0.31 itself.

timm cannot be a reference here: it imports torchvision, whose wheels on PyPI are built against
PyTorch for GPUs and do not load beside the one for CPUs.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gamma


class Attention(nn.Module):
    def __init__(self, width, heads, bias):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width)

    def forward(self, x):
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width, hidden, activation, packed=False):
        super().__init__()
        self.act, self.packed = ACTIVATIONS[activation], packed
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden // 2 if packed else hidden, width)

    def forward(self, x):
        x = self.fc1(x)
        if not self.packed:
            return self.fc2(self.act(x))
        gate, value = x.chunk(2, -1)
        return self.fc2(self.act(gate) * value)


class Block(nn.Module):
    def __init__(self, args, eps):
        super().__init__()
        width, scaled = args["embed_dim"], args.get("init_values")
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = Attention(width, args["num_heads"], args.get("qkv_bias", True))
        hidden, packed = int(width * args.get("mlp_ratio", 4)), "mlp_layer" in args
        self.mlp = Mlp(width, hidden, args.get("act_layer", "gelu"), packed)
        self.ls1 = Scale(width) if scaled else nn.Identity()
        self.ls2 = Scale(width) if scaled else nn.Identity()

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class AttentionPool(nn.Module):
    def __init__(self, args, eps):
        super().__init__()
        width, self.heads = args["embed_dim"], args["num_heads"]
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps)
        hidden = int(width * args.get("mlp_ratio", 4))
        self.mlp = Mlp(width, hidden, args.get("act_layer", "gelu"))

    def forward(self, x):
        q = self.q(self.latent.expand(len(x), -1, -1)).unflatten(-1, (self.heads, -1))
        kv = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q.transpose(1, 2), *kv).transpose(1, 2).flatten(2)
        x = self.proj(x)
        return (x + self.mlp(self.norm(x)))[:, 0]


class VisionTransformer(nn.Module):
    """Of timm's arguments. Returns the states, the tokens and the pooled vector or None."""

    def __init__(self, args):
        super().__init__()
        self.args, eps = args, args.get("eps", 1e-6)
        width, patch, (height, columns) = args["embed_dim"], args["patch_size"], args["img_size"]
        self.pool, pre_norm = args.get("global_pool", "token"), args.get("pre_norm", False)
        has_class, registers = args.get("class_token", True), args.get("reg_tokens", 0)
        self.grid, self.prefix = (height // patch, columns // patch), int(has_class) + registers
        self.placed = 0 if args.get("no_embed_class") else self.prefix
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(args.get("in_chans", 3), width, patch, patch, bias=not pre_norm)}
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if has_class else None
        self.reg_token = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        places = self.placed + self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(torch.zeros(1, places, width))
        self.norm_pre = nn.LayerNorm(width, eps) if pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(args, eps) for _ in range(args["depth"]))
        after = args.get("fc_norm", self.pool == "avg")
        self.norm = nn.Identity() if after else nn.LayerNorm(width, eps)
        self.fc_norm = nn.LayerNorm(width, eps) if after else nn.Identity()
        self.attn_pool = AttentionPool(args, eps) if self.pool == "map" else None
        if args.get("num_classes", 0):
            self.head = nn.Linear(width, args["num_classes"])

    def positions(self, rows, columns):
        if (rows, columns) == self.grid:
            return self.pos_embed
        front, grid = self.pos_embed.split([self.placed, self.grid[0] * self.grid[1]], 1)
        grid = grid.unflatten(1, self.grid).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
        return torch.cat([front, grid.flatten(2).transpose(1, 2)], 1)

    def forward(self, pixel_values):
        x = self.patch_embed["proj"](pixel_values)
        places = self.positions(*x.shape[2:])
        x = x.flatten(2).transpose(1, 2)
        front = [
            t.expand(len(x), -1, -1) for t in (self.cls_token, self.reg_token) if t is not None
        ]
        if self.placed:
            x = torch.cat([*front, x], 1) + places
        else:
            x = torch.cat([*front, x + places], 1)
        states = [self.norm_pre(x)]
        for block in self.blocks:
            states.append(block(states[-1]))
        last, pooled = self.norm(states[-1]), None
        if self.pool:
            patches = last[:, self.prefix :]
            if self.attn_pool is not None:
                pooled = self.attn_pool(patches)
            else:
                pooled = last[:, 0] if self.pool == "token" else patches.mean(1)
            pooled = self.fc_norm(pooled)
        return states, last, pooled


class ResidualLayer(nn.Module):
    def __init__(self, inputs, narrow, stride, kind):
        super().__init__()
        features = narrow * (4 if kind == "bottleneck" else 1)
        plan = [(narrow, 3, stride), (narrow, 3, 1)]
        if kind == "bottleneck":
            plan = [(narrow, 1, 1), (narrow, 3, stride), (features, 1, 1)]
        width, self.count = inputs, len(plan)
        for i, (out, kernel, step) in enumerate(plan, 1):
            conv = nn.Conv2d(width, out, kernel, step, kernel // 2, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(out))
            width = out
        self.downsample = nn.Identity()
        if stride != 1 or inputs != features:
            conv = nn.Conv2d(inputs, features, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(features))

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(y))
            y = F.relu(y) if i < self.count else y
        return F.relu(y + self.downsample(x))


class ResNet(nn.Module):
    """Returns the maps behind the stem and each stage, the last map and its average."""

    def __init__(self, kind, layers, channels, classes=2):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        width, self.stages = 64, len(layers)
        for stage, (depth, narrow) in enumerate(zip(layers, channels, strict=True)):
            parts = []
            for i in range(depth):
                stride = 2 if i == 0 and stage > 0 else 1
                parts.append(ResidualLayer(width, narrow, stride, kind))
                width = narrow * (4 if kind == "bottleneck" else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*parts))
        self.fc = nn.Linear(width, classes)

    def forward(self, pixel_values):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(pixel_values))), 3, 2, 1)
        states = [x]
        for stage in range(self.stages):
            states.append(self.get_submodule(f"layer{stage + 1}")(states[-1]))
        return states, states[-1], states[-1].mean((2, 3))


class MapNorm(nn.LayerNorm):
    """Over the channels of maps."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextLayer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 7, 1, 3, groups=width)
        self.norm, self.mlp = nn.LayerNorm(width, 1e-6), Mlp(width, 4 * width, "gelu")
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        y = self.gamma * self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """Returns the maps of the patches and of each stage, the last map and its normed average."""

    def __init__(self, depths, dims):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), MapNorm(dims[0], 1e-6))
        self.stages, width = nn.ModuleList(), dims[0]
        for depth, features in zip(depths, dims, strict=True):
            stage = nn.Module()
            if len(self.stages):
                halve = nn.Conv2d(width, features, 2, 2)
                stage.downsample = nn.Sequential(MapNorm(width, 1e-6), halve)
            stage.blocks = nn.Sequential(*(ConvNextLayer(features) for _ in range(depth)))
            self.stages.append(stage)
            width = features
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(width, 1e-6), "fc": nn.Linear(width, 2)})

    def forward(self, pixel_values):
        states = [self.stem(pixel_values)]
        for number, stage in enumerate(self.stages):
            x = stage.get_submodule("downsample")(states[-1]) if number else states[-1]
            states.append(stage.get_submodule("blocks")(x))
        return states, states[-1], self.head["norm"](states[-1].mean((2, 3)))


def make_divisible(width, factor):
    scaled = width * factor
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


class SameConv(nn.Conv2d):
    """With TensorFlow's padding, of the size of the maps."""

    def forward(self, x):
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


class MobileBlock(nn.Module):
    def __init__(self, inputs, features, kernel, stride, expansion, conv, eps):
        super().__init__()
        inner = inputs * expansion
        last = "conv_pw" if expansion == 1 else "conv_pwl"
        plan = [
            ("conv_pw", inputs, inner, 1, 1, 1),
            ("conv_dw", inner, inner, kernel, stride, inner),
            (last, inner, features, 1, 1, 1),
        ][expansion == 1 :]
        for i, (name, before, after, size, step, groups) in enumerate(plan, 1):
            self.add_module(name, conv(before, after, size, step, groups))
            self.add_module(f"bn{i}", nn.BatchNorm2d(after, eps))
        self.names = [name for name, *_ in plan]
        squeeze = {
            "conv_reduce": nn.Conv2d(inner, inputs // 4, 1),
            "conv_expand": nn.Conv2d(inputs // 4, inner, 1),
        }
        self.se, self.skip = nn.ModuleDict(squeeze), stride == 1 and inputs == features

    def forward(self, x):
        y = x
        for i, name in enumerate(self.names, 1):
            if i == len(self.names):
                weights = self.se["conv_reduce"](y.mean((2, 3), keepdim=True))
                y = y * torch.sigmoid(self.se["conv_expand"](F.silu(weights)))
            y = self.get_submodule(f"bn{i}")(self.get_submodule(name)(y))
            y = F.silu(y) if i < len(self.names) else y
        return x + y if self.skip else y


class EfficientNet(nn.Module):
    """Returns the maps behind the stem and each block, the last map and its average."""

    def __init__(self, width, depth, same):
        super().__init__()
        eps = 1e-3 if same else 1e-5

        def conv(before, after, size, step, groups):
            kind, padding = (SameConv, 0) if same else (nn.Conv2d, size // 2)
            return kind(before, after, size, step, padding, groups=groups, bias=False)

        inputs = make_divisible(32, width)
        self.conv_stem, self.bn1 = conv(3, inputs, 3, 2, 1), nn.BatchNorm2d(inputs, eps)
        self.blocks = nn.ModuleList()
        for features, kernel, stride, expansion, repeats in (
            (16, 3, 1, 1, 1),
            (24, 3, 2, 6, 2),
            (40, 5, 2, 6, 2),
            (80, 3, 2, 6, 3),
            (112, 5, 1, 6, 3),
            (192, 5, 2, 6, 4),
            (320, 3, 1, 6, 1),
        ):
            features, stage = make_divisible(features, width), nn.ModuleList()
            for i in range(math.ceil(depth * repeats)):
                step = stride if i == 0 else 1
                stage.append(MobileBlock(inputs, features, kernel, step, expansion, conv, eps))
                inputs = features
            self.blocks.append(stage)
        head = make_divisible(1280, width)
        self.conv_head, self.bn2 = conv(inputs, head, 1, 1, 1), nn.BatchNorm2d(head, eps)
        self.classifier = nn.Linear(head, 2)

    def forward(self, pixel_values):
        states = [F.silu(self.bn1(self.conv_stem(pixel_values)))]
        for stage in self.blocks:
            for block in stage:  # pyright: ignore[reportGeneralTypeIssues]
                states.append(block(states[-1]))
        last = F.silu(self.bn2(self.conv_head(states[-1])))
        return states, last, last.mean((2, 3))
