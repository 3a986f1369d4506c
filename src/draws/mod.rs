//! Draws: the timesteps, noise and token choices of a batch, each a function of (seed, sample id, epoch, draw, purpose).
//!
//! No draw depends on the order of calls, so a run can be replayed to the bit: on any device, for any batch order,
//! micro-batch size, number of threads, workers or ranks, and after a resume. (Stratified timesteps are spread over the
//! batch they are drawn for: draw for the whole batch, then slice.) All of it is arithmetic that is the same to the
//! bit on every processor, except the `exp` and `ln` behind logit-normal timesteps.

mod check;
mod keys;
mod negatives;
mod noise;
mod timesteps;
mod tokens;

pub use check::{MAX_BYTES, MAX_DIMS, MAX_DRAWS, MAX_PATCHES, MAX_TIMESTEP};
pub use keys::{augment_seed, Key, Purpose};
pub use negatives::negatives;

use crate::error::{DivaError, Result};
use crate::threads::spread;

/// How timesteps are spread over `range`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Timesteps {
    /// Each equally likely, independently.
    Uniform,
    /// The range cut into B*N equal strata, each hit exactly once: less variance in the loss, same expectation.
    Stratified,
    /// `lo + floor(sigmoid(mean + std * normal) * (hi - lo))` (Esser et al., arXiv 2403.03206, section 3.1).
    LogitNormal { mean: f64, std: f64 },
}

/// Which patches a draw shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TokenRule {
    /// No choice: `tokens` is empty.
    None,
    /// `k` of the patches in random order, distinct unless `replacement`.
    Choose { k: usize, replacement: bool },
    /// Each patch with probability `density`: entry i is i where patch i is kept and -1, an empty slot, where not.
    Bernoulli { density: f64 },
}

/// What to draw for each sample.
///
/// ```
/// use diva_rs::draws::{DrawPlan, Timesteps, TokenRule};
/// let plan = DrawPlan {
///     seed: 0,
///     draws: 2,
///     timesteps: Timesteps::Uniform,
///     range: (0, 1000),
///     latent: vec![4, 8, 8],
///     patches: 16,
///     tokens: TokenRule::Choose { k: 5, replacement: false },
/// }
/// .validated()?;
/// let draws = plan.draw(&[10, 11, 12], 0)?;
/// assert_eq!((draws.timesteps.len(), draws.noise.len(), draws.tokens.len()), (6, 6 * 256, 6 * 5));
/// // Sample 12 draws the same alone.
/// assert_eq!(plan.draw(&[12], 0)?.noise, draws.noise[4 * 256..]);
/// # Ok::<(), diva_rs::DivaError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct DrawPlan {
    pub seed: u64,
    /// N, the diffusion draws per sample.
    pub draws: usize,
    pub timesteps: Timesteps,
    /// Timesteps lie in `range.0..range.1`.
    pub range: (i64, i64),
    /// Shape of one sample's latent, without batch and draw.
    pub latent: Vec<usize>,
    /// P, the patches of a sample; unused where no token is chosen.
    pub patches: usize,
    pub tokens: TokenRule,
}

/// The draws of a batch, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Draws {
    /// (B, N)
    pub timesteps: Vec<i64>,
    /// (B, N, latent..), standard normal
    pub noise: Vec<f32>,
    /// (B, N, k), patch indices from 0; -1 is an empty slot
    pub tokens: Vec<i64>,
    /// Width of `tokens`.
    pub k: usize,
}

impl DrawPlan {
    /// The plan, or an error for its first wrong field.
    pub fn validated(self) -> Result<Self> {
        self.check().map(|()| self)
    }

    /// k, the width of the token choices.
    pub fn width(&self) -> usize {
        match self.tokens {
            TokenRule::None => 0,
            TokenRule::Choose { k, .. } => k,
            TokenRule::Bernoulli { .. } => self.patches,
        }
    }

