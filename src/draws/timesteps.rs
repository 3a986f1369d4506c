//! Timesteps: integers in `lo..hi`, one per sample and draw.

use rand::Rng;
use rand_distr::StandardNormal;

use super::keys::{below, bits53, Purpose};
use super::{filled, DrawPlan, Timesteps};
use crate::error::Result;

/// Fills `out` (B, N).
pub(super) fn fill(plan: &DrawPlan, ids: &[u64], epoch: u64, out: &mut [i64]) -> Result<()> {
    let cells = out.len() as u64;
    if matches!(plan.timesteps, Timesteps::Stratified) {
        deal(plan, ids, epoch, out)?;
    }
    let (low, high) = plan.range;
    let span = (high - low) as u64;
    plan.rows(ids, out, 1, 1024, |id, draw, slot| {
        let mut rng = plan.key(id, epoch, draw, Purpose::Timestep).rng(0);
        slot[0] = low
            + match plan.timesteps {
                Timesteps::Uniform => below(&mut rng, span) as i64,
                Timesteps::Stratified => within(slot[0] as u64, bits53(&mut rng), span, cells),
                Timesteps::LogitNormal { mean, std } => {
                    let normal: f64 = rng.sample(StandardNormal);
                    sigmoid_share(mean + std * normal, span)
                }
            };
    });
    Ok(())
}

/// Deals the B*N strata onto `out` (B, N), each exactly once.
///
/// Block n of N holds the strata `n*B..(n+1)*B`, one for each sample, dealt by a permutation of the samples. Samples
/// are ranked by id, so that the order within the batch does not matter. A sample's draws walk through the blocks
/// from its own first block: otherwise draw 0 would always be the least noisy one.
fn deal(plan: &DrawPlan, ids: &[u64], epoch: u64, out: &mut [i64]) -> Result<()> {
    let (batch, draws) = (ids.len(), plan.draws);
    let mut ranked = filled("ranks of the samples", batch, (0u64, 0usize, 0usize))?;
    for (index, (slot, &id)) in ranked.iter_mut().zip(ids).enumerate() {
        let first = below(&mut plan.key(id, epoch, 0, Purpose::Rotation).rng(0), draws as u64);
        *slot = (id, index, first as usize);
    }
    ranked.sort_unstable();
    let smallest = ranked.first().map_or(0, |&(id, _, _)| id);

    let mut strata = filled("strata of one block", batch, 0i64)?;
    for block in 0..draws {
        strata.iter_mut().zip(block as i64 * batch as i64..).for_each(|(slot, stratum)| *slot = stratum);
        let mut rng = plan.key(smallest, epoch, block, Purpose::Strata).rng(0);
        for last in (1..batch).rev() {
            strata.swap(last, below(&mut rng, last as u64 + 1) as usize);
        }
        for (&(_, index, first), &stratum) in ranked.iter().zip(&strata) {
            let draw = (block + draws - first) % draws;
            if let Some(slot) = out.get_mut(index * draws + draw) {
                *slot = stratum;
            }
        }
    }
    Ok(())
}

/// Stratum `stratum` of `strata` and 53 bits for the place within it: floor((stratum + jitter) / strata * span), in
/// integers, because `stratum + jitter` rounds up into the next stratum in floating point.
fn within(stratum: u64, jitter: u64, span: u64, strata: u64) -> i64 {
    let place = (u128::from(stratum) << 53) + u128::from(jitter);
    (place * u128::from(span) / (u128::from(strata.max(1)) << 53)) as i64
}

/// floor(sigmoid(x) * span), where sigmoid may round to 1.
fn sigmoid_share(x: f64, span: u64) -> i64 {
    let share = 1.0 / (1.0 + (-x).exp());
    ((share * span as f64) as i64).min(span as i64 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_place_of_a_stratum_stays_inside_it() {
        let top = (1u64 << 53) - 1;
        assert_eq!(within(0, 0, 1000, 10), 0);
        assert_eq!(within(0, top, 1000, 10), 99);
        assert_eq!(within(9, top, 1000, 10), 999);
        // More strata than timesteps: neighbours share one.
        assert_eq!(within(7, top, 4, 8), 3);
    }

    #[test]
    fn a_saturated_sigmoid_stays_in_range() {
        assert_eq!(sigmoid_share(f64::INFINITY, 1000), 999);
        assert_eq!(sigmoid_share(f64::NEG_INFINITY, 1000), 0);
        assert_eq!(sigmoid_share(0.0, 1000), 500);
    }
}
