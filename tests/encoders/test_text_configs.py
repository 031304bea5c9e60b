"""Text encoders: configurations as published checkpoints carry them, refusals, poolings."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import latin, some

from semalign_jax.encoders import (
    CheckpointError,
    ConfigError,
    EncoderConfig,
    encode,
    load_encoder,
)
from semalign_jax.encoders._config import ConfigReader
from semalign_jax.encoders._encoder import abstract_params
from semalign_jax.encoders._family import family_of
from semalign_jax.encoders.families import deberta, modernbert, mpnet

from .harness import all_cases, read_golden, write_checkpoint

BASE = """
"attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
"hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
"num_attention_heads": 12, "num_hidden_layers": 12
"""

#: By name: the text of config.json and the longest input.
PUBLISHED = {
    "bert-base-uncased": (
        BASE
        + """, "architectures": ["BertForMaskedLM"], "gradient_checkpointing": false,
        "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
        "pad_token_id": 0, "position_embedding_type": "absolute",
        "transformers_version": "4.6.0.dev0", "type_vocab_size": 2, "use_cache": true,
        "vocab_size": 30522""",
        512,
    ),
    "multilingual BERT": (
        BASE
        + """, "architectures": ["BertForMaskedLM"], "directionality": "bidi",
        "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
        "pad_token_id": 0, "pooler_fc_size": 768, "pooler_num_attention_heads": 12,
        "pooler_num_fc_layers": 3, "pooler_size_per_head": 128,
        "pooler_type": "first_token_transform", "type_vocab_size": 2, "vocab_size": 119547""",
        512,
    ),
    "BioBERT": (
        BASE
        + """, "architectures": ["BertModel"], "gradient_checkpointing": false,
        "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
        "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 28996""",
        512,
    ),
    "ClinicalBERT": (
        BASE
        + """, "max_position_embeddings": 512, "model_type": "bert", "type_vocab_size": 2,
        "vocab_size": 28996""",
        512,
    ),
    "PubMedBERT": (
        BASE
        + """, "architectures": ["BertForMaskedLM"], "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512, "model_type": "bert", "pad_token_id": 0,
        "type_vocab_size": 2, "vocab_size": 30522""",
        512,
    ),
    "SapBERT": (
        BASE
        + """, "_name_or_path": "PubMedBERT", "architectures": ["BertModel"],
        "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
        "pad_token_id": 0, "position_embedding_type": "absolute",
        "transformers_version": "4.5.0", "type_vocab_size": 2, "use_cache": true,
        "vocab_size": 30522""",
        512,
    ),
    "BERT saved by transformers 2": (
        BASE
        + """, "architectures": ["BertForTokenClassification"], "bos_token_id": 0,
        "do_sample": false, "eos_token_ids": 0, "finetuning_task": null,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "is_decoder": false,
        "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "layer_norm_eps": 1e-12,
        "length_penalty": 1.0, "max_length": 20, "max_position_embeddings": 512,
        "model_type": "bert", "num_beams": 1, "num_labels": 2, "num_return_sequences": 1,
        "output_attentions": false, "output_hidden_states": false, "output_past": true,
        "pad_token_id": 0, "pruned_heads": {}, "repetition_penalty": 1.0, "temperature": 1.0,
        "top_k": 50, "top_p": 1.0, "torchscript": false, "type_vocab_size": 2,
        "use_bfloat16": false, "vocab_size": 28996, "xla_device": true, "_num_labels": 2""",
        512,
    ),
    "all-MiniLM-L6-v2": (
        """"_name_or_path": "nreimers/MiniLM-L6-H384-uncased", "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": false,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 384,
        "initializer_range": 0.02, "intermediate_size": 1536, "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12,
        "num_hidden_layers": 6, "pad_token_id": 0, "position_embedding_type": "absolute",
        "transformers_version": "4.8.2", "type_vocab_size": 2, "use_cache": true,
        "vocab_size": 30522""",
        512,
    ),
    "BiomedVLP-CXR-BERT-specialized": (
        """"architectures": ["CXRBertModel"], "attention_probs_dropout_prob": 0.25,
        "auto_map": {"AutoConfig": "configuration_cxrbert.CXRBertConfig",
        "AutoModel": "modeling_cxrbert.CXRBertModel"}, "classifier_dropout": null,
        "gradient_checkpointing": false, "hidden_act": "gelu", "hidden_dropout_prob": 0.25,
        "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
        "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "cxr-bert",
        "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
        "position_embedding_type": "absolute", "projection_size": 128, "torch_dtype": "float32",
        "transformers_version": "4.17.0", "type_vocab_size": 2, "use_cache": true,
        "vocab_size": 30522""",
        512,
    ),
    "roberta-base": (
        BASE
        + """, "architectures": ["RobertaForMaskedLM"], "bos_token_id": 0, "eos_token_id": 2,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "model_type": "roberta",
        "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 50265""",
        512,
    ),
    "RadBERT-RoBERTa-4m": (
        BASE
        + """, "_name_or_path": "roberta-base", "architectures": ["RobertaForMaskedLM"],
        "bos_token_id": 0, "classifier_dropout": null, "eos_token_id": 2,
        "gradient_checkpointing": false, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 514, "model_type": "roberta", "pad_token_id": 1,
        "position_embedding_type": "absolute", "torch_dtype": "float32",
        "transformers_version": "4.12.0", "type_vocab_size": 1, "use_cache": true,
        "vocab_size": 50265""",
        512,
    ),
    "xlm-roberta-base": (
        BASE
        + """, "architectures": ["XLMRobertaForMaskedLM"], "bos_token_id": 0, "eos_token_id": 2,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "model_type": "xlm-roberta",
        "output_past": true, "pad_token_id": 1, "position_embedding_type": "absolute",
        "transformers_version": "4.17.0.dev0", "type_vocab_size": 1, "use_cache": true,
        "vocab_size": 250002, "language": "english", "name": "XLMRoberta" """,
        512,
    ),
    "camembert-base": (
        BASE
        + """, "architectures": ["CamembertForMaskedLM"], "bos_token_id": 5, "eos_token_id": 6,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "model_type": "camembert",
        "output_past": true, "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 32005""",
        512,
    ),
    "distilbert-base-uncased": (
        """"activation": "gelu", "architectures": ["DistilBertForMaskedLM"],
        "attention_dropout": 0.1, "dim": 768, "dropout": 0.1, "hidden_dim": 3072,
        "initializer_range": 0.02, "max_position_embeddings": 512, "model_type": "distilbert",
        "n_heads": 12, "n_layers": 6, "output_past": true, "pad_token_id": null,
        "qa_dropout": 0.1, "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": false,
        "tie_weights_": true, "transformers_version": "4.10.0.dev0", "vocab_size": 30522""",
        512,
    ),
    "all-mpnet-base-v2": (
        BASE
        + """, "_name_or_path": "microsoft/mpnet-base", "architectures": ["MPNetForMaskedLM"],
        "bos_token_id": 0, "eos_token_id": 2, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 514, "model_type": "mpnet", "pad_token_id": 1,
        "relative_attention_num_buckets": 32, "transformers_version": "4.8.2",
        "vocab_size": 30527""",
        512,
    ),
    "electra-small-discriminator": (
        """"architectures": ["ElectraForPreTraining"], "attention_probs_dropout_prob": 0.1,
        "classifier_dropout": null, "embedding_size": 128, "generator_size": "0.25",
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 256,
        "initializer_range": 0.02, "intermediate_size": 1024, "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512, "model_type": "electra", "num_attention_heads": 4,
        "num_hidden_layers": 12, "pad_token_id": 0, "position_embedding_type": "absolute",
        "summary_activation": "gelu", "summary_last_dropout": 0.1, "summary_type": "first",
        "summary_use_proj": true, "transformers_version": "4.11.3", "type_vocab_size": 2,
        "vocab_size": 30522""",
        512,
    ),
    "ModernBERT-base": (
        """"architectures": ["ModernBertForMaskedLM"], "attention_bias": false,
        "attention_dropout": 0.0, "bos_token_id": 50281, "classifier_activation": "gelu",
        "classifier_bias": false, "classifier_dropout": 0.0, "classifier_pooling": "mean",
        "cls_token_id": 50281, "decoder_bias": true, "deterministic_flash_attn": false,
        "embedding_dropout": 0.0, "eos_token_id": 50282, "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0, "gradient_checkpointing": false,
        "hidden_activation": "gelu", "hidden_size": 768, "initializer_cutoff_factor": 2.0,
        "initializer_range": 0.02, "intermediate_size": 1152, "layer_norm_eps": 1e-05,
        "local_attention": 128, "local_rope_theta": 10000.0, "max_position_embeddings": 8192,
        "mlp_bias": false, "mlp_dropout": 0.0, "model_type": "modernbert", "norm_bias": false,
        "norm_eps": 1e-05, "num_attention_heads": 12, "num_hidden_layers": 22,
        "pad_token_id": 50283, "position_embedding_type": "absolute",
        "repad_logits_with_grad": false, "sep_token_id": 50282, "sparse_pred_ignore_index": -100,
        "sparse_prediction": false, "torch_dtype": "float32",
        "transformers_version": "4.47.0.dev0", "vocab_size": 50368""",
        8192,
    ),
    "Qwen3-Embedding-0.6B": (
        """"architectures": ["Qwen3ForCausalLM"], "attention_bias": false,
        "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
        "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
        "intermediate_size": 3072, "max_position_embeddings": 32768, "max_window_layers": 28,
        "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null,
        "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "transformers_version": "4.51.3", "use_cache": true,
        "use_sliding_window": false, "vocab_size": 151669""",
        32768,
    ),
    "embeddinggemma-300m": (
        """"_sliding_window_pattern": 6, "architectures": ["Gemma3TextModel"],
        "attention_bias": false, "attention_dropout": 0.0, "attn_logit_softcapping": null,
        "bos_token_id": 2, "dtype": "float32", "eos_token_id": 1,
        "final_logit_softcapping": null, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 768,
        "initializer_range": 0.02, "intermediate_size": 1152,
        "max_position_embeddings": 2048, "model_type": "gemma3_text",
        "num_attention_heads": 3, "num_hidden_layers": 24, "num_key_value_heads": 1,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0, "rope_scaling": null, "rope_theta": 1000000.0,
        "sliding_window": 512, "transformers_version": "4.57.0.dev0",
        "use_bidirectional_attention": true, "use_cache": true, "vocab_size": 262144""",
        2048,
    ),
    "deberta-v3-base": (
        """"model_type": "deberta-v2", "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
        "intermediate_size": 3072, "max_position_embeddings": 512, "relative_attention": true,
        "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": true,
        "pos_att_type": "p2c|c2p", "layer_norm_eps": 1e-7, "max_relative_positions": -1,
        "position_biased_input": false, "num_attention_heads": 12, "num_hidden_layers": 12,
        "type_vocab_size": 0, "vocab_size": 128100""",
        512,
    ),
    "albert-base-v2": (
        """"architectures": ["AlbertForMaskedLM"], "attention_probs_dropout_prob": 0,
        "bos_token_id": 2, "classifier_dropout_prob": 0.1, "down_scale_factor": 1,
        "embedding_size": 128, "eos_token_id": 3, "gap_size": 0, "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0, "hidden_size": 768, "initializer_range": 0.02,
        "inner_group_num": 1, "intermediate_size": 3072, "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512, "model_type": "albert", "net_structure_type": 0,
        "num_attention_heads": 12, "num_hidden_groups": 1, "num_hidden_layers": 12,
        "num_memory_blocks": 0, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 30000""",
        512,
    ),
    "GatorTron-base": (
        """"attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 4096,
        "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "megatron-bert",
        "num_attention_heads": 16, "num_hidden_layers": 24, "pad_token_id": 0,
        "position_embedding_type": "absolute", "type_vocab_size": 2, "use_cache": true,
        "vocab_size": 50176""",
        512,
    ),
    "nomic-embed-text-v1.5": (
        """"activation_function": "swiglu", "architectures": ["NomicBertModel"],
        "attn_pdrop": 0.0, "auto_map": {"AutoModel": "modeling_hf_nomic_bert.NomicBertModel"},
        "bos_token_id": null, "causal": false, "dense_seq_output": true, "embd_pdrop": 0.0,
        "eos_token_id": null, "fused_bias_fc": true, "fused_dropout_add_ln": true,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-12, "max_trained_positions": 2048,
        "mlp_fc1_bias": false, "mlp_fc2_bias": false, "model_type": "nomic_bert", "n_embd": 768,
        "n_head": 12, "n_inner": 3072, "n_layer": 12, "n_positions": 8192,
        "pad_vocab_size_multiple": 64, "parallel_block": false,
        "parallel_block_tied_norm": false, "prenorm": false, "qkv_proj_bias": false,
        "reorder_and_upcast_attn": false, "resid_pdrop": 0.0, "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": false,
        "rotary_emb_scale_base": null, "rotary_scaling_factor": null,
        "scale_attn_by_inverse_layer_idx": false, "scale_attn_weights": true,
        "summary_activation": null, "summary_first_dropout": 0.0,
        "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true,
        "torch_dtype": "float32", "transformers_version": "4.37.2", "type_vocab_size": 2,
        "use_cache": true, "use_flash_attn": true, "use_rms_norm": false, "use_xentropy": true,
        "vocab_size": 30528""",
        2048,
    ),
}
#: The first two poolings, where they are not mean and cls.
POOLINGS = {"Qwen3-Embedding-0.6B": ("eos", "mean"), "embeddinggemma-300m": ("mean", "eos")}
#: Parameters as PyTorch counts them, without those of a pooler.
SIZES = {
    "Qwen3-Embedding-0.6B": 595_776_512,
    "embeddinggemma-300m": 302_863_104,
    "deberta-v3-base": 183_831_552,
    "albert-base-v2": 11_092_992,
    "GatorTron-base": 354_217_984,
    "nomic-embed-text-v1.5": 136_731_648,
}


