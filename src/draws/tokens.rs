//! Token choices: which patches of a sample a draw shows to the denoiser. Indices count the patches from 0.

use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::keys::{below, unit, Purpose};
use super::{DrawPlan, TokenRule};

/// The mark of a slot without a patch.
const EMPTY: i64 = -1;

/// Fills `out` (B, N, k).
pub(super) fn fill(plan: &DrawPlan, ids: &[u64], epoch: u64, width: usize, out: &mut [i64]) {
    if width == 0 {
        return;
    }
    // The deck is scratch space, kept from one sample to the next.
    ids.par_iter().zip(out.par_chunks_exact_mut(plan.draws * width)).for_each_init(
        Vec::new,
        |deck, (&id, sample)| {
            for (draw, row) in sample.chunks_exact_mut(width).enumerate() {
                let mut rng = plan.key(id, epoch, draw, Purpose::Tokens).rng(0);
                choose(plan.tokens, plan.patches, &mut rng, deck, row);
            }
        },
    );
}

fn choose(rule: TokenRule, patches: usize, rng: &mut ChaCha8Rng, deck: &mut Vec<i64>, row: &mut [i64]) {
    match rule {
        TokenRule::None => row.fill(EMPTY),
        TokenRule::Choose { replacement: true, .. } => {
            row.iter_mut().for_each(|slot| *slot = below(rng, patches as u64) as i64);
        }
        TokenRule::Choose { replacement: false, .. } => {
            // The first k steps of a Fisher-Yates shuffle: k distinct patches, every ordered choice equally likely.
            deck.clear();
            deck.extend(0..patches as i64);
            for (place, slot) in row.iter_mut().enumerate().take(patches) {
                deck.swap(place, place + below(rng, (patches - place) as u64) as usize);
                *slot = deck.get(place).copied().unwrap_or(EMPTY);
            }
        }
        TokenRule::Bernoulli { density } => {
            for (patch, slot) in row.iter_mut().enumerate() {
                *slot = if unit(rng) < density { patch as i64 } else { EMPTY };
            }
        }
    }
}
