//! Both paths of the bridge against libtorch's autograd through the definition of the condition.

use crate::torch::{Device, Kind, Tensor};

use super::*;
use crate::error::DivaError;

const BATCH: i64 = 2;
const PATCHES: i64 = 7;
const WIDTH: i64 = 12;
const JOINT: i64 = 10;
const CHANNELS: i64 = 6;
const TEXT: i64 = 9;
const WINDOW: i64 = 3;

const RECAPS: [Recap; 6] =
    [Recap::Class(1), Recap::Class(2), Recap::Random, Recap::Windows(WINDOW), Recap::All, Recap::Text];
const JOINS: [TextJoin; 5] =
    [TextJoin::Add, TextJoin::Mean, TextJoin::Concat, TextJoin::Broadcast, TextJoin::None];

fn normal(size: &[i64]) -> Tensor {
    Tensor::randn(size, (Kind::Double, Device::Cpu))
}

/// Heads 0 to 4: norm and projection, the same with the projection transposed, norm without affine,
/// norm alone, none.
fn head(which: usize) -> Head {
    let affine = |on: bool| on.then(|| normal(&[WIDTH]));
    let norm = |on: bool| Norm { weight: affine(on), bias: affine(on), eps: 1e-5 };
    let proj = |transposed: bool| if transposed { normal(&[JOINT, WIDTH]) } else { normal(&[WIDTH, JOINT]) };
    let proj = |transposed: bool| Some(Proj { weight: proj(transposed), transposed });
    match which {
        0 => Head { norm: Some(norm(true)), proj: proj(false) },
        1 => Head { norm: Some(norm(true)), proj: proj(true) },
        2 => Head { norm: Some(norm(false)), proj: proj(false) },
        3 => Head { norm: Some(norm(true)), proj: None },
        _ => Head { norm: None, proj: None },
    }
}

fn linear(width: i64) -> Projector {
    Projector::shared(Map::Linear { weight: normal(&[CHANNELS, width]), bias: Some(normal(&[CHANNELS])) })
}

fn mlp(width: i64) -> Projector {
    Projector::shared(Map::Mlp {
        norm_weight: normal(&[width]),
        norm_bias: normal(&[width]),
        fc1_weight: normal(&[11, width]),
        fc1_bias: normal(&[11]),
        fc2_weight: normal(&[CHANNELS, 11]),
        fc2_bias: normal(&[CHANNELS]),
    })
}

/// One map for each slot, 4 and 2 wide.
fn two(width: i64) -> Projector {
    let tensors = [
        ("pooled.weight", normal(&[2, width])),
        ("tokens.0.weight", normal(&[width])),
        ("tokens.0.bias", normal(&[width])),
        ("tokens.1.weight", normal(&[11, width])),
        ("tokens.1.bias", normal(&[11])),
        ("tokens.3.weight", normal(&[CHANNELS - 2, 11])),
        ("tokens.3.bias", normal(&[CHANNELS - 2])),
        ("pooled.bias", normal(&[2])),
    ];
    let named = tensors.into_iter().map(|(key, tensor)| (key.to_string(), tensor)).collect();
    Projector::from_named(named).unwrap_or_else(|err| panic!("{err}"))
}

/// (B, 2, 5) with duplicates within and across draws, and empty slots.
fn choice() -> Tensor {
    let picks = [0i64, 3, 3, 6, -1, 3, 1, -1, -1, 0, 5, 5, 5, 5, 5, 2, 4, 6, 0, 1];
    Tensor::from_slice(&picks).reshape([BATCH, 2, 5])
}

