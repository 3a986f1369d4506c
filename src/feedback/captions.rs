//! How well captions explain images: the denoising loss of images under captions, without gradients.

use crate::torch::{no_grad_guard, Device, Kind, Tensor};

use super::denoise::Distance;
use super::limit::enough;
use super::teacher::Teacher;
use crate::denoiser::{Denoiser, KeysValues, Query};
use crate::error::{DivaError, Poll, Result};
use crate::schedule::Noised;
use crate::slices;

const OP: &str = "captions";

/// Images, what they are denoised from, and the texts under which they are.
pub struct Captioned {
    pub latents: Tensor,   // (B, ...)
    pub noise: Tensor,     // (B, N, ...)
    pub timesteps: Tensor, // (B, N) int64
    pub texts: Tensor,     // (M, L, C)
    /// R of (image, text).
    pub pairs: Vec<(i64, i64)>,
}

/// m texts: positions (m, 1 | L, C), and keys and values of those behind them.
struct Texts {
    condition: Tensor,
    read: Option<KeysValues>,
}

impl Teacher {
    /// The losses (R, N) of the pairs, by draw, in float32 or better. All texts of an image see the same noise and
    /// timesteps. `poll` is called after each pass through the denoiser.
    pub fn caption_losses(&self, given: &Captioned, distance: Distance, poll: Poll) -> Result<Tensor> {
        let _no_grad = no_grad_guard();
        let draws = given.check()?;
        let noised = self.every_draw(given)?;
        // Pairs of one text follow each other, so that its keys and values are computed once.
        let mut order: Vec<usize> = (0..given.pairs.len()).collect();
        order.sort_by_key(|&pair| given.pairs[pair].1);
        let most = self.batch.unwrap_or_else(|| fills(&given.latents)).max(1);
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let (mut found, mut start) = (Vec::new(), 0);
        while start < order.len() {
            let width = self.limit.limit().map_or(most, |limit| most.min(limit as i64));
            let (some, count) =
                (width.min(draws), ((width / draws).max(1) as usize).min(order.len() - start));
            let pairs: Vec<_> = order[start..start + count].iter().map(|&pair| given.pairs[pair]).collect();
            match self.losses_of(&pairs, some, given, &noised, distance, poll) {
                Err(err) if err.is_out_of_memory() && self.limit.shrink(count as i64 * some) => continue,
                losses => found.push(losses?),
            }
            start += count;
        }
        let losses = Tensor::f_cat(&found, 0)?;
        let mut places = vec![0; order.len()];
        order.iter().zip(0..).for_each(|(&pair, place)| places[pair] = place);
        Ok(losses.f_index_select(0, &indices(&places, &losses)?)?)
    }

    /// The losses (r, N) of pairs in the order of their texts, `some` draws at a time.
    fn losses_of(
        &self,
        pairs: &[(i64, i64)],
        some: i64,
        given: &Captioned,
        noised: &Noised,
        distance: Distance,
        poll: Poll,
    ) -> Result<Tensor> {
        let draws = given.timesteps.size2()?.1;
        let mut distinct: Vec<i64> = pairs.iter().map(|&(_, text)| text).collect();
        distinct.dedup();
        let texts = self.read(&given.texts.f_index_select(0, &indices(&distinct, &given.texts)?)?)?;
        let mut losses = Vec::new();
        for start in (0..draws).step_by(some as usize) {
            let length = some.min(draws - start);
            let (mut rows, mut text, mut at) = (Vec::new(), Vec::new(), 0);
            for &(image, of) in pairs {
                at += usize::from(distinct[at] != of);
                rows.extend((start..start + length).map(|draw| image * draws + draw));
                text.extend((0..length).map(|_| at as i64));
            }
            let (rows, text) = (indices(&rows, &given.latents)?, indices(&text, &texts.condition)?);
            let condition = self.denoiser.slots().fill(&texts.condition.f_index_select(0, &text)?)?;
            let read = texts.read.as_ref().map(|read| read.select(&text)).transpose()?;
            let query = Query {
                noisy: &noised.noisy.f_index_select(0, &rows)?,
                timesteps: &noised.model_timesteps.f_index_select(0, &rows)?,
                condition: &condition,
                text: read.as_ref(),
            };
            let target = noised.target.f_index_select(0, &rows)?;
            let each = distance.per_sample(&self.denoiser.predict(&query)?, &target)?;
            losses.push(each.f_view([pairs.len() as i64, length])?);
            poll()?;
        }
        Ok(Tensor::f_cat(&losses, 1)?)
    }

