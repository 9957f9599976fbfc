//! A learning bridge (IEEE 802.1D without the spanning tree).
//!
//! Port `n` of the bridge is its input `n` and its output `n`. A frame's source address is learned
//! on the port it came in on; a frame goes out by the port where its destination was learned, or by
//! all others when it is a group's or unknown; never by the one it came in on. Frames to the
//! addresses that bridges reserve for themselves go nowhere.
//!
//! The table of addresses is bounded: see [`table`].

pub mod table;

use std::sync::Arc;

use engine::{App, BURST, Burst, Counters, DropReason, Outputs, Selection};
use wire::ethernet::Addresses;

use table::{Place, PortNumber, Table};

/// How long an address is remembered that sends nothing, in seconds (802.1D-2004, 7.9.2).
pub const AGEING_SECONDS: u32 = 300;

const NANOSECONDS: u64 = 1_000_000_000;

/// The bridge, or its part on one of several workers.
pub struct Bridge {
    table: Arc<Table>,
    /// What goes out by each port.
    outputs: Vec<Selection>,
    /// The ports that something goes out by, in the order of their first frames.
    used: Vec<usize>,
    /// Kept for its allocation.
    runs: Vec<Run>,
    counters: Counters,
}

impl Bridge {
    /// A bridge with this many ports, whose table is keyed by `key`: something that no guest can
    /// guess.
    pub fn new(ports: PortNumber, key: [u64; 2]) -> Self {
        Self {
            table: Arc::new(Table::new(key)),
            outputs: vec![Selection::default(); ports.into()],
            used: Vec::with_capacity(ports.into()),
            runs: Vec::with_capacity(BURST),
            counters: Counters::default(),
        }
    }

    /// A part of this bridge for another worker: what one learns, all know.
    pub fn part(&self) -> Self {
        Self {
            table: self.table.clone(),
            outputs: vec![Selection::default(); self.outputs.len()],
            used: Vec::with_capacity(self.outputs.len()),
            runs: Vec::with_capacity(BURST),
            counters: Counters::default(),
        }
    }

    /// The addresses that are known, to all parts and to whoever keeps this: any thread may have
    /// them forgotten, when a port's link goes down and its stations may turn up elsewhere.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Decides where frames with these addresses go that come in by `input`, and learns where their
    /// sender is.
    #[inline]
    fn decide(&self, input: usize, run: &Run, now: u32) -> Decision {
        let Some(addresses) = run.addresses else { return Decision::Drop(DropReason::TooShort) };
        let Addresses { destination, source } = addresses;
        if source.is_multicast() {
            return Decision::Drop(DropReason::BadSource);
        }
        self.table.learn_at(run.source, input as PortNumber, now);
        if destination.is_reserved() {
            return Decision::Drop(DropReason::ReservedAddress);
        }
        if !destination.is_multicast()
            && let Some(port) = self.table.find_at(run.destination, now)
        {
            let port = usize::from(port);
            let is_same = port == input;
            return if is_same { Decision::Drop(DropReason::SamePort) } else { Decision::To(port) };
        }
        Decision::Flood
    }

    /// Has a frame go out by all ports but the one it came in by.
    fn flood(&mut self, input: usize, burst: &mut Burst<'_>, index: usize) {
        match self.outputs.len() {
            0 | 1 => return self.counters.drop(DropReason::NoDestination),
            2 => {}
            _ => burst.replicate(index),
        }
        for port in (0..self.outputs.len()).filter(|port| *port != input) {
            self.send(port, index);
        }
    }

    /// Has a frame go out by a port.
    #[inline]
    fn send(&mut self, port: usize, index: usize) {
        let Some(output) = self.outputs.get_mut(port) else {
            return self.counters.drop(DropReason::NoDestination);
        };
        if output.is_empty() {
            self.used.push(port);
        }
        output.push(index);
    }
}

/// Frames one behind the other with the same addresses, and where to look for those.
struct Run {
    /// None when there is no whole header.
    addresses: Option<Addresses>,
    source: Place,
    destination: Place,
    /// How many frames.
    frames: usize,
}

/// Where a frame goes.
#[derive(Clone, Copy)]
enum Decision {
    To(usize),
    Flood,
    Drop(DropReason),
}

impl App for Bridge {
    fn push(
        &mut self,
        input: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        outputs: &mut Outputs<'_>,
    ) {
        let now = (burst.now() / NANOSECONDS) as u32;
        // All runs first, so that what the table knows is on its way before the first is decided on.
        let mut runs = std::mem::take(&mut self.runs);
        for index in selection.iter() {
            let addresses = Addresses::parse(burst.head(index));
            match runs.last_mut() {
                // Frames of one conversation come together.
                Some(last) if last.addresses == addresses => last.frames += 1,
                _ => {
                    let Addresses { source, destination } = addresses.unwrap_or_default();
                    let [source, destination] =
                        [source, destination].map(|address| self.table.place(address));
                    runs.push(Run { addresses, source, destination, frames: 1 });
                }
            }
        }
        let mut frames = selection.iter();
        for run in &runs {
            let decision = self.decide(input, run, now);
            for index in frames.by_ref().take(run.frames) {
                match decision {
                    Decision::To(port) => self.send(port, index),
                    Decision::Flood => self.flood(input, burst, index),
                    Decision::Drop(reason) => self.counters.drop(reason),
                }
            }
        }
        runs.clear();
        self.runs = runs;
        for port in self.used.drain(..) {
            if let Some(selection) = self.outputs.get_mut(port) {
                outputs.push(port, burst, selection);
                selection.clear();
            }
        }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[cfg(test)]
mod tests;
