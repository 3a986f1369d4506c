"""A CLIP that comes with peft's adapters trains these alone, and is exported when they are merged."""

import peft
import pytest
import torch
from torch import nn

from builders import clips
from builders.runs import train, weights
from builders.small import images
from diva_rs import ConfigError, WeightsError, export

MERGE = r"has an adapter: merge adapters into the model first \(peft: model.merge_and_unload\(\)\)"
LOADER = [images(2, seed=n) for n in range(3)]


def adapted(name, how, *endings):
    """A model with adapters on the layers of its vision tower with these ends, or on every Linear."""
    clip = clips.clip_variants()[name]().eval()
    layers = {path: layer for path, layer in clip.named_modules() if "visual" in path or "vision" in path}
    linear = [path for path, layer in layers.items() if type(layer) is nn.Linear]
    chosen = [path for path in layers if path.endswith(endings)] if endings else linear
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=chosen)
    make = (
        peft.get_peft_model if how == "PeftModel" else lambda clip, c: peft.inject_adapter_in_model(c, clip)
    )
    return make(clip, config)


@pytest.mark.parametrize("how", ["PeftModel", "injected"])
@pytest.mark.parametrize(
    ("name", "endings"),
    [("transformers-clip", ()), ("timm-siglip", ()), ("open_clip-gelu", ("c_fc",)), ("openai", ("c_proj",))],
)
def test_the_adapters_train_alone(teacher, name, endings, how, tmp_path, caplog):
    clip = adapted(name, how, *endings)
    before = weights(clip)
    result = train(teacher, LOADER, clip=clip, lr=1e-2, optimizer="adamw", density=0.5)
    moved = {key for key, value in weights(clip).items() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if ".lora_" in key}
    assert result.report["backend"]["tower"].startswith("torch (")
    assert result.report["trained_parameters"]["clip"] == sum(before[key].numel() for key in moved)
    result.save(tmp_path)
    assert ".base_layer.*), which no library builds: model.merge_and_unload()" in caplog.text
    if how == "PeftModel":
        found = weights(clip.merge_and_unload())
        assert not any("lora" in key for key in found)
    else:
        for write, place in ((export.to_transformers, "a"), (export.to_open_clip, "b.pt")):
            with pytest.raises(WeightsError, match=MERGE):
                write(clip, tmp_path / place)


def test_pefts_attention_trains_with_a_warning(teacher):
    clip = adapted("open_clip-gelu", "PeftModel", "attn")
    with pytest.warns(UserWarning, match=r"resblocks.0.attn is peft's .* adds the update of its out_proj"):
        result = train(teacher, LOADER, clip=clip, lr=1e-2, optimizer="adamw", density=0.5)
    assert len(result.history) == 3


@pytest.mark.hostile
def test_an_adapter_whose_layer_is_not_called_is_named(teacher):
    with pytest.raises(ConfigError, match=r"the adapter on .*attn.qkv has no effect.*target_modules"):
        train(teacher, LOADER, clip=adapted("timm-eva-token-head", "injected"))


@pytest.mark.hostile
def test_low_rank_needs_a_model_without_adapters(teacher):
    with pytest.raises(ConfigError, match=r"q_proj has an adapter already.*merge_and_unload\(\)|k_proj has"):
        train(teacher, LOADER, clip=adapted("transformers-clip", "injected"), low_rank=2)
