//! Negatives: which other images of a batch an image is compared with.

use rand_chacha::rand_core::RngCore;

use super::keys::{Key, Purpose};

/// For each of the samples `ids`, in one draw, the places of its negatives in the batch, in ascending order.
///
/// The batch is cut into groups of `group` samples, in its order (`None`: it is one), and an image's negatives are
/// `count` others of its group (`None`, or fewer in a group: all). Which ones is a function of (seed, the two ids, epoch,
/// draw): the order of a group does not matter.
///
/// ```
/// use diva_rs::draws::negatives;
/// assert_eq!(negatives(0, &[7, 8, 9], 0, 0, None, None), [[1, 2], [0, 2], [0, 1]]);
/// assert_eq!(negatives(0, &[7, 8, 9], 0, 0, Some(2), None), [vec![1], vec![0], vec![]]);
/// ```
pub fn negatives(
    seed: u64,
    ids: &[u64],
    epoch: u64,
    draw: u32,
    group: Option<usize>,
    count: Option<usize>,
) -> Vec<Vec<i64>> {
    let group = group.unwrap_or(ids.len()).max(1);
    let of = |(place, &id): (usize, &u64)| {
        let start = place / group * group;
        let others = (start..(start + group).min(ids.len())).filter(|&other| other != place);
        let mut others: Vec<(u64, i64)> = others
            .map(|other| {
                let key = Key { seed, id, epoch, draw, purpose: Purpose::Negatives };
                let rank = count.map_or(0, |_| key.rng(ids[other]).next_u64());
                (rank, other as i64)
            })
            .collect();
        others.sort_unstable();
        others.truncate(count.unwrap_or(usize::MAX));
        let mut places: Vec<i64> = others.into_iter().map(|(_, other)| other).collect();
        places.sort_unstable();
        places
    };
    ids.iter().enumerate().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_does_not_depend_on_the_order_of_the_batch() {
        let ids: Vec<u64> = (100..112).collect();
        let turned: Vec<u64> = ids.iter().rev().copied().collect();
        let named = |ids: &[u64], epoch, draw| -> Vec<(u64, Vec<u64>)> {
            let found = negatives(3, ids, epoch, draw, None, Some(4));
            let mut named: Vec<_> = found
                .iter()
                .zip(ids)
                .map(|(places, &id)| {
                    let mut others: Vec<u64> = places.iter().map(|&place| ids[place as usize]).collect();
                    others.sort_unstable();
                    (id, others)
                })
                .collect();
            named.sort_unstable();
            named
        };
        assert_eq!(named(&ids, 0, 0), named(&turned, 0, 0));
        assert_ne!(named(&ids, 0, 0), named(&ids, 1, 0));
        assert_ne!(named(&ids, 0, 0), named(&ids, 0, 1));
        assert!(named(&ids, 0, 0).iter().all(|(id, others)| others.len() == 4 && !others.contains(id)));
    }

    #[test]
    fn every_other_image_is_chosen_equally_often() {
        let ids: Vec<u64> = (0..6).collect();
        let mut counts = [0; 6];
        for epoch in 0..1000 {
            negatives(0, &ids, epoch, 0, None, Some(2))[0]
                .iter()
                .for_each(|&place| counts[place as usize] += 1);
        }
        assert_eq!(counts[0], 0);
        // Of 1,000 draws with probability 2/5 each: five standard deviations are 77.
        assert!(counts[1..].iter().all(|count| (323..477).contains(count)), "{counts:?}");
    }
}
