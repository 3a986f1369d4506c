"""Any generative model -> Teacher: denoiser, VAE, noise schedule and text condition.

`families/` holds one file per family of denoisers, `Teacher` joins one of them with the other parts.
"""

from diva_rs.diffusion.condition import Condition, Slots
from diva_rs.diffusion.families import register
from diva_rs.diffusion.families.family import Family, NativePlan
from diva_rs.diffusion.teacher import Teacher

__all__ = ["Condition", "Family", "NativePlan", "Slots", "Teacher", "register"]
