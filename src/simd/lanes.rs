//! What a kernel needs of a processor: vectors of 16 float32 numbers, and of 16 pairs of factors, on
//! slices whose length the compiler checks.

/// Numbers in a vector.
pub const LANES: usize = 16;
/// Rows of a product.
pub const ROWS: usize = 6;

/// An element of a matrix: float32, or bf16 as bits.
pub trait Number: Copy + Default + Send + Sync + 'static {
    fn wide(self) -> f32;
    /// As bf16.
    fn bits(self) -> u16;
    fn round(wide: f32) -> Self;
}

impl Number for f32 {
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn bits(self) -> u16 {
        let bits = self.to_bits();
        let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
        let quiet = (bits >> 16) as u16 | 0x40; // a rounded NaN could be an infinity
        if self.is_nan() {
            quiet
        } else {
            rounded
        }
    }

    fn round(wide: f32) -> Self {
        wide
    }
}

impl Number for u16 {
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }

    fn bits(self) -> u16 {
        self
    }

    #[inline(always)]
    fn round(wide: f32) -> Self {
        wide.bits()
    }
}

/// A set of instructions. Who has a value of it has found that the processor has them.
pub trait Lanes: Copy + Send + Sync + 'static {
    type Vector: Copy;
    /// Two factors that are summed over.
    type Pair: Copy + Default + Send + Sync;
    /// Vectors of a strip: with [`ROWS`] rows of sums, as many as the registers hold.
    const ACROSS: usize;
    /// Columns of a strip.
    const STRIP: usize = Self::ACROSS * LANES;

    fn found() -> Option<Self>;
    fn pair<T: Number>(first: T, second: T) -> Self::Pair;
    /// Writes vectors of columns: pairs of the numbers of two rows, the second one of zeros where it is empty.
    fn stack<T: Number>(to: &mut [Self::Pair], first: &[T], second: &[T]);
    /// Writes a vector of columns: the pairs in their order.
    fn transpose<T: Number>(to: &mut [Self::Pair], pairs: [[T; 2]; LANES]);
    fn splat(self, number: f32) -> Self::Vector;
    fn load(self, from: &[f32; LANES]) -> Self::Vector;
    fn store(self, to: &mut [f32; LANES], x: Self::Vector);
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// a b + c
    fn fma(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// The second where one is not a number.
    fn max(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// 2^x, to a thousandth of the rounding of the factors; 0 at minus infinity.
    fn exp2(self, x: Self::Vector) -> Self::Vector;
    fn largest(self, x: Self::Vector) -> f32;
    fn total(self, x: Self::Vector) -> f32;
    /// 32 numbers as 16 pairs of neighbours, those of `first` first: as many as `to` has room for.
    fn neighbours(self, to: &mut [Self::Pair], first: Self::Vector, second: Self::Vector);
    /// A vector of columns: each number of `first` in a pair with the one of `second` in its lane.
    fn stacked(self, to: &mut [Self::Pair; LANES], first: Self::Vector, second: Self::Vector);
    /// Adds the products of each row's pair with vectors of columns.
    fn dot<const N: usize>(
        self,
        sums: &mut [[Self::Vector; N]; ROWS],
        rows: [&Self::Pair; ROWS],
        columns: &[[Self::Pair; LANES]; N],
    );
}

/// The largest of the numbers, and of `least`.
#[inline(always)]
pub fn maximum<S: Lanes>(set: S, numbers: &[[f32; LANES]], least: f32) -> f32 {
    let mut largest = set.splat(least);
    for part in numbers {
        largest = set.max(largest, set.load(part));
    }
    set.largest(largest)
}
