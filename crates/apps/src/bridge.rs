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
use wire::ethernet::{Addresses, HEADER_SIZE};

use table::{Place, PortNumber, Table};

/// How long an address is remembered that sends nothing, in seconds (802.1D-2004, 7.9.2).
pub const AGEING_SECONDS: u32 = 300;

const NANOSECONDS: u64 = 1_000_000_000;

/// The bridge, or its part on one of several workers.
pub struct Bridge {
    table: Arc<Table>,
    sorted: Sorted,
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
            sorted: Sorted::new(ports.into()),
            runs: Vec::with_capacity(BURST),
            counters: Counters::default(),
        }
    }

    /// A part of this bridge for another worker: what one learns, all know.
    pub fn part(&self) -> Self {
        Self {
            table: self.table.clone(),
            sorted: Sorted::new(self.sorted.outputs.len()),
            runs: Vec::with_capacity(BURST),
            counters: Counters::default(),
        }
    }

    /// The addresses that are known, to all parts and to whoever keeps this: any thread may have
    /// them forgotten, when a port's link goes down and its stations may turn up elsewhere.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }
}

/// Frames, by the port that they go out by.
struct Sorted {
    outputs: Vec<Selection>,
    /// The ports that something goes out by, in the order of their first frames.
    used: Vec<usize>,
}

impl Sorted {
    fn new(ports: usize) -> Self {
        Self { outputs: vec![Selection::default(); ports], used: Vec::with_capacity(ports) }
    }

    /// Adds frames that go out by a port.
    #[inline]
    fn add(&mut self, port: usize, frames: impl Iterator<Item = usize>) {
        let Some(output) = self.outputs.get_mut(port) else { return };
        if output.is_empty() {
            self.used.push(port);
        }
        frames.for_each(|index| output.push(index));
    }

    /// Adds a frame that goes out by all ports but the one it came in by.
    fn flood(&mut self, input: usize, burst: &mut Burst<'_>, index: usize) {
        if self.outputs.len() > 2 {
            burst.replicate(index);
        }
        for port in (0..self.outputs.len()).filter(|port| *port != input) {
            self.add(port, std::iter::once(index));
        }
    }

    /// Sends everything on.
    #[inline]
    fn send(&mut self, burst: &mut Burst<'_>, outputs: &mut Outputs<'_>) {
        for port in &self.used {
            if let Some(selection) = self.outputs.get_mut(*port) {
                outputs.push(*port, burst, selection);
                selection.clear();
            }
        }
        self.used.clear();
    }
}

/// Both addresses of a frame, to be compared at once. None when there is no whole header.
#[inline]
fn address_bytes(frame: &[u8]) -> Option<&[u8; 12]> {
    let header: &[u8; HEADER_SIZE] = frame.first_chunk()?;
    header.first_chunk()
}

/// Frames one behind the other with the same addresses: those of one conversation come together.
struct Run {
    /// None when there is no whole header.
    places: Option<Places>,
    /// How many frames.
    frames: usize,
}

/// Where the table has a frame's addresses.
#[derive(Clone, Copy)]
struct Places {
    source: Place,
    destination: Place,
}

impl Run {
    /// Decides where the frames go, which came in by `input`, and learns where their sender is.
    #[inline]
    fn decide(&self, table: &Table, input: usize, now: u32) -> Decision {
        let Some(Places { source, destination }) = self.places else {
            return Decision::Drop(DropReason::TooShort);
        };
        if source.address().is_multicast() {
            return Decision::Drop(DropReason::BadSource);
        }
        table.learn_at(source, input as PortNumber, now);
        if destination.address().is_reserved() {
            return Decision::Drop(DropReason::ReservedAddress);
        }
        if !destination.address().is_multicast()
            && let Some(port) = table.find_at(destination, now)
        {
            let port = usize::from(port);
            let is_same = port == input;
            return if is_same { Decision::Drop(DropReason::SamePort) } else { Decision::To(port) };
        }
        Decision::Flood
    }
}

/// Where frames go.
enum Decision {
    To(usize),
    Flood,
    Drop(DropReason),
}

impl App for Bridge {
    fn has_outside(&self) -> bool {
        false
    }

    fn push(
        &mut self,
        input: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        outputs: &mut Outputs<'_>,
    ) {
        let Self { table, sorted, runs, counters } = self;
        // All runs first, so that what the table knows is on its way before the first is decided on.
        let mut last = None;
        for index in selection.iter() {
            let head = burst.head(index);
            let bytes = address_bytes(head);
            match runs.last_mut() {
                Some(run) if bytes == last => run.frames += 1,
                _ => {
                    let places = Addresses::parse(head).map(|addresses| Places {
                        source: table.place(addresses.source),
                        destination: table.place(addresses.destination),
                    });
                    runs.push(Run { places, frames: 1 });
                }
            }
            last = bytes;
        }
        let now = (burst.now() / NANOSECONDS) as u32;
        let mut frames = selection.iter();
        for run in &*runs {
            let frames = frames.by_ref().take(run.frames);
            match run.decide(table, input, now) {
                // One conversation, or one frame: nothing to sort.
                Decision::To(port) if run.frames == selection.len() => {
                    outputs.push(port, burst, selection);
                }
                Decision::To(port) if port < sorted.outputs.len() => sorted.add(port, frames),
                Decision::Flood if sorted.outputs.len() > 1 => {
                    frames.for_each(|index| sorted.flood(input, burst, index));
                }
                Decision::To(_) | Decision::Flood => {
                    counters[DropReason::NoDestination] += frames.count() as u64;
                }
                Decision::Drop(reason) => counters[reason] += frames.count() as u64,
            }
        }
        runs.clear();
        sorted.send(burst, outputs);
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[cfg(test)]
mod tests;
