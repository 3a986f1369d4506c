"""diffusers' SD3Transformer2DModel, of Stable Diffusion 3 and 3.5."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diva_rs.diffusion.condition import Condition
from diva_rs.diffusion.families.mmdit import MMDiT
from diva_rs.diffusion.text import Parts, encode_prompts, encode_t5

_T5 = 256  # tokens that StableDiffusion3Pipeline reads of it


class SD3(MMDiT):
    """Its text is that of two CLIP text encoders side by side, and behind it that of T5, or zeros."""

    of = "SD3Transformer2DModel"
    supported = "a diffusers SD3Transformer2DModel"
    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    pooling = ("text_encoder", "text_encoder_2")

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        self.check_sides(noisy, int(self.model.config.patch_size))
        tokens, pooled = self.filled(noisy, condition)
        output: Tensor = self.model(
            hidden_states=noisy,
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            timestep=timesteps,
            return_dict=False,
        )[0]
        return output

    def encode(self, prompts: Sequence[str], parts: Parts) -> Tensor:
        # StableDiffusion3Pipeline.encode_prompt
        clip = encode_prompts(prompts, parts, self.pooling, penultimate=True)
        width = int(self.model.config.joint_attention_dim)
        clip = nn.functional.pad(clip, (0, width - clip.shape[-1]))
        if parts.get("text_encoder_3") is None:
            t5 = clip.new_zeros(len(prompts), _T5, width)
        else:
            t5 = encode_t5(prompts, parts, "text_encoder_3", _T5).to(clip.device)
        return torch.cat((clip, t5), dim=1)


FAMILY = SD3
