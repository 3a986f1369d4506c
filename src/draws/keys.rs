//! Random generators: ChaCha8, keyed by seed, sample, epoch, draw and purpose, never by the order of calls.
//!
//! The 256-bit key *is* the five fields, side by side and unhashed: two different keys cannot become one, so no two
//! seeds, samples, epochs, draws or purposes share a stream. Within a key, ChaCha's 64-bit stream number gives random
//! access, so that the noise of one sample can be filled by several threads.

use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What a stream is used for. The numbers are part of the key: changing one changes every run that is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Purpose {
    /// The timestep of one draw, or its place within a stratum.
    Timestep = 1,
    /// The Gaussian noise of one draw.
    Noise = 2,
    /// The patches that one draw chooses.
    Tokens = 3,
    /// The permutation of one block of strata, keyed by the batch's smallest id; `draw` is the block.
    Strata = 4,
    /// Which block of strata a sample's first draw takes.
    Rotation = 5,
    /// The seed of a sample's image augmentation.
    Augment = 6,
    /// The Gaussian noise with which a sample's latent is drawn from the VAE's posterior.
    Posterior = 7,
    /// Which other images of the batch are the negatives of one draw.
    Negatives = 8,
    /// The Gaussian noise of one draw at the pooled condition.
    Pooled = 9,
}

impl Purpose {
    pub const ALL: [Purpose; 9] = [
        Purpose::Timestep,
        Purpose::Noise,
        Purpose::Tokens,
        Purpose::Strata,
        Purpose::Rotation,
        Purpose::Augment,
        Purpose::Posterior,
        Purpose::Negatives,
        Purpose::Pooled,
    ];
}

/// The name of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub seed: u64,
    pub id: u64,
    pub epoch: u64,
    pub draw: u32,
    pub purpose: Purpose,
}

impl Key {
    /// The ChaCha key, little-endian: `seed (8) | id (8) | epoch (8) | draw (4) | purpose (4)`.
    pub fn bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.id.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.draw.to_le_bytes());
        bytes[28..].copy_from_slice(&(self.purpose as u32).to_le_bytes());
        bytes
    }

    /// The generator at the start of stream number `stream` of this key.
    pub fn rng(&self, stream: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::from_seed(self.bytes());
        rng.set_stream(stream);
        rng
    }
}

/// A 63-bit seed for a sample's image augmentation in one epoch (torch's generators take a signed 64-bit seed).
///
/// ```
/// use diva_rs::draws::augment_seed;
/// assert_eq!(augment_seed(0, 7, 0), augment_seed(0, 7, 0));
/// assert_ne!(augment_seed(0, 7, 0), augment_seed(0, 7, 1));
/// assert!(augment_seed(0, 7, 0) < 1 << 63);
/// ```
pub fn augment_seed(seed: u64, id: u64, epoch: u64) -> u64 {
    Key { seed, id, epoch, draw: 0, purpose: Purpose::Augment }.rng(0).next_u64() >> 1
}

/// An integer in `0..bound`, unbiased: Lemire's multiply-shift with rejection (arXiv 1805.10941, algorithm 5).
///
/// Written here, like `unit`, because `rand` may change its mappings between releases, which would change replays.
pub(super) fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    let bound = bound.max(1);
    let rejected = bound.wrapping_neg() % bound;
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(bound);
        if product as u64 >= rejected {
            return (product >> 64) as u64;
        }
    }
}

/// The 53 random bits of a float64 in [0, 1).
pub(super) fn bits53(rng: &mut ChaCha8Rng) -> u64 {
    rng.next_u64() >> 11
}

/// A float64 in [0, 1), every value a multiple of 2^-53.
pub(super) fn unit(rng: &mut ChaCha8Rng) -> f64 {
    bits53(rng) as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key { seed: 1, id: 2, epoch: 3, draw: 4, purpose: Purpose::Noise };

    #[test]
    fn the_bound_is_never_reached() {
        let mut rng = KEY.rng(0);
        for bound in [0, 1, 2, 3, 1000, u64::MAX] {
            assert!((0..100).all(|_| below(&mut rng, bound) < bound.max(1)));
        }
        assert!((0..1000).map(|_| unit(&mut rng)).all(|u| (0.0..1.0).contains(&u)));
    }

    #[test]
    fn the_key_holds_the_fields_side_by_side() {
        let mut expected = [0u8; 32];
        for (place, value) in [(0, 1), (8, 2), (16, 3), (24, 4), (28, 2)] {
            expected[place] = value;
        }
        assert_eq!(KEY.bytes(), expected);
    }

    #[test]
    fn every_purpose_has_its_own_number() {
        let numbers: Vec<u32> = Purpose::ALL.iter().map(|purpose| *purpose as u32).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }
}
