//! Conversion of a loader's images to the inputs of CLIP and of the VAE.
//!
//! No function reads a value on the host, and every constant is filled on the device of the images.

use crate::torch::{Kind, Tensor};

use crate::error::{DivaError, Result};

const OP: &str = "Pixels";

/// torchvision's mean and std, with which the official code un-normalises the VAE's input.
const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];

/// The range of an image's values: [0, 1], normalised by CLIP's mean and std, or [-1, 1].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convention {
    Unit,
    Clip,
    Symmetric,
}

impl Convention {
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "unit" => Ok(Convention::Unit),
            "clip" => Ok(Convention::Clip),
            "symmetric" => Ok(Convention::Symmetric),
            other => Err(unknown("pixels", other, "'unit', 'clip', 'symmetric'")),
        }
    }
}

/// The VAE's input: unit * 2 - 1, what every Stable Diffusion VAE was trained on, or the official DIVA code's
/// `(x * std + mean) * 2 - 1` with ImageNet's mean and std, where x was normalised for CLIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VaePixels {
    Symmetric,
    Official,
}

impl VaePixels {
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "symmetric" => Ok(VaePixels::Symmetric),
            "official" => Ok(VaePixels::Official),
            other => Err(unknown("vae_pixels", other, "'symmetric', 'official'")),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    Bicubic,
    Bilinear,
}

impl Filter {
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "bicubic" => Ok(Filter::Bicubic),
            "bilinear" => Ok(Filter::Bilinear),
            other => Err(unknown("resize", other, "'bicubic', 'bilinear'")),
        }
    }
}

/// (H, W).
pub type Size = (i64, i64);

/// The pixel settings of a run.
#[derive(Clone, Copy, Debug)]
pub struct Pixels {
    pub convention: Convention,
    pub vae: VaePixels,
    pub filter: Filter,
    pub antialias: bool,
    /// CLIP's mean and std of unit pixels, per channel.
    pub mean: [f64; 3],
    pub std: [f64; 3],
}

impl Pixels {
    /// Pixels in [0, 1] from `images` (..., 3, H, W).
    pub fn to_unit(&self, images: &Tensor, convention: Convention) -> Result<Tensor> {
        Ok(match convention {
            Convention::Unit => images.shallow_clone(),
            Convention::Symmetric => images.f_add_scalar(1.0)?.f_div_scalar(2.0)?,
            Convention::Clip => {
                images.f_mul(&channels(self.std, images)?)?.f_add(&channels(self.mean, images)?)?
            }
        })
    }

    /// CLIP's input (B, 3, size) from `images` (B, 3, H, W). Bilinear without antialias is the official code's path,
    /// which normalises first and resizes then; the two commute up to rounding.
    pub fn clip_input(&self, images: &Tensor, size: Size) -> Result<Tensor> {
        check(images)?;
        let official_order = self.filter == Filter::Bilinear && !self.antialias;
        let ready = self.convention == Convention::Clip;
        if ready && (official_order || size_of(images) == size) {
            return self.resized(images, size);
        }
        let unit = self.to_unit(images, self.convention)?;
        if official_order {
            return self.resized(&self.normalised(&unit)?, size);
        }
        self.normalised(&self.resized(&unit, size)?)
    }

    /// The VAE's input (B, 3, size) from `images` (B, 3, H, W) in `convention`.
    pub fn vae_input(&self, images: &Tensor, size: Size, convention: Convention) -> Result<Tensor> {
        check(images)?;
        let symmetric = |unit: Tensor| -> Result<Tensor> { Ok(unit.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?) };
        match (self.vae, convention) {
            (VaePixels::Official, _) => {
                let normalised = match convention {
                    Convention::Clip => images.shallow_clone(),
                    _ => self.normalised(&self.to_unit(images, convention)?)?,
                };
                let x = self.resized(&normalised, size)?;
                symmetric(x.f_mul(&channels(IMAGENET_STD, &x)?)?.f_add(&channels(IMAGENET_MEAN, &x)?)?)
            }
            (VaePixels::Symmetric, Convention::Symmetric) => self.resized(images, size),
            (VaePixels::Symmetric, _) => symmetric(self.resized(&self.to_unit(images, convention)?, size)?),
        }
    }

    fn normalised(&self, unit: &Tensor) -> Result<Tensor> {
        Ok(unit.f_sub(&channels(self.mean, unit)?)?.f_div(&channels(self.std, unit)?)?)
    }

