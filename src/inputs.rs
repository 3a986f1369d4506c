//! From a batch as the loader gave it to the tensors of a step: CLIP's pixels, latents, draws.
//!
//! Everything is made on the student's device and in its dtype. From the host to CUDA it travels through pinned memory
//! (the caller pins what a loader gave) and nobody waits for it.

use crate::torch::kind::Element;
use crate::torch::{no_grad_guard, Kind, Tensor};

use crate::draws::{pooled_noise, posterior_noise, DrawPlan, TokenRule};
use crate::error::{DivaError, Poll, Result};
use crate::feedback::{Keyed, SampleData, Targets};
use crate::pixels::{Convention, Pixels, Size};
use crate::slices;

/// Images that the VAE sees at a time.
const ENCODED_TOGETHER: i64 = 8;

/// What makes a teacher's latents of pixels.
pub trait Encoder: Send {
    /// Latents (B, C, h, w), shifted and scaled, of `images` (B, 3, H, W) in [-1, 1], without gradients: the mean of the
    /// posterior, or mean + std * `noise` (B, C, h, w).
    fn encode(&self, images: &Tensor, noise: Option<&Tensor>) -> Result<Tensor>;
}

/// What the timesteps, noise and token choices are.
pub enum Drawn {
    Keyed(DrawPlan),
    /// Explicit: (B, N), (B, N, ...), (B, N, k).
    Given {
        timesteps: Tensor,
        noise: Tensor,
        choice: Option<Tensor>,
    },
}

/// What the denoiser is given beside latents and visual tokens.
pub struct Query {
    /// (1 | B, L, C), on the student's device.
    pub text: Tensor,
    pub drawn: Drawn,
}

/// A batch of B samples as the loader gave it, on any device, checked and not yet computed on.
pub struct Batch {
    /// (B, 3, H, W) in the declared convention.
    pub images: Option<Tensor>,
    /// (B, 3, h, w), ready for CLIP.
    pub pixel_values: Option<Tensor>,
    /// (B, 3, h, w), augmented views, ready for CLIP; `None`: no term needs them.
    pub augmented: Option<Tensor>,
    /// (B, C, h, w), already scaled.
    pub latents: Option<Tensor>,
    /// Of the image that latents are made from, where none are given.
    pub size: Size,
    /// `None`: the teacher works on pixels.
    pub encoder: Option<Box<dyn Encoder>>,
    /// The shape of one latent, where it is to be drawn from the posterior.
    pub sampled: Option<Vec<usize>>,
    /// (V,): the standard deviation of the noise at the pooled condition of each draw, where it has some.
    pub pooled_noise: Option<Tensor>,
    /// `None`: there is no denoiser.
    pub query: Option<Query>,
    pub keys: Vec<u64>,
    pub epoch: u64,
    pub seed: u64,
}

impl Batch {
    pub fn keyed(&self) -> Keyed {
        Keyed { keys: self.keys.clone(), epoch: self.epoch }
    }
}

/// Makes the tensors of a step.
pub struct Reader {
    pub pixels: Pixels,
    /// Of CLIP's input.
    pub size: Size,
    /// Anything on the student's device and in its dtype.
    pub home: Tensor,
}

impl Reader {
    /// CLIP's input (B | 2B, 3, H, W), where augmented views follow, and what the teacher denoises.
    pub fn read(&self, batch: &Batch, poll: Poll) -> Result<(Tensor, SampleData)> {
        let _frozen = no_grad_guard();
        let kind = self.home.f_kind()?;
        let here = |tensor: &Option<Tensor>| tensor.as_ref().map(|t| self.carried(t, kind)).transpose();
        let (images, ready) = (here(&batch.images)?, here(&batch.pixel_values)?);
        let pixels = match (&ready, &images) {
            (Some(ready), _) => ready.shallow_clone(),
            (None, Some(images)) => self.pixels.clip_input(images, self.size)?,
            (None, None) => return Err(nothing()),
        };
        let pixels = match here(&batch.augmented)? {
            Some(augmented) => Tensor::f_cat(&[pixels, augmented], 0)?,
            None => pixels,
        };
        let (images_of_clip, keyed) = (own(&pixels)?, Some(batch.keyed()));
        let Some(query) = &batch.query else {
            return Ok((images_of_clip, SampleData { targets: None, keyed }));
        };
        let latents = match (here(&batch.latents)?, &images, &ready) {
            (Some(latents), _, _) => latents,
            (None, Some(images), _) => self.latents(images, self.pixels.convention, batch, poll)?,
            (None, None, Some(ready)) => self.latents(ready, Convention::Clip, batch, poll)?,
            (None, None, None) => return Err(nothing()),
        };
        let (timesteps, noise, choice) = self.drawn(batch, query, kind)?;
        let (latents, text) = (own(&latents)?, query.text.shallow_clone());
        let pooled = match &batch.pooled_noise {
            Some(deviation) => Some(self.pooled(batch, deviation, timesteps.size2()?.1)?),
            None => None,
        };
        let targets = Some(Targets { latents, noise, timesteps, choice, text, pooled });
        Ok((images_of_clip, SampleData { targets, keyed }))
    }

