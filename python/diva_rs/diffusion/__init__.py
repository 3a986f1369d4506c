"""The teacher: a frozen diffusion model, its VAE, its noise schedule and its text condition."""

from diva_rs.diffusion.teacher import Teacher

__all__ = ["Teacher"]
