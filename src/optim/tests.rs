//! The rules against plain scalar loops; parity with torch.optim itself is in tests/step/test_optim.py.

use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

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

fn message<T>(outcome: Result<T>) -> String {
    outcome.err().map(|err| err.to_string()).unwrap_or_default()
}

fn close(got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    for (a, b) in got.iter().zip(expected) {
        assert!((a - b).abs() <= 1e-13 * b.abs().max(1.0), "{got:?} is not {expected:?}");
    }
}

#[test]
fn sgd_follows_the_scalar_rule() -> Result<()> {
    let param = leaf(&[1.0, -2.0, 0.5]);
    let mut optimizer = Optimizer::new(SGD, vec![group("clip", 0.1, &[("w", &param)])])?;
    let (mut weight, mut buffer) = ([1.0, -2.0, 0.5], [0.0; 3]);
    for step in 0..5 {
        let grad: Vec<f64> = (0..3).map(|i| ((3 * step + i) as f64).sin()).collect();
        optimizer.zero_grad()?;
        push_grad(&param, &grad)?;
        optimizer.step(&[0.5])?;
        for i in 0..3 {
            buffer[i] = 0.9 * buffer[i] + grad[i] + DECAY * weight[i];
            weight[i] -= 0.05 * buffer[i];
        }
    }
    close(&values(&param)?, &weight);
    Ok(())
}

#[test]
fn adamw_follows_the_scalar_rule() -> Result<()> {
    let param = leaf(&[1.0, -2.0, 0.5]);
    let mut optimizer = Optimizer::new(ADAMW, vec![group("clip", 0.1, &[("w", &param)])])?;
    let (mut weight, mut mean, mut square) = ([1.0, -2.0, 0.5], [0.0; 3], [0.0; 3]);
    for step in 1..=5 {
        let grad: Vec<f64> = (0..3).map(|i| ((3 * step + i) as f64).sin()).collect();
        optimizer.zero_grad()?;
        push_grad(&param, &grad)?;
        optimizer.step(&[1.0])?;
        for i in 0..3 {
            weight[i] *= 1.0 - 0.1 * DECAY;
            mean[i] = 0.9 * mean[i] + 0.1 * grad[i];
            square[i] = 0.99 * square[i] + 0.01 * grad[i] * grad[i];
            let (m, v) = (mean[i] / (1.0 - 0.9f64.powi(step)), square[i] / (1.0 - 0.99f64.powi(step)));
            weight[i] -= 0.1 * m / (v.sqrt() + 1e-8);
        }
    }
    close(&values(&param)?, &weight);
    Ok(())
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
            optimizer.step_if(&finite, &[1.0])?;
            assert_eq!((values(&param)?, values(&other)?, moments(&optimizer)?), before);
        }
    }
    Ok(())
}

#[test]
fn a_step_that_is_not_skipped_has_the_bits_of_a_plain_one() -> Result<()> {
    for method in [SGD, ADAMW] {
        let (first, second) = (leaf(&[1.0, -1.0, 0.3]), leaf(&[1.0, -1.0, 0.3]));
        let mut a = Optimizer::new(method.clone(), vec![group("clip", 0.1, &[("w", &first)])])?;
        let mut b = Optimizer::new(method, vec![group("clip", 0.1, &[("w", &second)])])?;
        for _ in 0..4 {
            push_grad(&first, &[0.3, 0.7, -0.1])?;
            push_grad(&second, &[0.3, 0.7, -0.1])?;
            a.step(&[0.7])?;
            b.step_if(&b.clip_grad_norm(None)?.f_isfinite()?, &[0.7])?;
            assert_eq!(values(&first)?, values(&second)?);
        }
    }
    Ok(())
}

#[test]
fn clipping_scales_to_the_given_norm() -> Result<()> {
    let (a, b, idle) = (leaf(&[0.0, 0.0]), leaf(&[0.0]), leaf(&[0.0]));
    let optimizer = Optimizer::new(SGD, vec![group("clip", 0.1, &[("a", &a), ("b", &b), ("idle", &idle)])])?;
    assert_eq!(values(&optimizer.clip_grad_norm(Some(1.0))?)?, [0.0]);
    push_grad(&a, &[2.0, 3.0])?;
    push_grad(&b, &[6.0])?;
    close(&values(&optimizer.clip_grad_norm(None)?)?, &[7.0]);
    close(&values(&optimizer.clip_grad_norm(Some(100.0))?)?, &[7.0]);
    close(&values(&a.grad())?, &[2.0, 3.0]);
    close(&values(&optimizer.clip_grad_norm(Some(0.5))?)?, &[7.0]);
    let factor = 0.5 / (7.0 + 1e-6);
    close(&values(&a.grad())?, &[2.0 * factor, 3.0 * factor]);
    optimizer.scale_grads(-2.0)?;
    close(&values(&b.grad())?, &[-12.0 * factor]);
    Ok(())
}

