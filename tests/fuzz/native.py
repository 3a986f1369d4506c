"""The target "native": every function and method of `_native`, called with hostile arguments.

A result or an exception of diva_rs; where an argument is converted before the call, TypeError, ValueError and
OverflowError, or AttributeError for a batch without the fields of one. Never a panic: neither PyO3's
PanicException nor one that was stopped at the door.
"""

import random
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from builders import mmdits
from builders.diffusion import tiny_dit
from builders.dits import native_dit
from builders.mmdits import native_mmdit
from builders.small import small_clip, small_teacher, small_vae
from diva_rs import Recipe, Trainer, _native
from diva_rs.errors import DivaError
from diva_rs.native.vae import native_vae
from fuzz.values import OwnError, varied

CONVERSION = (TypeError, ValueError, OverflowError, AttributeError)


class Call(NamedTuple):
    """A function, and good arguments by name; ``positional`` of them are given by position."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    positional: int = 100


def calls() -> dict[str, Call]:
    """Name -> a call that succeeds, of every function, constructor, method and property."""
    made = _constructors()
    tower, unet, bridge, schedule = (
        _construct(made, name)
        for name in ("Network, vision_transformer", "Network, unet_2d_condition", "Bridge", "Schedule.flow")
    )
    images, latents = torch.rand(2, 3, 32, 32), torch.randn(2, 4, 8, 8)
    noise, timesteps = torch.randn(2, 2, 4, 8, 8), torch.tensor([[3, 500], [7, 999]])
    one = {"latents": latents, "noise": noise[:, 0], "timesteps": timesteps[:, 0]}
    choice, text = torch.randint(0, 16, (2, 2, 3)), torch.randn(1, 7, 24)
    targets = (latents, noise, timesteps, choice, text, None)
    tokens = tower.tokens(images).detach()
    condition = torch.randn(2, 5, 24)
    ids = np.array([3, 4], np.uint64)

    def recorded(images: Any, gradient: Any) -> Any:
        _, recording = tower.record(torch.rand(2, 3, 32, 32))
        tower.backward(recording if images is None else images, gradient)

    def taped(tape: Any, grad: Any) -> Any:
        return bridge.backward(bridge.forward(tokens, text, choice)[1] if tape is None else tape, grad)

    def of(name: str, method: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: getattr(_construct(made, name), method)(*args, **kwargs)

    state = _construct(made, "Optimizer").state()
    network = {"noisy": latents, "timesteps": timesteps[:, 0], "condition": condition}
    two_slots = network | {"condition": torch.randn(2, 5, 16)}
    gradient = torch.randn(bridge.forward(tokens, text, choice)[0].shape)
    step = made["Step"]
    contrasting = _run(step, {**step.arguments, "contrast": 1.0, "contrast_options": (0.1, 1, 2, 0)})
    flow, levels = _construct(made, "Schedule.flow"), "Schedule.from_alphas_cumprod"
    return {
        **made,
        "augment_seed": Call(_native.augment_seed, {"seed": 1, "id": 2, "epoch": 3}),
        "resampled": Call(
            _native.resampled,
            {
                "picture": np.arange(8 * 6 * 3, dtype=np.uint8),
                "width": 6,
                "window": (0, 0, 8, 6),
                "size": (4, 3),
                "kept": (1, 0, 2, 3),
            },
        ),
        "lr_factor": Call(_native.lr_factor, {"schedule": "cosine", "step": 3, "warmup": 2, "steps": 10}),
        "DrawPlan.draw": Call(of("DrawPlan", "draw"), {"ids": ids, "epoch": 0}),
        "Schedule.add_noise": Call(of(levels, "add_noise"), one),
        "Schedule.weights": Call(
            of(levels, "weights"),
            {"timesteps": timesteps[:, 0], "min_snr": 5.0, "like": latents},
        ),
        "Schedule.alphas_cumprod": Call(lambda: _construct(made, levels).alphas_cumprod, {}),
        "Schedule.sigmas": Call(lambda: flow.sigmas, {}),
        "Schedule.prediction_type": Call(lambda: flow.prediction_type, {}),
        "Bridge.forward": Call(bridge.forward, {"tokens": tokens, "text": text, "choice": choice}),
        "Bridge.backward": Call(taped, {"tape": None, "grad": gradient}),
        "Bridge.param_names": Call(lambda: bridge.param_names, {}),
        "Optimizer.regroup": Call(of("Optimizer", "regroup"), {"groups": made["Optimizer"].arguments["1"]}),
        "Optimizer.step": Call(of("Optimizer", "step"), {"factors": [0.5, 0.5]}),
        "Optimizer.clip_grad_norm": Call(of("Optimizer", "clip_grad_norm"), {"max": 1.0}),
        "Optimizer.update": Call(of("Optimizer", "update"), {"max_norm": 1.0, "factors": [0.5, 0.5]}),
        "Optimizer.scale_grads": Call(of("Optimizer", "scale_grads"), {"factor": 0.5}),
        "Optimizer.state": Call(of("Optimizer", "state"), {}),
        "Optimizer.load_state": Call(of("Optimizer", "load_state"), {"state": state}),
        "Reader.read": Call(of("Reader", "read"), {"batch": made["Step.train"].arguments["1"], "wide": True}),
        "Pixels.to_unit": Call(of("Pixels", "to_unit"), {"images": images}),
        "Pixels.clip_input": Call(of("Pixels", "clip_input"), {"images": images, "size": (16, 16)}),
        "Pixels.vae_input": Call(of("Pixels", "vae_input"), {"images": images, "size": (16, 16)}),
        "negatives": Call(
            _native.negatives, {"seed": 1, "ids": ids, "epoch": 0, "draw": 0, "group": 2, "count": 1}
        ),
        "Step.weigh": Call(of("Step", "weigh"), {"weights": [("denoising", 0.5), ("anchor", 0.0)]}),
        "Step.at_tokens, of the contrast": Call(
            contrasting.at_tokens,
            {
                "tokens": torch.cat([tokens, tokens]),
                "images": torch.cat([images, images]),
                "targets": targets,
                "batch": made["Step.train"].arguments["1"],
            },
        ),
        "Step.widen": Call(of("Step", "widen"), {"wide": False}),
        "Step.changed_limit": Call(of("Step", "changed_limit"), {}),
        "Step.at_tokens": Call(
            of("Step", "at_tokens"),
            {
                "tokens": tokens,
                "images": images,
                "targets": targets,
                "batch": made["Step.train"].arguments["1"],
            },
        ),
        "Judge.losses": Call(
            of("Judge", "losses"),
            {
                "latents": latents,
                "noise": noise,
                "timesteps": timesteps,
                "texts": torch.randn(3, 7, 24),
                "pairs": np.array([[0, 2], [1, 0], [0, 0]]),
            },
        ),
        "Network.tokens": Call(tower.tokens, {"images": images}),
        "Network.record": Call(tower.record, {"images": images}),
        "Network.backward": Call(recorded, {"images": None, "gradient": torch.randn(tokens.shape)}),
        "Network.kind": Call(lambda: tower.kind, {}),
        "Network.slots": Call(lambda: unet.slots, {}),
        "Network.predict": Call(unet.predict, network),
        "Network.gradient": Call(unet.gradient, network | {"at_prediction": noise[:, 0]}),
        "Network.condition_width": Call(lambda: unet.condition_width, {}),
        "Network.predict, of a DiT": Call(
            of("Network, dit", "predict"), network | {"condition": torch.randn(2, 5, 16)}
        ),
        "Network.gradient, of a DiT": Call(
            of("Network, dit", "gradient"),
            network | {"condition": torch.randn(2, 5, 16), "at_prediction": noise[:, 0]},
        ),
        "Network.predict, of an MMDiT": Call(of("Network, mmdit", "predict"), two_slots),
        "Network.gradient, of an MMDiT": Call(
            of("Network, mmdit", "gradient"), two_slots | {"at_prediction": noise[:, 0]}
        ),
        "Network.encode": Call(
            of("Network, autoencoder_kl_encoder", "encode"),
            {"images": images, "noise": None, "micro_batch": 1},
        ),
        "Network.encode, a sample": Call(
            of("Network, autoencoder_kl_encoder", "encode"),
            {"images": images, "noise": torch.randn(2, 4, 16, 16), "micro_batch": 2},
        ),
        "Schedule len": Call(lambda: len(schedule), {}),
    }


class Native:
    """One argument or two of one call are wrong in each case."""

    def warm_up(self) -> None:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.calls = calls()
        for call in self.calls.values():
            _run(call, call.arguments)
        self.story = ""

    def run(self, rng: random.Random) -> str:
        name = rng.choice(list(self.calls))
        call = self.calls[name]
        arguments = dict(call.arguments)
        for _ in range(rng.choice([1, 1, 2])):
            if arguments:
                key = rng.choice(list(arguments))
                arguments[key] = varied(arguments[key], rng)
        self.story = f"{name}({', '.join(f'{key}={_short(value)}' for key, value in arguments.items())})"
        try:
            _run(call, arguments)
            return f"{name}: result"
        except DivaError as err:
            assert "please report it" not in str(err), f"a panic, {self.story}: {err}"
            return f"{name}: {type(err).__name__}"
        except (OwnError, *CONVERSION) as err:
            return f"{name}: {type(err).__name__}"
        except BaseException as err:
            raise AssertionError(f"{self.story}: {type(err).__name__}: {str(err)[:1000]}") from err

    def keep(self, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.with_suffix(".txt").write_text(self.story)


def target(scratch: Path) -> Native:
    return Native()


def _constructors() -> dict[str, Call]:
    """The arguments that a whole trainer, a DiT, an MMDiT and a VAE were made with."""
    made: dict[str, Call] = {}
    with _spied(made):
        trainer = Trainer(small_clip(), small_teacher(), Recipe(draws=2, choose=3, optimizer="adamw"))
        step = trainer.step_modules.step
        trainer.step_modules.step = cast(Any, _Recorder(step, made))
        trainer.step(torch.rand(2, 3, 32, 32))
        native_dit(tiny_dit().eval())
        native_mmdit(mmdits.build("sd3-dual", torch.float32))
        native_vae(small_vae())
    schedule: Any = _native.Schedule
    plan = {
        "seed": 1,
        "draws": 2,
        "latent_shape": (4, 8, 8),
        "patches": 16,
        "choose": 3,
        "replacement": False,
    }
    plan |= {"density": None, "timesteps": "uniform", "timestep_range": (0, 1000), "logit": (0.0, 1.0)}
    levels = {"alphas_cumprod": torch.linspace(0.9, 0.1, 1000), "prediction_type": "epsilon"}
    sigmas = {"sigmas": torch.linspace(1.0, 0.001, 1000), "num_train_timesteps": 1000.0}
    return {
        **made,
        "DrawPlan": Call(_native.DrawPlan, plan),
        "Judge": Call(
            _native.Judge,
            {
                "denoiser": _construct(made, "Network, unet_2d_condition"),
                "schedule": schedule.flow(**sigmas),
                "loss": "l1",
                "batch": 2,
                "wide": False,
            },
        ),
        "Schedule.from_alphas_cumprod": Call(schedule.from_alphas_cumprod, levels),
        "Schedule.flow": Call(schedule.flow, sigmas),
    }


class _Recorder:
    """A step that notes what it is given."""

    def __init__(self, step: Any, made: dict[str, Call]) -> None:
        self.step, self.made = step, made

    def train(self, *args: Any, **kwargs: Any) -> Any:
        arguments = {str(at): value for at, value in enumerate(args)} | kwargs
        self.made["Step.train"] = Call(self.step.train, arguments, len(args))
        return self.step.train(*args, **kwargs)

    def changed_limit(self) -> int | None:
        return self.step.changed_limit()


@contextmanager
def _spied(made: dict[str, Call]) -> Any:
    """Note what the package gives to the constructors."""
    names = ("Batch", "Bridge", "Pixels", "Reader", "Optimizer", "Step", "Network")
    kinds = {name: getattr(_native, name) for name in names}

    def spy(name: str) -> Callable[..., Any]:
        def construct(*args: Any, **kwargs: Any) -> Any:
            arguments = {str(at): value for at, value in enumerate(args)} | kwargs
            key = f"Network, {args[0]}" if name == "Network" else name
            made[key] = Call(kinds[name], arguments, len(args))
            return kinds[name](*args, **kwargs)

        return construct

    try:
        for name in names:
            setattr(_native, name, spy(name))
        yield
    finally:
        for name, kind in kinds.items():
            setattr(_native, name, kind)


def _construct(made: dict[str, Call], name: str) -> Any:
    return _run(made[name], made[name].arguments)


def _run(call: Call, arguments: dict[str, Any]) -> Any:
    values = list(arguments.items())
    return call.function(
        *(value for _, value in values[: call.positional]), **dict(values[call.positional :])
    )


def _short(value: Any) -> str:
    try:
        if isinstance(value, torch.Tensor):
            return f"{value.dtype} {tuple(value.shape)} {value.layout} {value.device}"
        text = repr(value)
    except BaseException:
        text = f"<{type(value).__name__}>"
    return text if len(text) < 200 else f"{text[:200]}..."