def parse(values, tensors=()):
    family = family_of(values["model_type"])
    reader = ConfigReader(values, "config.json")
    config = family.parse(reader, frozenset(tensors))
    reader.finish()
    return config


def published(name):
    return json.loads("{" + PUBLISHED[name][0] + "}")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_read(name):
    values = published(name)
    config = parse(values)
    family = family_of(values["model_type"])
    assert family.max_tokens is not None
    assert family.max_tokens(config) == PUBLISHED[name][1]
    assert family.poolings(config)[:2] == POOLINGS.get(name, ("mean", "cls"))


@pytest.mark.parametrize("name", some(SIZES, 3))
def test_published_configurations_have_the_published_size(name):
    values = published(name)
    params = abstract_params(EncoderConfig(values["model_type"], parse(values), "mean"))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == SIZES[name]


def test_windows_of_decoders():
    gemma = parse(published("embeddinggemma-300m"))
    assert gemma.windows == (257, 257, 257, 257, 257, None) * 4
    assert gemma.thetas == (10_000.0,) * 5 + (1_000_000.0,) + gemma.thetas[:18]
    causal = parse(published("embeddinggemma-300m") | {"use_bidirectional_attention": False})
    assert (causal.windows[0], causal.causal, gemma.causal) == (512, True, False)
    qwen = published("Qwen3-Embedding-0.6B")
    assert parse(qwen).windows == (None,) * 28
    sliding = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 20}
    assert parse(qwen | sliding).windows == (None,) * 20 + (9,) * 8


