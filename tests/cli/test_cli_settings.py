"""Where the command line's settings come from, and how mistakes in them are reported."""

import argparse

import pytest

import diva_rs
from builders.cli import MODEL, NEEDED, message, parsed
from diva_rs.cli import main, train
from diva_rs.cli.flags import in_flags
from diva_rs.errors import ConfigError
from diva_rs.recipes.recipe import Recipe, Stage

FLAGS = {  # a flag's text and the value that it means, one for each kind of field
    "name": ("mine", "mine"),
    "condition": ("window", "window"),
    "window": ("4", 4),
    "prompt": ("a photo of a .", "a photo of a ."),
    "draws": ("3", 3),
    "draw_weights": ("5,1,0.5", (5.0, 1.0, 0.5)),
    "timestep_range": ("10,900", (10, 900)),
    "logit_mean": ("-0.5", -0.5),
    "lr": ("1e-5", 1e-5),
    "betas": (".8,0.9", (0.8, 0.9)),
    "grad_clip": ("none", None),
    "checkpoint_every": ("None", None),
    "seed": ("18446744073709551615", 2**64 - 1),
}


def test_flags_of_each_kind():
    flags = [part for name, (text, _) in FLAGS.items() for part in ("--" + name.replace("_", "-"), text)]
    _, recipe = parsed([*NEEDED, *flags, "--no-antialias", "--gradient-checkpointing"])
    expected = {name: value for name, (_, value) in FLAGS.items()}
    assert recipe == Recipe(**expected, antialias=False, gradient_checkpointing=True)
    _, staged = parsed([*NEEDED, "--stages", '[{"train": ["projector"], "steps": 3}, {"train": ["tower"]}]'])
    assert staged == Recipe(stages=(Stage(train=("projector",), steps=3), Stage(train=("tower",))))


def test_every_recipe_field_is_a_flag():
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    flags = {"--" + name.replace("_", "-") for name in Recipe.model_fields}
    assert flags <= parser._option_string_actions.keys()


def test_flags_go_before_the_file_before_the_preset_before_the_defaults(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'clip = "from-file"\nteacher = "t"\ndata = "d"\noutput-dir = "o"\nworkers = 5\n'
        '[recipe]\npreset = "diva-official-openai-vit-l-14-224"\n'
        'lr = 2e-5\nseed = 7\ngrad_clip = "none"\ndraw_weights = [3, 1]\n'
    )
    values, recipe = parsed(["--config", str(file), "--lr", "3e-5", "--clip", "from-flag"])
    assert (values.clip, values.workers, values.on_bad_image) == ("from-flag", 5, "raise")
    official = Recipe.named("diva-official-openai-vit-l-14-224")
    assert recipe == official.replace(lr=3e-5, seed=7, grad_clip=None, draw_weights=(3.0, 1.0))
    _, other = parsed(["--config", str(file), "--recipe", "diva-openai-vit-l-14-224"])
    assert (other.name, other.seed, other.prompt) == ("diva-openai-vit-l-14-224", 7, "")
    assert parsed(NEEDED)[1] == Recipe()


def test_a_preset_can_be_named_at_the_top_of_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('recipe = "diva-dfn-vit-h-14-224"\noutput-dir = "runs/a"\nprefetch = "none"\n')
    values, recipe = parsed([*NEEDED[:-2], "--config", str(file), "--steps", "5"])
    assert (recipe, values.output_dir) == (
        Recipe.named("diva-dfn-vit-h-14-224").replace(steps=5),
        "runs/a",
    )


def test_a_density_flag_replaces_the_count_of_the_preset():
    _, recipe = parsed([*NEEDED, "--recipe", "diva-official-openai-vit-l-14-224", "--density", "0.5"])
    assert (recipe.choose, recipe.density) == (None, 0.5)


