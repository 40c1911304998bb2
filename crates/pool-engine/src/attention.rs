//! Causal self-attention of a sequence's new rows over its own KV cache, with grouped queries and an
//! optional sliding window.
//!
//! Keys and values are kept as they come out of their projections, `[positions, kv_heads * head_dim]`,
//! so that a row is appended with one copy. Single rows (decode) stream through the cache once for all heads; runs of
//! rows (prefill) go in blocks through matrix products.

use candle_core::{DType, Device, Result, Tensor};

use crate::{ops, simd, threads::Crew};

/// Rows that go through one pair of matrix products together: bounds the scores held at a time.
const BLOCK: usize = 64;
/// Fewer rows than this are computed one by one.
const BLOCK_WORTH: usize = 4;
/// Positions allocated at first.
const FIRST_ALLOCATION: usize = 64;

/// The shape of a model's attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl Heads {
    pub(crate) fn query_width(self) -> usize {
        self.heads * self.head_dim
    }

    pub(crate) fn key_width(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Query heads that share a key/value head.
    fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    fn scale(self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// One layer's keys and values of one sequence. The owner knows how many positions are in use.
pub(crate) struct LayerCache {
    keys: Tensor,
    values: Tensor,
    allocated: usize,
}

impl LayerCache {
    pub(crate) fn new(heads: Heads) -> Result<Self> {
        let empty = Tensor::zeros((0, heads.key_width()), DType::F32, &Device::Cpu)?;
        Ok(Self { keys: empty.clone(), values: empty, allocated: 0 })
    }

    /// Stores `keys` and `values` (`[rows, kv_heads * head_dim]`) at positions `at..`; memory grows
    /// by doubling and never beyond `capacity` positions.
    pub(crate) fn write(&mut self, at: usize, keys: &Tensor, values: &Tensor, capacity: usize) -> Result<()> {
        let (rows, width) = keys.dims2()?;
        let needed = at + rows;
        if needed > self.allocated {
            let allocated = needed.max(2 * self.allocated).max(FIRST_ALLOCATION).min(capacity.max(needed));
            for cache in [&mut self.keys, &mut self.values] {
                let grown = Tensor::zeros((allocated, width), DType::F32, &Device::Cpu)?;
                if at > 0 {
                    grown.slice_set(&cache.narrow(0, 0, at)?, 0, 0)?;
                }
                *cache = grown;
            }
            self.allocated = allocated;
        }
        self.keys.slice_set(keys, 0, at)?;
        self.values.slice_set(values, 0, at)
    }
}

/// The new rows of one sequence: they sit at positions `start..start + rows` and see the cache up to themselves.
pub(crate) struct Span<'a> {
    pub(crate) cache: &'a LayerCache,
    pub(crate) start: usize,
    pub(crate) rows: usize,
    /// How many positions back a row may look, itself included.
    pub(crate) window: Option<usize>,
}

impl Span<'_> {
    /// The first position that the row at `position` sees.
    #[inline(always)]
    fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |w| (position + 1).saturating_sub(w))
    }
}

