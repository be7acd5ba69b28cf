"""Configurations of the tiny vision-language models and of their processors."""

import json
import os

import transformers

import common

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
VIDEO_PROCESSOR = {"qwen2_5_vl": "Qwen2VLVideoProcessor", "qwen3_vl": "Qwen3VLVideoProcessor",
                   "qwen3_vl_moe": "Qwen3VLVideoProcessor"}
TOKENS = dict(vision_start_token_id=154, vision_end_token_id=155, image_token_id=156,
              video_token_id=157)
TEXT = dict(vocab_size=160, hidden_size=32, intermediate_size=40, num_attention_heads=4,
            num_key_value_heads=2, rms_norm_eps=1e-6, max_position_embeddings=1024,
            bos_token_id=1, eos_token_id=2, pad_token_id=0)
VISION = dict(depth=3, hidden_size=24, intermediate_size=28, num_heads=2, in_channels=3,
              patch_size=4, temporal_patch_size=2, spatial_merge_size=2, out_hidden_size=32)
# 6 positions per side of the learned table; rows of layers 0 and 2 go to text layers 0 and 1.
DEEPSTACK = dict(VISION, hidden_size=16, hidden_act="gelu_pytorch_tanh", num_position_embeddings=36,
                 deepstack_visual_indexes=[0, 2])
INTERLEAVED = dict(TEXT, head_dim=16, num_hidden_layers=2, rope_theta=5e6, rope_scaling=dict(
    rope_type="default", mrope_section=[4, 2, 2], mrope_interleaved=True))
CLIP = dict(image_mean=[0.48145466, 0.4578275, 0.40821073],
            image_std=[0.26862954, 0.26130258, 0.27577711])
HALF = dict(image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])


def make(family):
    if family == "qwen2_5_vl":
        config = transformers.Qwen2_5_VLConfig(
            text_config=dict(TEXT, num_hidden_layers=2, rope_theta=1e6, rope_scaling=dict(
                type="mrope", mrope_section=[1, 1, 2])),
            vision_config=dict(VISION, hidden_act="silu", window_size=24, tokens_per_second=2,
                               fullatt_block_indexes=[1]),
            tie_word_embeddings=False, **TOKENS)
        model = transformers.Qwen2_5_VLForConditionalGeneration
    elif family == "qwen3_vl":
        config = transformers.Qwen3VLConfig(
            text_config=dict(INTERLEAVED, tie_word_embeddings=True), vision_config=DEEPSTACK,
            tie_word_embeddings=True, **TOKENS)
        model = transformers.Qwen3VLForConditionalGeneration
    else:
        config = transformers.Qwen3VLMoeConfig(
            text_config=dict(
                INTERLEAVED, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=12,
                norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
                router_aux_loss_coef=0.02, tie_word_embeddings=False),
            vision_config=DEEPSTACK, tie_word_embeddings=False, **TOKENS)
        model = transformers.Qwen3VLMoeForConditionalGeneration
    return model(common.set_eager(config))


def write_processors(family, folder):
    """preprocessor_config.json and video_preprocessor_config.json, in the form of the hub's files."""
    sizes = dict(patch_size=4, temporal_patch_size=2, merge_size=2)
    if family == "qwen2_5_vl":  # this family gives bounds as min_pixels and max_pixels
        image = dict(min_pixels=24 * 24, max_pixels=2048, **sizes, **CLIP,
                     image_processor_type="Qwen2VLImageProcessor",
                     processor_class="Qwen2_5_VLProcessor")
        video = dict(image, min_pixels=16 * 16, max_pixels=1024,
                     video_processor_type=VIDEO_PROCESSOR[family])
    else:  # these give them as the edges of a size, though they are numbers of pixels
        image = dict(size=dict(longest_edge=2048, shortest_edge=24 * 24), **sizes, **HALF,
                     image_processor_type="Qwen2VLImageProcessorFast",
                     processor_class="Qwen3VLProcessor")
        video = dict(image, size=dict(longest_edge=8192, shortest_edge=1024),
                     video_processor_type=VIDEO_PROCESSOR[family])
    video.pop("image_processor_type")
    common.write_json(os.path.join(folder, "preprocessor_config.json"), image)
    common.write_json(os.path.join(folder, "video_preprocessor_config.json"), video)


def write_hub_config(folder):
    """config_hub.json: the same model said as files of Qwen2.5-VL on the hub say it.

    There the text fields are at the top, beside "vision_config", and some names are older.
    """
    with open(os.path.join(folder, "config.json")) as file:
        ours = json.load(file)
    text, vision = dict(ours["text_config"]), dict(ours["vision_config"])
    for name in ("architectures", "layer_types", "model_type", "rope_scaling", "pad_token_id"):
        text.pop(name)
    for name in ("initializer_range", "model_type"):
        vision.pop(name)
    vision["in_chans"] = vision.pop("in_channels")
    vision["spatial_patch_size"] = vision["patch_size"]
    hub = dict(
        text, architectures=["Qwen2_5_VLForConditionalGeneration"], model_type="qwen2_5_vl",
        rope_scaling=dict(type="mrope", mrope_section=ours["text_config"]["rope_scaling"][
            "mrope_section"]),
        tie_word_embeddings=ours["tie_word_embeddings"], torch_dtype="float32",
        transformers_version="4.41.2", vision_token_id=158, vision_config=vision, **TOKENS)
    path = os.path.join(folder, "config_hub.json")
    common.write_json(path, dict(sorted(hub.items())))
    read = transformers.Qwen2_5_VLConfig.from_json_file(path)
    for name, value in ours["vision_config"].items():
        assert getattr(read.vision_config, name) == value, name
    for name, value in ours["text_config"].items():
        if name not in ("architectures", "model_type", "pad_token_id"):
            assert getattr(read.text_config, name) == value, (name, value)
