"""The command line: where settings come from, what is built from them, and how mistakes are reported."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import open_clip
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import diva_rs
from builders.small import WIDTH, scheduler, small_clip, small_unet, small_vae
from diva_rs.callbacks import TensorBoard
from diva_rs.cli import cache, main, models, train
from diva_rs.cli.options import OPTIONS, settings
from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError, WeightsError
from diva_rs.recipe import Recipe

MODEL = "diva-cli-tiny"
CONFIG = {
    "embed_dim": 20,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory):
    """open_clip knows the tiny model by its name, as it knows its own."""
    file = tmp_path_factory.mktemp("configs") / f"{MODEL}.json"
    file.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(file)
    yield
    open_clip.factory._MODEL_CONFIGS.pop(MODEL)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A diffusers folder with everything that a teacher needs."""
    root = tmp_path_factory.mktemp("teacher")
    small_unet().save_pretrained(root / "unet")
    small_vae().save_pretrained(root / "vae")
    scheduler().save_pretrained(root / "scheduler")
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (root / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    config = {"_class_name": "CLIPTokenizer", "tokenizer_class": "CLIPTokenizer", "model_max_length": 12}
    (root / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
    )
    transformers.CLIPTextModel(text).save_pretrained(root / "text_encoder")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (root / "model_index.json").write_text(json.dumps(index))
    return str(root)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        Image.new("RGB", (24, 20), (40 * number, 255 - 40 * number, 99)).save(folder / f"{number}.png")
    return str(folder)


@pytest.fixture
def trained(monkeypatch):
    """Replace the training itself by a record of what it was given."""
    calls = []

    def record(clip, teacher, loader, recipe, **others):
        calls.append(SimpleNamespace(clip=clip, teacher=teacher, loader=loader, recipe=recipe, **others))
        report = {"steps": 3}
        return SimpleNamespace(
            report=report, history=[{"loss": 0.5}, {"loss": 0.25}], interrupted=len(calls) > 1
        )

    monkeypatch.setattr(train, "_post_train", record)
    return calls


@pytest.fixture
def command(teacher, photos, tmp_path):
    clip, out = ("--clip", MODEL), ("--output-dir", str(tmp_path / "run"))
    return ["train", *clip, "--teacher", teacher, "--data", photos, *out, "--workers", "0", "--device", "cpu"]


def message(capsys, argv, code=2):
    assert main(argv) == code
    output = capsys.readouterr().err
    return next(line for line in output.splitlines() if line.startswith("diva-rs: error: "))


def parsed(argv):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return settings(parser.parse_args(argv), train._OPTIONS)


# Settings


def test_every_recipe_field_is_a_flag():
    values = {
        "name": ("mine", "mine"),
        "condition": ("window", "window"),
        "window": ("4", 4),
        "text": ("concat", "concat"),
        "prompt": ("a photo of a .", "a photo of a ."),
        "projector": ("mlp", "mlp"),
        "projector_warmup": ("7", 7),
        "draws": ("3", 3),
        "draw_weights": ("5,1,0.5", (5.0, 1.0, 0.5)),
        "timesteps": ("stratified", "stratified"),
        "timestep_range": ("10,900", (10, 900)),
        "logit_mean": ("-0.5", -0.5),
        "logit_std": ("2", 2.0),
        "loss": ("l1", "l1"),
        "min_snr": ("5", 5.0),
        "anchor": ("0.1", 0.1),
        "optimizer": ("adamw", "adamw"),
        "lr": ("1e-5", 1e-5),
        "projector_lr": ("1e-3", 1e-3),
        "momentum": ("0.5", 0.5),
        "betas": ("0.8,0.9", (0.8, 0.9)),
        "eps": ("1e-6", 1e-6),
        "weight_decay": ("0.1", 0.1),
        "grad_clip": ("none", None),
        "schedule": ("constant", "constant"),
        "warmup": ("5", 5),
        "steps": ("100", 100),
        "batch": ("64", 64),
        "micro_batch": ("8", 8),
        "denoiser_batch": ("16", 16),
        "precision": ("bf16", "bf16"),
        "backend": ("torch", "torch"),
        "pixels": ("symmetric", "symmetric"),
        "vae_pixels": ("official", "official"),
        "clip_mean": ("0.5,0.5,0.5", (0.5, 0.5, 0.5)),
        "clip_std": ("0.5,0.5,0.5", (0.5, 0.5, 0.5)),
        "resize": ("bilinear", "bilinear"),
        "image_size": ("256", 256),
        "latent": ("sample", "sample"),
        "seed": ("42", 42),
        "log_every": ("1", 1),
        "checkpoint_every": ("none", None),
        "keep": ("3", 3),
    }
    flags = [part for name, (text, _) in values.items() for part in ("--" + name.replace("_", "-"), text)]
    _, recipe = parsed([*flags, "--no-antialias", "--gradient-checkpointing", "--denoiser-checkpointing"])
    expected = {name: value for name, (_, value) in values.items()}
    assert recipe == Recipe(
        **expected, antialias=False, gradient_checkpointing=True, denoiser_checkpointing=True
    )
    _, other = parsed(["--choose", "9", "--replacement"])
    assert other == Recipe(choose=9, replacement=True)
    _, coins = parsed(["--density", "0.25", "--bernoulli"])
    assert coins == Recipe(density=0.25, bernoulli=True)
    shown = {*values, "antialias", "gradient_checkpointing", "denoiser_checkpointing"}
    shown |= {"choose", "replacement", "density", "bernoulli"}
    assert shown == {field.name for field in dataclasses.fields(Recipe)}


def test_flags_go_before_the_file_before_the_preset_before_the_defaults(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'clip = "from-file"\nworkers = 5\n[recipe]\npreset = "diva-official-openai-vit-l-14-224"\n'
        'lr = 2e-5\nseed = 7\ngrad_clip = "none"\ndraw_weights = [3, 1]\n'
    )
    values, recipe = parsed(["--config", str(file), "--lr", "3e-5", "--clip", "from-flag"])
    assert (values["clip"], values["workers"], values["on_bad_image"]) == ("from-flag", 5, "raise")
    official = Recipe.named("diva-official-openai-vit-l-14-224")
    assert recipe == official.replace(lr=3e-5, seed=7, grad_clip=None, draw_weights=(3.0, 1.0))
    _, other = parsed(["--config", str(file), "--recipe", "diva-openai-vit-l-14-224"])
    assert (other.name, other.seed, other.prompt) == ("diva-openai-vit-l-14-224", 7, "")
    assert parsed([])[1] == Recipe()


def test_a_preset_can_be_named_at_the_top_of_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('recipe = "diva-dfn-vit-h-14-224"\noutput-dir = "runs/a"\n')
    values, recipe = parsed(["--config", str(file), "--steps", "5"])
    assert (recipe, values["output_dir"]) == (
        Recipe.named("diva-dfn-vit-h-14-224").replace(steps=5),
        "runs/a",
    )


def test_a_density_flag_replaces_the_count_of_the_preset():
    _, recipe = parsed(["--recipe", "diva-official-openai-vit-l-14-224", "--density", "0.5"])
    assert (recipe.choose, recipe.density) == (None, 0.5)


BAD_FILES = [
    ("lr = 1e-5", r"unknown key 'lr' at the top level; it belongs into the table \[recipe\]"),
    ("clipp = 'x'", r"unknown key 'clipp' at the top level; did you mean 'clip'"),
    ("[recipe]\nlearning_rate = 1", r"unknown key 'learning_rate' at \[recipe\]: known are"),
    ("[recipe]\nstep = 1", r"unknown key 'step' at \[recipe\]; did you mean 'steps'"),
    ("[recipe]\nlr = '1e-5'", r"\[recipe\] lr = '1e-5': a number of at least 0 is needed"),
    ("[recipe]\nlr = 'none'", r"\[recipe\] lr = 'none': a number of at least 0 is needed"),
    ("[recipe]\nwarmup = true", r"\[recipe\] warmup = True: an integer of at least 0 is needed"),
    ("[recipe]\npreset = 'diva'", "no recipe 'diva'"),
    ("[recipe]\npreset = 3", "no recipe 3"),
    ("recipe = 3", "recipe=3: a preset's name or a table"),
    ("workers = -1", "workers = -1: an integer of at least 0"),
    ("[recipe\n", "is not valid TOML"),
]


@pytest.mark.parametrize(("content", "words"), BAD_FILES)
def test_a_mistake_in_the_file_names_the_file_and_the_key(tmp_path, content, words):
    file = tmp_path / "run.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=words):
        parsed(["--config", str(file)])


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.toml cannot be read: No such file"):
        parsed(["--config", str(tmp_path / "missing.toml")])
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        parsed(["--config", str(tmp_path / "binary.toml")])


BAD_FLAGS = [
    (["--lr", "fast"], "--lr fast: a number of at least 0 is needed"),
    (["--lr", "-1"], "--lr -1: a number of at least 0 is needed"),
    (["--lr", "none"], "--lr none: a number of at least 0 is needed"),
    (["--steps", "1.5"], "--steps 1.5: an integer of at least 1, or None is needed"),
    (["--draw-weights", "1;2"], "--draw-weights 1;2: one or more numbers of at least 0, or None is needed"),
    (["--condition", "windows"], "did you mean 'window'"),
    (["--workers", "many"], "--workers many: an integer of at least 0 is needed"),
    (["--recipe", "diva-openai-vit-l-14"], "did you mean 'diva-openai-vit-l-14-336'"),
    (["--draws", "3", "--draw-weights", "1,2"], "2 weights for draws=3"),
    (["--densty", "0.5"], "unknown argument '--densty'; did you mean '--density'"),
    (["--densty=0.5"], "unknown argument '--densty=0.5'; did you mean '--density'"),
    (["--lr"], "argument --lr: expected one argument"),
    ([], "train needs --clip: open_clip MODEL"),
    (
        ["--clip", MODEL, "--teacher", "t", "--data", "no/such", "--output-dir", "x"],
        "--data no/such: there is no such",
    ),
    (
        ["--clip", MODEL, "--teacher", "t", "--data", ".", "--output-dir", "x", "--pixels", "clip"],
        "pixels='clip'",
    ),
]


@pytest.mark.parametrize(("flags", "words"), BAD_FLAGS)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, flags, words):
    assert main(["train", *flags]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("diva-rs: error: ") and output.err.count("\n") == 1
    assert words in output.err
    assert output.out == ""


def test_traceback_is_shown_on_request():
    with pytest.raises(ConfigError, match="train needs --clip"):
        main(["train", "--traceback"])


def test_no_command_and_an_unknown_one(capsys):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().err
    assert "invalid choice: 'trian'" in message(capsys, ["trian"])
    assert "unknown argument '--verbose'" in message(capsys, ["--verbose"])


def test_help_and_version(capsys):
    for argv in (["--help"], *([name, "--help"] for name in ("train", "cache", "info", "demo"))):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--no-antialias" in text and "learning rate" in text
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"diva-rs {diva_rs.__version__}\n"


# train


def test_train_hands_over_models_images_and_recipe(trained, command, capsys, tmp_path):
    board = str(tmp_path / "board")
    extra = ["--recipe", "diva-openai-vit-l-14-224", "--batch", "4", "--tensorboard", board, "--no-progress"]
    assert main([*command, *extra]) == 0
    [call] = trained
    assert call.recipe == Recipe.named("diva-openai-vit-l-14-224").replace(batch=4)
    assert call.clip.visual.conv1.weight.dtype == torch.float32
    assert isinstance(call.teacher, Teacher) and call.teacher.latent_shape == (4, 8, 8)
    batches = list(call.loader)
    assert [tuple(batch["images"].shape) for batch in batches] == [(4, 3, 16, 16), (2, 3, 16, 16)]
    assert (call.progress, call.output_dir) == (False, tmp_path / "run")
    assert [type(callback) for callback in call.callbacks] == [TensorBoard]
    output = capsys.readouterr()
    assert "recipe diva-openai-vit-l-14-224; differing from the defaults" in output.out
    assert "batch             4                        changed: the preset has 640" in output.out
    assert "done: 3 steps, loss 0.5000 at the first log, 0.2500 at the last" in output.out
    assert "starts from random weights" in output.err
    assert main([*command, "--overwrite"]) == 130  # as after Ctrl-C
    assert "interrupted after 3 steps" in capsys.readouterr().out


def test_train_in_double_precision_and_at_another_size(trained, command):
    assert main([*command, "--precision", "fp64", "--image-size", "24", "--loader-batch", "3"]) == 0
    [call] = trained
    assert call.clip.visual.conv1.weight.dtype == torch.float64
    assert [tuple(batch["images"].shape) for batch in call.loader] == [(3, 3, 24, 24)] * 2


def test_crops_are_augmented_and_follow_the_seed(trained, command):
    for extra in (["--seed", "1"], ["--seed", "1", "--overwrite"], ["--seed", "2", "--overwrite"]):
        main([*command, *extra])
    orders = [[int(key) for batch in call.loader for key in batch["ids"]] for call in trained]
    assert orders[0] == orders[1] != orders[2]


def test_an_output_folder_that_holds_something_is_not_overwritten(trained, command, capsys, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("old\n")
    (folder / "note").write_text("mine")
    assert "is not empty and holds no run to go on with: choose another" in message(capsys, command)
    assert (folder / "metrics.jsonl").read_text() == "old\n" and not trained
    assert main([*command, "--overwrite"]) == 0
    assert trained[-1].resume is False
    assert (folder / "note").read_text() == "mine"


def test_a_folder_that_holds_a_run_goes_on(trained, command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    assert main(command) == 0
    assert main([*command, "--resume", "force"]) == 130
    assert [call.resume for call in trained] == [True, "force"]


def test_an_output_folder_that_cannot_be(trained, command, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    argv = [*command, "--output-dir", str(tmp_path / "file")]
    assert "is a file" in message(capsys, argv)
    argv[-1] = str(tmp_path / "file" / "run")
    assert "cannot be made: Not a directory" in message(capsys, argv)
    assert not trained


def test_a_device_that_is_not_there(command, capsys):
    assert "device 'cuda:99' is not available" in message(capsys, [*command, "--device", "cuda:99"])


def test_ctrl_c_outside_the_training_is_exit_code_130(monkeypatch, command, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "_post_train", interrupted)
    assert main(command) == 130
    assert capsys.readouterr().err.endswith("diva-rs: interrupted\n")


def test_train_end_to_end(command, capsys, tmp_path):
    flags = [
        "--steps",
        "2",
        "--batch",
        "3",
        "--log-every",
        "1",
        "--density",
        "0.5",
        "--lr",
        "1e-2",
        "--no-progress",
    ]
    assert main([*command, *flags]) == 0
    assert "done: 2 steps" in capsys.readouterr().out
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert json.loads((run / "recipe.json").read_text())["density"] == 0.5
    model = open_clip.create_model(MODEL, pretrained=str(run / "clip.safetensors"))
    assert model.visual.conv1.weight.shape == (32, 3, 8, 8)


# models


def test_an_open_clip_model_with_a_weights_file(tmp_path):
    own = small_clip(seed=5)
    save_file(own.state_dict(), tmp_path / "clip.safetensors")
    model = models.load_clip(f"{MODEL}:{tmp_path / 'clip.safetensors'}", torch.device("cpu"), "fp32")
    assert all(torch.equal(value, own.state_dict()[name]) for name, value in model.state_dict().items())


def test_weights_that_are_damaged_or_do_not_fit(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"not weights")
    with pytest.raises(WeightsError, match=r"bad\.safetensors could not be loaded"):
        models.load_clip(f"{MODEL}:{tmp_path / 'bad.safetensors'}", torch.device("cpu"), "fp32")
    save_file({"visual.proj": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(
        WeightsError, match=r"other\.safetensors could not be loaded: RuntimeError.*Missing key"
    ):
        models.load_clip(f"{MODEL}:{tmp_path / 'other.safetensors'}", torch.device("cpu"), "fp32")


def test_unknown_models_and_tags_suggest_near_ones(tmp_path):
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match="no CLIP model 'ViT-L14'; did you mean 'ViT-L-14'"):
        models.load_clip("ViT-L14", cpu, "fp32")
    with pytest.raises(
        ConfigError, match=r"no CLIP model '\./clips': open_clip does not list it, and it is no folder"
    ):
        models.load_clip("./clips", cpu, "fp32")
    with pytest.raises(ConfigError, match="neither a pretrained tag nor a file; did you mean 'openai'"):
        models.load_clip("ViT-L-14-quickgelu:openay", cpu, "fp32")
    with pytest.raises(
        ConfigError, match=f"{MODEL}:x is neither a pretrained tag nor a file: its tags are none"
    ):
        models.load_clip(f"{MODEL}:x", cpu, "fp32")
    with pytest.raises(ConfigError, match=r"holds neither a config\.json"):
        models.load_clip(str(tmp_path), cpu, "fp32")


def test_weights_trained_with_quickgelu_are_built_with_it(monkeypatch, capsys):
    given = []
    monkeypatch.setattr(open_clip, "create_model", lambda *a, **k: given.append((a, k)) or nn.Identity())
    for spec in ("ViT-B-32:openai", "ViT-B-32-quickgelu:openai", "ViT-B-32:laion2b_s34b_b79k"):
        models.load_clip(spec, torch.device("cpu"), "fp32")
    assert [keywords["force_quick_gelu"] for _, keywords in given] == [True, True, False]
    assert capsys.readouterr().err.count("was trained with QuickGELU: it is built so") == 1
    with pytest.raises(ConfigError, match="trained without QuickGELU: use ViT-B-32:laion2b_s34b_b79k"):
        monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: ["laion2b_s34b_b79k"])
        monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"url": "x"})
        models.load_clip("ViT-B-32-quickgelu:laion2b_s34b_b79k", torch.device("cpu"), "fp32")


def test_an_open_clip_folder(tmp_path):
    own = small_clip(seed=6)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}))
    save_file(own.state_dict(), tmp_path / "open_clip_model.safetensors")
    model = models.load_clip(str(tmp_path), torch.device("cpu"), "fp32")
    assert torch.equal(model.visual.proj, own.visual.proj)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(WeightsError, match="could not be loaded"):
        models.load_clip(str(tmp_path), torch.device("cpu"), "fp32")


VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_a_transformers_folder(tmp_path, family):
    config = getattr(transformers, f"{family}VisionConfig")(**VISION)
    own = getattr(transformers, f"{family}VisionModel")(config).half()
    own.save_pretrained(tmp_path)
    model = models.load_clip(str(tmp_path), torch.device("cpu"), "fp64")
    assert type(model) is type(own)
    assert all(value.dtype == torch.float64 for value in model.parameters())
    for name, value in own.named_parameters():
        assert torch.equal(model.get_parameter(name), value.double())


def test_a_transformers_folder_that_lacks_a_weight_or_holds_something_else(tmp_path):
    own = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION))
    own.save_pretrained(tmp_path)
    state = {name: value for name, value in own.state_dict().items() if "post_layernorm.weight" not in name}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        WeightsError, match=r"lacks 1 weights of its CLIPVisionModel, the first is .*post_layernorm"
    ):
        models.load_clip(str(tmp_path), torch.device("cpu"), "fp32")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="could not be loaded"):
        models.load_clip(str(tmp_path), torch.device("cpu"), "fp32")
    transformers.BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="holds a BertModel: one of CLIPModel"):
        models.load_clip(str(tmp_path), torch.device("cpu"), "fp32")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json cannot be used"):
        models.load_clip(str(tmp_path), torch.device("cpu"), "fp32")


