"""Vision-language models of four families with random weights, in the formats of the hub, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SPECIAL = ["<unk>", "<s>", "</s>", "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>",
           "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>"]
WORDS = ("A a red green blue circle ring star cross and big small . , : one two user assistant User Assistant Describe "
         "the image in short sentence it").split()
TEXT: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
VISION: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                          "image_size": 32, "patch_size": 8, "initializer_range": 0.3}
# As those of SmolVLM, Qwen2-VL and Gemma 3, without system prompts; a caption stands behind a space in the first.
SMOLVLM_CHAT = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}{% if m.content[0].type == 'image' %}:{% else %}: "
    "{% endif %}{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% else %}<image>{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}")
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
GEMMA_CHAT = QWEN_CHAT.replace("<|image_pad|><|vision_end|>", "")
FAMILIES = ("idefics3", "qwen2_vl", "llava", "gemma3")


def make_tokenizer(**extra: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
                                   pad_token="</s>", additional_special_tokens=SPECIAL[3:], **extra)


def make_vlm(family: str, folder: Path) -> Path:
    """Save a model of a family, with its processor, in a folder."""
    import transformers as hf

    tokenizer, text, place = make_tokenizer(), dict(TEXT), SPECIAL.index
    processor: Any
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "idefics3":
            model: Any = hf.Idefics3ForConditionalGeneration(hf.Idefics3Config(
                vision_config=VISION, text_config=text | {"model_type": "llama"}, scale_factor=2,
                image_token_id=place("<image>"), pad_token_id=2))
            images = hf.Idefics3ImageProcessor(do_image_splitting=False, size={"longest_edge": 32},
                                               max_image_size={"longest_edge": 32})
            processor = hf.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=SMOLVLM_CHAT)
        elif family == "qwen2_vl":
            model = hf.Qwen2VLForConditionalGeneration(hf.Qwen2VLConfig(
                vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
                               "patch_size": 8, "initializer_range": 0.3},
                text_config=text | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                                        "mrope_section": [2, 1, 1]}},
                image_token_id=place("<|image_pad|>"), video_token_id=place("<|video_pad|>"),
                vision_start_token_id=place("<|vision_start|>"), vision_end_token_id=place("<|vision_end|>")))
            sizes = {"patch_size": 8, "size": {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}}
            processor = hf.Qwen2VLProcessor(hf.Qwen2VLImageProcessor(**sizes), tokenizer,
                                            hf.Qwen2VLVideoProcessor(**sizes), chat_template=QWEN_CHAT)
        elif family == "gemma3":
            model = hf.Gemma3ForConditionalGeneration(hf.Gemma3Config(
                vision_config=VISION | {"vision_use_head": False}, mm_tokens_per_image=4,
                # Larger embeddings, which are the head's too, would make it so sure that gradients lose digits.
                text_config=text | {"initializer_range": 0.1, "head_dim": 8, "sliding_window": 16,
                                    "layer_types": ["sliding_attention", "full_attention"]},
                boi_token_index=place("<|vision_start|>"), eoi_token_index=place("<|vision_end|>"),
                image_token_index=place("<|image_pad|>")))
            torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)  # else zeros
            tokenizer = make_tokenizer(boi_token="<|vision_start|>", eoi_token="<|vision_end|>",
                                       image_token="<|image_pad|>")
            images = hf.Gemma3ImageProcessor(size={"height": 32, "width": 32})
            processor = hf.Gemma3Processor(images, tokenizer, chat_template=GEMMA_CHAT, image_seq_length=4)
        else:
            model = hf.LlavaForConditionalGeneration(hf.LlavaConfig(
                vision_config=VISION | {"model_type": "clip_vision_model", "projection_dim": 16},
                text_config=text | {"model_type": "llama"}, image_token_index=place("<image>"), image_seq_length=16))
            images = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
            processor = hf.LlavaProcessor(images, tokenizer, patch_size=8, num_additional_image_tokens=1,
                                          vision_feature_select_strategy="default")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def own_inputs(folder: Path, images: torch.Tensor, prompt: str, said: str = "") -> tuple[Any, dict[str, Any]]:
    """A model loaded anew, and what its processor makes of an image, a prompt and the beginning of a caption, without
    any code of this project."""
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    if processor.chat_template:
        turn = [{"type": "image"}, {"type": "text", "text": prompt}]
        front = processor.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True)
    else:
        front = f"<image>{prompt}"
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), dict(
        processor(text=front + said, images=picture, return_tensors="pt"))


def own_logp(folder: Path, images: torch.Tensor, prompt: str, text: str) -> float:
    """log p(text | image) by the model itself."""
    before = own_inputs(folder, images, prompt)[1]["input_ids"].shape[1]
    model, inputs = own_inputs(folder, images, prompt, f" {text}</s>")
    with torch.no_grad():
        logits = model(**inputs).logits[0, before - 1:-1].log_softmax(-1)
    return float(logits.gather(1, inputs["input_ids"][0, before:, None]).sum())
