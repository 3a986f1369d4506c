"""Only what the target library computes is exported: no adapter, no added layer, no quantized weight."""

import json

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations

from builders import exports
from builders.clips import clip_variants
from builders.small import small_clip
from diva_rs._base.checkpoint import load_weights
from diva_rs.clip import adapt
from diva_rs.clip.export import to_open_clip, to_openai, to_transformers
from diva_rs.clip.wrappers import own_weights
from diva_rs.errors import ConfigError, WeightsError

VARIANTS = clip_variants()


class Adapted(nn.Module):
    """A linear layer with a low-rank one beside it."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))

    def merge(self):
        with torch.no_grad():
            self.base_layer.weight += self.lora_B.weight @ self.lora_A.weight
        return self.base_layer


class LowRank(nn.Linear):
    """The same as a subclass."""

    def __init__(self, base):
        super().__init__(base.in_features, base.out_features)
        self.lora_A = nn.Parameter(torch.zeros(2, base.in_features))


class Gelu(nn.Module):
    """Another activation, without weights."""

    def forward(self, x):
        return torch.relu(x)


class PeftModel(nn.Module):
    """As peft's: a model whose layers are adapted, at base_model.model."""

    def __init__(self, model):
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model

    def get_base_model(self):
        return self.base_model.model

    def merge_and_unload(self):
        model = self.base_model.model
        for path, layer in list(model.named_modules()):
            if isinstance(layer, Adapted):
                model.set_submodule(path, layer.merge())
        return model


def fc(clip):
    """The first layer of the MLP of the vision tower's second block, and where it is."""
    path = {
        "CLIP": "visual.transformer.resblocks.1.mlp.c_fc",
        "CustomTextCLIP": "visual.trunk.blocks.1.mlp.fc1",
        "CLIPModel": "vision_model.encoder.layers.1.mlp.fc1",
        "SiglipModel": "vision_model.encoder.layers.1.mlp.fc1",
    }[type(clip).__name__]
    return path, clip.get_submodule(path)


def replaced(make):
    def change(clip):
        path, layer = fc(clip)
        clip.set_submodule(path, make(layer))
        return path

    return change


def added(clip):
    clip.classifier = nn.Linear(4, 2)
    return "classifier"


def added_to_a_block(clip):
    path, _ = fc(clip)
    block = path.rsplit(".mlp", 1)[0]
    clip.get_submodule(block).register_parameter("gate", nn.Parameter(torch.zeros(1)))
    return f"{block}.gate"


def changed(function, *arguments):
    def change(clip):
        path, layer = fc(clip)
        function(layer, *arguments)
        return path

    return change


def eight_bits(clip):
    path, layer = fc(clip)
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    return f"{path}.weight"


CHANGES = {
    "adapter": replaced(Adapted),
    "adapter that is a subclass": replaced(LowRank),
    "classifier": added,
    "parameter": added_to_a_block,
    "weight_norm": changed(parametrizations.weight_norm),
    "old weight_norm": changed(torch.nn.utils.weight_norm),
    "8 bits": eight_bits,
    "dynamically quantized": replaced(
        lambda layer: torch.ao.nn.quantized.dynamic.Linear(layer.in_features, layer.out_features)
    ),
}
MODELS = ("vit", "siglip", "transformers-clip", "transformers-siglip")


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*quantiz.*:DeprecationWarning")
@pytest.mark.parametrize("export", [to_open_clip, to_transformers], ids=lambda export: export.__name__)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", MODELS)
def test_what_the_target_does_not_compute_is_named(name, change, export, tmp_path):
    clip = exports.model(name)
    path = CHANGES[change](clip)
    place = tmp_path / "clip.safetensors"
    with pytest.raises(WeightsError) as caught:
        export(clip, place)
    assert path.rsplit(".", 1)[-1] in str(caught.value) or path in str(caught.value)
    assert not place.exists()


def test_an_activation_of_the_callers_is_not_left_out(tmp_path):
    clip = small_clip()
    for block in clip.visual.transformer.resblocks:
        block.mlp.gelu = Gelu()
    with pytest.raises(WeightsError, match=r"mlp\.gelu is a .*Gelu, which open_clip does not build"):
        to_open_clip(clip, tmp_path / "clip.safetensors")


def test_an_adapter_that_the_model_never_runs_is_named(tmp_path):
    clip = exports.model("vit")
    attention = clip.visual.transformer.resblocks[1].attn
    attention.out_proj = Adapted(attention.out_proj)
    message = r"the adapter on .*resblocks\.1\.attn\.out_proj has no effect.*leave out_proj out"
    with pytest.raises(ConfigError, match=message):
        to_transformers(PeftModel(clip), tmp_path / "e")
    with pytest.raises(ConfigError, match=message):
        adapt(PeftModel(clip))


@pytest.mark.parametrize("name", ["vit", "transformers-clip"])
def test_the_adapters_of_a_peft_model_are_merged_in_a_copy(name, tmp_path):
    clip = exports.model(name)
    path, layer = fc(clip)
    clip.set_submodule(path, Adapted(layer))
    ours, before = exports.embeddings(clip), clip.state_dict()
    folder = to_transformers(nn.DataParallel(PeftModel(clip)), tmp_path / "e")
    theirs = exports.embeddings(transformers.CLIPModel.from_pretrained(folder).eval())
    for key, value in ours.items():
        assert (theirs[key] - value).norm() / value.norm() < 1e-5
    found = load_weights(to_open_clip(PeftModel(clip), tmp_path / "clip.safetensors"))
    assert not any("lora" in key or "base_layer" in key for key in found)
    assert all(torch.equal(clip.state_dict()[key], value) for key, value in before.items())


def test_wrappers_around_a_model_or_its_parts_leave_no_trace(tmp_path):
    clip = exports.model("vit")
    own = clip.state_dict()
    averaged = torch.optim.swa_utils.AveragedModel(clip)
    clip.visual = nn.DataParallel(PeftModel(clip.visual))
    blocks = clip.visual.module.base_model.model.transformer.resblocks
    blocks[1] = torch.compile(blocks[1], backend="eager")
    for wrapped in (clip, nn.DataParallel(averaged)):
        assert own_weights(wrapped).keys() == own.keys()
        found = load_weights(to_transformers(wrapped, tmp_path / "e") / "model.safetensors")
        assert torch.equal(found["visual_projection.weight"], own["visual.proj"].T)
    assert list(adapt(clip).named_parameters()) == list(adapt(averaged).named_parameters())


def test_the_configuration_names_the_widest_dtype_and_the_librarys_class(tmp_path):
    class Mine(transformers.CLIPModel):
        pass

    clip = Mine(VARIANTS["transformers-clip"]().config)
    clip.text_model.half()
    config = json.loads((to_transformers(clip, tmp_path / "e") / "config.json").read_text())
    assert config["torch_dtype"] == "float32" and config["architectures"] == ["CLIPModel"]


def test_a_configuration_that_was_changed_alone_is_another_model(tmp_path):
    clip = exports.model("transformers-clip")
    clip.config.vision_config.hidden_act = "gelu"
    with pytest.raises(WeightsError, match=r"vision activation was \['quick_gelu'\], is \['gelu'\]"):
        to_transformers(clip, tmp_path / "e")


def test_openais_layout_takes_no_adapters_either(tmp_path):
    clip = exports.model("openai")
    path = "visual.transformer.resblocks.1.mlp.c_fc"
    clip.set_submodule(path, Adapted(clip.get_submodule(path)))
    with pytest.raises(WeightsError, match="c_fc"):
        to_openai(clip, tmp_path / "clip.pt")