# cache


def test_cache_and_training_with_it(trained, teacher, photos, command, capsys, tmp_path):
    out = str(tmp_path / "latents")
    argv = [
        "cache",
        "--data",
        photos,
        "--teacher",
        teacher,
        "--out",
        out,
        "--workers",
        "0",
        "--device",
        "cpu",
    ]
    assert main(argv) == 0
    assert "6 latents (4, 8, 8)" in capsys.readouterr().out
    assert "holds a latent cache already" in message(capsys, argv)
    assert main([*argv, "--overwrite", "--dtype", "float16"]) == 0
    assert main([*command, "--latents", out]) == 0
    [call] = trained
    seen = {tuple(batch["latents"].shape[1:]) for batch in call.loader}
    assert seen == {(4, 8, 8)}
    assert "vae_pixels" in message(capsys, [*command, "--latents", out, "--vae-pixels", "official"])


def test_cache_with_official_pixels_needs_a_mean(teacher, photos, capsys, tmp_path):
    argv = [
        "cache",
        "--data",
        photos,
        "--teacher",
        teacher,
        "--out",
        str(tmp_path / "latents"),
        "--workers",
        "0",
    ]
    assert "give --clip-mean and --clip-std" in message(capsys, [*argv, "--vae-pixels", "official"])
    assert "cache needs --out" in message(capsys, argv[:5])
    official = ["--recipe", "diva-official-openai-vit-l-14-224", "--image-size", "16", "--device", "cpu"]
    assert main([*argv, *official]) == 0


