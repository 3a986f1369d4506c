use crate::torch::IndexOp;

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
