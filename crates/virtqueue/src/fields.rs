//! Where the fields of a ring are.
//!
//! The rings are written once, for any memory that can load and store little-endian fields in a
//! given order. That is guest memory, [`Mapped`]; and in the tests of memory ordering it is memory
//! that knows of every order in which another processor might see it.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use memory::Words;

/// An array of fields that the other side reads or writes at the same time.
///
/// Places are computed from a ring's checked size, so a miss is our bug; it reads as 0 and stores
/// nothing, rather than costing a panic path in the hot loop.
pub trait Fields<V>: Clone {
    /// The value of field `at`.
    fn load(&self, at: usize, order: Ordering) -> V;

    /// Gives field `at` a value.
    fn store(&self, at: usize, value: V, order: Ordering);

    /// The values of `count` fields from `at` on, each loaded once, when it is asked for. One check is for all: when there are not so
    /// many, which is a miss as above, there are none.
    fn load_run(&self, at: usize, count: usize) -> impl Iterator<Item = V>;

    /// The values of fields `at` and `at + 1`, each loaded once, in no order. None when there are no
    /// such fields, which may happen here.
    fn load_two(&self, at: usize) -> Option<[V; 2]>;

    /// What loads the first and the second of each of `count` pairs of fields, from `at` on: in the order that the caller needs, and each
    /// once. There is one check for all, as in [`Self::load_run`].
    fn pairs(
        &self,
        at: usize,
        count: usize,
    ) -> impl Iterator<Item = (impl FnOnce(Ordering) -> V, impl FnOnce(Ordering) -> V)>;

    /// Gives pairs of fields from `at` on values, in no order. There is one check for all, as in [`Self::load_run`].
    fn store_pairs(&self, at: usize, values: impl ExactSizeIterator<Item = [V; 2]>);

    /// Gives fields `at` and `at + 1` values, in no order.
    #[inline]
    fn store_two(&self, at: usize, [first, second]: [V; 2]) {
        self.store(at, first, Ordering::Relaxed);
        self.store(at + 1, second, Ordering::Relaxed);
    }

    /// Has the processor fetch field `at`, if there is one. A hint: it need not do anything.
    #[inline]
    fn prefetch(&self, at: usize) {
        let _ = at;
    }

    /// As [`Self::prefetch`], for `count` fields from `at` on, as far as there are any.
    #[inline]
    fn prefetch_run(&self, at: usize, count: usize) {
        let _ = (at, count);
    }
}

/// A kind of memory that rings can be in.
pub trait RingMemory {
    /// An array of 16-bit fields.
    type U16: Fields<u16>;
    /// An array of 32-bit fields.
    type U32: Fields<u32>;
    /// An array of 64-bit fields.
    type U64: Fields<u64>;

    /// A full fence: what was stored before it is seen by others before anything behind it is
    /// loaded.
    fn fence();
}

/// Guest memory.
pub enum Mapped {}

impl RingMemory for Mapped {
    type U16 = Words<AtomicU16>;
    type U32 = Words<AtomicU32>;
    type U64 = Words<AtomicU64>;

    #[inline]
    fn fence() {
        fence(Ordering::SeqCst);
    }
}

macro_rules! fields {
    ($($value:ty: $atomic:ty),*) => {$(
        impl Fields<$value> for Words<$atomic> {
            #[inline(always)]
            fn load(&self, at: usize, order: Ordering) -> $value {
                debug_assert!(at < self.len());
                // With an index, because the compiler would test what `get` returns once more.
                if at < self.len() { <$value>::from_le(self[at].load(order)) } else { 0 }
            }

            #[inline(always)]
            fn store(&self, at: usize, value: $value, order: Ordering) {
                debug_assert!(at < self.len());
                if at < self.len() {
                    self[at].store(value.to_le(), order);
                }
            }

            #[inline(always)]
            fn load_run(&self, at: usize, count: usize) -> impl Iterator<Item = $value> {
                debug_assert!(at + count <= self.len());
                let fields = self.get(at..).and_then(|fields| fields.get(..count));
                let fields = fields.unwrap_or_default();
                fields.iter().map(|field| <$value>::from_le(field.load(Ordering::Relaxed)))
            }

            #[inline(always)]
            fn load_two(&self, at: usize) -> Option<[$value; 2]> {
                // One check for both.
                if at + 1 >= self.len() {
                    return None;
                }
                Some([at, at + 1].map(|at| <$value>::from_le(self[at].load(Ordering::Relaxed))))
            }

            #[inline(always)]
            fn pairs(
                &self,
                at: usize,
                count: usize,
            ) -> impl Iterator<
                Item = (impl FnOnce(Ordering) -> $value, impl FnOnce(Ordering) -> $value),
            > {
                debug_assert!(at + 2 * count <= self.len());
                let fields = self.get(at..).and_then(|fields| fields.get(..2 * count));
                let (pairs, _) = fields.unwrap_or_default().as_chunks();
                pairs.iter().map(|[first, second]| {
                    let load = |field: &$atomic, order| <$value>::from_le(field.load(order));
                    (move |order| load(first, order), move |order| load(second, order))
                })
            }

            #[inline(always)]
            fn store_pairs(&self, at: usize, values: impl ExactSizeIterator<Item = [$value; 2]>) {
                debug_assert!(at + 2 * values.len() <= self.len());
                let fields = self.get(at..).and_then(|fields| fields.get(..2 * values.len()));
                let (pairs, _) = fields.unwrap_or_default().as_chunks();
                for ([first, second], [one, two]) in pairs.iter().zip(values) {
                    first.store(one.to_le(), Ordering::Relaxed);
                    second.store(two.to_le(), Ordering::Relaxed);
                }
            }

            #[inline(always)]
            fn store_two(&self, at: usize, values: [$value; 2]) {
                debug_assert!(at + 1 < self.len());
                if at + 1 < self.len() {
                    let [first, second] = values.map(<$value>::to_le);
                    self[at].store(first, Ordering::Relaxed);
                    self[at + 1].store(second, Ordering::Relaxed);
                }
            }

            #[inline(always)]
            fn prefetch(&self, at: usize) {
                Words::prefetch(self, at);
            }

            #[inline(always)]
            fn prefetch_run(&self, at: usize, count: usize) {
                Words::prefetch_run(self, at, count);
            }
        }
    )*};
}
fields!(u16: AtomicU16, u32: AtomicU32, u64: AtomicU64);
