//! Pillow's bicubic `Image.resize`, to the bit, in a fraction of its time: the cubic
//! filter with a = -1/2, stretched where the picture shrinks; weights with 22 binary places; first
//! along the rows, then along the columns, each rounded to whole numbers.

use crate::error::{DivaError, Result};
use crate::slices::Output;
use crate::torch::Tensor;

const OP: &str = "resample";
const PLACES: u32 = 22;
const HALF: i32 = 1 << (PLACES - 1);
/// Bytes of a line whose sums stay in registers.
const STRIP: usize = 32;

/// A rectangle of a picture, in pixels.
#[derive(Clone, Copy)]
pub struct Window {
    pub top: usize,
    pub left: usize,
    pub height: usize,
    pub width: usize,
}

/// The window of a picture of RGB bytes (H, W, 3) at another size (h, w), and of that the part `kept`: (3, kept height,
/// kept width) float32 in [0, 1].
///
/// Errors: `Data` when a window is empty or not within its picture.
pub fn resample(
    picture: &[u8],
    width: usize,
    window: Window,
    size: (usize, usize),
    kept: Window,
) -> Result<Tensor> {
    let stride = width.saturating_mul(3);
    let height = picture.len().checked_div(stride).unwrap_or_default();
    if !window.within(height, width) || !kept.within(size.0, size.1) {
        return Err(DivaError::data(OP, "an empty window, or one that is not within the picture"));
    }
    let across = Axis::new(window.width, size.1, kept.left, kept.width);
    let down = Axis::new(window.height, size.0, kept.top, kept.height);
    let rows = picture.chunks_exact(stride).skip(window.top + down.start).take(down.length);
    let columns = 3 * (window.left + across.start);
    let rows: Vec<&[u8]> = rows.map(|row| &row[columns..columns + 3 * across.length]).collect();
    let mut output = Output::<f32>::new(&[3, kept.height, kept.width].map(|side| side as i64))?;
    let into = output.values()?;
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has these instructions.
        #[allow(unsafe_code)]
        unsafe {
            both_avx2(&rows, &across, &down, into)
        };
        return Ok(output.into_tensor());
    }
    both(&rows, &across, &down, into, portable);
    Ok(output.into_tensor())
}

impl Window {
    fn within(self, height: usize, width: usize) -> bool {
        let fits = |start: usize, length: usize, all: usize| {
            length > 0 && start.checked_add(length).is_some_and(|end| end <= all)
        };
        fits(self.top, self.height, height) && fits(self.left, self.width, width)
    }
}

/// What the kept places of one axis are sums of.
struct Axis {
    /// The first source of any place, and how many there are from it to the last one.
    start: usize,
    length: usize,
    /// The first source of each place, from `start` on, and its weights.
    spans: Vec<(usize, Vec<i32>)>,
}

