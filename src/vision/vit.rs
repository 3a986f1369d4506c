//! The tower: embedding, blocks, pooling, and the layers of the library's head that cannot wait.

use crate::torch::{Device, Kind, Tensor};

use super::blocks::{Block, Mlp, MlpSizes};
use super::config::{Config, HeadLayer, Pool};
use super::embed::Embed;
use super::load;
use super::map_head::MapHead;
use crate::error::{DivaError, Result};
use crate::nn::{Activation, LayerNorm, Linear, Path, Store};
use crate::optim::copy;
use crate::step::VisionTower;

enum Head {
    Norm(LayerNorm),
    Linear(Linear),
    Mlp(Mlp),
}

/// A vision transformer on the caller's own weights: where they require grad, their `.grad` is filled.
///
/// Weights may be float32 while the matrix products run in bf16. The residual stream and the norms then stay in float32,
/// which costs no memory (a norm keeps its input in float32 for its backward pass anyway) and is more exact than a stream
/// in bf16.
pub struct Vit {
    embed: Embed,
    norm_pre: Option<LayerNorm>,
    pub(super) blocks: Vec<Block>,
    norm: Option<LayerNorm>,
    map: Option<MapHead>,
    head: Vec<Head>,
    pool: Pool,
    prefix: i64,
    weights: Kind,
    pub(super) compute: Kind,
    pub(super) checkpoint: bool,
    residual: Kind,
    /// Weights of the blocks in `compute`, and the weights themselves: where launches are dear, all are cast together.
    copies: (Vec<Tensor>, Vec<Tensor>),
}

impl Vit {
    /// Takes every weight that `config` asks for from `tensors`, by the checkpoint's own keys, and no other may be left.
    ///
    /// Errors: `Weights` for a key that is missing, unexpected, misshapen, or of another dtype or device than the rest;
    /// `Config` for a configuration that contradicts itself.
    pub fn load(config: &Config, tensors: Vec<(String, Tensor)>) -> Result<Self> {
        config.check()?;
        let weights = same_kind(&tensors)?;
        let compute = config.compute.map_or(weights, |compute| compute.kind());
        if weights == Kind::Double && compute != Kind::Double {
            let what =
                "compute in less than float64 needs weights in less than float64: use compute \"fp64\"";
            return Err(DivaError::config("VisionTransformer", what));
        }
        let store = Store::new(tensors);
        let names = config.layout.names();
        let root = if config.root.is_empty() { store.root() } else { store.root() / &config.root };
        let norm = |key: &str| load::norm(&(&root / key), config.width, config.eps);
        let blocks = &root / names.blocks;
        let mut vit = Vit {
            embed: Embed::load(&root, &names, config)?,
            norm_pre: names.norm_pre.filter(|_| config.norm_pre).map(norm).transpose()?,
            blocks: (0..config.layers)
                .map(|index| Block::load(&(&blocks / index), &names.block, config))
                .collect::<Result<_>>()?,
            norm: config.norm.then(|| norm(names.norm)).transpose()?,
            map: names
                .pool
                .filter(|_| config.pool == Pool::Map)
                .map(|pool| MapHead::load(&(&root / pool.path), &pool, config))
                .transpose()?,
            head: head(&store.root(), config)?,
            pool: config.pool,
            prefix: config.prefix(),
            weights,
            compute,
            checkpoint: config.checkpoint,
            residual: wider(weights, compute),
            copies: Default::default(),
        };
        store.finish()?;
        if compute != weights && vit.embed.device() != Device::Cpu {
            for linear in vit.blocks.iter_mut().flat_map(Block::linears) {
                let (copies, of): (Vec<_>, Vec<_>) = linear.copy_in(compute)?.into_iter().unzip();
                vit.copies.0.extend(copies);
                vit.copies.1.extend(of);
            }
        }
        Ok(vit)
    }

    /// Pixels to the input of the first block, (B, 3, H, W) -> (B, prefix + P, W).
    pub(super) fn stem(&self, images: &Tensor) -> Result<Tensor> {
        if self.embed.kind() != self.weights {
            let what = format!(
                "the weights were cast from {:?} to {:?} after this network was built: build it again",
                self.weights,
                self.embed.kind()
            );
            return Err(DivaError::config("VisionTransformer.tokens", what));
        }
        copy(&self.copies.0, &self.copies.1)?; // in each pass: a change through `.data` leaves no trace
        let x = self.embed.forward(images, self.compute, self.residual)?;
        self.norm_pre.as_ref().map_or(Ok(x.shallow_clone()), |norm| norm.forward(&x))
    }

