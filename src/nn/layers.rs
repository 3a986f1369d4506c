//! Linear, convolution, norms.

use crate::torch::{Device, Kind, Tensor};

use super::mixed::{mixed_function, mixed_linear};
use super::products::{compute_in, compute_of, row_major};
use super::weights::Path;
use crate::error::Result;

/// `weight` in the dtype of `input`: a cast inside the graph, or the weight itself.
fn like(weight: &Tensor, input: &Tensor) -> Result<Tensor> {
    Ok(weight.f_to_kind(input.f_kind()?)?)
}

fn maybe_like(weight: &Option<Tensor>, input: &Tensor) -> Result<Option<Tensor>> {
    weight.as_ref().map(|weight| like(weight, input)).transpose()
}

/// torch.nn.Linear: weight (out, in).
pub struct Linear {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    /// Where the gradient arrives instead of at the weight, in its dtype ([`super::Store::with_leaves`]).
    pub leaf: Option<Tensor>,
    /// Whether a product in another dtype keeps a weight that learns in that dtype for its backward pass, instead of
    /// casting again.
    pub holds: bool,
    /// Of weight and bias, in the dtype of the products ([`Linear::copy_in`]).
    pub copy: Option<(Tensor, Option<Tensor>)>,
}

impl Linear {
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Linear { weight, bias, leaf: None, holds: false, copy: None }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (kind, compute) = (x.f_kind()?, compute_of(x)?);
        let (learns, apart) = (self.weight.requires_grad(), self.weight.f_kind()? != kind);
        let mixed = (learns && (apart || self.leaf.is_some())) || (apart && self.copy.is_some());
        if compute != kind || mixed {
            return mixed_linear(x, self, compute, kind);
        }
        Ok(row_major(x, kind)?.f_linear(&like(&self.weight, x)?, maybe_like(&self.bias, x)?)?)
    }

    /// Of `x` rounded to dtype `kind`, and in this dtype. The gradient at `x` is not rounded where products can give it so.
    pub fn narrowed(&self, x: &Tensor, kind: Kind) -> Result<Tensor> {
        match x.f_kind()? == kind {
            true => self.forward(x),
            false => mixed_linear(x, self, compute_in(kind, x), kind),
        }
    }

    /// Multiplies with copies in dtype `kind` from now on, whose owner keeps them up to date: (copy, what it is of) each.
    pub fn copy_in(&mut self, kind: Kind) -> Result<Vec<(Tensor, Tensor)>> {
        let copy = |tensor: &Tensor| tensor.f_detach()?.f_to_kind(kind);
        let (weight, bias) = (copy(&self.weight)?, self.bias.as_ref().map(copy).transpose()?);
        let of_bias =
            bias.iter().zip(&self.bias).map(|(copy, bias)| (copy.shallow_clone(), bias.shallow_clone()));
        let pairs =
            [(weight.shallow_clone(), self.weight.shallow_clone())].into_iter().chain(of_bias).collect();
        self.copy = Some((weight, bias));
        Ok(pairs)
    }
}

/// torch.nn.Conv2d: weight (out, in, kernel, kernel), no dilation, no groups.
pub struct Conv2d {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    pub stride: i64,
    pub padding: i64,
}

impl Conv2d {
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match compute_of(x)? {
            compute if compute != x.f_kind()? => {
                let conv = self.shallow_clone();
                mixed_function(x, compute, |x| self.plain(x), move |at, size| conv.at_input(at, size))
            }
            _ => self.plain(x),
        }
    }

    /// In the dtype of `x`.
    pub(super) fn plain(&self, x: &Tensor) -> Result<Tensor> {
        if let (Some(size), Some(bias)) = (self.few_pixels(x)?, &self.bias) {
            return self.as_product(x, size, &like(bias, x)?);
        }
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        Ok(x.f_conv2d(&like(&self.weight, x)?, maybe_like(&self.bias, x)?, stride, padding, [1, 1], 1)?)
    }

    /// The size of the output where a matrix product is the faster way: on a CPU, few pixels and a
    /// weight of tens of megabytes, which oneDNN's convolution would rearrange in every call
    /// (benches/results/profile-cpu.md).
    fn few_pixels(&self, x: &Tensor) -> Result<Option<(i64, i64)>> {
        let ((batch, _, height, width), (_, _, kernel, _)) = (x.size4()?, self.weight.size4()?);
        let side = |length: i64| (length + 2 * self.padding - kernel) / self.stride + 1;
        let size = (side(height), side(width));
        let few = size.0 * size.1 <= 64 && batch * size.0 * size.1 <= 128 && self.weight.numel() >= 1 << 24;
        Ok((few && x.device() == Device::Cpu).then_some(size))
    }

    /// weight (out, in kernel^2) times the patches of all images (in kernel^2, pixels).
    fn as_product(&self, x: &Tensor, (height, width): (i64, i64), bias: &Tensor) -> Result<Tensor> {
        let kernel = self.weight.size4()?.2;
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        let patches = x.f_im2col([kernel; 2], [1, 1], padding, stride)?.f_transpose(0, 1)?.f_flatten(1, 2)?;
        let weight = like(&self.weight, x)?.f_flatten(1, -1)?;
        let pixels = bias.f_unsqueeze(1)?.f_addmm(&weight, &patches)?; // (out, batch pixels)
        Ok(pixels.f_view([weight.size2()?.0, -1, height, width])?.f_transpose(0, 1)?.f_contiguous()?)
    }

    /// The gradient at the input of this `size`, given the one at the output, in its dtype.
    pub(super) fn at_input(&self, gradient: &Tensor, size: &[i64]) -> Result<Tensor> {
        let (weight, kernel) = (like(&self.weight, gradient)?, self.weight.size4()?.2);
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        // What a stride leaves of each side.
        let output = gradient.size4()?;
        let rest = |side: i64, out: i64| side + 2 * self.padding - kernel - (out - 1) * self.stride;
        let rests = [rest(size[2], output.2), rest(size[3], output.3)];
        let (none, dilation) = (None::<&Tensor>, [1, 1]);
        Ok(gradient.f_conv_transpose2d(&weight, none, stride, padding, rests, 1, dilation)?)
    }

    pub(super) fn shallow_clone(&self) -> Self {
        let bias = self.bias.as_ref().map(Tensor::shallow_clone);
        Conv2d { weight: self.weight.shallow_clone(), bias, ..*self }
    }
}

