use tch::IndexOp;

use super::*;

const PREDICTIONS: [Prediction; 4] = Prediction::ALL;

fn schedule(prediction: Prediction, steps: usize) -> Result<Schedule> {
    match prediction {
        Prediction::Flow => {
            let sigmas = Tensor::f_linspace(1.0, 0.01, steps as i64, (Kind::Float, Device::Cpu))?;
            Schedule::flow(&sigmas, 1000.0)
        }
        _ => {
            // Linear betas with zero terminal SNR.
            let betas = Tensor::f_linspace(0.0001, 0.02, steps as i64, (Kind::Float, Device::Cpu))?;
            let table = betas.f_rsub_scalar(1.0)?.f_cumprod(0, Kind::Float)?.f_sqrt()?;
            let (first, last) = (table.f_get(0)?, table.f_get(-1)?);
            let rescaled = table.f_sub(&last)?.f_mul(&first)?.f_div(&first.f_sub(&last)?)?;
            Schedule::from_alphas_cumprod(&rescaled.f_square()?, prediction)
        }
    }
}

fn randn(shape: &[i64], kind: Kind) -> Result<Tensor> {
    Ok(Tensor::f_randn(shape, (kind, Device::Cpu))?)
}

fn same(a: &Tensor, b: &Tensor) -> Result<bool> {
    Ok(a.size() == b.size() && a.f_kind()? == b.f_kind()? && a.f_equal(b)?)
}

#[test]
fn a_schedule_can_be_shared_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<Schedule>();
}