    /// The output of the last block to tokens, (B, prefix + P, W) -> (B, 1 + P, W).
    pub(super) fn tail(&self, x: &Tensor) -> Result<Tensor> {
        let normed = |x: Tensor| self.norm.as_ref().map_or(Ok(x.shallow_clone()), |norm| norm.forward(&x));
        let patches = || x.f_narrow(1, self.prefix, x.size3()?.1 - self.prefix);
        let mut tokens = match self.pool {
            Pool::Class if self.prefix == 1 => normed(x.shallow_clone())?,
            Pool::Class => normed(Tensor::f_cat(&[x.f_narrow(1, 0, 1)?, patches()?], 1)?)?,
            Pool::Avg => {
                let patches = normed(patches()?)?;
                Tensor::f_cat(&[patches.f_mean_dim(1, true, None)?, patches], 1)?
            }
            Pool::Map => {
                let patches = normed(patches()?)?;
                let pooled = match &self.map {
                    Some(map) => map.forward(&patches, self.compute)?,
                    None => return Err(DivaError::config("VisionTransformer", "no pooling head was loaded")),
                };
                Tensor::f_cat(&[pooled, patches], 1)?
            }
        };
        for layer in &self.head {
            tokens = match layer {
                Head::Norm(norm) => norm.forward(&tokens)?,
                Head::Linear(linear) => {
                    linear.forward(&tokens.f_to_kind(self.compute)?)?.f_to_kind(self.residual)?
                }
                Head::Mlp(mlp) => mlp.forward(&tokens, self.compute)?.f_to_kind(self.residual)?,
            };
        }
        Ok(tokens)
    }
}

impl VisionTower for Vit {
    fn tokens(&self, images: &Tensor) -> Result<Tensor> {
        let mut x = self.stem(images)?;
        for block in &self.blocks {
            x = block.forward(&x, self.compute)?;
        }
        self.tail(&x)
    }
}

/// The layers after pooling; how wide their outputs are, only the checkpoint knows.
fn head(root: &Path, config: &Config) -> Result<Vec<Head>> {
    let mut width = config.width;
    let outputs = |path: &Path| Ok::<_, DivaError>(path.shape("weight")?.first().copied().unwrap_or(0));
    let mut layers = Vec::with_capacity(config.head.len());
    for (layer, key) in &config.head {
        let path = root / key;
        layers.push(match layer {
            HeadLayer::Norm => Head::Norm(load::norm(&path, width, config.eps)?),
            HeadLayer::Linear | HeadLayer::LinearBias => {
                let inputs = std::mem::replace(&mut width, outputs(&path)?);
                Head::Linear(load::linear(&path, inputs, width, *layer == HeadLayer::LinearBias)?)
            }
            HeadLayer::Mlp | HeadLayer::MlpBias => {
                let hidden = outputs(&(&path / "fc1"))?;
                let inputs = std::mem::replace(&mut width, outputs(&(&path / "fc2"))?);
                let bias = (true, *layer == HeadLayer::MlpBias);
                let sizes = MlpSizes { inputs, hidden, outputs: width, bias };
                // open_clip/timm_model.py: timm's Mlp with its default activation
                Head::Mlp(Mlp::load(&path, ("fc1", "fc2"), &sizes, Activation::Gelu)?)
            }
        });
    }
    Ok(layers)
}

/// The one dtype of all weights, which must be on one device as well.
fn same_kind(tensors: &[(String, Tensor)]) -> Result<Kind> {
    let op = "loading weights";
    let Some((first, model)) = tensors.first() else {
        return Err(DivaError::config("VisionTransformer", "no weights were given"));
    };
    for (key, tensor) in tensors {
        let key = || key.clone();
        if !matches!(tensor.kind(), Kind::Float | Kind::Double | Kind::BFloat16) {
            let what = format!("is {:?}, expected Float, Double or BFloat16", tensor.kind());
            return Err(DivaError::weights(op, key(), what));
        }
        if (tensor.kind(), tensor.device()) != (model.kind(), model.device()) {
            let what = format!(
                "is {:?} on {:?}, but `{first}` is {:?} on {:?}",
                tensor.kind(),
                tensor.device(),
                model.kind(),
                model.device()
            );
            return Err(DivaError::weights(op, key(), what));
        }
    }
    Ok(model.kind())
}

fn wider(a: Kind, b: Kind) -> Kind {
    [Kind::Double, Kind::Float].into_iter().find(|kind| [a, b].contains(kind)).unwrap_or(a)
}
