//! Draws, held against what they promise: replay under any batch order, split and thread count; streams of their own
//! for every purpose, sample, epoch and draw; strata hit once; errors instead of panics for every plan.

use std::collections::HashSet;

use diva_rs::draws::{augment_seed, DrawPlan, Draws, Key, Purpose, Timesteps, TokenRule};
use diva_rs::{DivaError, Result};
use proptest::prelude::*;
use rand_chacha::rand_core::RngCore;

fn plan(timesteps: Timesteps, tokens: TokenRule) -> DrawPlan {
    DrawPlan { seed: 3, draws: 2, timesteps, range: (0, 1000), latent: vec![2, 3, 5], patches: 9, tokens }
}

fn timesteps() -> impl Strategy<Value = Timesteps> {
    let logit = (-2.0..2.0, 0.1..3.0).prop_map(|(mean, std)| Timesteps::LogitNormal { mean, std });
    prop_oneof![Just(Timesteps::Uniform), Just(Timesteps::Stratified), logit]
}

fn tokens(patches: usize) -> impl Strategy<Value = TokenRule> {
    prop_oneof![
        Just(TokenRule::None),
        (1..=patches).prop_map(|k| TokenRule::Choose { k, replacement: false }),
        (1..=2 * patches).prop_map(|k| TokenRule::Choose { k, replacement: true }),
        (0.0..=1.0).prop_map(|density| TokenRule::Bernoulli { density }),
    ]
}

prop_compose! {
    fn plans()(seed in any::<u64>(), draws in 1usize..5, timesteps in timesteps(), low in 0i64..50, span in 1i64..2000,
               latent in prop::collection::vec(1usize..5, 1..4), patches in 1usize..20)
              (tokens in tokens(patches), seed in Just(seed), draws in Just(draws), timesteps in Just(timesteps),
               low in Just(low), span in Just(span), latent in Just(latent), patches in Just(patches)) -> DrawPlan {
        DrawPlan { seed, draws, timesteps, range: (low, low + span), latent, patches, tokens }
    }
}

/// Distinct ids, in the order of a hash set: unsorted.
fn ids() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::hash_set(any::<u64>(), 1..8).prop_map(|ids| ids.into_iter().collect())
}

/// The draws of sample `index` of a batch.
fn sample(draws: &Draws, index: usize, batch: usize) -> (&[i64], &[f32], &[i64]) {
    fn part<T>(values: &[T], index: usize, batch: usize) -> &[T] {
        let width = values.len() / batch;
        &values[index * width..][..width]
    }
    (
        part(&draws.timesteps, index, batch),
        part(&draws.noise, index, batch),
        part(&draws.tokens, index, batch),
    )
}

/// Small or absurd, never merely large.
fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0usize..4, 1 => prop::sample::select(vec![1 << 33, 1 << 62, usize::MAX])]
}

fn steps() -> impl Strategy<Value = i64> {
    prop_oneof![4 => 0i64..100, 1 => any::<i64>()]
}

fn floats() -> impl Strategy<Value = f64> {
    prop_oneof![2 => 0.0..2.0, 1 => prop::num::f64::ANY]
}