/// What [`Bridge::forward`] stands for, in the plainest operations that autograd can follow.
fn definition(bridge: &Bridge, tokens: &Tensor, text: &Tensor, choice: &Tensor) -> Tensor {
    let text = text.expand([BATCH, TEXT, -1], false);
    if bridge.recap == Recap::Text {
        return text.unsqueeze(1);
    }
    let mut all = tokens.shallow_clone();
    if let Some(norm) = &bridge.head.norm {
        all = all.layer_norm([WIDTH], norm.weight.as_ref(), norm.bias.as_ref(), norm.eps, false);
    }
    if let Some(proj) = &bridge.head.proj {
        all = if proj.transposed { all.matmul(&proj.weight.tr()) } else { all.matmul(&proj.weight) };
    }
    let samples: Vec<Tensor> = (0..BATCH)
        .map(|sample| {
            let own = all.get(sample);
            let class = own.narrow(0, 0, 1);
            let draws: Vec<Tensor> = match bridge.recap {
                Recap::Class(_) => vec![class],
                Recap::All => vec![own],
                Recap::Windows(window) => {
                    let windows = (0..PATCHES / window).map(|at| {
                        own.narrow(0, 1 + at * window, window).mean_dim([0i64].as_slice(), true, Kind::Double)
                    });
                    vec![Tensor::cat(&std::iter::once(class).chain(windows).collect::<Vec<_>>(), 0)]
                }
                _ => (0..2)
                    .map(|draw| own.index_select(0, &slots(&choice.get(sample).get(draw)).clamp_min(0)))
                    .collect(),
            };
            Tensor::stack(&draws, 0)
        })
        .collect();
    let mut rows = project(&bridge.projector, &Tensor::stack(&samples, 0));
    if let Recap::Class(count) = bridge.recap {
        rows = rows.reshape([BATCH, 1, count, -1]);
    }
    if bridge.recap == Recap::Random {
        let kept: Vec<Tensor> = (0..BATCH * 2)
            .map(|at| slots(&choice.reshape([BATCH * 2, -1]).get(at)).ge(0).to_kind(Kind::Double))
            .collect();
        rows = &rows * Tensor::stack(&kept, 0).reshape([BATCH, 2, -1, 1]);
    }
    let count = rows.size()[2];
    match bridge.join {
        TextJoin::None => rows,
        TextJoin::Broadcast => &rows + text.unsqueeze(1),
        TextJoin::Add => &rows + text.narrow(1, 0, count).unsqueeze(1),
        TextJoin::Mean => &rows + text.mean_dim([1i64].as_slice(), true, Kind::Double).unsqueeze(1),
        TextJoin::Concat => {
            let draws = rows.size()[1];
            Tensor::cat(&[rows, text.unsqueeze(1).expand([-1, draws, -1, -1], false)], 2)
        }
    }
}

/// Tokens of one draw's rows; an empty slot stays negative.
fn slots(choice: &Tensor) -> Tensor {
    let tokens = choice.where_self(&choice.lt(0), &(choice + 1));
    Tensor::cat(&[tokens.narrow(0, 0, 1).zeros_like(), tokens], 0)
}

fn project(projector: &Projector, rows: &Tensor) -> Tensor {
    let parts: Vec<Tensor> = projector
        .maps()
        .iter()
        .map(|(_, map)| match map {
            Map::Linear { weight, bias } => rows.linear(weight, bias.as_ref()),
            Map::Mlp { norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias } => {
                let width = norm_weight.size();
                rows.layer_norm(width, Some(norm_weight), Some(norm_bias), 1e-5, false)
                    .linear(fc1_weight, Some(fc1_bias))
                    .gelu("none")
                    .linear(fc2_weight, Some(fc2_bias))
            }
        })
        .collect();
    if parts.is_empty() {
        rows.shallow_clone()
    } else {
        Tensor::cat(&parts, -1)
    }
}

fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let scale = expected.abs().max().double_value(&[]);
    (found - expected).abs().max().double_value(&[]) / if scale > 0.0 { scale } else { 1.0 }
}

/// Forward and every gradient of one bridge against autograd.
fn matches_autograd(bridge: &Bridge, tokens: &Tensor, text: &Tensor) -> Result<()> {
    let label = format!("{:?} {:?} contiguous: {}", bridge.recap, bridge.join, tokens.is_contiguous());
    let picks = choice();
    let chosen = (bridge.recap == Recap::Random).then_some(&picks);
    let (condition, tape) = bridge.forward(tokens, text, chosen)?;
    let grad = normal(&condition.size());
    let found = bridge.backward(&tape, &grad)?;

    let leaf = |tensor: &Tensor| tensor.detach().set_requires_grad(true);
    let inputs: Vec<Tensor> = std::iter::once(leaf(tokens))
        .chain(bridge.params().into_iter().map(|(_, param)| leaf(param)))
        .collect();
    let shadow = rebuilt(bridge, &inputs[1..]);
    let expected = definition(&shadow, &inputs[0], text, &picks);
    assert!(relative(&condition, &expected.detach()) <= 1e-12, "forward, {label}");
    // Inputs without influence get a zero gradient instead of an error.
    let still: Tensor = inputs.iter().map(|input| (input * 0.0).sum(Kind::Double)).sum();
    let loss = (&expected * &grad).sum(Kind::Double) + still;
    let expected = Tensor::f_run_backward(&[loss], &inputs, false, false)?;
    let found: Vec<&Tensor> = std::iter::once(&found.tokens).chain(&found.params).collect();
    assert_eq!(found.len(), expected.len());
    for (at, (found, expected)) in found.into_iter().zip(&expected).enumerate() {
        assert!(relative(found, expected) <= 1e-10, "gradient {at}, {label}");
    }
    Ok(())
}

