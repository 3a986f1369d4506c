//! Both passes, compiled for each set of instructions.

use super::backward::{backward, Gradients, Seen};
use super::forward::{forward, Head, Place};
use crate::error::Result;
use crate::simd::{Avx2, Avx512, Avx512Bf16, Lanes, Number, Rows};

pub trait Compiled: Lanes {
    /// softmax(query key^T scale) value, of some queries of a head.
    fn forward<T: Number>(self, query: Rows<T>, head: &Head<Self>, scale: f32, place: Place<T>)
        -> Result<()>;

    /// The gradients at `seen.query`, `key` and `value`.
    fn backward<T: Number>(self, seen: &Seen<T>, key: Rows<T>, value: Rows<T>) -> Result<Gradients>;
}

macro_rules! compiled {
    ($set:ty, $instructions:literal) => {
        impl Compiled for $set {
            fn forward<T: Number>(
                self,
                query: Rows<T>,
                head: &Head<Self>,
                scale: f32,
                place: Place<T>,
            ) -> Result<()> {
                #[target_feature(enable = $instructions)]
                fn pass<T: Number>(
                    set: $set,
                    query: Rows<T>,
                    head: &Head<$set>,
                    scale: f32,
                    place: Place<T>,
                ) -> Result<()> {
                    forward(set, query, head, scale, place)
                }
                // SAFETY: who has a set has found that the processor has its instructions.
                #[allow(unsafe_code)]
                unsafe {
                    pass(self, query, head, scale, place)
                }
            }

            fn backward<T: Number>(self, seen: &Seen<T>, key: Rows<T>, value: Rows<T>) -> Result<Gradients> {
                #[target_feature(enable = $instructions)]
                fn pass<T: Number>(
                    set: $set,
                    seen: &Seen<T>,
                    key: Rows<T>,
                    value: Rows<T>,
                ) -> Result<Gradients> {
                    backward(set, seen, key, value)
                }
                // SAFETY: as in `forward`.
                #[allow(unsafe_code)]
                unsafe {
                    pass(self, seen, key, value)
                }
            }
        }
    };
}

compiled!(Avx512Bf16, "avx512f,avx512bw,avx512vl,avx512bf16");
compiled!(Avx512, "avx512f,avx512vl");
compiled!(Avx2, "avx2,fma");