    fn latents(&self, pixels: &Tensor, convention: Convention, batch: &Batch, poll: Poll) -> Result<Tensor> {
        let input = self.pixels.vae_input(pixels, batch.size, convention)?;
        let Some(encoder) = &batch.encoder else { return Ok(input) };
        let samples = batch.keys.len() as i64;
        let noise = match &batch.sampled {
            Some(latent) => {
                let values = posterior_noise(batch.seed, &batch.keys, batch.epoch, latent)?;
                let sizes = [&[batch.keys.len()], latent.as_slice()].concat();
                Some(self.drawn_here(&values, &sizes, self.home.f_kind()?)?)
            }
            None => None,
        };
        let mut parts = Vec::new();
        let mut start = 0;
        while start < samples {
            let length = ENCODED_TOGETHER.min(samples - start);
            let rows = |tensor: &Tensor| tensor.f_narrow(0, start, length);
            let noise = noise.as_ref().map(rows).transpose()?;
            parts.push(encoder.encode(&rows(&input)?, noise.as_ref())?);
            start += length;
            poll()?;
        }
        Ok(Tensor::f_cat(&parts, 0)?)
    }

    fn drawn(&self, batch: &Batch, query: &Query, kind: Kind) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        match &query.drawn {
            Drawn::Given { timesteps, noise, choice } => Ok((
                self.carried(timesteps, Kind::Int64)?,
                self.carried(noise, kind)?,
                choice.as_ref().map(|choice| self.carried(choice, Kind::Int64)).transpose()?,
            )),
            Drawn::Keyed(plan) => {
                let draws = plan.draw(&batch.keys, batch.epoch)?;
                let (samples, draws_each) = (batch.keys.len(), plan.draws);
                let noise = [&[samples, draws_each], plan.latent.as_slice()].concat();
                let choice = match plan.tokens {
                    TokenRule::None => None,
                    _ => {
                        Some(self.drawn_here(&draws.tokens, &[samples, draws_each, draws.k], Kind::Int64)?)
                    }
                };
                Ok((
                    self.drawn_here(&draws.timesteps, &[samples, draws_each], Kind::Int64)?,
                    self.drawn_here(&draws.noise, &noise, kind)?,
                    choice,
                ))
            }
        }
    }

    /// (B, N, V)
    fn pooled(&self, batch: &Batch, deviation: &Tensor, draws: i64) -> Result<Tensor> {
        let (draws, width) = (draws as usize, deviation.size1()? as usize);
        let values = pooled_noise(batch.seed, &batch.keys, batch.epoch, draws, width)?;
        let kind = self.home.f_kind()?;
        let noise = self.drawn_here(&values, &[batch.keys.len(), draws, width], kind)?;
        Ok(noise.f_mul(&self.carried(deviation, kind)?)?)
    }

    /// Values drawn on the host, as a tensor on the student's device.
    fn drawn_here<T: Element>(&self, values: &[T], sizes: &[usize], kind: Kind) -> Result<Tensor> {
        let sizes: Vec<i64> = sizes.iter().map(|&size| size as i64).collect();
        let tensor = slices::copied(values, &sizes)?;
        let device = self.home.device();
        let tensor = if device.is_cuda() { tensor.f_internal_pin_memory(device)? } else { tensor };
        self.carried(&tensor, kind)
    }

    /// The tensor on the student's device, in `kind`.
    fn carried(&self, tensor: &Tensor, kind: Kind) -> Result<Tensor> {
        // In two moves: a copy that changes device and dtype at once casts on the host, into memory that is not pinned.
        // Only towards CUDA is it safe not to wait: a copy to the host could be read too soon.
        let like = self.home.f_to_kind(tensor.f_kind()?)?;
        Ok(tensor.f_to_other(&like, like.device().is_cuda(), false)?.f_to_kind(kind)?)
    }
}

/// Outside the caller's graph; what was made in inference mode cannot be saved for a backward pass.
fn own(tensor: &Tensor) -> Result<Tensor> {
    Ok(if tensor.f_is_inference()? { tensor.f_to_other(tensor, false, true)? } else { tensor.f_detach()? })
}

fn nothing() -> DivaError {
    let what = "the batch holds neither images nor pixel_values".to_string();
    DivaError::data("inputs", what)
}
