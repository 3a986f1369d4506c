"""Low-rank towers against peft: the same forward pass and gradients, and its file format."""

import copy

import peft
import pytest
import torch
import transformers
from torch import nn

from builders import clips
from diva_rs import WeightsError
from diva_rs.clip import adapt
from diva_rs.clip.export import to_transformers
from diva_rs.clip.export.adapter import adapter, save_adapter
from diva_rs.clip.lora import LowRank
from diva_rs.clip.wrappers import merged
from diva_rs.native.vision import native_tower

# What peft adapts of each library's model; None: every linear layer.
TARGETS = {
    "timm-siglip": None,
    "timm-siglip-linear": None,
    "timm-vit-token-head": None,
    "timm-eva-token-head": ("*mlp*", "*attn.proj*"),
    "transformers-clip": None,
    "transformers-clip-vision": None,
    "transformers-clip-projection": None,
    "transformers-siglip": ("*encoder*", "*in_proj_weight", "*head.mlp*"),
}
WITHOUT_OUT_PROJ = {
    "open_clip-gelu": ("*in_proj_weight", "*mlp*", "visual.proj"),
    "open_clip-avg": ("*in_proj_weight.v", "*mlp*"),
    "openai": ("*in_proj_weight", "*mlp*"),
}
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-5}
# The names of an OpenAI or open_clip tower's matrices in transformers' layout.
NAMES = {f"attn.in_proj_weight.{part}": f"self_attn.{part}_proj" for part in "qkv"}
NAMES |= {"visual.proj": "visual_projection", "visual.transformer.resblocks": "vision_model.encoder.layers"}
NAMES |= {
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    ".weight": "",
}


