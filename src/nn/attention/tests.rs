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
            let inputs = inputs((2, 300, keys), 64, size);
            let weight = Tensor::randn([2, 300, 64], (Kind::Double, Device::Cpu));
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
    use crate::nn::attention::flash::{fits, flash};

    /// With ends that fill no vector, no strip and no block, and with several of each.
    const SHAPES: [(i64, i64, i64, i64, i64); 9] = [
        // batch, queries, keys, heads, width of a head
        (2, 5, 4, 3, 2),
        (2, 7, 5, 3, 8),
        (1, 100, 77, 2, 40),
        (2, 257, 257, 2, 64),
        (1, 300, 1030, 1, 72),
        (3, 64, 21, 4, 32),
        (1, 40, 2100, 2, 16), // keys for two threads
        (1, 600, 33, 1, 160),
        (1, 9, 530, 1, 512),
    ];

    #[test]
    fn result_and_gradients_are_as_near_as_the_fused_kernels() -> Result<()> {
        for (batch, queries, keys, heads, width) in SHAPES {
            for size in [0.3, 1.0, 8.0] {
                let inputs = inputs((batch, queries, keys), heads * width, size);
                let weight = Tensor::randn([batch, queries, heads * width], (Kind::Double, Device::Cpu));
                let exact = all(&inputs, &weight, |[q, k, v]| attention(q, k, v, heads))?;
                let half = inputs.each_ref().map(|x| x.to_kind(Kind::BFloat16));
                if !fits(half.each_ref(), heads)? {
                    return Ok(()); // another processor
                }
                let weight = weight.to_kind(Kind::BFloat16);
                let fused = all(&half, &weight, |[q, k, v]| attention(q, k, v, heads))?;
                let ours = all(&half, &weight, |[q, k, v]| flash(q, k, v, heads))?;
                for ((mine, other), reference) in ours.iter().zip(&fused).zip(&exact) {
                    assert_eq!((mine.kind(), mine.size()), (Kind::BFloat16, reference.size()));
                    let (own, bound) = (error(mine, reference)?, 1.25 * error(other, reference)? + 1e-3);
                    assert!(own <= bound, "{batch} {queries} {keys} {heads} {width} {size}: {own} {bound}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn views_and_expanded_queries_are_read_as_they_stand() -> Result<()> {
        crate::torch::manual_seed(1);
        let packed = Tensor::randn([2, 50, 3 * 32], (Kind::BFloat16, Device::Cpu));
        let parts = packed.f_chunk(3, 2)?;
        let probe = Tensor::randn([1, 1, 32], (Kind::BFloat16, Device::Cpu)).f_expand([2, -1, -1], false)?;
        for query in [&parts[0], &probe] {
            if !fits([query, &parts[1], &parts[2]], 2)? {
                return Ok(());
            }
            let dense = |x: &Tensor| x.f_contiguous();
            let expected = flash(&dense(query)?, &dense(&parts[1])?, &dense(&parts[2])?, 2)?;
            assert_eq!(flash(query, &parts[1], &parts[2], 2)?, expected);
        }
        Ok(())
    }

    #[test]
    fn what_is_not_a_number_stays_so_and_stays_in_its_row() -> Result<()> {
        let [query, key, value] = inputs((1, 40, 40), 32, 1.0).map(|x| x.to_kind(Kind::BFloat16));
        if !fits([&query, &key, &value], 2)? {
            return Ok(());
        }
        let _ = query.f_select(1, 3)?.f_narrow(1, 0, 16)?.f_fill_(f64::NAN)?;
        let mixed = flash(&query, &key, &value, 2)?.f_isnan()?;
        assert_eq!(mixed.f_sum(Kind::Int64)?.f_int64_value(&[])?, 16);
        assert_eq!(mixed.f_select(1, 3)?.f_narrow(1, 0, 16)?.f_sum(Kind::Int64)?.f_int64_value(&[])?, 16);
        Ok(())
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() -> Result<()> {
        let half = inputs((2, 500, 2100), 64, 1.0).map(|x| x.to_kind(Kind::BFloat16));
        if !fits(half.each_ref(), 4)? {
            return Ok(());
        }
        let weight = Tensor::randn([2, 500, 64], (Kind::BFloat16, Device::Cpu));
        let before = crate::torch::get_num_threads();
        let mut found = Vec::new();
        for threads in [1, 3] {
            crate::torch::set_num_threads(threads);
            found.push(all(&half, &weight, |[q, k, v]| flash(q, k, v, 4))?);
        }
        crate::torch::set_num_threads(before);
        assert_eq!(found[0], found[1]);
        Ok(())
    }

    #[test]
    fn others_are_left_to_libtorch() -> Result<()> {
        let zeros = |size: [i64; 3], kind| Tensor::zeros(size, (kind, Device::Cpu));
        let fitting = |x: &Tensor, heads| fits([x, x, x], heads);
        assert!(!fitting(&zeros([1, 4, 8], Kind::Float), 2)?);
        assert!(!fitting(&zeros([1, 4, 6], Kind::BFloat16), 2)?, "an odd width has no pairs");
        assert!(!fitting(&zeros([1, 0, 8], Kind::BFloat16), 2)?);
        let [query, key] = [[2, 4, 8], [1, 4, 8]].map(|size| zeros(size, Kind::BFloat16));
        assert!(!fits([&query, &key, &key], 2)?, "another batch");
        let short = zeros([2, 3, 8], Kind::BFloat16);
        assert!(!fits([&query, &query, &short], 2)?, "fewer values than keys");
        Ok(())
    }
}
