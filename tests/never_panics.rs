//! Names, numbers and sizes from outside: whatever they are, the answer is a value or an error. Tests are built with
//! checked arithmetic, so that an overflow is a panic here.

use diva_rs::condition::{Recap, TextJoin};
use diva_rs::denoiser::dit::config::{Config as Dit, Label};
use diva_rs::denoiser::unet_2d_condition::config::{Block, Config as UNet, TimeScaleShift};
use diva_rs::denoiser::vae::config::{Config as Vae, Scaling};
use diva_rs::draws::{DrawPlan, Timesteps, TokenRule};
use diva_rs::nn::Activation;
use diva_rs::optim::{LrSchedule, Method, Optimizer, ParamGroup};
use diva_rs::pixels::{Convention, Filter, VaePixels};
use diva_rs::schedule::{Prediction, Schedule};
use diva_rs::vision::{Config as Tower, Layout, Pool, Positions, Resize};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

/// Sizes of use, at every border, and any.
fn size() -> impl Strategy<Value = i64> {
    let borders = vec![i64::MIN, -1, 0, 1 << 20, (1 << 20) + 1, 1 << 32, 1 << 62, i64::MAX];
    prop_oneof![8 => 1i64..9, 1 => prop::sample::select(borders), 1 => any::<i64>()]
}

fn count() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0usize..5, 1 => Just(usize::MAX), 1 => any::<usize>()]
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![3 => 0.0..1.0, 1 => any::<f64>()]
}

fn name() -> impl Strategy<Value = String> {
    let known = vec!["window", "class", "linear", "sigmoid", "exp", "epsilon", "cosine", "mean", "none"];
    prop_oneof![3 => prop::sample::select(known).prop_map(str::to_string), 1 => any::<String>()]
}

fn block() -> impl Strategy<Value = Block> {
    (prop::collection::vec(0usize..3, 0..4), size()).prop_map(|(depths, heads)| Block { depths, heads })
}