BAD_FILES = [
    ("lr = 1e-5", r"lr is a recipe field: move it into the table \[recipe\]"),
    ("clipp = 'x'", "unknown key 'clipp'; did you mean 'clip'"),
    ("[recipe]\nlearning_rate = 1", "Recipe has no field 'learning_rate': it has name"),
    ("[recipe]\nlr = '1e-5 or so'", r"run\.toml: lr='1e-5 or so': it must be a number of at least 0"),
    ("[recipe]\nlr = 'none'", r"run\.toml: lr='none': it must be a number of at least 0"),
    ("[recipe]\nwarmup = true", r"run\.toml: warmup=True: it must be an integer of at least 0"),
    ("[recipe]\npreset = 'diva'", "no recipe 'diva'"),
    ("recipe = 3", "recipe=3: give a preset's name or a table"),
    ("workers = -1", r"run\.toml: --workers=-1: it must be an integer of at least 0"),
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
    (["--lr", "fast"], "--lr=fast: it must be a number of at least 0"),
    (["--lr", "none"], "--lr=none: it must be a number of at least 0"),
    (["--steps", "1.5"], "--steps=1.5: it must be an integer of at least 1, or None"),
    (
        ["--draw-weights", "1;2"],
        "--draw-weights='1;2': it must be one or more values, each a number of at least 0",
    ),
    (["--condition", "windows"], "did you mean 'window'"),
    (["--workers", "many"], "--workers=many: it must be an integer of at least 0"),
    (["--recipe", "diva-openai-vit-l-14"], "did you mean 'diva-openai-vit-l-14-336'"),
    (["--draws", "3", "--draw-weights", "1,2"], "--draw-weights=1.0,2.0 holds 2 weights for --draws=3"),
    (["--bernoulli"], "--bernoulli needs density"),
    (
        ["--density", "0.5", "--bernoulli", "--replacement"],
        "--bernoulli and --replacement exclude each other",
    ),
    (["--condition", "text", "--text", "none"], "--condition=text with --text=none leaves no condition"),
    (["--densty=0.5"], "unknown argument '--densty=0.5'; did you mean '--density'"),
    (["--lr"], "argument --lr: expected one argument"),
    (["--stages", "x"], "--stages=x: it must be several values, each a mapping of fields"),
    (["--stages", '[{"train": ["Tower"]}]'], "stages[0]: train='Tower': a group's name is needed"),
    ([], "--teacher is needed: diffusers folder"),
    (
        ["--clip", MODEL, "--teacher", "t", "--data", "no/such", "--output-dir", "x"],
        "--data no/such: there is no such",
    ),
    (
        ["--clip", MODEL, "--teacher", "t", "--data", ".", "--output-dir", "x", "--pixels", "clip"],
        "--pixels=clip: image files give",
    ),
]


@pytest.mark.parametrize(("flags", "words"), BAD_FLAGS)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, flags, words):
    assert main(["train", *flags]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("diva-rs: error: ") and output.err.count("\n") == 1
    assert words in output.err
    assert output.out == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "steps=5, but it has 9: give more, or resume=False",
            "--steps=5, but it has 9: give more, or --overwrite",
        ),
        ('give resume="force", or prompt="a dog"', "give --resume=force, or --prompt='a dog'"),
        (
            "best_on_test=True allows best=: give best= as well",
            "--best-on-test allows --best: give --best as well",
        ),
        ("antialias=False, grad_clip=None", "--no-antialias, --grad-clip=None"),
        (
            "Stage(train=(), steps=3) and Teacher(unet, seed=2)",
            "Stage(train=(), steps=3) and Teacher(unet, seed=2)",
        ),
        ("a/steps=5 and size=3", "a/steps=5 and size=3"),
        ("config run.toml: lr='fast'", "config run.toml: lr='fast'"),
    ],
)
def test_a_message_in_flags(text, told):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    assert in_flags(text, parser._option_string_actions) == told


def test_traceback_is_shown_on_request():
    with pytest.raises(ConfigError, match="--teacher is needed"):
        main(["train", "--traceback"])


def test_no_command_and_an_unknown_one(capsys):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().err
    assert "invalid choice: 'trian'" in message(capsys, ["trian"])
    assert "required: COMMAND (diva-rs --help" in message(capsys, ["--verbose"])


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
