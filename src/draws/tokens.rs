//! Token choices: which patches of a sample a draw shows to the denoiser. Indices count the patches from 0.

use rand_chacha::ChaCha8Rng;

use super::keys::{below, unit, Purpose};
use super::{DrawPlan, TokenRule};

/// The mark of a slot without a patch.
const EMPTY: i64 = -1;

/// Fills `out` (B, N, k).
pub(super) fn fill(plan: &DrawPlan, ids: &[u64], epoch: u64, width: usize, out: &mut [i64]) {
    if width == 0 {
        return;
    }
    plan.rows(ids, out, width, 64, |id, draw, row| {
        choose(plan.tokens, plan.patches, &mut plan.key(id, epoch, draw, Purpose::Tokens).rng(0), row);
    });
}

fn choose(rule: TokenRule, patches: usize, rng: &mut ChaCha8Rng, row: &mut [i64]) {
    match rule {
        TokenRule::None => row.fill(EMPTY),
        TokenRule::Choose { replacement: true, .. } => {
            row.iter_mut().for_each(|slot| *slot = below(rng, patches as u64) as i64);
        }
        TokenRule::Choose { replacement: false, .. } => {
            // The first k steps of a Fisher-Yates shuffle: k distinct patches, every ordered choice equally likely.
            let mut deck: Vec<i64> = (0..patches as i64).collect();
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