    /// All draws of all images (B N, ...), image by image.
    fn every_draw(&self, given: &Captioned) -> Result<Noised> {
        let latents = given.latents.f_unsqueeze(1)?.f_expand_as(&given.noise)?.f_flatten(0, 1)?;
        let (noise, timesteps) = (given.noise.f_flatten(0, 1)?, given.timesteps.f_flatten(0, 1)?);
        self.schedule.add_noise(&latents, &noise, &timesteps)
    }

    /// Texts (m, L, C) for a network, which reads positions apart behind one at least, or not at all.
    fn read(&self, texts: &Tensor) -> Result<Texts> {
        let length = texts.size3()?.1;
        let read = match length {
            1 => None,
            _ => self.denoiser.read(&texts.f_narrow(1, 1, length - 1)?)?,
        };
        let condition = if read.is_some() { texts.f_narrow(1, 0, 1)? } else { texts.shallow_clone() };
        Ok(Texts { condition, read })
    }
}

impl Captioned {
    /// N; an error where the tensors do not fit each other.
    fn check(&self) -> Result<i64> {
        let batch = self.latents.size().first().copied().unwrap_or(0);
        let draws = match self.timesteps.size()[..] {
            [samples, draws] if samples == batch && samples * draws > 0 => draws,
            _ => {
                let expected = format!("({batch}, N), nothing of it empty");
                return Err(DivaError::shape(OP, "timesteps", &self.timesteps, expected));
            }
        };
        let mut noise = vec![batch, draws];
        noise.extend(self.latents.size().iter().skip(1));
        if self.noise.size() != noise {
            let expected = format!("{noise:?}, (B, N, ...) for these latents");
            return Err(DivaError::shape(OP, "noise", &self.noise, expected));
        }
        let texts = match self.texts.size()[..] {
            [texts, length, width] if length * width > 0 => texts,
            _ => return Err(DivaError::shape(OP, "texts", &self.texts, "(M, L, C), nothing of it empty")),
        };
        let inside = |&(image, text): &(i64, i64)| (0..batch).contains(&image) && (0..texts).contains(&text);
        if self.pairs.is_empty() || !self.pairs.iter().all(inside) {
            let what = format!("pairs must be (image, text) below ({batch}, {texts}), at least one");
            return Err(DivaError::data(OP, what));
        }
        Ok(draws)
    }
}

/// On the device of `like`.
fn indices(rows: &[i64], like: &Tensor) -> Result<Tensor> {
    let like = like.f_narrow(0, 0, 0)?.f_to_kind(Kind::Int64)?;
    Ok(slices::copied(rows, &[rows.len() as i64])?.f_to_other(&like, true, false)?)
}

