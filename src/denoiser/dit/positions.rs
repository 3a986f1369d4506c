//! Two-dimensional sine-cosine positions: stored ones at the size of training, computed ones at any other.

use crate::torch::{Kind, Tensor};

use super::config::Config;
use crate::denoiser::embeddings::count;
use crate::error::Result;
use crate::nn::Path;

pub struct Positions {
    stored: Tensor, // (1, grid^2, W)
    grid: i64,
    width: i64,
}

impl Positions {
    pub fn load(path: &Path, config: &Config) -> Result<Self> {
        let (grid, width) = (config.grid, config.width);
        Ok(Positions { stored: path.get("pos_embed", &[1, grid * grid, width])?, grid, width })
    }

    /// (1, side^2, W) for `side` patches along each side.
    pub fn at(&self, side: i64) -> Result<Tensor> {
        if side == self.grid {
            return Ok(self.stored.shallow_clone());
        }
        // diffusers embeddings.py `get_2d_sincos_pos_embed`: coordinates in float32, scaled to those of training,
        // frequencies and angles in float64, the result in float32 whatever the network's dtype.
        let scale = side as f64 / self.grid as f64;
        let coordinates = count(&self.stored, side)?.f_to_kind(Kind::Float)?.f_div_scalar(scale)?;
        let quarter = self.width / 4;
        let exponents = count(&self.stored, quarter)?.f_div_scalar(quarter as f64)?;
        let frequencies = Tensor::f_pow_scalar(10000.0, &exponents)?.f_reciprocal()?;
        let angles = coordinates.f_to_kind(Kind::Double)?.f_outer(&frequencies)?; // (side, W / 4)
        let line = Tensor::f_cat(&[angles.f_sin()?, angles.f_cos()?], 1)?.f_to_kind(Kind::Float)?; // (side, W / 2)
        let shape = [side, side, self.width / 2];
        // The first half tells the column, the second the row.
        let (columns, rows) =
            (line.f_unsqueeze(0)?.f_expand(shape, false)?, line.f_unsqueeze(1)?.f_expand(shape, false)?);
        Ok(Tensor::f_cat(&[columns, rows], 2)?.f_view([1, side * side, self.width])?)
    }
}
