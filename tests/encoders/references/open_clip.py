"""OpenCLIP's models in plain PyTorch: the same tensor names, written from its description."""

from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertModel

from . import timm

#: timm's arguments by names, for images that no published model has.
_TINY = {"embed_dim": 192, "depth": 12, "num_heads": 3}
TIMM = {
    "vit_tiny_patch16_32": _TINY | {"patch_size": 16, "img_size": (32, 32)},
    "vit_tiny_patch14_reg4_dinov2": _TINY
    | {
        "patch_size": 14,
        "img_size": (28, 28),
        "init_values": 1e-5,
        "reg_tokens": 4,
        "no_embed_class": True,
    },
    "vit_tiny_patch16_siglip_32": _TINY
    | {"patch_size": 16, "img_size": (32, 32), "class_token": False, "global_pool": "map"},
}


class QuickGelu(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


def activation(model, tower):
    if model.get("quick_gelu"):
        return QuickGelu()
    return nn.GELU(**tower.get("act_kwargs", {}))


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width, heads, hidden, act, eps, scaled):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ls_1 = Scale(width) if scaled else nn.Identity()
        self.ln_2 = nn.LayerNorm(width, eps)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, hidden), "gelu": act, "c_proj": nn.Linear(hidden, width)}
        )
        self.ls_2 = Scale(width) if scaled else nn.Identity()

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.ls_1(self.attn(y, y, y, attn_mask=mask, need_weights=False)[0])
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.ls_2(self.mlp["c_proj"](self.mlp["gelu"](y)))


class Transformer(nn.Module):
    def __init__(self, model, tower, width, heads, eps):
        super().__init__()
        act, hidden = activation(model, tower), int(width * tower.get("mlp_ratio", 4))
        scaled = tower.get("ls_init_value") is not None
        self.resblocks = nn.ModuleList(
            Block(width, heads, hidden, act, eps, scaled) for _ in range(tower["layers"])
        )

    def forward(self, x, mask=None):
        states = [x]
        for block in self.resblocks:
            states.append(block(states[-1], mask))
        return states


