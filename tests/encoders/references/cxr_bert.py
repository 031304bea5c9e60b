"""CXR-BERT as its authors describe it, of PyTorch's own parts (needs the extra ``parity``)."""

import torch
import transformers


class CxrBert(torch.nn.Module):
    """BERT without pooler, and the head from the first token into the shared space."""

    def __init__(self, config):
        super().__init__()
        config._attn_implementation = "eager"
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.cls_projection_head = torch.nn.ModuleDict(
            {
                "dense_to_hidden": torch.nn.Linear(config.hidden_size, config.projection_size),
                "LayerNorm": torch.nn.LayerNorm(config.projection_size, eps=1e-12),
                "dense_to_output": torch.nn.Linear(config.projection_size, config.projection_size),
            }
        )

    def forward(self, inputs):
        outputs = self.bert(**inputs, output_hidden_states=True)
        head = self.cls_projection_head
        x = torch.nn.functional.gelu(head["dense_to_hidden"](outputs.last_hidden_state[:, 0]))
        projected = head["dense_to_output"](head["LayerNorm"](x))
        states = {f"hidden_{i}": state for i, state in enumerate(outputs.hidden_states)}
        return states | {"last": outputs.last_hidden_state, "projected": projected}
