//! The chains of transmit rings that were taken and not given back.
//!
//! A chain whose frame is held is read again in the next burst. Its descriptors cannot be asked for
//! that: in a packed ring, whatever was given back since may lie over them. So where its bytes are is
//! noted when the frame is first held, before anything is given back. All such notes are in one list,
//! which is written anew after each burst with those that are still of use.

use std::ops::Range;

use engine::{BURST, Outcome, Outcomes};
use memory::GuestMemory;
use virtqueue::{Chain, Piece, Violation};

use super::ring::Ring;

/// The chains, those of one ring in its order.
pub(crate) struct Taken {
    chains: Vec<TakenChain>,
    pieces: Vec<Piece>,
    /// Where the next list of pieces is written.
    next_pieces: Vec<Piece>,
    /// Whether frames may be held.
    holds: bool,
}

pub(crate) struct TakenChain {
    pub(crate) chain: Chain,
    /// Where its ring is.
    place: u8,
    /// The frame of the current burst that was made of it, if it made one.
    pub(crate) frame: Option<u8>,
    /// Its pieces, while its frame is held.
    held: Option<Range<u32>>,
}

/// Pieces of a frame that is held, at the most: to read it again costs time in every breath.
/// Drivers that mean well send a frame of 64 KiB in less than 20.
const PIECES: usize = 64;

/// How a burst ended for its sender.
pub(crate) struct Settled {
    /// Chains were given back.
    pub(crate) moved: bool,
    /// Frames that should have been held, and could not be.
    pub(crate) lost: u64,
}

/// A chain whose frame is held.
pub(crate) struct Held<'t> {
    /// Where its ring is.
    pub(crate) place: usize,
    /// Descriptors that it took to know the pieces.
    pub(crate) descriptors: u16,
    /// Where its bytes are. Not checked.
    pub(crate) pieces: &'t [Piece],
    /// To be set to the frame of this burst that is made of it.
    pub(crate) frame: &'t mut Option<u8>,
}

impl Held<'_> {
    /// Bytes in all.
    pub(crate) fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| u64::from(piece.len)).sum()
    }
}

impl Taken {
    /// No chains, and memory for the usual number.
    pub(crate) fn new() -> Self {
        let pieces = || Vec::with_capacity(BURST);
        let chains = Vec::with_capacity(BURST);
        Self { chains, pieces: pieces(), next_pieces: pieces(), holds: false }
    }

    /// Chains.
    pub(crate) fn len(&self) -> usize {
        self.chains.len()
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Adds a chain that was taken from the ring at `place`, of at most 128, and the frame that was made of it, if one was made already.
    #[inline(always)]
    pub(crate) fn add(&mut self, place: usize, chain: Chain, frame: Option<u8>) {
        self.chains.push(TakenChain { chain, place: place as u8, frame, held: None });
    }

    /// The chains from `index` on.
    #[inline]
    pub(crate) fn from(&mut self, index: usize) -> &mut [TakenChain] {
        self.chains.get_mut(index..).unwrap_or_default()
    }

    /// The chains whose frames were held, to make frames of this burst of them.
    pub(crate) fn held(&mut self) -> impl Iterator<Item = Held<'_>> {
        let pieces = &self.pieces;
        self.chains.iter_mut().filter_map(|TakenChain { place, chain, frame, held }| {
            let Range { start, end } = held.clone()?;
            let pieces = pieces.get(start as usize..end as usize).unwrap_or_default();
            let place = usize::from(*place);
            Some(Held { place, descriptors: chain.descriptors(), pieces, frame })
        })
    }

    /// Gives back the chains whose frames were not held in the burst that ended. With `in_order`
    /// only those before the first one of their ring that was. A frame of more than [`PIECES`]
    /// pieces cannot be held.
    ///
    /// A violation comes with the place of its ring.
    pub(crate) fn settle(
        &mut self,
        rings: &mut [Option<Ring>],
        in_order: bool,
        memory: &GuestMemory,
        outcomes: &Outcomes<'_>,
    ) -> Result<Settled, (usize, Violation)> {
        if !self.holds && outcomes.held() == 0 {
            return Ok(self.give_all_back(rings));
        }
        let translator = &mut memory.translator();
        let mut lost = 0;
        self.next_pieces.clear();
        for TakenChain { place, chain, frame, held } in &mut self.chains {
            let outcome = frame.take().map_or(Outcome::Done, |frame| outcomes.get(frame.into()));
            let known = held.take();
            if outcome == Outcome::Held {
                let start = self.next_pieces.len();
                let known = known.map(|Range { start, end }| start as usize..end as usize);
                match known.and_then(|range| self.pieces.get(range)) {
                    Some(pieces) => self.next_pieces.extend_from_slice(pieces),
                    None => {
                        let place = usize::from(*place);
                        let Some(Some(ring)) = rings.get_mut(place) else { continue };
                        ring.queue
                            .pieces(*chain, translator, &mut self.next_pieces)
                            .map_err(|violation| (place, violation))?;
                    }
                }
                if self.next_pieces.len() - start > PIECES {
                    self.next_pieces.truncate(start);
                    lost += 1;
                } else {
                    *held = Some(start as u32..self.next_pieces.len() as u32);
                }
            }
        }
        std::mem::swap(&mut self.pieces, &mut self.next_pieces);

        let before = self.chains.len();
        // A bit for each place.
        let mut behind = 0u128;
        self.chains.retain(|taken| {
            let place = 1 << taken.place;
            let stays = taken.held.is_some() || behind & place != 0;
            if stays && in_order {
                behind |= place;
            }
            if !stays && let Some(Some(ring)) = rings.get_mut(usize::from(taken.place)) {
                ring.queue.give_back(taken.chain, 0);
            }
            stays
        });
        self.holds = self.chains.iter().any(|taken| taken.held.is_some());
        Ok(Settled { moved: self.chains.len() < before, lost })
    }

    /// Gives all chains back: as good as always, none of their frames was held.
    fn give_all_back(&mut self, rings: &mut [Option<Ring>]) -> Settled {
        let moved = !self.chains.is_empty();
        // As good as always, and then they are all of one ring.
        if let [Some(ring)] = rings {
            debug_assert!(self.chains.iter().all(|taken| taken.place == 0), "of another ring");
            ring.queue.give_all_back(self.chains.iter().map(|taken| (taken.chain, 0)));
            self.chains.clear();
            return Settled { moved, lost: 0 };
        }
        for of_ring in self.chains.chunk_by(|one, other| one.place == other.place) {
            let Some(place) = of_ring.first().map(|taken| usize::from(taken.place)) else {
                continue;
            };
            let Some(Some(ring)) = rings.get_mut(place) else { continue };
            let chains = of_ring.iter().map(|taken| (taken.chain, 0));
            ring.queue.give_all_back(chains);
        }
        self.chains.clear();
        Settled { moved, lost: 0 }
    }

    /// Takes out all chains of the ring at `place`, to give them back or to forget them, and says of
    /// each whether its frame is held.
    pub(crate) fn drain(&mut self, place: usize) -> impl Iterator<Item = (Chain, bool)> {
        let of_ring = self.chains.extract_if(.., move |taken| usize::from(taken.place) == place);
        of_ring.map(|taken| (taken.chain, taken.held.is_some()))
    }
}