#[test]
fn the_fused_pass_equals_libtorch_bit_for_bit() -> Result<()> {
    // Below and above one block of the pass, ranks 1 to 5, a batch of one, an empty batch and empty
    // samples.
    let shapes: [&[i64]; 8] = [
        &[5],
        &[3, 7],
        &[1, 4, 6, 5],
        &[2, 4, 65, 64],
        &[3, 3, 96, 96],
        &[2, 1, 2, 3, 4],
        &[0, 4, 2, 2],
        &[2, 0, 3],
    ];
    for prediction in PREDICTIONS {
        let schedule = schedule(prediction, 100)?;
        for shape in shapes {
            for kind in [Kind::Float, Kind::Double] {
                let (x0, e) = (randn(shape, kind)?, randn(shape, kind)?);
                let t = Tensor::f_randint(100, [shape[0]], (Kind::Int64, Device::Cpu))?;
                assert!(fused::takes(&x0) && fused::takes(&e));
                let got = schedule.add_noise(&x0, &e, &t)?;
                let levels = schedule.lock().levels(&x0)?;
                let (noisy, target) = schedule.by_libtorch(&levels, &x0, &e, &t)?;
                assert!(same(&got.noisy, &noisy)?, "{prediction:?} {shape:?} {kind:?}");
                assert!(same(&got.target, &target)?, "{prediction:?} {shape:?} {kind:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn strided_inputs_give_the_same_as_contiguous_ones() -> Result<()> {
    let t = Tensor::from_slice(&[0i64, 50, 99]);
    for prediction in PREDICTIONS {
        let schedule = schedule(prediction, 100)?;
        let draws = randn(&[3, 2, 4, 6, 5], Kind::Double)?;
        let x0 = randn(&[3, 4, 6, 5], Kind::Double)?;
        // One draw of several, one sample for the whole batch: contiguous samples, so the fused
        // pass takes them.
        for e in [draws.i((.., 1)), draws.i((0, 0)).f_unsqueeze(0)?.f_expand([3, 4, 6, 5], false)?] {
            assert!(!e.is_contiguous() && fused::takes(&e));
            let (a, b) = (schedule.add_noise(&x0, &e, &t)?, schedule.add_noise(&x0, &e.f_contiguous()?, &t)?);
            assert!(same(&a.noisy, &b.noisy)? && same(&a.target, &b.target)?);
            let swapped =
                (schedule.add_noise(&e, &x0, &t)?, schedule.add_noise(&e.f_contiguous()?, &x0, &t)?);
            assert!(same(&swapped.0.noisy, &swapped.1.noisy)? && same(&swapped.0.target, &swapped.1.target)?);
        }
        // Channels last, and a lazily negated tensor: libtorch's operations take them.
        let last = draws.i((.., 0)).f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?;
        for e in [last, draws.i((.., 1)).f_contiguous()?.f_internal_neg_view()?] {
            assert!(!fused::takes(&e));
            let plain = e.f_zeros_like()?.f_contiguous()?.f_add(&e)?;
            let (a, b) = (schedule.add_noise(&x0, &e, &t)?, schedule.add_noise(&x0, &plain, &t)?);
            assert!(same(&a.noisy, &b.noisy)? && same(&a.target, &b.target)?);
        }
        // Timesteps of one draw of several.
        let many = Tensor::from_slice(&[0i64, 7, 50, 7, 99, 7]).f_reshape([3, 2])?;
        let e = draws.i((.., 0));
        let (a, b) = (schedule.add_noise(&x0, &e, &many.i((.., 0)))?, schedule.add_noise(&x0, &e, &t)?);
        assert!(same(&a.noisy, &b.noisy)? && same(&a.model_timesteps, &b.model_timesteps)?);
    }
    Ok(())
}

#[test]
fn noisy_and_target_give_the_clean_latents_back() -> Result<()> {
    let t = Tensor::from_slice(&[3i64, 60, 99]);
    let (x0, e) = (randn(&[3, 4, 6, 5], Kind::Double)?, randn(&[3, 4, 6, 5], Kind::Double)?);
    for prediction in PREDICTIONS {
        let schedule = schedule(prediction, 100)?;
        let out = schedule.add_noise(&x0, &e, &t)?;
        let levels = schedule.lock().levels(&x0)?;
        let a = levels.signal.f_index_select(0, &t)?.f_reshape([3, 1, 1, 1])?;
        let s = levels.noise.f_index_select(0, &t)?.f_reshape([3, 1, 1, 1])?;
        let error = match prediction {
            Prediction::Sample => out.target - &x0,
            Prediction::Flow => out.noisy - s * out.target - &x0,
            Prediction::V => a * out.noisy - s * out.target - &x0,
            Prediction::Epsilon => out.noisy - s * out.target - a * &x0, // at zero SNR x_0 itself is lost
        };
        assert!(error.f_abs()?.f_max()?.f_double_value(&[])? < 1e-12, "{prediction:?}");
    }
    Ok(())
}

#[test]
fn the_callers_tensors_are_left_alone() -> Result<()> {
    let t = Tensor::from_slice(&[10i64, 90]);
    for prediction in PREDICTIONS {
        let (x0, e) = (randn(&[2, 3, 8], Kind::Float)?, randn(&[2, 3, 8], Kind::Float)?);
        let (x0, e) = (x0.f_set_requires_grad(true)?, e.f_set_requires_grad(true)?);
        let before = (x0.f_detach_copy()?, e.f_detach_copy()?);
        let out = schedule(prediction, 100)?.add_noise(&x0, &e, &t)?;
        assert!(same(&x0, &before.0)? && same(&e, &before.1)?);
        assert!(!out.noisy.requires_grad() && !out.target.requires_grad());
    }
    Ok(())
}

#[test]
fn weights_follow_the_paper_and_stay_finite() -> Result<()> {
    let all = Tensor::f_arange(100, (Kind::Int64, Device::Cpu))?;
    for prediction in PREDICTIONS {
        let schedule = schedule(prediction, 100)?;
        let like = Tensor::f_zeros([1], (Kind::Double, Device::Cpu))?;
        let weights = schedule.weights(&all, 5.0, &like)?;
        assert_eq!(weights.f_kind()?, Kind::Double);
        assert!(weights.f_isfinite()?.f_all()?.f_int64_value(&[])? == 1, "{prediction:?}");
        assert!(weights.f_min()?.f_double_value(&[])? >= 0.0);
        let last = weights.f_double_value(&[99])?; // pure noise
        assert_eq!(last, if prediction == Prediction::Epsilon { 1.0 } else { 0.0 }, "{prediction:?}");
    }
    // No noise at all: snr is infinite.
    let table = Tensor::from_slice(&[1.0f32, 0.5, 0.0]);
    let like = Tensor::f_zeros([0], (Kind::Float, Device::Cpu))?;
    for (prediction, want) in [
        (Prediction::Epsilon, [0.0, 1.0, 1.0]),
        (Prediction::V, [0.0, 0.5, 0.0]),
        (Prediction::Sample, [5.0, 1.0, 0.0]),
    ] {
        let weights = Schedule::from_alphas_cumprod(&table, prediction)?.weights(&all.i(..3), 5.0, &like)?;
        assert_eq!(slices::view::<f32>(&weights)?, want, "{prediction:?}");
    }
    let flow = Schedule::flow(&Tensor::from_slice(&[0.0f32, 0.5, 1.0]), 1000.0)?;
    assert_eq!(slices::view::<f32>(&flow.weights(&all.i(..3), 5.0, &like)?)?, [0.0, 0.25, 0.0]);
    Ok(())
}

#[test]
fn flow_levels_rise_whichever_way_they_are_given() -> Result<()> {
    let (up, down) = (Tensor::from_slice(&[0.2f32, 0.6, 1.0]), Tensor::from_slice(&[1.0f32, 0.6, 0.2]));
    for table in [&up, &down] {
        let schedule = Schedule::flow(table, 500.0)?;
        assert!(same(&schedule.sigmas()?, &up)?);
        let x = randn(&[2, 3], Kind::BFloat16)?;
        let told = schedule.add_noise(&x, &x, &Tensor::from_slice(&[0i64, 2]))?.model_timesteps;
        assert!(same(
            &told,
            &up.f_mul_scalar(500.0)?.i(..).f_index_select(0, &Tensor::from_slice(&[0i64, 2]))?
        )?);
    }
    assert!(matches!(Schedule::flow(&up, 500.0)?.alphas_cumprod(), Err(DivaError::Config { .. })));
    assert!(matches!(schedule(Prediction::V, 5)?.sigmas(), Err(DivaError::Config { .. })));
    Ok(())
}

/// The message of the error that `result` must be.
fn message<T>(result: Result<T>) -> String {
    result.err().map(|err| err.to_string()).unwrap_or_default()
}

#[test]
fn bad_schedules_are_refused() {
    use Prediction::{Epsilon, Flow};
    let flow_table = Schedule::from_alphas_cumprod(&Tensor::from_slice(&[0.9f32, 0.1]), Flow);
    assert!(message(flow_table).contains("use Schedule.flow"));
    let unknown = message(Prediction::parse("velocity"));
    assert!(
        unknown.contains("is not one of \"epsilon\", \"v_prediction\", \"sample\", \"flow\""),
        "{unknown}"
    );
    let table = |values: &[f32]| message(Schedule::from_alphas_cumprod(&Tensor::from_slice(values), Epsilon));
    assert!(table(&[]).contains("expected (T,)"));
    assert!(table(&[0.9, f32::NAN]).contains("alphas_cumprod[1] is NaN"));
    assert!(table(&[1.5, 0.5]).contains("alphas_cumprod[0] is 1.5"));
    assert!(table(&[0.5, 0.4, 0.6]).contains("increases at timestep 2"));
    let flow = |values: &[f32], count| message(Schedule::flow(&Tensor::from_slice(values), count));
    assert!(flow(&[0.1, 0.5, 0.5], 1000.0).contains("rise or fall strictly"));
    assert!(flow(&[0.1, -0.5], 1000.0).contains("sigmas[1] is -0.5"));
    assert!(flow(&[0.1, 0.5], 0.0).contains("num_train_timesteps is 0"));
}

#[test]
fn bad_batches_are_refused() -> Result<()> {
    let schedule = schedule(Prediction::V, 10)?;
    let (x, t) = (randn(&[2, 3, 4], Kind::Float)?, Tensor::from_slice(&[0i64, 9]));
    let refused = |x0: &Tensor, e: &Tensor, t: &Tensor| schedule.add_noise(x0, e, t).err();
    let (shape, double) = (randn(&[2, 3, 5], Kind::Float)?, x.f_to_kind(Kind::Double)?);
    assert!(matches!(refused(&x, &shape, &t), Some(DivaError::Shape { name, .. }) if name == "noise"));
    assert!(matches!(refused(&x, &double, &t), Some(DivaError::Kind { name, .. }) if name == "noise"));
    assert!(matches!(refused(&x, &x, &t.i(..1)), Some(DivaError::Shape { name, .. }) if name == "timesteps"));
    assert!(
        matches!(refused(&x, &x, &t.f_unsqueeze(0)?), Some(DivaError::Shape { name, .. }) if name == "timesteps")
    );
    let int = t.f_to_kind(Kind::Int)?;
    assert!(matches!(refused(&x, &x, &int), Some(DivaError::Kind { got: Kind::Int, .. })));
    let (scalar, whole) = (x.i((0, 0, 0)), x.f_to_kind(Kind::Int64)?);
    assert!(
        matches!(refused(&scalar, &scalar, &t), Some(DivaError::Shape { name, .. }) if name == "latents")
    );
    assert!(matches!(refused(&whole, &whole, &t), Some(DivaError::Kind { got: Kind::Int64, .. })));
    let sparse = x.f_to_sparse_sparse_dim(3)?;
    assert!(matches!(refused(&sparse, &x, &t), Some(DivaError::Data { .. })));
    assert!(matches!(refused(&x, &sparse, &t), Some(DivaError::Data { .. })));
    for (t, want) in [([0i64, 10], "timesteps[1] is 10, outside of [0, 10)"), ([-1, 0], "timesteps[0] is -1")]
    {
        let text = message(schedule.add_noise(&x, &x, &Tensor::from_slice(&t)));
        assert!(text.contains(want), "{text}");
        assert!(message(schedule.weights(&Tensor::from_slice(&t), 5.0, &x)).contains(want));
    }
    for gamma in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(schedule.weights(&t, gamma, &x), Err(DivaError::Config { .. })));
    }
    assert!(matches!(schedule.weights(&t, 5.0, &t), Err(DivaError::Kind { .. })));
    Ok(())
}