def trained(clip, targets=None, bias=False):
    """A low-rank tower whose B, and biases, are away from their start."""
    low_rank = LowRank(adapt(clip), 3, 6.0, targets or ("*",), bias, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in low_rank.parameters.items():
            if not name.endswith("lora_A"):
                value += 0.1 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
    low_rank.merge()
    return low_rank


def backward(tower, images, tokens=None):
    """The embedding of every token, and a backward pass from it."""
    rows = tower.project((tokens or tower.tokens)(images))
    weights = torch.randn(rows.shape, dtype=rows.dtype, generator=torch.Generator().manual_seed(3))
    (rows * weights).sum().backward()
    return rows.detach()


def close(ours, theirs, tolerance):
    """Each tensor against its own norm, but for k's biases, whose gradient is zero but for rounding."""
    for name, value in theirs.items():
        if not ("k_proj" in name and name.endswith("bias")):
            assert (ours[name] - value).norm() < tolerance * value.norm(), name


def of_low_rank(low_rank, tower, images, name):
    """(embedding, gradients) through PyTorch, and natively where there is a native tower."""
    runs = [None] if name.startswith(("openai", "timm-eva")) else [None, native_tower(tower).tokens]
    for tokens in runs:
        rows = backward(tower, images, tokens)
        low_rank.pull()
        yield rows, {key: value.grad for key, value in low_rank.parameters.items()}
        for value in low_rank.parameters.values():
            value.grad = None


@pytest.mark.parity
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", TARGETS)
def test_forward_and_gradients_are_those_of_pefts_layers(name, dtype):
    start = clips.clip_variants()[name](dtype=dtype).eval()
    clip, images = copy.deepcopy(start), clips.pixels(start, dtype=dtype)
    low_rank = trained(clip, TARGETS[name], bias=True)
    weights, config = adapter(low_rank, clip)
    model = peft.get_peft_model(start, peft.LoraConfig(**{**config, "inference_mode": False}))
    assert not peft.set_peft_model_state_dict(model, weights).unexpected_keys
    theirs = backward(adapt(model), images)
    gradients = {key.replace(".default", ""): value.grad for key, value in model.named_parameters()}
    for ours, found in of_low_rank(low_rank, adapt(clip), images, name):
        close({"": ours}, {"": theirs}, CLOSE[dtype])
        as_gradients = copy.deepcopy(low_rank)
        for key, value in as_gradients.parameters.items():
            value.data = found[key]
        named, _ = adapter(as_gradients, clip)
        # In an nn.MultiheadAttention peft adapts out_proj too, and trains no bias.
        named = {key: value for key, value in named.items() if "attention.base_layer" not in key}
        # Of peft's B of q, k and v, the blocks off the diagonal are no parameters here.
        kept = {key: torch.where(value == 0, 0, gradients[key]) for key, value in named.items()}
        close(named, kept, CLOSE[dtype])


@pytest.mark.parity
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", ["open_clip-gelu", "open_clip-quick-gelu", "openai"])
def test_every_library_trains_what_peft_trains_in_transformers(name, dtype, tmp_path):
    clip = clips.clip_variants()[name](dtype=dtype).eval()
    folder = to_transformers(clip, tmp_path / "start")
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(folder, dtype=dtype)
    low_rank, images = trained(clip, bias=True), clips.pixels(clip, dtype=dtype)

    def of_peft(key):
        for ours, theirs in NAMES.items():
            key = key.replace(ours, theirs)
        return key.replace(".lora_A", ".lora_A.default.weight").replace(".lora_B", ".lora_B.default.weight")

    linear = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    config = peft.LoraConfig(r=3, lora_alpha=6, bias="lora_only", target_modules=linear)
    model = peft.get_peft_model(model, config)
    inner = dict(model.get_base_model().named_parameters())
    pairs = low_rank.factors()
    biases = low_rank.parameters.keys() - pairs.keys()
    with torch.no_grad():
        for key, value in pairs.items():
            inner[of_peft(key)].copy_(value)
        for key in biases:
            for path, value in _biases(key, low_rank.parameters[key], of_peft):
                inner[path].copy_(value)
    theirs = backward(adapt(model), images)
    for ours, found in of_low_rank(low_rank, adapt(clip), images, name):
        close({"": ours}, {"": theirs}, CLOSE[dtype])
        close({key: found[key] for key in pairs}, {k: inner[of_peft(k)].grad for k in pairs}, CLOSE[dtype])
        named = {path: value for key in biases for path, value in _biases(key, found[key], of_peft)}
        close(named, {path: inner[path].grad for path in named}, CLOSE[dtype])


def _biases(key, value, of_peft):
    if not key.endswith("in_proj_bias"):
        return [(of_peft(key).replace(".bias", ".base_layer.bias"), value)]
    names = [key.replace("in_proj_bias", f"in_proj_weight.{part}") for part in "qkv"]
    return [(f"{of_peft(n)}.base_layer.bias", part) for n, part in zip(names, value.chunk(3), strict=True)]


@pytest.mark.parity
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", [*TARGETS, *WITHOUT_OUT_PROJ])
def test_peft_loads_the_files_onto_the_original_model(name, bias, tmp_path):
    start = clips.clip_variants()[name]().eval()
    clip, images = copy.deepcopy(start), clips.pixels(start)
    low_rank = trained(clip, (TARGETS | WITHOUT_OUT_PROJ)[name], bias)
    save_adapter(tmp_path, low_rank, clip)
    model = peft.PeftModel.from_pretrained(copy.deepcopy(start), tmp_path)
    with torch.no_grad():
        ours, before = (clips.library_embedding(each, images) for each in (clip, start))
        theirs = clips.library_embedding(model.get_base_model(), images)
        assert (ours - before).norm() > 1e-2 * ours.norm()
        assert (ours - theirs).norm() < 1e-5 * ours.norm()
        alone = merged(model)
        assert (ours - clips.library_embedding(alone, images)).norm() < 1e-5 * ours.norm()
        assert alone.state_dict().keys() == start.state_dict().keys()


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip-gelu", r"adds the update of .*resblocks.0.attn.out_proj.weight twice.*low_rank_targets"),
        ("timm-eva-token-head", "attn.qkv.weight is read, and its layer is not called"),
        ("open_clip-coca-narrow", "peft has no adapter for visual.attn_pool.attn.q_proj_weight"),
        ("open_clip-gelu.visual", "peft has no adapter for proj: leave it out"),
        ("openai", "would hide visual.conv1 from encode_image: leave it out"),
        ("open_clip-custom-block", "peft has no adapter for .*in_proj_weight"),
    ],
)
def test_a_target_that_peft_cannot_adapt_is_named(name, message, tmp_path):
    model, _, part = name.partition(".")
    clip = clips.clip_variants()[model]().get_submodule(part)
    targets = {"open_clip-coca-narrow": ("*q_proj*",), "openai": ("*mlp*", "visual.proj")}.get(name, ("*",))
    with pytest.raises(WeightsError, match=message):
        save_adapter(tmp_path, trained(clip, targets), clip)
    assert not any(tmp_path.iterdir())