proptest! {
    #[test]
    fn names(name in name(), window in prop::option::of(size()), warmup in any::<i64>(), steps in any::<i64>(), step in any::<i64>()) {
        let _ = Recap::parse(&name, window);
        let _ = (TextJoin::parse(&name), Prediction::parse(&name));
        let _ = (Convention::parse(&name), VaePixels::parse(&name), Filter::parse(&name));
        let _ = LrSchedule::parse(&name, warmup, steps).map(|schedule| schedule.factor(step));
    }

    #[test]
    fn draws(
        (seed, draws, epoch, patches) in (any::<u64>(), count(), any::<u64>(), count()),
        range in (size(), size()),
        latent in prop::collection::vec(count(), 0..5),
        ids in prop::collection::vec(any::<u64>(), 0..4),
        (k, replacement, density, choose) in (count(), any::<bool>(), number(), 0..3),
        (mean, std, spread) in (number(), number(), 0..3),
    ) {
        let tokens = match choose {
            0 => TokenRule::None,
            1 => TokenRule::Choose { k, replacement },
            _ => TokenRule::Bernoulli { density },
        };
        let timesteps = match spread {
            0 => Timesteps::Uniform,
            1 => Timesteps::Stratified,
            _ => Timesteps::LogitNormal { mean, std },
        };
        let plan = DrawPlan { seed, draws, timesteps, range, latent, patches, tokens };
        // The limits allow what would take minutes: draw where it is small.
        let product = plan.latent.iter().try_fold(draws.max(1), |all, size| all.checked_mul((*size).max(1)));
        let width = plan.width().checked_mul(draws.max(1));
        if plan.clone().validated().is_err() || product.is_some_and(|all| all < 1 << 12) && width.is_some_and(|all| all < 1 << 12) {
            let drawn = plan.draw(&ids, epoch);
            prop_assert!(plan.validated().is_ok() || drawn.is_err());
        }
    }

    #[test]
    fn schedules(values in prop::collection::vec(number(), 0..5), levels in prop::collection::vec(0.0..=1.0, 1..9),
                 scale in number(),
                 at in prop::collection::vec(size(), 1..4), min_snr in number()) {
        let like = Tensor::zeros([at.len() as i64, 2], (Kind::Float, Device::Cpu));
        let timesteps = Tensor::from_slice(&at);
        let table = Tensor::from_slice(&values);
        let (falling, _) = Tensor::from_slice::<f64>(&levels).sort(0, true);
        let made = [
            Schedule::from_alphas_cumprod(&falling, Prediction::V),
            Schedule::flow(&falling, 1000.0),
            Schedule::from_alphas_cumprod(&table, Prediction::Epsilon),
            Schedule::flow(&table, scale),
        ];
        for schedule in made.into_iter().flatten() {
            let inside = at.iter().all(|&t| (0..schedule.len() as i64).contains(&t));
            prop_assert_eq!(schedule.add_noise(&like, &like, &timesteps).is_ok(), inside);
            let _ = schedule.weights(&timesteps, min_snr, &like);
        }
    }

    #[test]
    fn optimizers(lr in number(), momentum in number(), weight_decay in number(), factor in number(), max in prop::option::of(number()),
                  name in any::<String>()) {
        let params = vec![(name.clone(), Tensor::zeros([2], (Kind::Float, Device::Cpu)).set_requires_grad(true))];
        let method = Method::Sgd { momentum };
        if let Ok(mut optimizer) = Optimizer::new(method, vec![ParamGroup { name, lr, weight_decay, params }]) {
            let _ = (optimizer.clip_grad_norm(max), optimizer.scale_grads(factor), optimizer.step(&[factor]));
        }
    }

    #[test]
    fn towers(image in (size(), size()), patch in (size(), size()), width in size(), layers in size(), heads in size(),
              hidden in size(), registers in size(), eps in number(), class_token: bool, at in (size(), size())) {
        let config = Tower {
            layout: Layout::Timm, root: String::new(), image, patch, width, layers, heads, hidden,
            activation: Activation::Gelu, eps, class_token, registers, positions: Positions::All,
            resize: Resize::Bicubic, norm_pre: false, layer_scale: false, norm: true, stem_bias: true, qkv_bias: true,
            bias: true, pool: Pool::Avg, head: Vec::new(), compute: None,
            checkpoint: false,
        };
        if config.check().is_ok() {
            let _ = (config.grid(at), config.prefix());
        }
    }

    #[test]
    fn denoisers(
        (in_channels, out_channels, patch_size, grid, width, heads) in (size(), size(), size(), size(), size(), size()),
        (hidden, time_channels, num_classes, label_rows) in (size(), size(), size(), size()),
        (num_layers, join) in (count(), any::<bool>()),
        norm_eps in (number(), number(), number()),
        freq_shift in number(),
    ) {
        let label = if join { Label::Join } else { Label::Replace };
        let _ = Dit {
            in_channels, out_channels, patch_size, grid, width, num_layers, heads, hidden, activation: Activation::GeluTanh,
            attention_bias: true, norm_elementwise_affine: false, norm_eps, time_channels, flip_sin_to_cos: true,
            freq_shift, label, num_classes, label_rows, checkpoint: false,
        }
        .check();
    }

    #[test]
    fn unets(
        (in_channels, out_channels, time_embedding_dim, groups, cross) in (size(), size(), size(), size(), size()),
        block_out_channels in prop::collection::vec(size(), 0..3),
        down_blocks in prop::collection::vec(block(), 0..3),
        mid_block in prop::option::of(block()),
        up_blocks in prop::collection::vec(block(), 0..3),
        (padding, width) in (size(), prop::option::of(size())),
        (scale, norm_eps, freq_shift) in (number(), number(), number()),
    ) {
        let config = UNet {
            in_channels, out_channels, block_out_channels, down_blocks, mid_block, up_blocks, center_input_sample: false,
            flip_sin_to_cos: true, freq_shift, time_embedding_dim, downsample_padding: padding,
            mid_block_scale_factor: scale, norm_num_groups: groups, norm_eps,
            resnet_time_scale_shift: TimeScaleShift::Default, cross_attention_dim: cross, use_linear_projection: true,
            attention_norm_eps: (norm_eps, norm_eps), class_embed_type: None, text_time: None,
            projection_class_embeddings_input_dim: width, checkpoint: false,
        };
        let _ = (config.check(), config.projection_width());
    }

    #[test]
    fn autoencoders(
        (in_channels, latent_channels, norm_num_groups) in (size(), size(), size()),
        block_out_channels in prop::collection::vec(size(), 0..20),
        (layers_per_block, mid_layers, mid_heads) in (count(), count(), prop::option::of(size())),
        (norm_eps, factor, shift) in (number(), number(), prop::option::of(number())),
        channels in prop::option::of((prop::collection::vec(number(), 0..5), prop::collection::vec(number(), 0..5))),
    ) {
        let config = Vae {
            in_channels, latent_channels, block_out_channels, layers_per_block, mid_layers, mid_heads, norm_num_groups,
            norm_eps, quant_conv: true, scaling: Scaling { factor, shift, channels },
        };
        if config.check().is_ok() {
            prop_assert!(config.downscale() >= 1);
        }
    }
}