class Vision(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.options = tower = model["vision_cfg"]
        width, patch = tower["width"], tower["patch_size"]
        eps = tower.get("norm_kwargs", {}).get("eps", 1e-5)
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        count = (tower["image_size"] // patch) ** 2
        self.positional_embedding = nn.Parameter(torch.zeros(count + 1, width))
        self.ln_pre = nn.Identity() if tower.get("no_ln_pre") else nn.LayerNorm(width, eps)
        heads = width // tower.get("head_width", 64)
        self.transformer = Transformer(model, tower, width, heads, eps)
        self.ln_post = nn.LayerNorm(width, eps)
        self.proj = nn.Parameter(torch.zeros(width, model["embed_dim"]))

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)
        states = self.transformer(self.ln_pre(x + self.positional_embedding))
        last, after = states[-1], self.options.get("final_ln_after_pool")
        if not after:
            last = self.ln_post(last)
        average = self.options.get("pool_type") == "avg"
        pooled = last[:, 1:].mean(1) if average else last[:, 0]
        pooled = self.ln_post(pooled) if after else pooled
        return states, last, pooled, pooled @ self.proj


class TimmVision(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.options = tower = model["vision_cfg"]
        args = TIMM[tower["timm_model_name"]]
        self.trunk, self.prefix = timm.VisionTransformer(args), args.get("reg_tokens", 0) + 1
        if tower["timm_proj"] == "linear":
            bias = tower.get("timm_proj_bias", False)
            linear = nn.Linear(args["embed_dim"], model["embed_dim"], bias=bias)
            self.head = nn.ModuleDict({"proj": linear})

    def forward(self, pixels):
        states, last, pooled = self.trunk(pixels)
        if self.options.get("timm_pool", "avg") == "avg":
            pooled = last[:, self.prefix :].mean(1)
        linear = self.options["timm_proj"] == "linear"
        return states, last, pooled, self.head["proj"](pooled) if linear else pooled


class Text(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.options = tower = model["text_cfg"]
        width, eps = tower["width"], tower.get("norm_kwargs", {}).get("eps", 1e-5)
        self.token_embedding = nn.Embedding(tower["vocab_size"], width)
        self.positional_embedding = nn.Parameter(torch.zeros(tower["context_length"], width))
        self.transformer = Transformer(model, tower, width, tower["heads"], eps)
        self.ln_final = nn.LayerNorm(width, eps)
        if tower.get("proj_bias"):
            self.text_projection: Any = nn.Linear(width, model["embed_dim"])
        elif tower.get("proj_type") != "none":
            self.text_projection = nn.Parameter(torch.zeros(width, model["embed_dim"]))

    def forward(self, ids):
        tower, count = self.options, ids.shape[1]
        mask = None
        if not tower.get("no_causal_mask"):
            mask = torch.full((count, count), -torch.inf).triu(1)
        states = self.transformer(
            self.token_embedding(ids) + self.positional_embedding[:count], mask
        )
        last, rows = self.ln_final(states[-1]), torch.arange(len(ids))
        position = {
            "argmax": ids.argmax(1),
            "eos": (ids == tower.get("eos_id", 2)).int().argmax(1),
            "first": torch.zeros_like(rows),
            "last": torch.full_like(rows, count - 1),
        }[tower.get("pool_type", "argmax")]
        projected = pooled = last[rows, position]
        if tower.get("proj_bias"):
            projected = self.text_projection(pooled)
        elif tower.get("proj_type") != "none":
            projected = pooled @ self.text_projection
        return states, last, pooled, projected


class BertText(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.options = tower = model["text_cfg"]
        config = BertConfig(**tower["hf_model_config"])
        width, dimension = config.hidden_size, model["embed_dim"]
        needs_pooler = tower.get("hf_pooler_type") == "cls_pooler"
        self.transformer = BertModel(config, add_pooling_layer=needs_pooler)
        if tower.get("hf_proj_type", "mlp") == "mlp":
            hidden = (width + dimension) // 2
            layers = [nn.Linear(width, hidden, bias=False), nn.GELU()]
            self.proj = nn.Sequential(*layers, nn.Linear(hidden, dimension, bias=False))
        else:
            self.proj = nn.Linear(width, dimension, bias=False)

    def forward(self, ids):
        mask = (ids != self.transformer.config.pad_token_id).long()
        out = self.transformer(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        last = out.last_hidden_state
        pooler = self.options.get("hf_pooler_type", "mean_pooler")
        if pooler == "mean_pooler":
            pooled = (last * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        else:
            pooled = out.pooler_output if pooler == "cls_pooler" else last[:, 0]
        return out.hidden_states, last, pooled, self.proj(pooled)


class OpenClip(nn.Module):
    """Of the configuration in ``open_clip_config.json``."""

    def __init__(self, config):
        super().__init__()
        model = config["model_cfg"]
        vision = TimmVision if "timm_model_name" in model["vision_cfg"] else Vision
        self.visual = vision(model)
        text = BertText(model) if "hf_model_name" in model["text_cfg"] else Text(model)
        self.custom = model.get("custom_text", False) or isinstance(text, BertText)
        if self.custom:
            self.text = text
        else:
            # The flat layout: the tensors of the text tower are the model's own.
            self.towers = (text,)
            for name, part in text.named_children():
                self.add_module(name, part)
            for name, value in text.named_parameters(recurse=False):
                self.register_parameter(name, value)
        shape = [1] if model.get("nonscalar_logit_scale") else []
        self.logit_scale = nn.Parameter(torch.zeros(shape))
        if model.get("init_logit_bias") is not None:
            self.logit_bias = nn.Parameter(torch.zeros(shape))

    def encode_text(self, ids):
        return (self.text if self.custom else self.towers[0])(ids)

    def encode_image(self, pixels):
        return self.visual(pixels)