/// Attention of all spans: `queries` is `[rows, heads * head_dim]`, the spans' rows one after another;
/// so is the result.
pub(crate) fn attend(crew: Crew, heads: Heads, queries: &Tensor, spans: &[Span<'_>]) -> Result<Tensor> {
    let width = heads.query_width();
    let mut out = vec![0f32; queries.elem_count()];
    ops::with_elements(queries, |queries| -> Result<()> {
        let mut singles = Vec::new();
        let mut rest = out.as_mut_slice();
        let mut first = 0;
        for span in spans {
            let (mine, others) = rest.split_at_mut(span.rows * width);
            rest = others;
            let rows = &queries[first * width..(first + span.rows) * width];
            first += span.rows;
            if span.rows < BLOCK_WORTH {
                let rows = rows.chunks_exact(width).zip(mine.chunks_exact_mut(width)).enumerate();
                singles.extend(rows.map(|(i, (query, out))| (span, span.start + i, query, out)));
            } else {
                blocks(crew, heads, rows, span, mine)?;
            }
        }
        single_rows(crew, heads, singles)
    })??;
    Tensor::from_vec(out, queries.shape(), &Device::Cpu)
}

/// Rows on their own: `(span, position, query, out)` each.
fn single_rows(crew: Crew, heads: Heads, rows: Vec<(&Span<'_>, usize, &[f32], &mut [f32])>) -> Result<()> {
    let group_width = heads.group() * heads.head_dim;
    // One thread takes whole rows; several share a row's key/value heads.
    let share = heads.kv_heads.div_ceil(crew.threads());
    for (span, position, query, out) in rows {
        ops::with_elements(&span.cache.keys, |keys| {
            ops::with_elements(&span.cache.values, |values| {
                let seen = span.first_seen(position)..position + 1;
                let stride = heads.key_width();
                let parts = out
                    .chunks_mut(share * group_width)
                    .zip(query.chunks(share * group_width))
                    .enumerate()
                    .map(|(i, (out, query))| (i * share, query, out))
                    .collect();
                let (keys, values) =
                    (&keys[seen.start * stride..seen.end * stride], &values[seen.start * stride..seen.end * stride]);
                crew.each(parts, |(first_head, query, out): (usize, &[f32], &mut [f32])| {
                    simd::vectorised!(one_row(heads, first_head, query, keys, values, out));
                });
            })
        })??;
    }
    Ok(())
}

/// One row's attention for some of its heads; `keys` and `values` are the positions it sees.
#[inline(always)]
fn one_row(heads: Heads, first_head: usize, query: &[f32], keys: &[f32], values: &[f32], out: &mut [f32]) {
    let (dim, group, stride, scale) = (heads.head_dim, heads.group(), heads.key_width(), heads.scale());
    let seen = keys.len() / stride;
    let queries = query.len() / dim;
    let mut scores = vec![0f32; queries * seen];
    for (position, key) in keys.chunks_exact(stride).enumerate() {
        for (i, query) in query.chunks_exact(dim).enumerate() {
            let head = first_head + i / group;
            scores[i * seen + position] = simd::dot(query, &key[head * dim..(head + 1) * dim]) * scale;
        }
    }
    scores.chunks_exact_mut(seen).for_each(simd::softmax);
    for (position, value) in values.chunks_exact(stride).enumerate() {
        for (i, out) in out.chunks_exact_mut(dim).enumerate() {
            let head = first_head + i / group;
            simd::add_scaled(out, &value[head * dim..(head + 1) * dim], scores[i * seen + position]);
        }
    }
}

/// A run of rows in blocks: scores = Q K^T, masked softmax, times V; per key/value head.
fn blocks(crew: Crew, heads: Heads, queries: &[f32], span: &Span<'_>, out: &mut [f32]) -> Result<()> {
    let (dim, group, width) = (heads.head_dim, heads.group(), heads.query_width());
    for first in (0..span.rows).step_by(BLOCK) {
        let rows = BLOCK.min(span.rows - first);
        let start = span.start + first;
        let low = span.first_seen(start);
        let seen = start + rows - low;
        for head in 0..heads.kv_heads {
            let at = head * group * dim;
            let mut block = Vec::with_capacity(rows * group * dim);
            for row in 0..rows {
                let query = &queries[(first + row) * width + at..][..group * dim];
                block.extend(query.iter().map(|q| q * heads.scale()));
            }
            let block = Tensor::from_vec(block, (rows * group, dim), &Device::Cpu)?;
            let keys = span.cache.keys.narrow(0, low, seen)?.narrow(1, head * dim, dim)?;
            let values = span.cache.values.narrow(0, low, seen)?.narrow(1, head * dim, dim)?;
            let scores = block.matmul(&keys.t()?)?;
            ops::for_rows(
                crew,
                &scores,
                seen,
                #[inline(always)]
                |i, row| {
                    let position = start + i / group;
                    let (from, to) = (span.first_seen(position) - low, position + 1 - low);
                    row[..from].fill(0.0);
                    row[to..].fill(0.0);
                    simd::softmax(&mut row[from..to]);
                },
            )?;
            ops::with_elements(&scores.matmul(&values)?, |result| {
                for (row, result) in result.chunks_exact(group * dim).enumerate() {
                    out[(first + row) * width + at..][..group * dim].copy_from_slice(result);
                }
            })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A seeded stream of values in (-1, 1).
    fn noise(seed: u64, n: usize) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// Attention straight from its definition, in f64.
    fn naive(
        heads: Heads,
        queries: &[f32],
        keys: &[f32],
        values: &[f32],
        start: usize,
        window: Option<usize>,
    ) -> Vec<f64> {
        let (dim, qw, kw) = (heads.head_dim, heads.query_width(), heads.key_width());
        let rows = queries.len() / qw;
        let mut out = vec![0f64; queries.len()];
        for row in 0..rows {
            let position = start + row;
            for head in 0..heads.heads {
                let kv = head / heads.group();
                let seen: Vec<usize> = (0..=position).filter(|p| window.is_none_or(|w| position - p < w)).collect();
                let scores: Vec<f64> = seen
                    .iter()
                    .map(|p| {
                        (0..dim)
                            .map(|i| {
                                f64::from(queries[row * qw + head * dim + i]) * f64::from(keys[p * kw + kv * dim + i])
                            })
                            .sum::<f64>()
                            / (dim as f64).sqrt()
                    })
                    .collect();
                let sum: f64 = scores.iter().map(|s| s.exp()).sum();
                for (p, s) in seen.iter().zip(&scores) {
                    for i in 0..dim {
                        out[row * qw + head * dim + i] += s.exp() / sum * f64::from(values[p * kw + kv * dim + i]);
                    }
                }
            }
        }
        out
    }

    #[test]
    fn every_path_agrees_with_the_definition() {
        let shapes = [(4, 4, 8), (6, 2, 16), (7, 1, 5), (8, 2, 64), (4, 2, 24)];
        for (case, (h, kv, dim)) in shapes.into_iter().enumerate() {
            let heads = Heads { heads: h, kv_heads: kv, head_dim: dim };
            for window in [None, Some(1), Some(5), Some(70), Some(1000)] {
                for threads in [1, 2] {
                    // Three sequences in one call: decode, a short run, a prefill of more than one block on a filled cache.
                    let spans = [(37, 1), (10, 3), (20, 130)];
                    let mut queries = Vec::new();
                    let mut expected = Vec::new();
                    let mut caches = Vec::new();
                    for (i, (start, rows)) in spans.into_iter().enumerate() {
                        let seed = (case * 10 + i) as u64;
                        let (total, kw) = (start + rows, heads.key_width());
                        let q = noise(seed, rows * heads.query_width());
                        let (k, v) = (noise(seed + 100, total * kw), noise(seed + 200, total * kw));
                        expected.extend(naive(heads, &q, &k, &v, start, window));
                        let mut cache = LayerCache::new(heads).unwrap();
                        let k = Tensor::from_vec(k, (total, kw), &Device::Cpu).unwrap();
                        let v = Tensor::from_vec(v, (total, kw), &Device::Cpu).unwrap();
                        // Written in two parts, so that the cache has to grow.
                        for (at, n) in [(0, start), (start, rows)] {
                            let part = |t: &Tensor| t.narrow(0, at, n).unwrap();
                            cache.write(at, &part(&k), &part(&v), 500).unwrap();
                        }
                        queries.extend(q);
                        caches.push(cache);
                    }
                    let rows = queries.len() / heads.query_width();
                    let queries = Tensor::from_vec(queries, (rows, heads.query_width()), &Device::Cpu).unwrap();
                    let spans: Vec<Span<'_>> = spans
                        .into_iter()
                        .zip(&caches)
                        .map(|((start, rows), cache)| Span { cache, start, rows, window })
                        .collect();
                    let got = attend(Crew::new(threads), heads, &queries, &spans).unwrap();
                    let got = got.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    for (at, (g, e)) in got.iter().zip(&expected).enumerate() {
                        assert!(
                            (f64::from(*g) - e).abs() < 1e-5,
                            "heads {h}/{kv}x{dim} window {window:?} threads {threads}: {g} instead of {e} at {at}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn memory_follows_the_length_and_stops_at_the_capacity() {
        let heads = Heads { heads: 2, kv_heads: 1, head_dim: 4 };
        let mut cache = LayerCache::new(heads).unwrap();
        let row = Tensor::ones((1, 4), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(cache.allocated, 0, "an opened sequence costs nothing yet");
        let mut sizes = Vec::new();
        for at in 0..200 {
            cache.write(at, &row, &row, 200).unwrap();
            sizes.push(cache.allocated);
        }
        sizes.dedup();
        assert_eq!(sizes, [64, 128, 200]);
    }
}