def test_modernbert_keys_of_both_generations_mean_the_same():
    old = published("ModernBERT-base")
    new = {
        key: value
        for key, value in old.items()
        if not key.endswith("rope_theta") and not key.startswith("global_attn")
    }
    kinds = ["full_attention", "sliding_attention", "sliding_attention"] * 8
    new["layer_types"] = kinds[:22]
    new["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    config = parse(old)
    assert config == parse(new) == parse({"model_type": "modernbert"})
    assert config.windows[:4] == (None, 65, 65, None)


ROPE = {"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1e4}}}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("roberta-base", {"pad_token_id": None}, "pad_token_id must be int"),
        ("roberta-base", {"add_cross_attention": True}, "add_cross_attention = True"),
        ("electra-small-discriminator", {"hidden_act": "mish"}, "hidden_act = 'mish'"),
        ("distilbert-base-uncased", {"activation": "mish"}, "activation = 'mish'"),
        ("distilbert-base-uncased", {"hidden_size": 4}, "hidden_size = 4 is not known"),
        (
            "all-mpnet-base-v2",
            {"relative_attention_num_buckets": 64},
            "relative_attention_num_buckets = 64 is not supported",
        ),
        ("ModernBERT-base", {"rope_scaling": {"type": "linear"}}, "rope_scaling = {'type'"),
        ("ModernBERT-base", ROPE, "rope_parameters.full_attention.rope_type = 'yarn'"),
        ("ModernBERT-base", {"rope_parameters": {"rope_theta": 1.0}}, "rope_parameters.rope_theta"),
        ("ModernBERT-base", {"layer_types": ["full_attention"]}, "layer_types must be 22"),
        ("ModernBERT-base", {"layer_types": ["moe"] * 22}, "'full_attention' or 'sliding_"),
        ("ModernBERT-base", {"global_attn_every_n_layers": 0}, "must be positive"),
        ("ModernBERT-base", {"local_attention": -1}, "local_attention must not be negative"),
        ("Qwen3-Embedding-0.6B", {"rope_scaling": {"type": "yarn"}}, "rope_scaling = {'type'"),
        ("Qwen3-Embedding-0.6B", {"num_key_value_heads": 5}, "a multiple of num_key_value_heads"),
        (
            "Qwen3-Embedding-0.6B",
            {"layer_types": ["sliding_attention"] * 28},
            "needs use_sliding_window and sliding_window",
        ),
        ("embeddinggemma-300m", {"layer_types": ["moe"] * 24}, "'full_attention' or 'sliding_"),
        (
            "embeddinggemma-300m",
            {"attn_logit_softcapping": 50.0},
            "attn_logit_softcapping = 50.0 is not supported",
        ),
        ("embeddinggemma-300m", {"_sliding_window_pattern": 0}, "must be positive"),
        ("deberta-v3-base", {"conv_kernel_size": 3}, "conv_kernel_size = 3 is not supported"),
        ("deberta-v3-base", {"relative_attention": False}, "relative_attention = False"),
        ("deberta-v3-base", {"pos_att_type": "p2p"}, "pos_att_type may have c2p and p2c"),
        ("deberta-v3-base", {"pos_att_type": [["c2p"]]}, "pos_att_type may have c2p and p2c"),
        ("deberta-v3-base", {"norm_rel_ebd": "batch"}, "norm_rel_ebd = 'batch' is not"),
        ("deberta-v3-base", {"embedding_size": 128}, "embedding_size = 128 is not supported"),
        ("albert-base-v2", {"num_hidden_groups": 13}, "num_hidden_groups must be from 1"),
        ("albert-base-v2", {"num_hidden_layers": "12"}, "num_hidden_layers must be int"),
        ("GatorTron-base", {"is_decoder": True}, "is_decoder = True is not supported"),
        ("nomic-embed-text-v1.5", {"rotary_scaling_factor": 2}, "rotary_scaling_factor = 2"),
        ("nomic-embed-text-v1.5", {"qkv_proj_bias": True}, "qkv_proj_bias = True is not"),
        ("nomic-embed-text-v1.5", {"num_experts": 8}, "num_experts = 8 is not known"),
        ("embeddinggemma-300m", ROPE, "rope_parameters.full_attention.rope_type = 'yarn'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(name, changes, message):
    with pytest.raises(ConfigError) as error:
        parse(published(name) | changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "poolings"),
    [
        ("bert", ("mean", "cls", "eos", "pooler")),
        ("cxr-bert", ("projection", "mean", "cls", "eos")),
        ("modernbert", ("mean", "cls", "eos")),
        *(
            pytest.param(name, ("mean", "cls", "eos", *more), marks=pytest.mark.slow)
            for name, more in (
                ("roberta", ("pooler",)),
                ("roberta-masked-lm", ()),
                ("mpnet", ("pooler",)),
                ("electra", ()),
                ("distilbert", ()),
            )
        ),
    ],
)
def test_poolings_are_of_the_stored_outputs(name, poolings, tmp_path):
    config, shapes, batch, expected = read_golden(name)
    write_checkpoint(tmp_path, config, shapes, all_cases()[name])
    mask = batch["attention_mask"]
    last = expected["last"]
    by_hand = {
        "mean": (last * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True),
        "cls": last[:, 0],
        "eos": last[np.arange(len(mask)), mask.sum(1) - 1],
        "pooler": expected.get("pooled"),
        "projection": expected.get("projected"),
    }
    encoder = load_encoder(tmp_path)
    assert encoder.config.pooling == poolings[0]
    assert encoder.config.family.poolings(encoder.config.model) == poolings
    for pooling in poolings:
        encoder = load_encoder(tmp_path, pooling=pooling)
        found = encode(encoder.config, encoder.params, batch)
        np.testing.assert_allclose(found, by_hand[pooling], atol=2e-5)


def test_cxr_bert_without_its_head_has_no_projection(tmp_path):
    config, shapes, _, _ = read_golden("cxr-bert")
    shapes = {name: shape for name, shape in shapes.items() if "cls_projection_head" not in name}
    write_checkpoint(tmp_path, config, shapes, all_cases()["cxr-bert"])
    assert load_encoder(tmp_path).config.pooling == "mean"
    with pytest.raises(ValueError, match="'projection' is not one that this model has"):
        load_encoder(tmp_path, pooling="projection")


CAUSAL = ("qwen3", "qwen3-left-padding-windows")


def test_padding_does_not_change_an_embedding(tmp_path):
    """Also where positions are counted by the padding id, relative, or limited to a window."""
    names = ("roberta", "mpnet", "modernbert", "gemma3", "deberta", "nomic-bert")
    poolings = dict.fromkeys(names, "mean")
    for name, pooling in (poolings | dict.fromkeys(CAUSAL, "eos")).items():
        config, shapes, batch, _ = read_golden(name)
        write_checkpoint(tmp_path / name, config, shapes, all_cases()[name])
        encoder = load_encoder(tmp_path / name, pooling=pooling)
        padded = encode(encoder.config, encoder.params, batch)
        shown = batch["attention_mask"][1] == 1
        short = {key: value[1:2, shown] for key, value in batch.items()}
        alone = encode(encoder.config, encoder.params, short)
        np.testing.assert_allclose(padded[1], alone[0], atol=2e-5)


@pytest.mark.parametrize(
    ("name", "dtype"),
    some(
        latin(
            ["mpnet", "modernbert-biases", "cxr-bert", "gemma3", "deberta"], ["bfloat16", "float16"]
        )
    ),
)
def test_half_precision_is_kept(name, dtype, tmp_path):
    config, shapes, batch, _ = read_golden(name)
    write_checkpoint(tmp_path, config, shapes, all_cases()[name])
    exact = load_encoder(tmp_path)
    half = load_encoder(tmp_path, dtype=dtype)
    found = encode(half.config, half.params, batch)
    assert found.dtype == jnp.dtype(dtype)
    expected = encode(exact.config, exact.params, batch)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.2)


def test_relative_buckets_by_hand():
    buckets = mpnet.relative_buckets(140)
    assert buckets[0, 0] == 0
    assert buckets[:9, 0].tolist() == list(range(9))
    assert buckets[0, 1:9].tolist() == [17, 18, 19, 20, 21, 22, 23, 24]
    # Borders of the ranges: 8 * 16 ** (k / 8), those of the even k are whole numbers.
    far = buckets[:, 0]
    assert [far[n - 1] for n in (16, 32, 64)] == [9, 11, 13]
    assert [far[n] for n in (16, 32, 64, 128, 139)] == [10, 12, 14, 15, 15]


def test_buckets_of_deberta_by_hand():
    config = parse(published("deberta-v3-base"))
    rows = deberta.relative_rows(config, 512) - config.span
    distance = np.arange(-511, 512)
    near = np.abs(distance) <= 128
    np.testing.assert_array_equal(rows[near], distance[near])
    np.testing.assert_array_equal(rows, -rows[::-1])
    # 128 * (511 / 128) ** (k / 127), rounded up, is the last distance of the bucket 128 + k.
    assert [rows[511 + n] for n in (129, 130, 131, 254, 255, 510, 511)] == [
        129, 130, 131, 191, 192, 255, 255
    ]  # fmt: skip
    few = deberta.relative_rows(config, 3) - config.span
    assert few.tolist() == [-2, -1, 0, 1, 2]


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.repeat(rng.standard_normal((1, 1, 2, 8)), 20, 1), jnp.float32)
    y = modernbert.rotate(x, 50.0)
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(y[:, 0], x[:, 0])
    products = np.einsum("qhd,khd->hqk", y[0], y[0])
    np.testing.assert_allclose(products[:, 0, 3], products[:, 11, 14], rtol=1e-4)
    assert abs(products[0, 0, 3] - products[0, 0, 4]) > 1e-3


def test_a_modernbert_norm_bias_that_the_configuration_denies_is_an_error(tmp_path):
    config, shapes, _, _ = read_golden("modernbert-biases")
    case = all_cases()["modernbert-biases"]
    write_checkpoint(tmp_path, config | {"norm_bias": False}, shapes, case)
    with pytest.raises(
        CheckpointError, match=r"final_norm\.bias \[24\]: the model has no norm/bias"
    ):
        load_encoder(tmp_path)