fn fails(err: DivaError) -> TestCaseError {
    TestCaseError::fail(err.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn batch_order_does_not_matter(plan in plans(), ids in ids(), epoch: u64, turn in 0usize..8) {
        let batch = ids.len();
        let turn = turn % batch;
        let mut turned = ids.clone();
        turned.rotate_left(turn);
        let (one, other) = (plan.draw(&ids, epoch).map_err(fails)?, plan.draw(&turned, epoch).map_err(fails)?);
        for index in 0..batch {
            prop_assert_eq!(sample(&other, index, batch), sample(&one, (index + turn) % batch, batch));
        }
    }

    #[test]
    fn splits_do_not_matter(plan in plans(), ids in ids(), epoch: u64) {
        let whole = plan.draw(&ids, epoch).map_err(fails)?;
        for (index, id) in ids.iter().enumerate() {
            let alone = plan.draw(&[*id], epoch).map_err(fails)?;
            let (timesteps, noise, tokens) = sample(&whole, index, ids.len());
            prop_assert_eq!(&alone.noise, noise);
            prop_assert_eq!(&alone.tokens, tokens);
            // Strata are cut for the batch that is given, so only these timesteps know of the others.
            if plan.timesteps != Timesteps::Stratified {
                prop_assert_eq!(&alone.timesteps, timesteps);
            }
        }
    }

    #[test]
    fn values_lie_where_they_should(plan in plans(), ids in ids(), epoch: u64) {
        let draws = plan.draw(&ids, epoch).map_err(fails)?;
        let rows = ids.len() * plan.draws;
        prop_assert_eq!(draws.timesteps.len(), rows);
        prop_assert_eq!(draws.noise.len(), rows * plan.latent.iter().product::<usize>());
        prop_assert_eq!(draws.tokens.len(), rows * draws.k);
        prop_assert!(draws.timesteps.iter().all(|t| (plan.range.0..plan.range.1).contains(t)));
        prop_assert!(draws.noise.iter().all(|value| value.is_finite()));
        for row in draws.tokens.chunks(draws.k.max(1)) {
            match plan.tokens {
                TokenRule::Bernoulli { .. } => {
                    prop_assert!((0..).zip(row).all(|(patch, &token)| token == patch || token == -1));
                }
                TokenRule::Choose { k, replacement } => {
                    prop_assert!(row.iter().all(|&token| (0..plan.patches as i64).contains(&token)));
                    let distinct = row.iter().collect::<HashSet<_>>().len();
                    prop_assert!(replacement || distinct == k);
                }
                TokenRule::None => prop_assert!(row.is_empty()),
            }
        }
    }

    #[test]
    fn each_stratum_is_hit_once(ids in ids(), draws in 1usize..6, seed: u64, epoch: u64, span in 1i64..5000) {
        let plan = DrawPlan { seed, draws, range: (7, 7 + span), ..plan(Timesteps::Stratified, TokenRule::None) };
        let mut hit = plan.draw(&ids, epoch).map_err(fails)?.timesteps;
        hit.sort_unstable();
        let strata = hit.len() as i64;
        for (stratum, t) in (0..).zip(hit) {
            // Stratum s holds the timesteps that overlap [s, s + 1) * span / strata.
            let (low, high) = (stratum * span / strata, ((stratum + 1) * span + strata - 1) / strata);
            prop_assert!((low..high).contains(&(t - 7)), "stratum {} of {}: {}", stratum, strata, t - 7);
        }
    }

    #[test]
    fn keys_are_injective(seed: u64, id: u64, epoch: u64, draw: u32, purpose in 0usize..Purpose::ALL.len()) {
        let key = Key { seed, id, epoch, draw, purpose: Purpose::ALL[purpose] };
        let bytes = key.bytes();
        let word = |from: usize, to: usize| bytes[from..to].iter().rev().fold(0u64, |all, &byte| all << 8 | u64::from(byte));
        // Every field can be read back from the key, so no two keys are equal unless all fields are.
        prop_assert_eq!((word(0, 8), word(8, 16), word(16, 24)), (seed, id, epoch));
        prop_assert_eq!((word(24, 28), word(28, 32)), (u64::from(draw), key.purpose as u64));
    }

    #[test]
    fn no_plan_panics(seed in any::<u64>(), draws in sizes(), low in steps(), high in steps(),
                      latent in prop::collection::vec(sizes(), 0..10), patches in sizes(), k in sizes(),
                      replacement in any::<bool>(), density in floats(), mean in floats(), std in floats(),
                      pick in 0usize..9, ids in prop::collection::vec(any::<u64>(), 0..4)) {
        let timesteps = [Timesteps::Uniform, Timesteps::Stratified, Timesteps::LogitNormal { mean, std }][pick % 3];
        let tokens = [TokenRule::None, TokenRule::Choose { k, replacement }, TokenRule::Bernoulli { density }][pick / 3];
        let plan = DrawPlan { seed, draws, timesteps, range: (low, high), latent, patches, tokens };
        let drawn = plan.draw(&ids, 0);
        prop_assert!(drawn.is_err() || plan.clone().validated().is_ok());
        if let Ok(drawn) = drawn {
            prop_assert!(drawn.timesteps.iter().all(|t| (low..high).contains(t)));
        }
    }
}

#[test]
fn thread_count_does_not_matter() -> Result<()> {
    // More than one chunk of noise per draw, and a last chunk that is not full.
    let mut plan = plan(Timesteps::Stratified, TokenRule::Choose { k: 4, replacement: false });
    plan.latent = vec![3, 50, 61];
    let ids: Vec<u64> = (0..5).collect();
    let before = tch::get_num_threads();
    let mut seen = Vec::new();
    for threads in [1, 2, 3] {
        tch::set_num_threads(threads);
        seen.push(plan.draw(&ids, 1)?);
    }
    tch::set_num_threads(before);
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0], seen[2]);
    Ok(())
}

#[test]
fn streams_differ_in_their_first_words() {
    let edge = [0, 1, 2, 255, 256, 1 << 32, u64::MAX];
    let mut first = HashSet::new();
    let mut count = 0;
    for (seed, id, epoch) in
        edge.iter().flat_map(|&s| edge.iter().flat_map(move |&i| edge.map(|e| (s, i, e))))
    {
        for (purpose, draw) in Purpose::ALL.iter().flat_map(|&p| [0, 1, 2, u32::MAX].map(|d| (p, d))) {
            for stream in [0, 1] {
                first.insert(Key { seed, id, epoch, draw, purpose }.rng(stream).next_u64());
                count += 1;
            }
        }
    }
    // 16,464 streams: a chance collision of 64 bits has probability below 1e-11.
    assert_eq!(first.len(), count);
}

