//! Groups and skipped steps; parity with torch.optim is in tests/step/test_optim.py.

use crate::torch::{Kind, Tensor};
use proptest::prelude::*;

use super::*;

const SGD: Method = Method::Sgd { momentum: 0.9 };
const ADAMW: Method = Method::AdamW { betas: (0.9, 0.99), eps: 1e-8 };
const DECAY: f64 = 0.05;

fn leaf(values: &[f64]) -> Tensor {
    Tensor::from_slice(values).set_requires_grad(true)
}

/// Adds `values` to the gradient of `param`, as a backward pass does.
fn push_grad(param: &Tensor, values: &[f64]) -> Result<()> {
    Ok((param * Tensor::from_slice(values)).sum(Kind::Double).f_backward()?)
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::try_from(tensor.f_detach()?.f_reshape([-1i64])?)?)
}

fn group(name: &str, lr: f64, params: &[(&str, &Tensor)]) -> ParamGroup {
    let params = params.iter().map(|(key, tensor)| (key.to_string(), tensor.shallow_clone())).collect();
    ParamGroup { name: name.to_string(), lr, weight_decay: DECAY, params }
}

#[test]
fn parameters_without_a_gradient_stay_and_other_groups_keep_the_state() -> Result<()> {
    for method in [SGD, ADAMW] {
        let (clip, idle, head) = (leaf(&[1.0]), leaf(&[2.0]), leaf(&[3.0]));
        let mut optimizer = Optimizer::new(method, vec![group("head", 0.1, &[("h", &head)])])?;
        push_grad(&clip, &[1.0])?;
        push_grad(&head, &[1.0])?;
        optimizer.step(&[1.0])?;
        assert_eq!(values(&clip)?, [1.0]);
        let kept: Vec<_> = optimizer.state()?.into_iter().map(|(key, value)| (key, value.copy())).collect();
        optimizer.regroup(vec![group("clip", 0.1, &[("w", &clip), ("idle", &idle)])])?;
        let moved = values(&head)?;
        optimizer.step(&[1.0])?;
        assert_ne!(values(&clip)?, [1.0]);
        assert_eq!((values(&idle)?, values(&head)?), (vec![2.0], moved));
        optimizer.regroup(vec![group("clip", 0.1, &[("w", &clip)]), group("head", 0.5, &[("h", &head)])])?;
        let state: HashMap<_, _> = optimizer.state()?.into_iter().collect();
        for (key, value) in kept {
            assert_eq!(values(&state[&key])?, values(&value)?, "{key}");
        }
        assert!(state.contains_key("idle.momentum_buffer") || state.contains_key("idle.exp_avg"));
    }
    Ok(())
}

#[test]
fn a_step_that_is_skipped_moves_no_weight_and_no_moment() -> Result<()> {
    let plain = Method::Sgd { momentum: 0.0 };
    for method in [SGD, plain, ADAMW] {
        for spoilt in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let (param, other) = (leaf(&[1.0, -2.0]), leaf(&[3.0]));
            let groups = vec![group("clip", 0.1, &[("w", &param), ("v", &other)])];
            let mut optimizer = Optimizer::new(method.clone(), groups)?;
            push_grad(&param, &[0.3, 0.7])?;
            push_grad(&other, &[0.5])?;
            optimizer.step(&[1.0])?;
            let moments = |optimizer: &Optimizer| -> Result<Vec<_>> {
                let state = optimizer.state()?.into_iter().filter(|(key, _)| !key.ends_with(".step"));
                state.map(|(_, tensor)| values(&tensor)).collect()
            };
            let before = (values(&param)?, values(&other)?, moments(&optimizer)?);
            push_grad(&param, &[0.0, spoilt])?;
            let finite = optimizer.clip_grad_norm(Some(1.0))?.f_isfinite()?;
            optimizer.step_if(&finite, None, &[1.0])?;
            assert_eq!((values(&param)?, values(&other)?, moments(&optimizer)?), before);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_schedule_stays_between_zero_and_one(warmup in 0i64.., steps in 1i64.., step in 0i64..) {
        for name in LrSchedule::NAMES {
            let factor = LrSchedule::parse(name, warmup, steps).map(|schedule| schedule.factor(step));
            prop_assert!(matches!(factor, Ok(f) if (0.0..=1.0).contains(&f)));
        }
    }

    #[test]
    fn any_method_is_taken_or_refused(
        (a, b) in any::<(f64, f64)>(),
        eps in any::<f64>(),
    ) {
        let whole = |x: f64| (0.0..=1e9).contains(&x);
        let sgd = Method::Sgd { momentum: a }.validate().is_ok();
        prop_assert_eq!(sgd, whole(a));
        let adamw = Method::AdamW { betas: (a, b), eps }.validate().is_ok();
        prop_assert_eq!(adamw, whole(a) && a < 1.0 && whole(b) && b < 1.0 && whole(eps));
    }
}

#[test]
fn narrow_gradients_are_widened_so_many_at_a_time() -> Result<()> {
    let device = crate::torch::Device::Cpu;
    let grad = Tensor::f_zeros([1], (Kind::BFloat16, device))?.f_expand([1 << 24], false)?;
    for (kind, takes) in [(Kind::BFloat16, false), (Kind::Float, true)] {
        let (slots, grads) = (Vec::new(), vec![grad.shallow_clone(), grad.shallow_clone()]);
        let mut one = Move { lr: 0.1, weight_decay: 0.0, device, kinds: (Kind::Float, kind), slots, grads };
        assert_eq!(one.takes(&grad), takes);
        one.grads.truncate(1);
        assert!(one.takes(&grad));
    }
    Ok(())
}