# info


def test_info(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for part in (
        f"diva-rs       {diva_rs.__version__}",
        f"torch         {torch.__version__}",
        "CPU threads",
        "diffusers",
    ):
        assert part in text
    assert "devices       cpu only" in text or "cuda:0" in text


def test_info_recipes(capsys):
    assert main(["info", "--recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == Recipe.names()
    assert main(["info", "--recipe", "diva-dfn-vit-h-14-378"]) == 0
    assert capsys.readouterr().out == Recipe.named("diva-dfn-vit-h-14-378").describe() + "\n"
    assert "did you mean 'diva-dfn-vit-h-14-378'" in message(
        capsys, ["info", "--recipe", "diva-dfn-vit-h14-378"]
    )


def test_info_says_how_to_install_what_is_missing(monkeypatch, capsys):
    from importlib.metadata import PackageNotFoundError

    from diva_rs.cli import info

    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(info, "version", absent)
    assert main(["info"]) == 0
    assert "webdataset    not installed: pip install 'diva-rs[data]'" in capsys.readouterr().out


# demo, and the process


def test_demo_checks_its_steps(capsys):
    assert "--steps 0: an integer of at least 1" in message(capsys, ["demo", "--steps", "0"])
    assert "--steps many: an integer" in message(capsys, ["demo", "--steps", "many"])


def test_a_process_ends_with_the_code_and_has_not_imported_what_it_does_not_use():
    code = (
        "import sys; from diva_rs.cli import main; code = main(['info', '--recipe', 'nothing']); "
        "heavy = {'open_clip', 'transformers', 'diffusers', 'tensorboard', 'diva_rs.trainer'}; "
        "print(heavy.intersection(sys.modules)); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "set()\n")
    assert done.stderr.startswith("diva-rs: error: there is no recipe 'nothing'")


def test_a_pipe_that_nobody_reads_is_no_error():
    read, write = os.pipe()
    os.close(read)
    argv = [sys.executable, "-m", "diva_rs.cli", "info", "--recipe", Recipe.names()[0]]
    closed = subprocess.run(argv, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (closed.returncode, closed.stderr) == (141, "")


def test_options_are_known_to_some_command():
    used = {*train._OPTIONS, *cache._OPTIONS}
    assert used == set(OPTIONS)