#[test]
fn seed_epoch_and_draw_change_every_number() -> Result<()> {
    let base = plan(Timesteps::Uniform, TokenRule::Choose { k: 6, replacement: false });
    let one = base.draw(&[5], 0)?;
    let row = one.noise.len() / 2;
    assert_ne!(one.noise[..row], one.noise[row..], "the two draws of a sample share their noise");
    for other in
        [base.draw(&[5], 1)?, base.draw(&[6], 0)?, DrawPlan { seed: 4, ..base.clone() }.draw(&[5], 0)?]
    {
        assert!(one.noise.iter().zip(&other.noise).all(|(a, b)| a != b));
        assert_ne!(one.tokens, other.tokens);
        assert_ne!(one.timesteps, other.timesteps);
    }
    assert_ne!(augment_seed(0, 5, 0), augment_seed(0, 5, 1));
    Ok(())
}

#[test]
fn a_sample_that_occurs_twice_draws_the_same_twice() -> Result<()> {
    let draws =
        plan(Timesteps::Uniform, TokenRule::Choose { k: 6, replacement: true }).draw(&[5, 1, 5], 0)?;
    assert_eq!(sample(&draws, 0, 3), sample(&draws, 2, 3));
    assert_ne!(sample(&draws, 0, 3), sample(&draws, 1, 3));
    Ok(())
}

#[test]
fn every_mistake_is_named() {
    let good = || plan(Timesteps::Uniform, TokenRule::None);
    let with = |tokens| DrawPlan { tokens, ..good() };
    let logit = |mean, std| plan(Timesteps::LogitNormal { mean, std }, TokenRule::None);
    let choose = |k, replacement| with(TokenRule::Choose { k, replacement });
    let mistakes = [
        (DrawPlan { draws: 0, ..good() }, "`draws` is 0, expected 1 to 65536"),
        (DrawPlan { draws: 1 << 40, ..good() }, "`draws` is 1099511627776, expected 1 to 65536"),
        (DrawPlan { latent: vec![], ..good() }, "`latent_shape` is [], expected 1 to 8 sizes"),
        (DrawPlan { latent: vec![4, 0, 2], ..good() }, "`latent_shape` is [4, 0, 2]"),
        (DrawPlan { latent: vec![1; 9], ..good() }, "expected 1 to 8 sizes"),
        (DrawPlan { latent: vec![usize::MAX, 2], ..good() }, "exceed 16 GiB for one call; reduce the batch"),
        (DrawPlan { latent: vec![1 << 40], ..good() }, "exceed 16 GiB"),
        (DrawPlan { range: (5, 5), ..good() }, "`timestep_range` is (5, 5), expected 0 <= low < high"),
        (DrawPlan { range: (9, 5), ..good() }, "`timestep_range` is (9, 5)"),
        (DrawPlan { range: (-1, 5), ..good() }, "`timestep_range` is (-1, 5)"),
        (DrawPlan { range: (i64::MIN, i64::MAX), ..good() }, "`timestep_range` is (-9223372036854775808"),
        (logit(f64::NAN, 1.0), "`logit_mean` is NaN"),
        (logit(0.0, f64::INFINITY), "`logit_std` is inf"),
        (logit(0.0, 0.0), "a finite std above 0"),
        (choose(10, false), "`choose` is 10 of 9 patches; without replacement it can be at most 9"),
        (choose(0, true), "`choose` is 0, expected at least 1"),
        (choose(usize::MAX, true), "exceed 16 GiB"),
        (DrawPlan { patches: 0, ..choose(1, true) }, "`patches` is 0"),
        (
            DrawPlan { patches: 1 << 30, ..choose(1, true) },
            "`patches` is 1073741824, expected at most 1048576",
        ),
        (with(TokenRule::Bernoulli { density: 1.5 }), "`density` is 1.5, expected a share"),
        (with(TokenRule::Bernoulli { density: -0.1 }), "`density` is -0.1"),
        (with(TokenRule::Bernoulli { density: f64::NAN }), "`density` is NaN"),
    ];
    for (plan, message) in mistakes {
        for outcome in [plan.clone().validated().map(|_| ()), plan.draw(&[1], 0).map(|_| ())] {
            let text = outcome.as_ref().map_or_else(|err| err.to_string(), |()| "no error".to_string());
            assert!(
                matches!(outcome, Err(DivaError::Config { .. })) && text.contains(message),
                "{text} | {message}"
            );
        }
    }
}

#[test]
fn an_empty_batch_is_a_mistake_of_the_data() {
    let outcome = plan(Timesteps::Stratified, TokenRule::None).draw(&[], 0);
    assert!(matches!(outcome, Err(DivaError::Data { .. })));
}

#[test]
fn the_bits_stay_the_same() -> Result<()> {
    // The full table is tests/step/golden_draws.json; these few hold without Python.
    let draws = plan(Timesteps::Uniform, TokenRule::Choose { k: 3, replacement: false }).draw(&[0, 1], 0)?;
    let bits: Vec<u32> = draws.noise.iter().take(3).map(|value| value.to_bits()).collect();
    assert_eq!(draws.timesteps, [191, 726, 543, 245]);
    assert_eq!(bits, [1024414828, 1070275560, 3221225727]);
    assert_eq!(draws.tokens[..6], [5, 6, 8, 6, 7, 5]);
    assert_eq!(augment_seed(0, 1, 2), 4002726866352554384);
    Ok(())
}
