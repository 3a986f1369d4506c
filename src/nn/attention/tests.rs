use super::*;

/// The result, and the gradients at query, key and value of its sum weighted by `weight`.
fn all(
    inputs: &[Tensor; 3],
    weight: &Tensor,
    attend: impl Fn([&Tensor; 3]) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let leaves = inputs.each_ref().map(|x| x.detach().set_requires_grad(true));
    let mixed = attend(leaves.each_ref())?;
    let loss = mixed.f_mul(weight)?.f_sum(weight.kind())?;
    let mut found = Tensor::f_run_backward(&[loss], &leaves, false, false)?;
    found.push(mixed.detach());
    Ok(found)
}

fn error(ours: &Tensor, theirs: &Tensor) -> Result<f64> {
    let (ours, theirs) = (ours.f_to_kind(Kind::Double)?, theirs.f_to_kind(Kind::Double)?);
    let (difference, size) = (ours.f_sub(&theirs)?.f_norm()?, theirs.f_norm()?);
    Ok(difference.f_double_value(&[])? / size.f_double_value(&[])?)
}

fn inputs(sizes: (i64, i64, i64), width: i64, size: f64) -> [Tensor; 3] {
    crate::torch::manual_seed(0);
    let randn = |length| Tensor::randn([sizes.0, length, width], (Kind::Double, Device::Cpu));
    [randn(sizes.1) * size, randn(sizes.2), randn(sizes.2)]
}

#[test]
fn blocks_of_any_size_make_the_same_result_and_gradients() -> Result<()> {
    for (sizes, width) in [((6, 13, 13), 5), ((2, 17, 3), 8), ((1, 1, 2), 1), ((3, 5, 9), 40)] {
        let inputs = inputs(sizes, width, 3.0);
        let weight = Tensor::randn([sizes.0, sizes.1, width], (Kind::Double, Device::Cpu));
        let expected = all(&inputs, &weight, |[query, key, value]| attention(query, key, value, 1))?;
        for block in [1, 10, 40, 170, 400, 1 << 20] {
            let found =
                all(&inputs, &weight, |[query, key, value]| blocks::blocks_of(query, key, value, block))?;
            for (mine, reference) in found.iter().zip(&expected) {
                assert!(error(mine, reference)? <= 1e-10, "{sizes:?} {width} {block}");
            }
        }
    }
    Ok(())
}

#[test]
fn bf16_is_about_as_near_as_the_fused_kernel_however_large_the_scores() -> Result<()> {
    for (size, heads) in [(0.3, 2), (2.0, 1), (8.0, 2)] {
        for keys in [300, 21] {
            let inputs = inputs((1, 200, keys), 64, size);
            let weight = Tensor::randn([1, 200, 64], (Kind::Double, Device::Cpu));
            let exact = all(&inputs, &weight, |[query, key, value]| attention(query, key, value, heads))?;
            let half = inputs.each_ref().map(|x| x.to_kind(Kind::BFloat16));
            let weight = weight.to_kind(Kind::BFloat16);
            let fused = all(&half, &weight, |[query, key, value]| attention(query, key, value, heads))?;
            let ours = all(&half, &weight, |[query, key, value]| quick_attention(query, key, value, heads))?;
            for ((mine, other), reference) in ours.iter().zip(&fused).zip(&exact) {
                assert_eq!(mine.kind(), Kind::BFloat16);
                let (own, bound) = (error(mine, reference)?, 1.5 * error(other, reference)?);
                assert!(own <= bound, "{size} {heads} {keys}: {own} {bound}");
            }
        }
    }
    Ok(())
}

#[cfg(target_arch = "x86_64")]
mod of_flash {
    use super::*;
    use crate::nn::attention::flash::{flash, Set};
    use crate::nn::Wide;
    use crate::simd::{Avx2, Avx512, Avx512Bf16, Lanes};

    /// With ends that fill no vector, no strip and no block, and with several of each.
    const SHAPES: [(i64, i64, i64, i64, i64); 10] = [
        // batch, queries, keys, heads, width of a head
        (2, 5, 4, 3, 2),
        (2, 7, 5, 3, 8),
        (1, 100, 77, 2, 40),
        (1, 50, 130, 2, 64),
        (1, 270, 200, 1, 16), // two blocks of queries and of keys in both directions
        (1, 20, 1030, 1, 72), // three blocks of keys
        (3, 33, 21, 4, 32),
        (1, 10, 2100, 2, 16), // keys for two threads
        (1, 200, 33, 1, 160),
        (1, 3, 530, 1, 512),
    ];

    /// All sets of instructions that this processor has, for inputs of a kind, whichever it would choose.
    fn sets(kind: Kind) -> Vec<Set> {
        let bf16 = Avx512Bf16::found().filter(|_| kind == Kind::BFloat16).map(Set::Bf16);
        let found = [bf16, Avx512::found().map(Set::Wide), Avx2::found().map(Set::Narrow)];
        found.into_iter().flatten().collect()
    }

