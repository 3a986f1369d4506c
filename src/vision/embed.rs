//! Pixels to tokens: patch convolution, class and register tokens, positions.

use crate::torch::{Device, Kind, Tensor};

use super::config::{Config, Positions, Resize};
use super::layouts::Names;
use super::load::rows;
use crate::error::{floating, DivaError, Result};
use crate::nn::{compute_of, Linear, Path};

const OP: &str = "VisionTransformer.tokens";

pub struct Embed {
    stem: Linear, // weight (W, 3, h, w): the convolution is one matrix product per patch
    class: Option<Tensor>,
    registers: Option<Tensor>,
    positions: Option<Tensor>,
    /// Rows of `positions` that belong to class and register tokens.
    prefix_rows: i64,
    image: (i64, i64),
    patch: (i64, i64),
    grid: (i64, i64),
    width: i64,
    resize: Resize,
}

impl Embed {
    pub fn load(path: &Path, names: &Names, config: &Config) -> Result<Self> {
        let width = config.width;
        let grid = config.grid(config.image);
        let with_batch = |rows: &[i64]| -> Vec<i64> {
            let lead: &[i64] = if names.batched { &[1] } else { &[] };
            [lead, rows].concat()
        };
        let stem_path = path / names.stem;
        let weight = stem_path.get("weight", &[width, 3, config.patch.0, config.patch.1])?;
        let bias = config.stem_bias.then(|| stem_path.get("bias", &[width])).transpose()?;
        let class_shape = if names.batched { vec![1, 1, width] } else { vec![width] };
        let class =
            names.class.filter(|_| config.class_token).map(|key| path.get(key, &class_shape)).transpose()?;
        let registers = names
            .registers
            .filter(|_| config.registers > 0)
            .map(|key| path.get(key, &[1, config.registers, width]))
            .transpose()?;
        let prefix_rows = if config.positions == Positions::All { config.prefix() } else { 0 };
        let positions = (config.positions != Positions::None)
            .then(|| path.get(names.positions, &with_batch(&[prefix_rows + grid.0 * grid.1, width])))
            .transpose()?;
        let (image, patch, resize) = (config.image, config.patch, config.resize);
        let stem = Linear::new(weight, bias);
        Ok(Embed { stem, class, registers, positions, prefix_rows, image, patch, grid, width, resize })
    }

    pub fn device(&self) -> Device {
        self.stem.weight.device()
    }

    /// The kind that the weights have now.
    pub fn kind(&self) -> Kind {
        self.stem.weight.kind()
    }

    /// (B, 3, H, W) -> (B, prefix + P, W): the convolution in `compute`, the sum in `residual`.
    pub fn forward(&self, images: &Tensor, compute: Kind, residual: Kind) -> Result<Tensor> {
        let grid = self.check(images)?;
        let images = images.f_to_kind(compute)?;
        let compute = compute_of(&images)?;
        let weight = self.stem.weight.f_to_kind(compute)?;
        let bias = self.stem.bias.as_ref().map(|bias| bias.f_to_kind(compute)).transpose()?;
        let patch = [self.patch.0, self.patch.1];
        let patches = images.f_to_kind(compute)?.f_conv2d(&weight, bias, patch, [0, 0], [1, 1], 1)?; // (B, W, h, w)
        let mut patches = patches.f_flatten(2, 3)?.f_transpose(1, 2)?.f_to_kind(residual)?; // (B, P, W)
        if let Some(positions) = self.patch_positions(grid)? {
            patches = patches.f_add(&positions.f_to_kind(residual)?)?;
        }
        match self.prefix(residual)? {
            None => Ok(patches),
            Some(prefix) => {
                let prefix = prefix.f_expand([patches.size()[0], -1, -1], false)?;
                Ok(Tensor::f_cat(&[prefix, patches], 1)?)
            }
        }
    }

    /// Class and register tokens with their positions, (1, prefix, W): the same for every image.
    fn prefix(&self, residual: Kind) -> Result<Option<Tensor>> {
        let parts: Vec<Tensor> = [&self.class, &self.registers]
            .into_iter()
            .flatten()
            .map(|part| rows(&part.f_to_kind(residual)?, self.width))
            .collect::<Result<_>>()?;
        if parts.is_empty() {
            return Ok(None);
        }
        let prefix = Tensor::f_cat(&parts, 1)?;
        match &self.positions {
            Some(positions) if self.prefix_rows > 0 => {
                let own = rows(positions, self.width)?.f_narrow(1, 0, self.prefix_rows)?;
                Ok(Some(prefix.f_add(&own.f_to_kind(residual)?)?))
            }
            _ => Ok(Some(prefix)),
        }
    }

    /// Positions of the patches of a `grid`, (1, P, W).
    fn patch_positions(&self, grid: (i64, i64)) -> Result<Option<Tensor>> {
        let Some(positions) = &self.positions else { return Ok(None) };
        let own = rows(positions, self.width)?.f_narrow(1, self.prefix_rows, self.grid.0 * self.grid.1)?;
        if grid == self.grid || self.resize == Resize::None {
            return Ok(Some(own));
        }
        let kind = own.kind();
        let map = own.f_view([1, self.grid.0, self.grid.1, self.width])?.f_permute([0, 3, 1, 2])?;
        let size = [grid.0, grid.1];
        let map = match self.resize {
            // transformers/models/clip/modeling_clip.py: interpolate_pos_encoding
            Resize::None | Resize::Bicubic => map.f_upsample_bicubic2d(size, false, None, None)?,
            // timm/layers/pos_embed.py: resample_abs_pos_embed, "interpolate needs float32"
            Resize::BicubicAntialias => map
                .f_to_kind(Kind::Float)?
                .f_internal_upsample_bicubic2d_aa(size, false, None, None)?
                .f_to_kind(kind)?,
        };
        Ok(Some(map.f_permute([0, 2, 3, 1])?.f_reshape([1, -1, self.width])?))
    }

    /// The grid of patches of a batch that this tower can take.
    fn check(&self, images: &Tensor) -> Result<(i64, i64)> {
        let (height, width) = self.image;
        let exact = self.resize == Resize::None;
        let expected = || match exact {
            true => format!("(B, 3, {height}, {width})"),
            false => format!("(B, 3, H, W) of whole {}x{} patches", self.patch.0, self.patch.1),
        };
        let refused = || Err(DivaError::shape(OP, "images", images, expected()));
        let size = images.size();
        let &[batch, 3, rows, columns] = size.as_slice() else { return refused() };
        let fits = if exact {
            (rows, columns) == self.image
        } else if (rows, columns) == self.image {
            true
        } else {
            rows > 0 && columns > 0 && rows % self.patch.0 == 0 && columns % self.patch.1 == 0
        };
        if batch == 0 || !fits {
            return refused();
        }
        floating(OP, "images", images)?;
        if images.device() != self.stem.weight.device() {
            let what = format!(
                "images are on {:?}, the weights on {:?}: move one to the other",
                images.device(),
                self.stem.weight.device()
            );
            return Err(DivaError::device(OP, what));
        }
        Ok((rows / self.patch.0, columns / self.patch.1))
    }
}
