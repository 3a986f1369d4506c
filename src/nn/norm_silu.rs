//! Group norm and SiLU, between which convolutions stand.

use super::activation::narrow_silu;
use super::GroupNorm;
use crate::error::Result;
use crate::torch::{Kind, Tensor};

impl GroupNorm {
    /// silu(norm(x)) of x (B, C, h, w), in dtype `kind`.
    pub fn silu(&self, x: &Tensor, kind: Kind) -> Result<Tensor> {
        #[cfg(target_arch = "x86_64")]
        if let Some(found) = kernel::forward(self, x, kind)? {
            return Ok(found);
        }
        let mut normed = self.forward(x)?;
        match normed.f_kind()? == kind && !normed.requires_grad() {
            true => Ok(normed.f_silu_()?),
            false => narrow_silu(&normed, kind),
        }
    }
}

/// On a CPU, of a norm that does not learn: the groups one by one, which the caches hold from one pass over them to
/// the next. The graph keeps the input and the statistics, and no number is written between norm and result.
#[cfg(target_arch = "x86_64")]
mod kernel {
    use std::marker::PhantomData;

    use super::{GroupNorm, Result};
    use crate::autograd::{apply, Backward};
    use crate::nn::stored::Stored;
    use crate::simd::{sigmoid, widest, Work, LANES};
    use crate::slices::view;
    use crate::threads;
    use crate::torch::{Device, Kind, Tensor};

    /// `None`: not of a tensor or a norm that this pass takes.
    pub fn forward(norm: &GroupNorm, x: &Tensor, kind: Kind) -> Result<Option<Tensor>> {
        let learns = norm.weight.requires_grad() || norm.bias.requires_grad();
        let channels = x.size().get(1).copied().unwrap_or(0);
        let fits = channels > 0 && norm.weight.size() == [channels] && channels % norm.groups.max(1) == 0;
        if learns || !fits || x.device() != Device::Cpu || x.numel() == 0 {
            return Ok(None); // libtorch says what is wrong, where something is
        }
        Ok(match (x.f_kind()?, kind) {
            (Kind::Float, Kind::BFloat16) => Some(run::<f32, u16>(norm, x)?),
            (Kind::Float, Kind::Float) => Some(run::<f32, f32>(norm, x)?),
            (Kind::BFloat16, Kind::BFloat16) => Some(run::<u16, u16>(norm, x)?),
            _ => None,
        })
    }

    struct Kept<T, U> {
        x: Tensor,
        /// Of each group of each sample.
        groups: Vec<Group>,
        /// Of each channel of each sample.
        channels: Vec<Channel>,
        stored: PhantomData<(T, U)>,
    }

    #[derive(Clone, Copy)]
    struct Group {
        mean: f32,
        /// 1 / deviation
        rest: f32,
    }

    /// The norm's output is scale * x + shift.
    struct Channel {
        weight: f32,
        scale: f32,
        shift: f32,
    }

    fn run<T: Stored, U: Stored>(norm: &GroupNorm, x: &Tensor) -> Result<Tensor> {
        apply(&[x], || {
            let plain = T::plain(x)?;
            let numbers = T::numbers(&plain)?;
            let count = x.size().first().map_or(0, |&batch| (batch * norm.groups) as usize);
            let len = numbers.len() / count;
            let eps = norm.eps;
            let of = |index: usize| widest(Statistics { numbers: &numbers[index * len..][..len], eps });
            let groups = threads::map(count, of)?;
            let channels = channels(norm, &groups)?;
            let (of_group, of_channel) = (channels.len() / count, numbers.len() / channels.len());
            let result = U::written(&x.size(), |to| {
                threads::consume(to.chunks_mut(len).enumerate().collect(), |(index, to)| {
                    let from = numbers[index * len..].chunks(of_channel);
                    let channels = channels[index * of_group..][..of_group].iter();
                    for ((channel, from), to) in channels.zip(from).zip(to.chunks_mut(of_channel)) {
                        widest(Forward { channel, from, to });
                    }
                })
            })?;
            Ok((result, Kept::<T, U> { x: plain, groups, channels, stored: PhantomData }))
        })
    }

    fn channels(norm: &GroupNorm, groups: &[Group]) -> Result<Vec<Channel>> {
        let wide = |x: &Tensor| x.f_detach()?.f_to_kind(Kind::Float)?.f_contiguous();
        let (weight, bias) = (wide(&norm.weight)?, wide(&norm.bias)?);
        let (weight, bias) = (view::<f32>(&weight)?, view::<f32>(&bias)?);
        let of_group = weight.len() / norm.groups as usize;
        let both = weight
            .iter()
            .zip(bias)
            .cycle()
            .zip(groups.iter().flat_map(|one| std::iter::repeat_n(one, of_group)));
        let channel = |((&weight, &bias), Group { mean, rest }): ((&f32, &f32), &Group)| {
            let scale = weight * rest;
            Channel { weight, scale, shift: bias - scale * mean }
        };
        Ok(both.map(channel).collect())
    }