/// How many images fill the machine where no activation is kept.
fn fills(latents: &Tensor) -> usize {
    let times = if latents.device() == Device::Cpu { 1 } else { 16 };
    times * enough(latents).max(1)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::denoiser::Slots;
    use crate::feedback::MemoryLimit;
    use crate::schedule::{Prediction, Schedule};

    const BATCH: i64 = 3;
    const DRAWS: i64 = 4;

    /// Predicts noisy * (1 + mean of the text) + timestep.
    struct Fake {
        reads: bool,
        /// The most images that fit into its memory.
        fits: i64,
        texts_read: Arc<Mutex<i64>>,
    }

    impl Denoiser for Fake {
        fn slots(&self) -> Slots {
            Slots::TOKENS
        }

        fn predict(&self, query: &Query) -> Result<Tensor> {
            let rows = query.noisy.size()[0];
            if rows > self.fits {
                return Err(DivaError::device("fake", "out of memory"));
            }
            let mut text = query.condition.tokens(OP)?.shallow_clone();
            if let Some(KeysValues(layers)) = query.text {
                text = Tensor::f_cat(&[&text, &layers[0].1], 1)?;
            }
            predicted(query.noisy, &text, query.timesteps)
        }

        fn read(&self, text: &Tensor) -> Result<Option<KeysValues>> {
            *self.texts_read.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) += text.size()[0];
            Ok(self.reads.then(|| KeysValues(vec![(text.neg(), text.shallow_clone())])))
        }
    }

    fn predicted(noisy: &Tensor, text: &Tensor, timesteps: &Tensor) -> Result<Tensor> {
        let column = |values: Tensor| values.f_view([-1, 1, 1, 1]);
        let scale = column(text.f_mean_dim([1i64, 2].as_slice(), false, Kind::Double)?)?;
        Ok(noisy.f_mul(&(scale + 1.0))?.f_add(&column(timesteps.f_to_kind(Kind::Double)?)?)?)
    }

    fn given() -> Captioned {
        let normal = |size: &[i64]| Tensor::randn(size, (Kind::Double, Device::Cpu));
        Captioned {
            latents: normal(&[BATCH, 2, 3, 3]),
            noise: normal(&[BATCH, DRAWS, 2, 3, 3]),
            timesteps: Tensor::randint(10, [BATCH, DRAWS], (Kind::Int64, Device::Cpu)),
            texts: normal(&[4, 5, 6]),
            pairs: vec![(2, 3), (0, 0), (1, 3), (2, 0), (0, 1), (2, 3), (1, 2)],
        }
    }

    fn teacher(prediction: Prediction, fake: Fake, batch: Option<usize>) -> Result<Teacher> {
        let table = Tensor::linspace(0.99, 0.01, 10, (Kind::Double, Device::Cpu));
        let schedule = Arc::new(Schedule::from_alphas_cumprod(&table, prediction)?);
        Ok(Teacher { denoiser: Arc::new(Mutex::new(fake)), schedule, batch, limit: MemoryLimit::default() })
    }

    /// One image, draw and text at a time.
    fn one_by_one(given: &Captioned, schedule: &Schedule) -> Result<Vec<f64>> {
        let mut losses = Vec::new();
        for &(image, text) in &given.pairs {
            for draw in 0..DRAWS {
                let latents = given.latents.f_narrow(0, image, 1)?;
                let noise = given.noise.f_narrow(0, image, 1)?.f_select(1, draw)?;
                let timesteps = given.timesteps.f_narrow(0, image, 1)?.f_select(1, draw)?;
                let noised = schedule.add_noise(&latents, &noise, &timesteps)?;
                let text = given.texts.f_narrow(0, text, 1)?;
                let prediction = predicted(&noised.noisy, &text, &noised.model_timesteps)?;
                losses.push((prediction - noised.target).square().mean(Kind::Double).f_double_value(&[])?);
            }
        }
        Ok(losses)
    }

    #[test]
    fn every_split_gives_the_losses_of_one_at_a_time() -> Result<()> {
        let given = given();
        for prediction in [Prediction::Epsilon, Prediction::V] {
            for (reads, fits) in [(true, 100), (true, 3), (false, 100), (false, 1)] {
                for batch in [None, Some(1), Some(3), Some(4), Some(9), Some(100)] {
                    let texts_read = Arc::new(Mutex::new(0));
                    let fake = Fake { reads, fits, texts_read: texts_read.clone() };
                    let teacher = teacher(prediction, fake, batch)?;
                    let losses = teacher.caption_losses(&given, Distance::Mse, &|| Ok(()))?;
                    assert_eq!(losses.size(), [given.pairs.len() as i64, DRAWS]);
                    let losses = Vec::<f64>::try_from(losses.f_flatten(0, 1)?)?;
                    for (loss, expected) in losses.iter().zip(one_by_one(&given, &teacher.schedule)?) {
                        assert!((loss - expected).abs() <= 1e-12 * expected);
                    }
                    assert!(teacher.limit.limit().is_none_or(|limit| limit as i64 <= fits));
                    if batch == Some(100) && fits == 100 {
                        assert_eq!(*texts_read.lock().unwrap_or_else(|poisoned| poisoned.into_inner()), 4);
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_an_error() -> Result<()> {
        let fake = || Fake { reads: true, fits: 0, texts_read: Arc::default() };
        let teacher = teacher(Prediction::Epsilon, fake(), None)?;
        let losses = |given: &Captioned| teacher.caption_losses(given, Distance::L1, &|| Ok(()));
        assert!(losses(&given()).is_err_and(|err| err.is_out_of_memory()));
        for pairs in [vec![], vec![(3, 0)], vec![(0, 4)], vec![(-1, 0)]] {
            assert!(
                losses(&Captioned { pairs, ..given() }).is_err_and(|err| err.to_string().contains("pairs"))
            );
        }
        let texts = Tensor::zeros([4, 6], (Kind::Double, Device::Cpu));
        assert!(losses(&Captioned { texts, ..given() }).is_err_and(|err| err.to_string().contains("`texts`")));
        let noise = given().noise.f_narrow(1, 0, 1)?;
        assert!(losses(&Captioned { noise, ..given() }).is_err_and(|err| err.to_string().contains("`noise`")));
        Ok(())
    }
}
