"""Tiny random teachers in the layouts of their repositories on the Hugging Face Hub.

Names of weights and file layouts are the originals'; weights and vocabularies beyond their special tokens are made up.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]  # XLM-R's, ids 0 to 3; <mask> is the last piece
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
COMMON = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种"
WORDS = ("a", "an", "photo", "picture", "of", "the", "in", "on", "with", "cat", "dog", "red", "two", "horses", "very")


def pieces(count: int) -> list[str]:
    """`count` different pieces: ASCII, Chinese characters, English-looking words, two-character Chinese words."""

    def all_pieces() -> Iterator[str]:
        yield "▁"
        yield from (chr(code) for code in range(0x21, 0x7F))
        yield from (f"▁{word}" for word in WORDS)
        yield from ("，", "。", "！", "？", "：", "、", "ü", "é")
        yield from (*COMMON, "一张", "照片", "猫", "狗", *FOREIGN)
        for syllables in (1, 2):
            yield from ("▁" + "".join(word) for word in islice(product(SYLLABLES, repeat=syllables), 6000))
            yield from ("".join(word) for word in islice(product(SYLLABLES, repeat=syllables), 1500))

    chosen_pieces = list(islice(dict.fromkeys(all_pieces()), count))
    assert len(chosen_pieces) == count, len(chosen_pieces)
    return chosen_pieces


FOREIGN = ("ж", "ひ", "한", "ع", "▁кот", "▁собака", "ねこ", "고양이", "▁قطة", "▁café")  # of neither language
SYLLABLES = [first + vowel for first in "bcdfghklmnprstvw" for vowel in ("a", "e", "i", "o", "u", "er", "an", "ing")]


def xlmr_tokenizer(folder: Path, size: int, length: int, **config: Any) -> None:
    """XLM-R's tokenizer.json with `size` pieces, and its configuration, as on the hub."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    middle = pieces(size - len(SPECIALS) - 1)
    vocabulary = [(token, 0.0) for token in SPECIALS]
    vocabulary += [(piece, round(-4.0 - 10 * index / len(middle), 6)) for index, piece in enumerate(middle)]
    tokenizer = Tokenizer(models.Unigram([*vocabulary, ("<mask>", 0.0)], unk_id=3, byte_fallback=False))
    space = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens([*SPECIALS, AddedToken("<mask>", lstrip=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    names |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    config |= names | {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": length}
    write(folder, "tokenizer_config.json", **config)


def siglip_tokenizer(folder: Path, size: int) -> None:
    """SigLIP's spiece.model with `size` pieces, as MetaCLIP 2's mT5 models have it: lower case, no punctuation."""
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    middle = pieces(size - 3)
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}  # control, control, unknown
    for index, piece in enumerate([*kinds, *middle]):
        score = 0.0 if piece in kinds else -4.0 - 10 * index / size
        model.pieces.add(piece=piece, score=score, type=kinds.get(piece, 1))
    spec = model.trainer_spec
    spec.model_type = 1
    spec.vocab_size = size
    spec.pad_id = 0
    spec.eos_id = 1
    spec.unk_id = 2
    spec.bos_id = -1
    spec.pad_piece = "<pad>"
    spec.eos_piece = "</s>"
    spec.unk_piece = "<unk>"
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    names = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>", "processor_class": "CLIPProcessor"}
    config = {"do_lower_case": True, "model_max_length": 64, "sp_model_kwargs": {}}
    write(folder, "tokenizer_config.json", tokenizer_class="SiglipTokenizer", **names, **config)


def gemma_tokenizer(folder: Path, size: int, **more: Any) -> None:
    """Gemma's tokenizer.json with `size` pieces: byte-pair encoding with bytes for unknown characters, 64 tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocab = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    singles = list(dict.fromkeys(piece for piece in pieces(size) if len(piece) == 1))
    singles = [piece for piece in singles if piece != "▁"][: max(0, (size - len(vocab)) * 3 // 4)]
    vocab += singles
    merges: list[tuple[str, str]] = []
    pairs = ((first, second) for second in singles for first in ["▁", *singles[:4]])
    for first, second in islice(pairs, size - len(vocab)):
        merges.append((first, second))
        vocab.append(first + second)
    vocab = list(dict.fromkeys(vocab))
    vocabulary = {piece: index for index, piece in enumerate(vocab)}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {"add_bos_token": False, "add_eos_token": True, "padding_side": "right", "model_max_length": 64, **more}
    config |= names | {"tokenizer_class": "GemmaTokenizer", "processor_class": "SiglipProcessor"}
    write(folder, "tokenizer_config.json", **config)


def tower(**more: Any) -> dict[str, Any]:
    """The sizes of a transformer, as transformers' configurations name them."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    return {**sizes, **more}


def altclip(folder: Path) -> None:
    from transformers import AltCLIPConfig, AltCLIPModel

    size = 400
    shared = 16
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    text = tower(vocab_size=size, max_position_embeddings=514, type_vocab_size=1, project_dim=shared, **ids)
    vision = tower(image_size=32, patch_size=8, projection_dim=shared, hidden_act="quick_gelu")
    config = AltCLIPConfig(text_config=text, vision_config=vision, projection_dim=shared)
    seeded(AltCLIPModel, config).save_pretrained(folder)
    xlmr_tokenizer(folder, size, 512)
    clip_images(folder, "CLIPImageProcessor")


def chineseclip(folder: Path) -> None:
    import torch
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    vocab = ["[PAD]", *(f"[unused{number}]" for number in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab += [chr(code) for code in range(0x21, 0x7F) if not chr(code).isupper()]
    vocab += [f"##{chr(code)}" for code in range(0x61, 0x7B)] + ["photo", "cat", "dog", "the", "of", "，", "。"]
    vocab = list(dict.fromkeys([*vocab, "ж", "##ж", "ひ", "한", *COMMON]))
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", "utf-8")
    text = tower(vocab_size=len(vocab), max_position_embeddings=512, type_vocab_size=2)
    vision = tower(image_size=32, patch_size=8)
    model = seeded(ChineseCLIPModel, ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.config.save_pretrained(folder)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    # Buffers that transformers saved until 2023.
    weights["text_model.embeddings.position_ids"] = torch.arange(512)[None]
    patches = model.vision_model.embeddings.position_embedding.weight.shape[0]
    weights["vision_model.embeddings.position_ids"] = torch.arange(patches)[None]
    torch.save(weights, folder / "pytorch_model.bin")
    square = {"height": 32, "width": 32}
    images = CLIP_IMAGES | {"do_center_crop": False, "size": square, "crop_size": square}
    write(folder, "preprocessor_config.json", feature_extractor_type="ChineseCLIPFeatureExtractor", **images)


_DONE = dict.fromkeys(("do_normalize", "do_resize"), True)
CLIP_IMAGES: dict[str, Any] = _DONE | {"do_center_crop": True, "do_convert_rgb": True, "resample": 3}
CLIP_IMAGES |= {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
SIGLIP2_IMAGES: dict[str, Any] = _DONE | {"do_rescale": True, "resample": 2, "rescale_factor": 1 / 255}
SIGLIP2_IMAGES |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def siglip2_text(size: int) -> dict[str, Any]:
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    return tower(vocab_size=size, max_position_embeddings=64, projection_size=32, **ids)


def siglip2(folder: Path) -> None:
    from transformers import SiglipConfig, SiglipModel

    size = 700
    config = SiglipConfig(text_config=siglip2_text(size), vision_config=tower(image_size=32, patch_size=8))
    seeded(SiglipModel, config).save_pretrained(folder)
    gemma_tokenizer(folder, size)
    images = SIGLIP2_IMAGES | {"size": {"height": 32, "width": 32}}
    write(folder, "preprocessor_config.json", image_processor_type="SiglipImageProcessor", **images)


def fgclip2(folder: Path) -> None:
    """FG-CLIP2's repository, with code of our own in place of its code: `fgclip2/`."""
    from tests.fgclip2.configuration_fgclip2 import Fgclip2Config
    from tests.fgclip2.modeling_fgclip2 import Fgclip2Model

    size = 700
    sizes = Fgclip2Config(text_config=siglip2_text(size), vision_config=tower(num_patches=256, patch_size=16))
    seeded(Fgclip2Model, sizes).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["auto_map"] = {
        "AutoConfig": "configuration_fgclip2.Fgclip2Config",
        "AutoModelForCausalLM": "modeling_fgclip2.Fgclip2Model",
    }
    write(folder, "config.json", **config)
    for name in ("configuration_fgclip2.py", "modeling_fgclip2.py"):
        shutil.copy(Path(__file__).parent / "fgclip2" / name, folder)
    gemma_tokenizer(folder, size, model_input_names=["input_ids"])
    images = SIGLIP2_IMAGES | {"max_num_patches": 256, "patch_size": 16}
    write(folder, "preprocessor_config.json", image_processor_type="Siglip2ImageProcessorFast", **images)


def embeddinggemma2(folder: Path) -> None:
    """EmbeddingGemma 2 with a tower for sound, as sentence-transformers saves it: prompts in a file of its own."""
    from transformers import (
        AutoTokenizer,
        EmbeddingGemma2Config,
        EmbeddingGemma2Model,
        EmbeddingGemma2Processor,
        EmbeddingGemma2VideoProcessor,
        Gemma4AudioFeatureExtractor,
        Gemma4ImageProcessorPil,
    )

    gemma_tokenizer(folder, 700, model_max_length=8192)
    named = {name: f"<|{name}|>" for name in ("image", "audio")}
    named |= {"boi": "<|image>", "eoi": "<image|>", "boa": "<|audio>", "eoa": "<audio|>"}
    tokenizer = AutoTokenizer.from_pretrained(
        folder, padding_side="left", extra_special_tokens={f"{name}_token": token for name, token in named.items()}
    )
    images = Gemma4ImageProcessorPil(patch_size=8, max_soft_tokens=70)
    sound = Gemma4AudioFeatureExtractor()
    processor = EmbeddingGemma2Processor(sound, images, tokenizer, EmbeddingGemma2VideoProcessor())
    processor.save_pretrained(folder)
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    heads = {"head_dim": 16, "num_key_value_heads": 1, "rope_parameters": None}
    sizes = tower(num_hidden_layers=2) | heads
    text = {"vocab_size": len(tokenizer), "sliding_window": 8, "hidden_size_per_layer_input": 8, "embedding_dim": 24}
    text |= {"global_head_dim": 32, "num_global_key_value_heads": 1, "sliding_window_pattern": 2}
    vision = sizes | {"model_type": "gemma4_vision", "patch_size": 8, "num_key_value_heads": 2, "standardize": True}
    audio = {"model_type": "gemma4_audio", "hidden_size": 32, "num_hidden_layers": 1, "output_proj_dims": 16}
    config = EmbeddingGemma2Config(text_config=sizes | text, vision_config=vision, audio_config=audio, **ids)
    model = seeded(EmbeddingGemma2Model, config)
    model.vision_tower.std_bias.fill_(0.1)
    model.vision_tower.std_scale.fill_(0.9)
    model.save_pretrained(folder)
    prompts = {"query": "task: search result | query: ", "document": "title: none | text: "}
    write(folder, "config_sentence_transformers.json", prompts=prompts, default_prompt_name=None)


def metaclip2(folder: Path) -> None:
    """MetaCLIP 2 S/16 with XLM-R's tokenizer; the published one has XLM-V's, of the same kind with 901,629 pieces."""
    size = 400
    _metaclip2(folder, vocab_size=size, eos_token_id=2)
    xlmr_tokenizer(folder, size, 77, processor_class="CLIPProcessor")


def metaclip2_mt5(folder: Path) -> None:
    """MetaCLIP 2 S/16-mT5, whose repository names SigLIP's tokenizer."""
    size = 400
    _metaclip2(folder, vocab_size=size, eos_token_id=1)
    siglip_tokenizer(folder, size)


def _metaclip2(folder: Path, **ids: int) -> None:
    from transformers import MetaClip2Config, MetaClip2Model

    shared = 16
    text = tower(max_position_embeddings=77, projection_dim=shared, pad_token_id=None, bos_token_id=None, **ids)
    vision = tower(image_size=32, patch_size=8, projection_dim=shared)
    config = MetaClip2Config(text_config=text, vision_config=vision, projection_dim=shared)
    seeded(MetaClip2Model, config).save_pretrained(folder)
    clip_images(folder, "CLIPImageProcessor", {"height": 32, "width": 32})


def openclip_xlmr(folder: Path) -> None:
    """open_clip's xlm-roberta-base-ViT-B-32 at both sizes, since its layout has no sizes of the text tower."""
    import open_clip
    from open_clip.hf_model import HFTextEncoder
    from safetensors.torch import save_file
    from transformers import XLMRobertaConfig

    size = 400
    config = open_clip.get_model_config("xlm-roberta-base-ViT-B-32")
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    ids |= {"vocab_size": size, "max_position_embeddings": 514, "type_vocab_size": 1}
    xlmr = XLMRobertaConfig(**tower(**ids), layer_norm_eps=1e-5)
    config["vision_cfg"] = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    config["embed_dim"] = 16
    config["text_cfg"]["hf_model_name"] = "made-up/tiny-xlm-roberta"
    xlmr.architectures = ["XLMRobertaModel"]
    xlmr.save_pretrained(folder)  # open_clip's directories have none, and no hub knows this one

    def build() -> Any:
        vision = open_clip.CustomTextCLIP(
            config["embed_dim"], config["vision_cfg"], {"layers": 1, "width": 64, "heads": 1, "vocab_size": 8}
        )
        options = {"pooler_type": config["text_cfg"]["hf_pooler_type"], "proj_type": "mlp"}
        vision.text = HFTextEncoder("", config["embed_dim"], xlmr, **options)
        # open_clip itself builds the tower without BERT's pooling layer, but not from a configuration.
        vision.text.transformer.pooler = None
        return vision

    weights = {name: value.contiguous() for name, value in seeded(build).state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", {"format": "pt"})
    images: dict[str, Any] = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    write(folder, "open_clip_config.json", model_cfg=config, preprocess_cfg=images)
    xlmr_tokenizer(folder, size, 512)


def clip_images(folder: Path, kind: str, size: dict[str, int] | None = None) -> None:
    """CLIP's preprocessor_config.json; the shorter side is resized, or both to `size`."""
    images = CLIP_IMAGES | {"size": size or {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    write(folder, "preprocessor_config.json", image_processor_type=kind, **images)


def seeded(architecture: Callable[..., Any], *config: Any) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return architecture(*config).eval()


def write(folder: Path, name: str, **content: Any) -> None:
    (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


KINDS: dict[str, Callable[[Path], None]] = {
    "altclip": altclip,
    "chineseclip": chineseclip,
    "siglip2": siglip2,
    "metaclip2": metaclip2,
    "metaclip2-mt5": metaclip2_mt5,
    "fgclip2": fgclip2,
    "embeddinggemma2": embeddinggemma2,
    "openclip-xlmr": openclip_xlmr,
}


def make(kind: str, folder: Path) -> Path:
    """Write the teacher of a kind into a new folder."""
    folder.mkdir(parents=True)
    KINDS[kind](folder)
    return folder
