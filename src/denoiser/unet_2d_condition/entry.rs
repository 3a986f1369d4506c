//! The ways into a UNet: through the cross-attention, through the time embedding, and SDXL's added embedding.

use crate::torch::{Kind, Tensor};

use super::config::{ClassEmbed, Config, OP};
use crate::denoiser::embeddings::{Sinusoids, TimestepEmbedding};
use crate::denoiser::layers::linear;
use crate::error::{DivaError, Result};
use crate::nn::{Activation, Linear, Path};

const SIZES: i64 = 6; // original height and width, crop top and left, target height and width

/// Tensors that are the same for every sample and every step.
#[derive(Default)]
pub struct Fixed {
    /// (1, L, D): what the cross-attention reads where the condition enters elsewhere.
    pub encoder_hidden_states: Option<Tensor>,
    /// (1, n): SDXL's pooled text.
    pub text_embeds: Option<Tensor>,
    /// (1, m): SDXL's sizes; without them those of the noisy image.
    pub time_ids: Option<Tensor>,
    /// (1, V): what the pooled condition is multiplied by; the first V class labels are its.
    pub class_scale: Option<Tensor>,
    /// (1, n): what is added to all class labels.
    pub class_shift: Option<Tensor>,
}

impl Fixed {
    pub fn named(tensors: Vec<(String, Tensor)>) -> Result<Self> {
        let mut fixed = Fixed::default();
        for (name, tensor) in tensors {
            let place = match name.as_str() {
                "encoder_hidden_states" => &mut fixed.encoder_hidden_states,
                "text_embeds" => &mut fixed.text_embeds,
                "time_ids" => &mut fixed.time_ids,
                "class_scale" => &mut fixed.class_scale,
                "class_shift" => &mut fixed.class_shift,
                other => {
                    let known =
                        "known are encoder_hidden_states, text_embeds, time_ids, class_scale and class_shift";
                    return Err(DivaError::config(
                        OP,
                        format!("fixed has an unknown tensor {other:?}; {known}"),
                    ));
                }
            };
            *place = Some(tensor);
        }
        Ok(fixed)
    }

    /// The shape of `tensor` must be (1, .., width); detached, where `like` is and in its dtype.
    fn checked(
        name: &str,
        tensor: &Tensor,
        rank: usize,
        width: Option<i64>,
        like: &Tensor,
    ) -> Result<Tensor> {
        let size = tensor.size();
        let fits = size.len() == rank && size.first() == Some(&1) && !size.contains(&0);
        if !fits || width.is_some_and(|width| size.last() != Some(&width)) {
            let last = width.map_or("n".to_string(), |width| width.to_string());
            let expected = if rank == 3 { format!("(1, L, {last})") } else { format!("(1, {last})") };
            return Err(DivaError::shape(OP, name, tensor, expected));
        }
        Ok(tensor.f_detach()?.f_to_other(like, false, false)?)
    }
}

/// Stable unCLIP: the pooled condition is the image embedding, text is cross-attended.
pub struct ClassEntry {
    embedding: ClassEmbedding,
    text: Tensor,                     // (1, L, D)
    affine: Option<(Tensor, Tensor)>, // `Fixed`'s class_scale and class_shift
    pub width: i64,                   // of the pooled condition
}

enum ClassEmbedding {
    Projection(TimestepEmbedding),
    Simple(Linear),
}

impl ClassEntry {
    pub fn load(
        path: &Path,
        config: &Config,
        kind: ClassEmbed,
        fixed: &Fixed,
        like: &Tensor,
    ) -> Result<Self> {
        let (labels, outputs) = (config.projection_width()?, config.time_embedding_dim);
        let embedding = match kind {
            ClassEmbed::Projection => {
                ClassEmbedding::Projection(TimestepEmbedding::load(path, labels, outputs, Activation::Silu)?)
            }
            ClassEmbed::SimpleProjection => ClassEmbedding::Simple(linear(path, labels, outputs)?),
        };
        let affine = match &fixed.class_scale {
            None => None,
            Some(scale) => {
                let shift = fixed.class_shift.as_ref().ok_or_else(|| absent("class_shift"))?;
                let scale = Fixed::checked("class_scale", scale, 2, None, like)?;
                Some((scale, Fixed::checked("class_shift", shift, 2, Some(labels), like)?))
            }
        };
        let width = affine.as_ref().map_or(Ok(labels), |(scale, _)| scale.size2().map(|size| size.1))?;
        if width > labels {
            return Err(DivaError::config(
                OP,
                format!("class_scale is {width} wide, beyond the {labels} labels"),
            ));
        }
        let name = "encoder_hidden_states";
        let text = fixed.encoder_hidden_states.as_ref().ok_or_else(|| absent(name))?;
        let text = Fixed::checked(name, text, 3, Some(config.cross_attention_dim), like)?;
        Ok(ClassEntry { embedding, text, affine, width })
    }