    /// The draws of the samples `ids` in epoch `epoch`. A sample that occurs twice draws the same twice (except for
    /// stratified timesteps, where each occurrence has its own strata).
    pub fn draw(&self, ids: &[u64], epoch: u64) -> Result<Draws> {
        let sizes = self.sizes(ids.len())?;
        let mut timesteps = filled("timesteps", sizes.rows, 0)?;
        let mut noise = filled("noise", sizes.noise, 0.0)?;
        let mut tokens = filled("token choices", sizes.tokens, 0)?;
        let k = self.width();
        timesteps::fill(self, ids, epoch, &mut timesteps)?;
        tokens::fill(self, ids, epoch, k, &mut tokens);
        noise::fill(self, ids, epoch, Purpose::Noise, sizes.latent, &mut noise);
        Ok(Draws { timesteps, noise, tokens, k })
    }

    fn key(&self, id: u64, epoch: u64, draw: usize, purpose: Purpose) -> Key {
        // `check` holds `draws` below 2^16.
        Key { seed: self.seed, id, epoch, draw: draw as u32, purpose }
    }

    /// `work(id, draw, row)` for each row of `out` (B, N, `width`), in parallel, `some` rows at a time.
    fn rows<T: Send>(
        &self,
        ids: &[u64],
        out: &mut [T],
        width: usize,
        some: usize,
        work: impl Fn(u64, usize, &mut [T]) + Sync,
    ) {
        spread(out, some * width, |part, rows| {
            for (row, values) in (part * some..).zip(rows.chunks_exact_mut(width)) {
                work(ids[row / self.draws], row % self.draws, values);
            }
        });
    }
}

/// Standard normal noise (B, `latent`..), row-major, with which the latent of each sample is drawn from the VAE's
/// posterior: a function of (seed, sample id, epoch), and of no draw.
///
/// ```
/// use diva_rs::draws::posterior_noise;
/// let noise = posterior_noise(0, &[5, 6], 1, &[4, 2, 2])?;
/// assert_eq!(posterior_noise(0, &[6], 1, &[4, 2, 2])?, noise[16..]);
/// # Ok::<(), diva_rs::DivaError>(())
/// ```
pub fn posterior_noise(seed: u64, ids: &[u64], epoch: u64, latent: &[usize]) -> Result<Vec<f32>> {
    noise_of(seed, ids, epoch, 1, latent, Purpose::Posterior)
}

/// Standard normal noise (B, `draws`, `width`), row-major, for the pooled condition of each draw: a function of (seed, sample
/// id, epoch, draw).
pub fn pooled_noise(seed: u64, ids: &[u64], epoch: u64, draws: usize, width: usize) -> Result<Vec<f32>> {
    noise_of(seed, ids, epoch, draws, &[width], Purpose::Pooled)
}

fn noise_of(
    seed: u64,
    ids: &[u64],
    epoch: u64,
    draws: usize,
    shape: &[usize],
    purpose: Purpose,
) -> Result<Vec<f32>> {
    let (latent, tokens) = (shape.to_vec(), TokenRule::None);
    let plan =
        DrawPlan { seed, draws, timesteps: Timesteps::Uniform, range: (0, 1), latent, patches: 0, tokens };
    let sizes = plan.sizes(ids.len())?;
    let mut noise = filled("noise", sizes.noise, 0.0)?;
    noise::fill(&plan, ids, epoch, purpose, sizes.latent, &mut noise);
    Ok(noise)
}

/// `count` copies of `value`, or an error if the memory cannot be allocated: `vec!` would abort the process.
fn filled<T: Clone>(what: &str, count: usize, value: T) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(count).map_err(|_| DivaError::device("draws", format!(
            "{count} values of {what} do not fit into the host's memory; draw for fewer samples at a time (`batch`, \
             `micro_batch`) or use fewer `draws`"
        )))?;
    values.resize(count, value);
    Ok(values)
}
