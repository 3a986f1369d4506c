//! Do the parameters fit each other, and a gradient its condition? Only shapes, dtypes and devices
//! are looked at.

use crate::torch::{Device, Kind, Tensor};

use super::plan::Plan;
use super::projector::Map;
use super::sizes::{place, rank, same_device, Sizes};
use super::{Bridge, Head, Projector, Recap, OP};
use crate::error::{floating, DivaError, Result};

/// The sizes of a bridge that has a projector, or of one that is applied to `tokens`.
pub(super) fn parameters(bridge: &Bridge, tokens: Option<&Tensor>) -> Result<Sizes> {
    let too_few = match bridge.recap {
        Recap::Windows(window) if window < 1 => Some(format!("a window of {window} tokens")),
        Recap::Class(count) if count < 1 => Some(format!("a class token that becomes {count} tokens")),
        _ => None,
    };
    if let Some(what) = too_few {
        return Err(DivaError::config(OP, format!("{what}: it must be at least 1")));
    }
    let sizes = all(bridge, tokens)?;
    let Recap::Class(count) = bridge.recap else { return Ok(sizes) };
    if sizes.channels % count != 0 {
        let what =
            format!("the projector gives {} features, which {count} tokens do not share", sizes.channels);
        return Err(DivaError::config(OP, what));
    }
    Ok(Sizes { channels: sizes.channels / count, ..sizes })
}

/// The same, with all that the projector gives as `channels`.
fn all(bridge: &Bridge, tokens: Option<&Tensor>) -> Result<Sizes> {
    if let (Some(tokens), []) = (tokens, bridge.projector.maps()) {
        let kind = head(&bridge.head, tokens)?;
        let width = tokens.size3()?.2;
        let channels = if bridge.head.proj.is_some() { proj(&bridge.head)?.1 } else { width };
        return Ok(Sizes { width, channels, kind, device: tokens.device() });
    }
    let (kind, device) = alike(&bridge.params())?;
    let (joint, channels) = projector(&bridge.projector)?;
    let width = match &bridge.head.proj {
        None => joint,
        Some(_) => {
            let (width, found) = proj(&bridge.head)?;
            if found != joint {
                let first = bridge.projector.params().first().map_or("projector", |(key, _)| *key);
                let what = format!(
                    "takes {joint} features, but `proj` has shape {:?} and gives {found}",
                    sizes_of(&bridge.head)
                );
                return Err(DivaError::weights(OP, first.to_string(), what));
            }
            width
        }
    };
    norm(&bridge.head, width)?;
    Ok(Sizes { width, channels, kind, device })
}

/// The dtype in which [`super::embed`] computes.
pub(super) fn head(head: &Head, tokens: &Tensor) -> Result<Kind> {
    rank(tokens, "tokens", 3, "(B, 1+P, W)")?;
    let (batch, count, found) = tokens.size3()?;
    let params = head.params();
    if batch < 1 || count < 1 {
        return Err(DivaError::shape(OP, "tokens", tokens, "at least one image and one token"));
    }
    let kind = floating(OP, "tokens", tokens)?;
    if params.is_empty() {
        return norm(head, found).map(|()| kind);
    }
    let (kind, device) = alike(&params)?;
    let width = match (&head.proj, params.first()) {
        (Some(_), _) => proj(head)?.0,
        (None, Some((_, first))) => first.size().first().copied().unwrap_or_default(),
        (None, None) => found,
    };
    norm(head, width)?;
    if found != width {
        return Err(DivaError::shape(
            OP,
            "tokens",
            tokens,
            format!("(B, 1+P, {width}), the width of CLIP's head"),
        ));
    }
    same_device(tokens, "tokens", device)?;
    Ok(kind)
}

/// The gradient must have the shape of the condition that `plan` describes, and the bridge must be
/// its own.
pub(super) fn gradient(plan: &Plan, grad: &Tensor, bridge: &Bridge, sizes: &Sizes) -> Result<()> {
    let widths = (sizes.width, sizes.channels);
    if bridge.recap != plan.recap || bridge.join != plan.join || widths != (plan.width, plan.channels) {
        return Err(DivaError::config(OP, "the tape was recorded by another bridge"));
    }
    let expected = plan.condition();
    if grad.size() != expected {
        return Err(DivaError::shape(OP, "grad", grad, format!("{expected:?}, the shape of the condition")));
    }
    floating(OP, "grad", grad)?;
    same_device(grad, "grad", sizes.device)
}