/// The same bridge with other tensors as its parameters.
fn rebuilt(bridge: &Bridge, params: &[Tensor]) -> Bridge {
    let mut params = params.iter().map(Tensor::shallow_clone);
    let mut like = |present: bool| if present { params.next() } else { None };
    let norm = bridge.head.norm.as_ref().map(|norm| Norm {
        weight: like(norm.weight.is_some()),
        bias: like(norm.bias.is_some()),
        eps: norm.eps,
    });
    let transposed = bridge.head.proj.as_ref().map(|proj| proj.transposed);
    let proj =
        like(transposed.is_some()).map(|weight| Proj { weight, transposed: transposed.unwrap_or_default() });
    let names: Vec<String> =
        bridge.projector.params().iter().map(|(name, _)| name.replacen("projector.", "", 1)).collect();
    let named = names.into_iter().map(|name| (name, like(true).unwrap_or_default())).collect();
    let projector = Projector::from_named(named).unwrap_or_else(|err| panic!("{err}"));
    Bridge { head: Head { norm, proj }, projector, recap: bridge.recap, join: bridge.join, kernel: None }
}

#[test]
fn every_gradient_matches_autograd_on_both_paths() -> Result<()> {
    crate::torch::manual_seed(1);
    let plain = normal(&[BATCH, 1 + PATCHES, WIDTH]);
    let strided = plain.transpose(1, 2).contiguous().transpose(1, 2);
    for recap in RECAPS {
        for join in JOINS {
            if join == TextJoin::Broadcast && !matches!(recap, Recap::Class(1) | Recap::Text) {
                continue;
            }
            for which in 0..5 {
                let width = if which < 3 { JOINT } else { WIDTH };
                for (projector, channels) in [
                    (linear(width), CHANNELS),
                    (mlp(width), CHANNELS),
                    (two(width), CHANNELS),
                    (Projector::IDENTITY, width),
                ] {
                    let bridge = Bridge::new(head(which), projector, recap, join)?;
                    // A text for all images and one for each, in turn.
                    let each = if let Recap::Class(count) = recap { channels / count } else { channels };
                    let text = normal(&[if which % 2 == 0 { 1 } else { BATCH }, TEXT, each]);
                    matches_autograd(&bridge, &plain, &text)?;
                    matches_autograd(&bridge, &strided, &text)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_class_token_becomes_as_many_tokens_as_the_projector_has_room_for() -> Result<()> {
    let recap = |name, number| Recap::parse(name, number);
    assert_eq!(recap("class", None)?, Recap::Class(1));
    assert_eq!(recap("class", Some(4))?, Recap::Class(4));
    for (count, says) in [(0, "at least 1"), (-1, "at least 1"), (4, "do not share")] {
        let refused = Bridge::new(head(0), linear(JOINT), recap("class", Some(count))?, TextJoin::None);
        let Err(DivaError::Config { what, .. }) = refused else { panic!("{count} is taken") };
        assert!(what.contains(says), "{what}");
    }
    let bridge = Bridge::new(head(0), linear(JOINT), Recap::Class(3), TextJoin::Add)?;
    let tokens = normal(&[BATCH, 1 + PATCHES, WIDTH]);
    assert!(matches!(bridge.forward(&tokens, &normal(&[1, 2, 2]), None), Err(DivaError::Shape { .. })));
    assert_eq!(bridge.forward(&tokens, &normal(&[1, 3, 2]), None)?.0.size(), [BATCH, 1, 3, 2]);
    Ok(())
}

#[test]
fn contiguous_tokens_take_the_fused_passes_and_others_do_not() -> Result<()> {
    let bridge = Bridge::new(head(0), linear(JOINT), Recap::All, TextJoin::None)?;
    let plain = normal(&[BATCH, 1 + PATCHES, WIDTH]);
    let strided = plain.transpose(1, 2).contiguous().transpose(1, 2);
    let text = normal(&[1, TEXT, CHANNELS]);
    assert!(matches!(bridge.forward(&plain, &text, None)?.1.path, Path::Fused { .. }));
    assert!(matches!(bridge.forward(&strided, &text, None)?.1.path, Path::Recorded { .. }));
    Ok(())
}

#[test]
fn params_are_named_in_a_fixed_order() -> Result<()> {
    let bridge = Bridge::new(head(0), mlp(JOINT), Recap::Class(1), TextJoin::None)?;
    let names: Vec<&str> = bridge.params().into_iter().map(|(name, _)| name).collect();
    let expected = [
        "norm.weight",
        "norm.bias",
        "proj",
        "projector.0.weight",
        "projector.0.bias",
        "projector.1.weight",
        "projector.1.bias",
        "projector.3.weight",
        "projector.3.bias",
    ];
    assert_eq!(names, expected);
    Ok(())
}

#[test]
fn embed_is_the_pooled_embedding_with_a_graph() -> Result<()> {
    crate::torch::manual_seed(2);
    for which in 0..5 {
        let head = head(which);
        let tokens = normal(&[BATCH, 1 + PATCHES, WIDTH]).set_requires_grad(true);
        let embedding = embed(&head, &tokens)?;
        // With the identity as the projector, the class recap's condition is the same embedding.
        let width = embedding.size()[1];
        let bridge = Bridge::new(head, Projector::IDENTITY, Recap::Class(1), TextJoin::None)?;
        let (condition, tape) = bridge.forward(&tokens, &Tensor::new(), None)?;
        assert!(relative(&condition.reshape([BATCH, width]), &embedding.detach()) <= 1e-12);
        let grad = normal(&[BATCH, width]);
        let expected =
            Tensor::f_run_backward(&[(&embedding * &grad).sum(Kind::Double)], &[&tokens], false, false)?;
        let found = bridge.backward(&tape, &grad.reshape([BATCH, 1, 1, width]))?;
        assert!(relative(&found.tokens, &expected[0]) <= 1e-10);
    }
    Ok(())
}

#[test]
fn embed_refuses_what_does_not_fit() -> Result<()> {
    let tokens = normal(&[BATCH, 1 + PATCHES, WIDTH]);
    assert!(matches!(embed(&head(0), &tokens.get(0)), Err(DivaError::Shape { .. })));
    assert!(matches!(embed(&head(0), &tokens.narrow(2, 0, 5)), Err(DivaError::Shape { .. })));
    assert!(matches!(embed(&head(3), &tokens.narrow(2, 0, 5)), Err(DivaError::Shape { .. })));
    assert!(matches!(embed(&head(4), &tokens.narrow(1, 0, 0)), Err(DivaError::Shape { .. })));
    assert!(matches!(embed(&head(4), &tokens.to_kind(Kind::Int64)), Err(DivaError::Kind { .. })));
    let norm = Norm { weight: Some(normal(&[5])), bias: None, eps: 1e-5 };
    let misfit = Head { norm: Some(norm), proj: head(0).proj };
    assert!(matches!(embed(&misfit, &tokens), Err(DivaError::Weights { .. })));
    Ok(())
}

#[test]
fn a_bridge_built_without_its_constructor_is_checked_all_the_same() {
    let mut bridge = Bridge {
        head: head(0),
        projector: linear(WIDTH),
        recap: Recap::All,
        join: TextJoin::None,
        kernel: None,
    };
    let tokens = normal(&[BATCH, 1 + PATCHES, WIDTH]);
    let refused = bridge.forward(&tokens, &tokens, None);
    assert!(matches!(refused, Err(DivaError::Weights { .. })));
    (bridge.projector, bridge.join) = (linear(JOINT), TextJoin::Broadcast);
    assert!(matches!(bridge.forward(&tokens, &tokens, None), Err(DivaError::Config { .. })));
}