    /// Sums of `each` number, in float32 over some hundreds and in float64 over these.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn summed<const N: usize>(count: usize, each: impl Fn(usize) -> [f32; N]) -> [f64; N] {
        const SOME: usize = 32 * LANES;
        let mut total = [0.0; N];
        for start in (0..count).step_by(SOME) {
            let end = count.min(start + SOME);
            let mut sums = [[0.0f32; LANES]; N];
            let whole = start + (end - start) / LANES * LANES;
            for at in (start..whole).step_by(LANES) {
                for lane in 0..LANES {
                    let numbers = each(at + lane);
                    for n in 0..N {
                        sums[n][lane] += numbers[n];
                    }
                }
            }
            for at in whole..end {
                let numbers = each(at);
                for n in 0..N {
                    sums[n][0] += numbers[n];
                }
            }
            for n in 0..N {
                total[n] += sums[n].iter().map(|&sum| f64::from(sum)).sum::<f64>();
            }
        }
        total
    }

    struct Statistics<'a, T> {
        numbers: &'a [T],
        eps: f64,
    }

    impl<T: Stored> Work for Statistics<'_, T> {
        type Output = Group;

        #[inline(always)]
        fn run(self) -> Group {
            let (numbers, count) = (self.numbers, self.numbers.len() as f64);
            let [sum] = summed(numbers.len(), |at| [numbers[at].wide()]);
            let mean = (sum / count) as f32;
            let [squares] = summed(numbers.len(), |at| {
                let off = numbers[at].wide() - mean;
                [off * off]
            });
            Group { mean, rest: (squares / count + self.eps).sqrt().recip() as f32 }
        }
    }

    struct Forward<'a, T, U> {
        channel: &'a Channel,
        from: &'a [T],
        to: &'a mut [U],
    }

    impl<T: Stored, U: Stored> Work for Forward<'_, T, U> {
        type Output = ();

        #[inline(always)]
        fn run(self) {
            for (to, from) in self.to.iter_mut().zip(self.from) {
                let y = self.channel.scale * from.wide() + self.channel.shift;
                *to = U::round(y * sigmoid(y));
            }
        }
    }

    impl Channel {
        /// The gradient at the norm's output for the number `x`, given the one at its SiLU.
        #[inline(always)]
        fn at_norm(&self, x: f32, gradient: f32) -> f32 {
            let y = self.scale * x + self.shift;
            let share = sigmoid(y);
            gradient * share * (1.0 + y * (1.0 - share))
        }
    }

    /// Of the gradient at the norm's output, and of it times the normalised numbers.
    struct Sums<'a, T, U> {
        channel: &'a Channel,
        group: Group,
        x: &'a [T],
        gradient: &'a [U],
    }

    impl<T: Stored, U: Stored> Work for Sums<'_, T, U> {
        type Output = [f64; 2];

        #[inline(always)]
        fn run(self) -> [f64; 2] {
            let Sums { channel, group, x, gradient } = self;
            summed(x.len().min(gradient.len()), |at| {
                let x = x[at].wide();
                let found = channel.at_norm(x, gradient[at].wide());
                [found, found * ((x - group.mean) * group.rest)]
            })
        }
    }

    /// The gradient at the input.
    struct At<'a, T, U> {
        channel: &'a Channel,
        group: Group,
        /// Of [`Sums`] over the group, times the weights.
        means: (f32, f32),
        x: &'a [T],
        gradient: &'a [U],
        to: &'a mut [T],
    }

    impl<T: Stored, U: Stored> Work for At<'_, T, U> {
        type Output = ();

        #[inline(always)]
        fn run(self) {
            let (Group { mean, rest }, (sum, product)) = (self.group, self.means);
            for ((to, x), gradient) in self.to.iter_mut().zip(self.x).zip(self.gradient) {
                let x = x.wide();
                let off = sum + (x - mean) * rest * product;
                *to = T::round(self.channel.scale * self.channel.at_norm(x, gradient.wide()) - rest * off);
            }
        }
    }

    impl<T: Stored, U: Stored> Backward for Kept<T, U> {
        fn backward(&self, gradient: &Tensor, _needed: &[bool]) -> Result<Vec<Option<Tensor>>> {
            let gradient = U::plain(gradient)?;
            let (x, gradient) = (T::numbers(&self.x)?, U::numbers(&gradient)?);
            let (groups, channels) = (&self.groups, &self.channels);
            let (len, of_group) = (x.len() / groups.len(), channels.len() / groups.len());
            let of_channel = len / of_group;
            let found = T::written(&self.x.size(), |to| {
                threads::consume(to.chunks_mut(len).enumerate().collect(), |(index, to)| {
                    let (x, gradient) = (&x[index * len..][..len], &gradient[index * len..][..len]);
                    let group = groups[index];
                    let channels = &channels[index * of_group..][..of_group];
                    let parts = || channels.iter().zip(x.chunks(of_channel).zip(gradient.chunks(of_channel)));
                    let (mut sum, mut product) = (0.0, 0.0);
                    for (channel, (x, gradient)) in parts() {
                        let [first, second] = widest(Sums { channel, group, x, gradient });
                        sum += first * f64::from(channel.weight);
                        product += second * f64::from(channel.weight);
                    }
                    let (sum, product) = ((sum / len as f64) as f32, (product / len as f64) as f32);
                    for ((channel, (x, gradient)), to) in parts().zip(to.chunks_mut(of_channel)) {
                        widest(At { channel, group, means: (sum, product), x, gradient, to });
                    }
                })
            })?;
            Ok(vec![Some(found)])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::Device;

    #[test]
    fn norm_and_silu_at_once_are_those_one_by_one() -> Result<()> {
        crate::torch::manual_seed(0);
        let (double, wide, half) = (Kind::Double, Kind::Float, Kind::BFloat16);
        for (of_x, kind, bound) in
            [(double, double, 1e-13), (wide, wide, 3e-6), (wide, half, 5e-3), (half, half, 5e-3)]
        {
            for size in [[1, 4, 1, 3], [2, 6, 3, 5], [3, 64, 33, 47]] {
                let randn = |size: &[i64]| Tensor::randn(size, (double, Device::Cpu));
                let given = randn(&size).f_mul_scalar(3.0)?.f_add_scalar(7.0)?.f_to_kind(of_x)?;
                // Channels last, too.
                let given = if size[1] == 6 {
                    given.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?
                } else {
                    given
                };
                let [x, exact] =
                    [&given, &given.f_to_kind(double)?].map(|x| x.detach().set_requires_grad(true));
                let of_norm = randn(&[2, size[1]]).f_to_kind(half)?; // drawn once: tests share a generator
                let norm = |kind: Kind| -> Result<GroupNorm> {
                    let part = |row| of_norm.f_select(0, row)?.f_to_kind(kind);
                    Ok(GroupNorm { weight: part(0)?, bias: part(1)?, groups: 2, eps: 1e-5 })
                };
                let ours = norm(of_x)?.silu(&x, kind)?;
                let theirs = norm(double)?.forward(&exact)?.f_silu()?;
                let scales = ours.f_randn_like()?;
                let gradient = |output: &Tensor, at: &Tensor| -> Result<Tensor> {
                    let loss = output.f_mul(&scales)?.f_sum(double)?;
                    Ok(Tensor::f_run_backward(&[&loss], &[at], false, false)?.swap_remove(0))
                };
                assert_eq!((ours.kind(), ours.size()), (kind, size.to_vec()));
                let of_both = (gradient(&ours, &x)?, gradient(&theirs, &exact)?);
                for (mine, other) in [(ours.detach(), theirs.detach()), of_both] {
                    let off = mine.f_sub(&other)?.f_norm()?.f_double_value(&[])?;
                    assert!(
                        off <= bound * (other.f_norm()?.f_double_value(&[])? + 1e-3),
                        "{of_x:?} {size:?}: {off}"
                    );
                }
            }
        }
        Ok(())
    }

    #[test]
    fn the_gradients_of_a_norm_that_learns_are_there() -> Result<()> {
        let randn = |size: &[i64]| Tensor::randn(size, (Kind::Float, Device::Cpu));
        let (weight, bias) = (randn(&[4]).set_requires_grad(true), randn(&[4]));
        let norm = GroupNorm { weight: weight.shallow_clone(), bias, groups: 2, eps: 1e-5 };
        let loss = norm.silu(&randn(&[2, 4, 3, 3]), Kind::BFloat16)?.f_sum(Kind::Float)?;
        assert_eq!(Tensor::f_run_backward(&[&loss], &[&weight], false, false)?[0].size(), [4]);
        Ok(())
    }
}