    /// torch.nn.functional.interpolate with align_corners=False; images of the right size are not changed.
    fn resized(&self, images: &Tensor, size: Size) -> Result<Tensor> {
        if size_of(images) == size {
            return Ok(images.shallow_clone());
        }
        let kind = images.f_kind()?;
        // The antialiased CPU kernels know float32 and float64 only, and 8 mantissa bits are few for sums of products.
        let half = matches!(kind, Kind::BFloat16 | Kind::Half);
        let wide = images.f_to_kind(if half { Kind::Float } else { kind })?;
        let size = [size.0, size.1];
        let resized = match (self.filter, self.antialias) {
            (Filter::Bicubic, true) => wide.f_internal_upsample_bicubic2d_aa(size, false, None, None)?,
            (Filter::Bicubic, false) => wide.f_upsample_bicubic2d(size, false, None, None)?,
            (Filter::Bilinear, true) => wide.f_internal_upsample_bilinear2d_aa(size, false, None, None)?,
            (Filter::Bilinear, false) => wide.f_upsample_bilinear2d(size, false, None, None)?,
        };
        Ok(resized.f_to_kind(kind)?)
    }
}

/// Only floating-point images (B, 3, H, W) can be resampled.
fn check(images: &Tensor) -> Result<()> {
    if !matches!(images.size()[..], [_, 3, _, _]) {
        return Err(DivaError::shape(OP, "images", images, "(B, 3, H, W)"));
    }
    match images.f_kind()? {
        Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16 => Ok(()),
        got => Err(DivaError::kind(OP, "images", got, "floating point")),
    }
}

/// (H, W) of images (..., H, W).
fn size_of(images: &Tensor) -> Size {
    match images.size()[..] {
        [.., height, width] => (height, width),
        _ => (0, 0),
    }
}

/// Constants (3, 1, 1) on the device and in the dtype of `like`, which holds at least one value. A copy from the
/// host would block.
fn channels(values: [f64; 3], like: &Tensor) -> Result<Tensor> {
    let one = like.f_detach()?.f_as_strided([1, 1, 1], [1, 1, 1], None)?;
    let filled = values.iter().map(|&value| Ok(one.f_full_like(value)?)).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_cat(&filled, 0)?)
}

fn unknown(field: &str, found: &str, known: &str) -> DivaError {
    DivaError::config(OP, format!("{field}='{found}' is unknown: one of {known}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::Device;

    const PIXELS: Pixels = Pixels {
        convention: Convention::Unit,
        vae: VaePixels::Symmetric,
        filter: Filter::Bicubic,
        antialias: true,
        mean: [0.5, 0.25, 0.0],
        std: [0.5, 0.25, 1.0],
    };

    fn gap(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    #[test]
    fn the_conventions_are_equivalent() -> Result<()> {
        let unit = Tensor::rand([2, 3, 12, 10], (Kind::Double, Device::Cpu));
        let clip = PIXELS.clip_input(&unit, (12, 10))?;
        let symmetric = &unit * 2.0 - 1.0;
        for (images, convention) in
            [(&unit, Convention::Unit), (&clip, Convention::Clip), (&symmetric, Convention::Symmetric)]
        {
            assert!(gap(&PIXELS.to_unit(images, convention)?, &unit) < 1e-14);
            for vae in [VaePixels::Symmetric, VaePixels::Official] {
                let pixels = Pixels { vae, ..PIXELS };
                let expected = pixels.vae_input(&unit, (8, 8), Convention::Unit)?;
                assert!(gap(&pixels.vae_input(images, (8, 8), convention)?, &expected) < 1e-12);
            }
        }
        Ok(())
    }

    #[test]
    fn a_flat_image_keeps_its_colour_through_every_filter() -> Result<()> {
        let unit = Tensor::full([1, 3, 9, 9], 0.75, (Kind::Float, Device::Cpu));
        for filter in [Filter::Bicubic, Filter::Bilinear] {
            for antialias in [true, false] {
                let pixels = Pixels { filter, antialias, ..PIXELS };
                let input = pixels.clip_input(&unit, (4, 6))?;
                assert_eq!(input.size(), [1, 3, 4, 6]);
                let expected = Tensor::from_slice(&[0.5f32, 2.0, 0.75]).view([3, 1, 1]);
                assert!(gap(&input, &expected) < 1e-5);
            }
        }
        Ok(())
    }
}
