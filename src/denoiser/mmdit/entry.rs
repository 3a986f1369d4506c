//! How latents, timestep, guidance and the pooled condition enter, and how a prediction leaves.

use crate::torch::Tensor;

use super::blocks::Modulation;
use super::config::{Config, Form, OP};
use crate::denoiser::embeddings::{Sinusoids, TimestepEmbedding};
use crate::denoiser::layers::linear;
use crate::error::{DivaError, Result};
use crate::nn::{Activation, LayerNorm, Linear, Path};

pub const POSITIONS: &str = "pos_embed.pos_embed";

/// Latents as tokens, and tokens as latents.
pub struct Patches {
    enter: Enter,
    norm: LayerNorm,
    modulation: Modulation,
    leave: Linear,
    channels: i64,
    size: i64,
}

enum Enter {
    /// Positions turn queries and keys.
    Linear(Linear),
    /// A convolution over patches, and stored positions that are cropped.
    Conv { weight: Tensor, bias: Tensor, positions: Tensor, grid: i64 },
}

impl Patches {
    pub fn load(root: &Path, config: &Config) -> Result<Self> {
        let (width, packed, size) = (config.width(), config.packed(), config.patch_size);
        let enter = match &config.form {
            Form::Flux(_) => Enter::Linear(linear(&(root / "x_embedder"), packed, width)?),
            Form::Sd3(sd3) => {
                let (embed, grid) = (root / "pos_embed", sd3.grid);
                let proj = &embed / "proj";
                Enter::Conv {
                    weight: proj.get("weight", &[width, config.channels, size, size])?,
                    bias: proj.get("bias", &[width])?,
                    positions: embed.get("pos_embed", &[1, grid * grid, width])?,
                    grid,
                }
            }
        };
        Ok(Patches {
            enter,
            norm: LayerNorm::plain(width, config.norm_eps),
            modulation: Modulation::load(&(root / "norm_out" / "linear"), width, 2)?,
            leave: linear(&(root / "proj_out"), width, packed)?,
            channels: config.channels,
            size,
        })
    }

    /// (height, width) in patches of latents (B, C, H, W).
    pub fn grid(&self, noisy: &Tensor) -> Result<(i64, i64)> {
        let size = self.size;
        let most = match &self.enter {
            Enter::Linear(_) => i64::MAX,
            Enter::Conv { grid, .. } => *grid,
        };
        match noisy.size()[..] {
            [batch, channels, height, width]
                if channels == self.channels
                    && batch > 0
                    && [height, width]
                        .iter()
                        .all(|side| *side > 0 && side % size == 0 && side / size <= most) =>
            {
                Ok((height / size, width / size))
            }
            _ => {
                let within = if most < i64::MAX { format!(" up to {}", most * size) } else { String::new() };
                let expected = format!(
                    "(B, {}, H, W), H and W multiples of the patch size {size}{within}, nothing of it empty",
                    self.channels
                );
                Err(DivaError::shape(OP, "noisy", noisy, expected))
            }
        }
    }

    /// noisy (B, C, H, W) -> (B, P, W).
    pub fn enter(&self, noisy: &Tensor, (height, width): (i64, i64)) -> Result<Tensor> {
        let size = self.size;
        let x =
            noisy.f_reshape([-1, self.channels, height, size, width, size])?.f_permute([0, 2, 4, 1, 3, 5])?;
        let x = x.f_flatten(3, 5)?.f_flatten(1, 2)?; // (B, P, C size^2)
        match &self.enter {
            Enter::Linear(layer) => layer.forward(&x),
            Enter::Conv { weight, bias, positions, grid } => {
                let layer = Linear::new(weight.f_flatten(1, 3)?, Some(bias.shallow_clone()));
                let positions = positions
                    .f_unflatten(1, [*grid, *grid])?
                    .f_narrow(1, (grid - height) / 2, height)?
                    .f_narrow(2, (grid - width) / 2, width)?
                    .f_flatten(1, 2)?;
                Ok(layer.forward(&x)?.f_add(&positions)?.f_to_kind(x.f_kind()?)?)
            }
        }
    }

    /// image (B, .., W), whose last positions are the patches -> the prediction (B, C, H, W).
    pub fn leave(&self, image: &Tensor, embedded: &Tensor, (height, width): (i64, i64)) -> Result<Tensor> {
        let patches = height * width;
        let x = image.f_narrow(1, image.size3()?.1 - patches, patches)?;
        let parts = self.modulation.forward(embedded)?;
        let x = self.leave.forward(&parts.modulate(&self.norm.forward(&x)?, 1, 0)?)?;
        let (channels, size) = (self.channels, self.size);
        let x = match &self.enter {
            Enter::Linear(_) => {
                x.f_view([-1, height, width, channels, size, size])?.f_permute([0, 3, 1, 4, 2, 5])?
            }
            Enter::Conv { .. } => {
                x.f_view([-1, height, width, size, size, channels])?.f_permute([0, 5, 1, 3, 2, 4])?
            }
        };
        Ok(x.f_reshape([-1, channels, height * size, width * size])?)
    }
}

/// diffusers embeddings.py `CombinedTimestepTextProjEmbeddings` and its like with a guidance scale.
pub struct Embedding {
    time_proj: Sinusoids,
    timestep_embedder: TimestepEmbedding,
    guidance: Option<(TimestepEmbedding, f64)>,
    text_embedder: TimestepEmbedding,
    /// Whether the network takes timesteps as fractions of 1000 and multiplies them itself.
    fractions: bool,
}

impl Embedding {
    pub fn load(path: &Path, config: &Config, like: &Tensor) -> Result<Self> {
        let load = |name: &str, inputs| {
            TimestepEmbedding::load(&(path / name), inputs, config.width(), Activation::Silu)
        };
        let guidance = |scale| Ok::<_, DivaError>((load("guidance_embedder", config.time_channels)?, scale));
        Ok(Embedding {
            time_proj: Sinusoids::new(config.time_channels, true, 0.0, like)?,
            timestep_embedder: load("timestep_embedder", config.time_channels)?,
            guidance: config.guidance.map(guidance).transpose()?,
            text_embedder: load("text_embedder", config.pooled_width)?,
            fractions: matches!(config.form, Form::Flux(_)),
        })
    }

    /// A tensor where the network's are, for moving others there.
    pub fn place(&self) -> &Tensor {
        self.time_proj.place()
    }

    /// timesteps (B,), pooled (B, V) -> SiLU of the embedding (B, W), in the dtype of `pooled`.
    pub fn forward(&self, timesteps: &Tensor, pooled: &Tensor) -> Result<Tensor> {
        let kind = pooled.f_kind()?;
        let mut timesteps = timesteps.f_to_other(&self.place().f_to_kind(kind)?, false, false)?;
        if self.fractions {
            timesteps = timesteps.f_div_scalar(1000.0)?.f_mul_scalar(1000.0)?; // rounded as diffusers' pipeline does
        }
        let embed = |embedder: &TimestepEmbedding, values: &Tensor| {
            embedder.forward(&self.time_proj.forward(values)?.f_to_kind(kind)?)
        };
        let mut time = embed(&self.timestep_embedder, &timesteps)?;
        if let Some((embedder, scale)) = &self.guidance {
            let scale = timesteps.f_narrow(0, 0, 1)?.f_full_like(*scale)?.f_mul_scalar(1000.0)?;
            time = time.f_add(&embed(embedder, &scale)?)?;
        }
        Ok(time.f_add(&self.text_embedder.forward(pooled)?)?.f_silu()?)
    }
}