#[test]
fn the_state_goes_out_and_in() -> Result<()> {
    for method in [SGD, ADAMW] {
        let (first, second) = (leaf(&[1.0, -1.0]), leaf(&[1.0, -1.0]));
        let mut a = Optimizer::new(method.clone(), vec![group("clip", 0.1, &[("w", &first)])])?;
        let mut b = Optimizer::new(method, vec![group("clip", 0.1, &[("w", &second)])])?;
        push_grad(&first, &[0.3, 0.7])?;
        push_grad(&second, &[0.3, 0.7])?;
        a.step(&[1.0])?;
        b.load_state(a.state()?)?;
        second.detach().copy_(&first.detach());
        a.step(&[1.0])?;
        b.step(&[1.0])?;
        assert_eq!(values(&first)?, values(&second)?);

        let whole = || -> Result<Vec<(String, Tensor)>> {
            Ok(a.state()?.into_iter().map(|(key, tensor)| (key, tensor.copy())).collect())
        };
        let key = whole()?.pop().map(|(key, _)| key).unwrap_or_default();
        let mut missing = whole()?;
        missing.pop();
        assert!(message(b.load_state(missing)).contains(&format!("`{key}` is missing from the state")));
        let mut extra = whole()?;
        extra.push(("other.step".into(), Tensor::from(0.0)));
        assert!(message(b.load_state(extra)).contains("`other.step` is not a state of this optimizer"));
        let mut wide = whole()?;
        wide.pop();
        wide.push((key.clone(), Tensor::zeros([3], (Kind::Double, Device::Cpu))));
        assert!(message(b.load_state(wide)).contains(&format!("`{key}` has shape [3], expected [2]")));
        let mut double = whole()?;
        double.extend(whole()?);
        assert!(message(b.load_state(double)).contains("is given twice"));
        let refused: Vec<_> = b.state()?.iter().map(|(_, t)| values(t)).collect::<Result<_>>()?;
        let kept: Vec<_> = a.state()?.iter().map(|(_, t)| values(t)).collect::<Result<_>>()?;
        assert_eq!(refused, kept);
    }
    Ok(())
}

#[test]
fn construction_refuses_what_cannot_be_trained() {
    let new = |groups| message(Optimizer::new(SGD, groups));
    let (a, b) = (leaf(&[1.0]), leaf(&[1.0]));
    assert!(new(vec![]).contains("no parameter group"));
    assert!(new(vec![group("clip", 0.1, &[])]).contains("group `clip` has no parameters"));
    assert!(new(vec![group("clip", -1.0, &[("w", &a)])]).contains("the learning rate of group `clip` is -1"));
    assert!(
        new(vec![group("clip", 0.1, &[("w", &a), ("w", &b)])]).contains("two parameters have the name `w`")
    );
    let same = vec![group("clip", 0.1, &[("w", &a)]), group("head", 0.1, &[("w", &b)])];
    assert!(new(same).contains("two parameters have the name `w`"));
    assert!(new(vec![group("clip", 0.1, &[("v", &a), ("w", &a)])]).contains("`v` and `w` are the same"));
    assert!(new(vec![group("clip", 0.1, &[("w", &(&a * 2.0))])]).contains("`w` is not a leaf"));
    let half = Tensor::zeros([2], (Kind::BFloat16, Device::Cpu));
    let text = new(vec![group("clip", 0.1, &[("w", &half)])]);
    assert!(text.contains("`w` is BFloat16, expected float32 or float64"), "{text}");
}

#[test]
fn factors_outside_their_range_are_refused() -> Result<()> {
    let param = leaf(&[1.0]);
    push_grad(&param, &[1.0])?;
    let mut optimizer = Optimizer::new(SGD, vec![group("clip", 0.1, &[("w", &param)])])?;
    assert!(message(optimizer.step(&[])).contains("`factors` has 0 entries for 1 groups (clip)"));
    assert!(message(optimizer.step(&[f64::NAN])).contains("factor is NaN"));
    assert!(message(optimizer.step(&[-1.0])).contains("factor is -1"));
    assert!(message(optimizer.clip_grad_norm(Some(-1.0))).contains("(None: no clipping) is -1"));
    assert!(message(optimizer.scale_grads(f64::INFINITY)).contains("factor is inf"));
    assert_eq!((values(&param)?, values(&param.grad())?), (vec![1.0], vec![1.0]));
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