    /// pooled (B, width) -> what is added to the time embedding (B, T), what is cross-attended (B, L, D).
    pub fn forward(&self, pooled: &Tensor) -> Result<(Tensor, Tensor)> {
        let labels = match &self.affine {
            None => pooled.shallow_clone(),
            Some((scale, shift)) => {
                let behind = shift.size2()?.1 - self.width;
                pooled.f_mul(scale)?.f_constant_pad_nd([0, behind])?.f_add(shift)?
            }
        };
        let embedded = match &self.embedding {
            ClassEmbedding::Projection(embedding) => embedding.forward(&labels)?,
            ClassEmbedding::Simple(linear) => linear.forward(&labels)?,
        };
        let batch = pooled.size2()?.0;
        Ok((embedded, self.text.f_expand([batch, -1, -1], false)?))
    }
}

/// SDXL's added embedding of a pooled text and of image sizes (arXiv 2307.01952 sections 2.1 and 2.2).
pub struct AddedEntry {
    sinusoids: Sinusoids,
    embedding: TimestepEmbedding,
    text: Tensor,             // (1, n)
    time_ids: Option<Tensor>, // (1, m) float32
    pixels_per_latent: i64,
}

impl AddedEntry {
    pub fn load(path: &Path, config: &Config, fixed: &Fixed, like: &Tensor) -> Result<Option<Self>> {
        let Some(text_time) = &config.text_time else {
            return Ok(None);
        };
        let (each, total) = (text_time.addition_time_embed_dim, config.projection_width()?);
        let pixels_per_latent = text_time.pixels_per_latent;
        if pixels_per_latent < 1 {
            return Err(DivaError::config(
                OP,
                format!("pixels_per_latent {pixels_per_latent}: must be at least 1"),
            ));
        }
        let sinusoids = Sinusoids::new(each, config.flip_sin_to_cos, config.freq_shift, like)?;
        let wide = like.f_to_kind(Kind::Float)?; // sizes in pixels are beyond the precision of bfloat16
        let time_ids =
            fixed.time_ids.as_ref().map(|ids| Fixed::checked("time_ids", ids, 2, None, &wide)).transpose()?;
        let ids = match &time_ids {
            Some(ids) => ids.size2()?.1,
            None => SIZES,
        };
        let text = fixed.text_embeds.as_ref().ok_or_else(|| absent("text_embeds"))?;
        let text = Fixed::checked("text_embeds", text, 2, Some(total - ids * each), like)?;
        let embedding = TimestepEmbedding::load(path, total, config.time_embedding_dim, Activation::Silu)?;
        Ok(Some(AddedEntry { sinusoids, embedding, text, time_ids, pixels_per_latent }))
    }

    /// What is added to the time embedding of latents of this size: (1, T).
    pub fn forward(&self, size: (i64, i64)) -> Result<Tensor> {
        let ids = match &self.time_ids {
            Some(ids) => ids.shallow_clone(),
            None => self.sizes(size)?,
        };
        let ids = self.sinusoids.forward(&ids.f_flatten(0, -1)?)?.f_view([1, -1])?; // (1, m * each)
        let ids = ids.f_to_kind(self.text.f_kind()?)?;
        self.embedding.forward(&Tensor::f_cat(&[self.text.shallow_clone(), ids], 1)?)
    }

    /// The time_ids of an image that is not cropped, filled in on the device.
    fn sizes(&self, (height, width): (i64, i64)) -> Result<Tensor> {
        let (height, width) = (height * self.pixels_per_latent, width * self.pixels_per_latent);
        let place = self.text.f_narrow(1, 0, 1)?.f_to_kind(Kind::Float)?;
        let ids = [height, width, 0, 0, height, width].map(|size| place.f_full_like(size as f64));
        let ids = ids.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(Tensor::f_cat(&ids, 1)?)
    }
}

fn absent(name: &str) -> DivaError {
    DivaError::config(OP, format!("this UNet needs {name}, the same for every sample"))
}