    #[test]
    fn result_and_gradients_are_as_near_as_the_fused_kernels() -> Result<()> {
        for (kind, factor, rest) in [(Kind::BFloat16, 1.25, 1e-3), (Kind::Float, 0.0, 1e-5)] {
            for (batch, queries, keys, heads, width) in SHAPES {
                for size in [0.3, 8.0] {
                    let inputs = inputs((batch, queries, keys), heads * width, size);
                    let weight = Tensor::randn([batch, queries, heads * width], (Kind::Double, Device::Cpu));
                    let exact = all(&inputs, &weight, |[q, k, v]| attention(q, k, v, heads))?;
                    let given = inputs.each_ref().map(|x| x.to_kind(kind));
                    let weight = weight.to_kind(kind);
                    let fused = all(&given, &weight, |[q, k, v]| attention(q, k, v, heads))?;
                    for (way, set) in sets(kind).into_iter().enumerate() {
                        let ours = all(&given, &weight, |[q, k, v]| flash(set, q, k, v, heads))?;
                        for ((mine, other), reference) in ours.iter().zip(&fused).zip(&exact) {
                            assert_eq!((mine.kind(), mine.size()), (kind, reference.size()));
                            let own = error(mine, reference)?;
                            let bound = factor * error(other, reference)? + rest;
                            assert!(
                                own <= bound,
                                "{kind:?} {way}: {batch} {queries} {keys} {heads} {width} {size}: {own} {bound}"
                            );
                        }
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn views_and_expanded_queries_are_read_as_they_stand() -> Result<()> {
        crate::torch::manual_seed(1);
        for kind in [Kind::BFloat16, Kind::Float] {
            let packed = Tensor::randn([2, 50, 3 * 32], (kind, Device::Cpu));
            let parts = packed.f_chunk(3, 2)?;
            let probe = Tensor::randn([1, 1, 32], (kind, Device::Cpu)).f_expand([2, -1, -1], false)?;
            for (query, set) in
                [&parts[0], &probe].into_iter().flat_map(|q| sets(kind).into_iter().map(move |s| (q, s)))
            {
                let dense = |x: &Tensor| x.f_contiguous();
                let expected = flash(set, &dense(query)?, &dense(&parts[1])?, &dense(&parts[2])?, 2)?;
                assert_eq!(flash(set, query, &parts[1], &parts[2], 2)?, expected);
            }
        }
        Ok(())
    }

    #[test]
    fn what_is_not_a_number_stays_so_and_stays_in_its_row() -> Result<()> {
        for kind in [Kind::BFloat16, Kind::Float] {
            let [query, key, value] = inputs((1, 40, 40), 32, 1.0).map(|x| x.to_kind(kind));
            let _ = query.f_select(1, 3)?.f_narrow(1, 0, 16)?.f_fill_(f64::NAN)?;
            for set in sets(kind) {
                let mixed = flash(set, &query, &key, &value, 2)?.f_isnan()?;
                assert_eq!(mixed.f_sum(Kind::Int64)?.f_int64_value(&[])?, 16);
                let row = mixed.f_select(1, 3)?.f_narrow(1, 0, 16)?;
                assert_eq!(row.f_sum(Kind::Int64)?.f_int64_value(&[])?, 16);
            }
        }
        Ok(())
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() -> Result<()> {
        for kind in [Kind::BFloat16, Kind::Float] {
            let given = inputs((1, 30, 2100), 32, 1.0).map(|x| x.to_kind(kind));
            let weight = Tensor::randn([1, 30, 32], (kind, Device::Cpu));
            let before = crate::torch::get_num_threads();
            for set in sets(kind) {
                let mut found = Vec::new();
                for threads in [1, 3] {
                    crate::torch::set_num_threads(threads);
                    found.push(all(&given, &weight, |[q, k, v]| flash(set, q, k, v, 2))?);
                }
                crate::torch::set_num_threads(before);
                assert_eq!(found[0], found[1]);
            }
        }
        Ok(())
    }

    #[test]
    fn others_are_left_to_libtorch() -> Result<()> {
        let zeros = |size: [i64; 3], kind| Tensor::zeros(size, (kind, Device::Cpu));
        let fitting = |x: &Tensor, heads| Set::of([x, x, x], heads);
        assert!(fitting(&zeros([1, 4, 8], Kind::Double), 2)?.is_none());
        assert!(fitting(&zeros([1, 4, 6], Kind::Float), 2)?.is_none(), "an odd width has no pairs");
        assert!(fitting(&zeros([1, 0, 8], Kind::BFloat16), 2)?.is_none());
        let [query, key] = [[2, 4, 8], [1, 4, 8]].map(|size| zeros(size, Kind::BFloat16));
        assert!(Set::of([&query, &key, &key], 2)?.is_none(), "another batch");
        let short = zeros([2, 3, 8], Kind::BFloat16);
        assert!(Set::of([&query, &query, &short], 2)?.is_none(), "fewer values than keys");
        assert!(Set::of([&query, &query, &zeros([2, 4, 8], Kind::Float)], 2)?.is_none(), "two dtypes");
        Ok(())
    }

    #[test]
    fn float32_products_take_no_bf16_instructions() -> Result<()> {
        let x = Tensor::zeros([1, 4, 8], (Kind::BFloat16, Device::Cpu));
        let _wide = Wide::set(true);
        assert!(!matches!(Set::of([&x, &x, &x], 2)?, Some(Set::Bf16(_))));
        assert_eq!(Set::of([&x, &x, &x], 2)?.is_some(), Avx2::found().is_some());
        Ok(())
    }
}
