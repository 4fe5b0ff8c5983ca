//! Splits tables into chunks that workers copy at once.
//!
//! ```text
//!   ctid ranges (14+)     [0, 8192) [8192, 16384) [16384, end of table)     per table or leaf
//!   whole table           below 14, where a ctid range reads the whole table each time, and for foreign leaves
//! ```
//!
//! Invariants: the ranges of a relation cover it exactly once, the last one open-ended; pages added after the snapshot hold no
//! row that it sees. Sizes are those of heap and TOAST at planning, never stale statistics.

use std::fmt;
use std::str::FromStr;

/// Smaller chunks cost more in commits than they give in balance.
const CHUNK_BYTES_MIN: u64 = 32 << 20;
/// Larger chunks make a retry expensive.
const CHUNK_BYTES_MAX: u64 = 128 << 20;
/// Chunks per worker that a large table is split into at least, so that the workers end together.
const CHUNKS_PER_WORKER: u64 = 4;

/// A relation that holds rows of a table: the table itself, or a leaf partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heap {
    pub(crate) oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// Heap and TOAST.
    pub(crate) bytes: u64,
    /// Pages of the heap.
    pub(crate) pages: u64,
    /// Whether ctid ranges may be read: an ordinary heap on a server that reads them efficiently.
    pub(crate) splittable: bool,
    /// The row filter of a leaf that is published by itself.
    pub(crate) filter: Option<String>,
}

/// A part of a relation, in the text form that [`pgferry_pipeline::Chunk::range`] carries: `oid:first:end`, or `oid` for all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageRange {
    pub(crate) oid: u32,
    /// First page and the page after the last; no end for the last range. `None`: the whole relation.
    pub(crate) pages: Option<(u64, Option<u64>)>,
}

impl fmt::Display for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pages {
            None => write!(f, "{}", self.oid),
            Some((first, None)) => write!(f, "{}:{first}:", self.oid),
            Some((first, Some(end))) => write!(f, "{}:{first}:{end}", self.oid),
        }
    }
}

impl FromStr for PageRange {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(':');
        let oid = parts.next().unwrap_or_default().parse()?;
        let pages = match (parts.next(), parts.next()) {
            (Some(first), Some("")) => Some((first.parse()?, None)),
            (Some(first), Some(end)) => Some((first.parse()?, Some(end.parse()?))),
            _ => None,
        };
        Ok(PageRange { oid, pages })
    }
}

impl PageRange {
    /// The condition on `ctid` that reads exactly this range; `None` for a whole relation.
    pub(crate) fn condition(&self) -> Option<String> {
        let (first, end) = self.pages?;
        match end {
            None if first == 0 => None,
            None => Some(format!("ctid >= '({first},0)'::pg_catalog.tid")),
            Some(end) => {
                Some(format!("ctid >= '({first},0)'::pg_catalog.tid AND ctid < '({end},0)'::pg_catalog.tid"))
            }
        }
    }
}

/// Splits a table's heaps for `workers`; at least one range per heap, so that an empty table has one too.
pub(crate) fn split(heaps: &[Heap], workers: usize) -> Vec<(PageRange, u64)> {
    let total: u64 = heaps.iter().map(|heap| heap.bytes).sum();
    let wanted =
        (total / (workers.max(1) as u64 * CHUNKS_PER_WORKER)).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX);
    heaps.iter().flat_map(|heap| split_heap(heap, wanted)).collect()
}

fn split_heap(heap: &Heap, chunk_bytes: u64) -> Vec<(PageRange, u64)> {
    let count = heap.bytes.div_ceil(chunk_bytes).clamp(1, heap.pages.max(1));
    if count == 1 || !heap.splittable {
        return vec![(PageRange { oid: heap.oid, pages: None }, heap.bytes)];
    }
    (0..count)
        .map(|number| {
            let first = heap.pages * number / count;
            let end = (number + 1 < count).then(|| heap.pages * (number + 1) / count);
            (PageRange { oid: heap.oid, pages: Some((first, end)) }, heap.bytes / count)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heap(bytes: u64, pages: u64, splittable: bool) -> Heap {
        Heap { oid: 7, schema: "s".into(), name: "t".into(), bytes, pages, splittable, filter: None }
    }

    #[test]
    fn ranges_cover_every_page_once_and_the_last_is_open() {
        for (bytes, pages, workers) in [(1 << 30, 131_072, 4), (40 << 30, 5_000_000, 16), (1 << 40, 3, 1)] {
            let ranges = split(&[heap(bytes, pages, true)], workers);
            let mut next = 0;
            for (at, (range, _)) in ranges.iter().enumerate() {
                let (first, end) = range.pages.unwrap_or((0, None));
                assert_eq!(first, next);
                assert_eq!(end.is_none(), at + 1 == ranges.len());
                next = end.unwrap_or(pages);
                assert!(next > first);
                assert_eq!(range.to_string().parse(), Ok(*range));
            }
            assert!(ranges.len() as u64 <= pages);
        }
    }

    #[test]
    fn small_empty_and_unsplittable_relations_are_one_chunk() {
        for heap in [heap(0, 0, true), heap(1 << 20, 128, true), heap(1 << 40, 1 << 27, false)] {
            let ranges = split(&[heap], 4);
            assert_eq!(ranges.len(), 1);
            assert_eq!(ranges[0].0.condition(), None);
        }
    }

    #[test]
    fn conditions_are_those_of_a_tid_range_scan() {
        let range = |pages| PageRange { oid: 1, pages }.condition();
        assert_eq!(range(Some((0, None))), None);
        assert_eq!(range(Some((5, None))).as_deref(), Some("ctid >= '(5,0)'::pg_catalog.tid"));
        assert_eq!(
            range(Some((0, Some(9)))).as_deref(),
            Some("ctid >= '(0,0)'::pg_catalog.tid AND ctid < '(9,0)'::pg_catalog.tid")
        );
    }
}