/// The dtype of a norm's weights beside `x`: its own. libtorch computes with float32 inside, but on a CPU it keeps the
/// statistics of a bf16 input for the backward pass in the dtype of the weights.
fn of_norm(x: &Tensor) -> Result<Kind> {
    let kind = x.f_kind()?;
    Ok(if x.device() == Device::Cpu && kind == Kind::BFloat16 { Kind::Float } else { kind })
}

/// torch.nn.LayerNorm over the last dimension.
pub struct LayerNorm {
    pub weight: Option<Tensor>,
    pub bias: Option<Tensor>,
    pub width: i64,
    pub eps: f64,
}

impl LayerNorm {
    /// Without weights (`elementwise_affine=False`).
    pub fn plain(width: i64, eps: f64) -> Self {
        LayerNorm { weight: None, bias: None, width, eps }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (kind, of_weights) = (x.f_kind()?, of_norm(x)?);
        let norm = |x: &Tensor| -> Result<Tensor> {
            let cast =
                |weight: &Option<Tensor>| weight.as_ref().map(|one| one.f_to_kind(of_weights)).transpose();
            Ok(x.f_layer_norm([self.width], cast(&self.weight)?, cast(&self.bias)?, self.eps, true)?)
        };
        match self.weight {
            None => Ok(norm(&x.f_to_kind(of_weights)?)?.f_to_kind(kind)?),
            _ => norm(x),
        }
    }
}

/// torch.nn.GroupNorm over (B, C, ...).
pub struct GroupNorm {
    pub weight: Tensor,
    pub bias: Tensor,
    pub groups: i64,
    pub eps: f64,
}

impl GroupNorm {
    pub fn load(path: &Path, channels: i64, groups: i64, eps: f64) -> Result<Self> {
        let (weight, bias) = (path.get("weight", &[channels])?, path.get("bias", &[channels])?);
        Ok(GroupNorm { weight, bias, groups, eps })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let kind = of_norm(x)?;
        let (weight, bias) = (self.weight.f_to_kind(kind)?, self.bias.f_to_kind(kind)?);
        Ok(x.f_group_norm(self.groups, Some(weight), Some(bias), self.eps, true)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_convolution_as_a_product_is_the_convolution() -> Result<()> {
        crate::torch::manual_seed(0);
        let randn = |size: &[i64]| Tensor::randn(size, (Kind::Double, Device::Cpu));
        for (kernel, stride, padding, side) in
            [(3, 1, 1, 5), (3, 2, 1, 6), (3, 2, 0, 7), (1, 1, 0, 4), (2, 2, 0, 6)]
        {
            let (weight, bias) = (randn(&[4, 3, kernel, kernel]), randn(&[4]));
            let conv = Conv2d { weight, bias: Some(bias.shallow_clone()), stride, padding };
            let x = randn(&[if side == 5 { 2 } else { 1 }, 3, side, side + 1]).set_requires_grad(true);
            let expected = conv.forward(&x)?;
            let (_, _, height, width) = expected.size4()?;
            let found = conv.as_product(&x, (height, width), &bias)?;
            let scales = randn(&expected.size());
            let mut all = Vec::new();
            for output in [&found, &expected] {
                let loss = output.f_mul(&scales)?.f_sum(Kind::Double)?;
                all.push((
                    output.detach(),
                    Tensor::f_run_backward(&[&loss], &[&x], false, false)?.swap_remove(0),
                ));
            }
            assert_eq!(found.size(), expected.size());
            for (mine, other) in [(&all[0].0, &all[1].0), (&all[0].1, &all[1].1)] {
                assert!(mine.f_sub(other)?.f_abs()?.f_max()?.f_double_value(&[])? < 1e-12);
            }
        }
        Ok(())
    }

    #[test]
    fn a_product_takes_small_images_and_a_large_weight() -> Result<()> {
        let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::BFloat16, Device::Cpu));
        let conv =
            |inputs, stride| Conv2d { weight: zeros(&[1280, inputs, 3, 3]), bias: None, stride, padding: 1 };
        assert_eq!(conv(2560, 1).few_pixels(&zeros(&[1, 2560, 8, 8]))?, Some((8, 8)));
        assert_eq!(conv(2560, 2).few_pixels(&zeros(&[1, 2560, 16, 15]))?, Some((8, 8)));
        assert_eq!(conv(2560, 1).few_pixels(&zeros(&[2, 2560, 8, 8]))?, Some((8, 8)));
        for size in [[3, 2560, 8, 8], [1, 2560, 8, 9], [1, 1280, 8, 8]] {
            assert_eq!(conv(size[1], 1).few_pixels(&zeros(&size))?, None);
        }
        Ok(())
    }
}