impl Axis {
    fn new(from: usize, to: usize, first_kept: usize, kept: usize) -> Self {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = 2.0 * stretch;
        let source = |place: usize| {
            let centre = (place as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            (centre, first, ((centre + support + 0.5) as usize).min(from))
        };
        let start = source(first_kept).1;
        let spans = (first_kept..first_kept + kept).map(|place| {
            let (centre, first, end) = source(place);
            let weigh = |source: usize| cubic((source as f64 - centre + 0.5) * (1.0 / stretch));
            let weights: Vec<f64> = (first..end).map(weigh).collect();
            let total: f64 = weights.iter().sum();
            let fixed = |weight: &f64| (weight / total * f64::from(1u32 << PLACES)).round() as i32;
            (first - start, weights.iter().map(fixed).collect())
        });
        Axis { start, length: source(first_kept + kept - 1).2 - start, spans: spans.collect() }
    }
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    match x.abs() {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn both_avx2(rows: &[&[u8]], across: &Axis, down: &Axis, into: &mut [f32]) {
    both(rows, across, down, into, |pixels, weights| avx2(pixels, weights));
}

/// Along the rows, then along the columns; lines between the two are padded to whole strips. `blend` gives a
/// pixel of pairs of pixels and their weights.
#[inline(always)]
fn both(
    rows: &[&[u8]],
    across: &Axis,
    down: &Axis,
    into: &mut [f32],
    blend: impl Fn(&[u8], &[[i32; 8]]) -> [u8; 4],
) {
    let (width, height) = (across.spans.len(), down.spans.len());
    let stride = (4 * width).next_multiple_of(STRIP);
    let mut lines = vec![0u8; rows.len() * stride];
    let weights: Vec<Vec<[i32; 8]>> = across.spans.iter().map(|(_, weights)| pairs(weights)).collect();
    let mut padded = vec![0u8; 4 * across.length + 8]; // four bytes a pixel; the last one may begin a pair
    for (row, line) in rows.iter().zip(lines.chunks_exact_mut(stride)) {
        for (place, pixel) in padded.chunks_exact_mut(4).zip(row.chunks_exact(3)) {
            place[..3].copy_from_slice(pixel);
        }
        let places = across.spans.iter().zip(&weights).zip(line.chunks_exact_mut(4));
        for (((first, _), weights), place) in places {
            place.copy_from_slice(&blend(&padded[4 * first..], weights));
        }
    }
    let mut blended = vec![0u8; stride];
    for (at, (first, weights)) in down.spans.iter().enumerate() {
        let lines = &lines[first * stride..];
        for (strip, blended) in blended.chunks_exact_mut(STRIP).enumerate() {
            let mut sums = [HALF; STRIP];
            for (line, weight) in lines.chunks_exact(stride).zip(weights) {
                for (sum, value) in sums.iter_mut().zip(&line[strip * STRIP..(strip + 1) * STRIP]) {
                    *sum += i32::from(*value) * weight;
                }
            }
            for (value, sum) in blended.iter_mut().zip(sums) {
                *value = clip(sum);
            }
        }
        for (colour, plane) in into.chunks_exact_mut(height * width).enumerate() {
            let line = &mut plane[at * width..(at + 1) * width];
            for (value, pixel) in line.iter_mut().zip(blended.chunks_exact(4)) {
                *value = f32::from(pixel[colour]) / 255.0;
            }
        }
    }
}

fn portable(pixels: &[u8], weights: &[[i32; 8]]) -> [u8; 4] {
    let mut sums = [HALF; 4];
    for (pixels, weights) in pixels.chunks_exact(4).zip(weights.as_flattened().chunks_exact(4)) {
        for lane in 0..4 {
            sums[lane] += i32::from(pixels[lane]) * weights[lane];
        }
    }
    sums.map(clip)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(pixels: &[u8], weights: &[[i32; 8]]) -> [u8; 4] {
    use std::arch::x86_64::*;
    let mut sums = _mm256_setzero_si256();
    for (pixels, weights) in pixels.as_chunks::<8>().0.iter().zip(weights) {
        let pixels = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*pixels)));
        let [a, b, c, d, e, f, g, h] = *weights;
        sums = _mm256_add_epi32(sums, _mm256_mullo_epi32(pixels, _mm256_setr_epi32(a, b, c, d, e, f, g, h)));
    }
    let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
    let whole = _mm_srai_epi32::<{ PLACES as i32 }>(_mm_add_epi32(sums, _mm_set1_epi32(HALF)));
    let bytes = _mm_packus_epi16(_mm_packs_epi32(whole, whole), whole); // both clip
    _mm_cvtsi128_si32(bytes).to_le_bytes()
}

/// The weights of pairs of pixels, each four times.
fn pairs(weights: &[i32]) -> Vec<[i32; 8]> {
    let mut pairs = vec![[0; 8]; weights.len().div_ceil(2)];
    for (four, weight) in pairs.as_flattened_mut().chunks_exact_mut(4).zip(weights) {
        four.fill(*weight);
    }
    pairs
}

#[inline(always)]
fn clip(sum: i32) -> u8 {
    (sum >> PLACES).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: Window = Window { top: 0, left: 0, height: 5, width: 7 };

    #[test]
    fn the_same_size_changes_nothing_and_a_flat_picture_stays_flat() -> Result<()> {
        let picture: Vec<u8> = (0..105).map(|at| (at * 37 % 251) as u8).collect();
        let same = resample(&picture, 7, WHOLE, (5, 7), WHOLE)?;
        for (at, value) in crate::slices::view::<f32>(&same)?.iter().enumerate() {
            assert_eq!(*value, f32::from(picture[at % 35 * 3 + at / 35]) / 255.0);
        }
        let flat = resample(&[102; 105], 7, Window { left: 2, width: 4, ..WHOLE }, (40, 7), WHOLE)?;
        assert!(crate::slices::view::<f32>(&flat)?.iter().all(|value| *value == 0.4));
        Ok(())
    }

    #[test]
    fn a_kept_part_is_that_part_of_the_whole() -> Result<()> {
        let picture: Vec<u8> = (0..105).map(|at| (at * 37 % 251) as u8).collect();
        for (height, width) in [(3, 4), (5, 7), (9, 16)] {
            let all = Window { top: 0, left: 0, height, width };
            let whole = resample(&picture, 7, WHOLE, (height, width), all)?;
            let part = resample(
                &picture,
                7,
                WHOLE,
                (height, width),
                Window { top: 1, left: 2, height: 2, width: 2 },
            )?;
            assert!(part.f_equal(&whole.f_narrow(1, 1, 2)?.f_narrow(2, 2, 2)?)?);
        }
        Ok(())
    }

    #[test]
    fn a_window_outside_the_picture_is_an_error() {
        let outside = [
            Window { left: 1, ..WHOLE },
            Window { top: 1, ..WHOLE },
            Window { height: 0, ..WHOLE },
            Window { top: usize::MAX, ..WHOLE },
        ];
        for window in outside {
            assert!(resample(&[0; 105], 7, window, (5, 7), WHOLE).is_err());
            assert!(resample(&[0; 105], 7, WHOLE, (5, 7), window).is_err());
        }
        assert!(resample(&[], 0, WHOLE, (5, 7), WHOLE).is_err());
    }
}
