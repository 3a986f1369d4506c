//! How each library names the same weights. The tree of names is the tree of the checkpoint's keys.

use serde::Deserialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// OpenAI's clip/model.py and open_clip/transformer.py.
    #[serde(rename = "open_clip")]
    OpenClip,
    /// timm/models/vision_transformer.py.
    Timm,
    /// transformers/models/clip/modeling_clip.py; MetaCLIP 2 as well.
    TransformersClip,
    /// transformers/models/siglip/modeling_siglip.py.
    TransformersSiglip,
}

pub struct Names {
    pub stem: &'static str,
    pub class: Option<&'static str>,
    pub registers: Option<&'static str>,
    pub positions: &'static str,
    /// Class token and positions have a leading axis of 1.
    pub batched: bool,
    pub norm_pre: Option<&'static str>,
    pub blocks: &'static str,
    pub block: BlockNames,
    pub norm: &'static str,
    pub pool: Option<PoolNames>,
}

pub struct BlockNames {
    pub norm1: &'static str,
    pub qkv: Projections,
    pub out: &'static str,
    pub norm2: &'static str,
    pub fc1: &'static str,
    pub fc2: &'static str,
    /// Scales of the two branches, where the library has them.
    pub scales: Option<(&'static str, &'static str)>,
}

/// Queries, keys and values.
pub enum Projections {
    /// One matrix: the keys of its weight and its bias.
    Packed(&'static str, &'static str),
    /// Three linear layers.
    Separate([&'static str; 3]),
    /// Queries in one linear layer, keys and values in another (attention pooling).
    Pair(&'static str, &'static str),
}

pub struct PoolNames {
    pub path: &'static str,
    pub query: &'static str,
    pub projections: Projections,
    pub out: &'static str,
    pub norm: &'static str,
    pub fc1: &'static str,
    pub fc2: &'static str,
}

impl Layout {
    pub fn names(self) -> Names {
        match self {
            Layout::OpenClip => OPEN_CLIP,
            Layout::Timm => TIMM,
            Layout::TransformersClip => TRANSFORMERS_CLIP,
            Layout::TransformersSiglip => TRANSFORMERS_SIGLIP,
        }
    }
}

const OPEN_CLIP: Names = Names {
    stem: "conv1",
    class: Some("class_embedding"),
    registers: None,
    positions: "positional_embedding",
    batched: false,
    norm_pre: Some("ln_pre"),
    blocks: "transformer.resblocks",
    block: BlockNames {
        norm1: "ln_1",
        qkv: Projections::Packed("attn.in_proj_weight", "attn.in_proj_bias"),
        out: "attn.out_proj",
        norm2: "ln_2",
        fc1: "mlp.c_fc",
        fc2: "mlp.c_proj",
        scales: Some(("ls_1.gamma", "ls_2.gamma")),
    },
    norm: "ln_post",
    pool: None,
};

const TIMM: Names = Names {
    stem: "patch_embed.proj",
    class: Some("cls_token"),
    registers: Some("reg_token"),
    positions: "pos_embed",
    batched: true,
    norm_pre: Some("norm_pre"),
    blocks: "blocks",
    block: BlockNames {
        norm1: "norm1",
        qkv: Projections::Packed("attn.qkv.weight", "attn.qkv.bias"),
        out: "attn.proj",
        norm2: "norm2",
        fc1: "mlp.fc1",
        fc2: "mlp.fc2",
        scales: Some(("ls1.gamma", "ls2.gamma")),
    },
    norm: "norm",
    pool: Some(PoolNames {
        path: "attn_pool",
        query: "latent",
        projections: Projections::Pair("q", "kv"),
        out: "proj",
        norm: "norm",
        fc1: "mlp.fc1",
        fc2: "mlp.fc2",
    }),
};

const TRANSFORMERS: BlockNames = BlockNames {
    norm1: "layer_norm1",
    qkv: Projections::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    out: "self_attn.out_proj",
    norm2: "layer_norm2",
    fc1: "mlp.fc1",
    fc2: "mlp.fc2",
    scales: None,
};

const TRANSFORMERS_CLIP: Names = Names {
    stem: "embeddings.patch_embedding",
    class: Some("embeddings.class_embedding"),
    registers: None,
    positions: "embeddings.position_embedding.weight",
    batched: false,
    norm_pre: Some("pre_layrnorm"), // the library's own spelling
    blocks: "encoder.layers",
    block: TRANSFORMERS,
    norm: "post_layernorm",
    pool: None,
};

const TRANSFORMERS_SIGLIP: Names = Names {
    stem: "embeddings.patch_embedding",
    class: None,
    registers: None,
    positions: "embeddings.position_embedding.weight",
    batched: false,
    norm_pre: None,
    blocks: "encoder.layers",
    block: TRANSFORMERS,
    norm: "post_layernorm",
    pool: Some(PoolNames {
        path: "head",
        query: "probe",
        projections: Projections::Packed("attention.in_proj_weight", "attention.in_proj_bias"),
        out: "attention.out_proj",
        norm: "layernorm",
        fc1: "mlp.fc1",
        fc2: "mlp.fc2",
    }),
};