/// The one dtype and device of all parameters.
fn alike(params: &[(&'static str, &Tensor)]) -> Result<(Kind, Device)> {
    let Some((first, lead)) = params.first() else {
        return Err(DivaError::config(OP, "a bridge without parameters"));
    };
    let (kind, device) = (floating(OP, first, lead)?, lead.device());
    for (key, param) in params {
        let got = param.f_kind()?;
        if got != kind {
            let expected = format!("{kind:?} as `{first}`: all parameters of the bridge share one dtype");
            return Err(DivaError::kind(OP, key.to_string(), got, expected));
        }
        if param.device() != device {
            let (found, device) = (place(param.device()), place(device));
            let what =
                format!("`{key}` is on {found} but `{first}` is on {device}: the bridge needs one device");
            return Err(DivaError::device(OP, what));
        }
    }
    Ok((kind, device))
}

/// Width of the tokens (W) and of the joint space (D), by the projection.
fn proj(head: &Head) -> Result<(i64, i64)> {
    let shape = sizes_of(head);
    match (&head.proj, shape.as_slice()) {
        (Some(proj), &[rows, columns]) if rows > 0 && columns > 0 => {
            Ok(if proj.transposed { (columns, rows) } else { (rows, columns) })
        }
        (Some(proj), _) => {
            Err(misfit("proj", &proj.weight, if proj.transposed { "(D, W)" } else { "(W, D)" }))
        }
        (None, _) => Err(DivaError::config(OP, "a head without projection")),
    }
}

fn sizes_of(head: &Head) -> Vec<i64> {
    head.proj.as_ref().map(|proj| proj.weight.size()).unwrap_or_default()
}

fn norm(head: &Head, width: i64) -> Result<()> {
    let Some(norm) = &head.norm else { return Ok(()) };
    if !(norm.eps.is_finite() && norm.eps >= 0.0) {
        return Err(DivaError::config(
            OP,
            format!("eps of the norm is {}: it must not be negative", norm.eps),
        ));
    }
    for (key, param) in [("norm.weight", &norm.weight), ("norm.bias", &norm.bias)] {
        if let Some(param) = param {
            vector(key, param, width)?;
        }
    }
    Ok(())
}

/// Width of the joint space (D) and of the condition (C), by the projector.
fn projector(projector: &Projector) -> Result<(i64, i64)> {
    let mut widths: Option<(i64, i64)> = None;
    for (keys, part) in projector.maps() {
        let (joint, channels) = map(keys, part)?;
        let before = widths.unwrap_or((joint, 0));
        if joint != before.0 {
            let what = format!("its map takes {joint} features, and the one before it {}", before.0);
            return Err(DivaError::weights(OP, keys[0].to_string(), what));
        }
        widths = Some((joint, before.1 + channels));
    }
    widths.ok_or_else(|| DivaError::config(OP, "there is no projector"))
}

fn map(keys: &[&str; 8], map: &Map) -> Result<(i64, i64)> {
    let [weight_key, bias_key, norm_weight_key, norm_bias_key, fc1_key, fc1_bias_key, fc2_key, fc2_bias_key] =
        *keys;
    match map {
        Map::Linear { weight, bias } => {
            let (channels, joint) = matrix(weight_key, weight, "(C, D)")?;
            if let Some(bias) = bias {
                vector(bias_key, bias, channels)?;
            }
            Ok((joint, channels))
        }
        Map::Mlp { norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias } => {
            let (middle, joint) = matrix(fc1_key, fc1_weight, "(H, D)")?;
            vector(norm_weight_key, norm_weight, joint)?;
            vector(norm_bias_key, norm_bias, joint)?;
            vector(fc1_bias_key, fc1_bias, middle)?;
            let (channels, found) = matrix(fc2_key, fc2_weight, "(C, H)")?;
            if found != middle {
                return Err(misfit(fc2_key, fc2_weight, &format!("[{channels}, {middle}]")));
            }
            vector(fc2_bias_key, fc2_bias, channels)?;
            Ok((joint, channels))
        }
    }
}

fn matrix(key: &str, weight: &Tensor, layout: &str) -> Result<(i64, i64)> {
    match weight.size().as_slice() {
        &[rows, columns] if rows > 0 && columns > 0 => Ok((rows, columns)),
        _ => Err(misfit(key, weight, &format!("{layout}, two axes of at least 1"))),
    }
}

fn vector(key: &str, param: &Tensor, width: i64) -> Result<()> {
    if param.size() == [width] {
        return Ok(());
    }
    Err(misfit(key, param, &format!("[{width}]")))
}

fn misfit(key: &str, param: &Tensor, expected: &str) -> DivaError {
    let what = format!("has shape {:?}, expected {expected}", param.size());
    DivaError::weights(OP, key.to_string(), what)
}
