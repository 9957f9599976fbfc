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

use engine::{App, Burst, Counters, DropReason, Outputs, Selection};
use wire::ethernet::Ethernet;

use table::{PortNumber, Table};

/// How long an address is remembered that sends nothing, in seconds (802.1D-2004, 7.9.2).
pub const AGEING_SECONDS: u32 = 300;

const NANOSECONDS: u64 = 1_000_000_000;

/// The bridge, or its part on one of several workers.
pub struct Bridge {
    table: Arc<Table>,
    /// What goes out by each port.
    outputs: Vec<Selection>,
    counters: Counters,
}

impl Bridge {
    /// A bridge with this many ports, whose table is keyed by `key`: something that no guest can
    /// guess.
    pub fn new(ports: PortNumber, key: [u64; 2]) -> Self {
        Self {
            table: Arc::new(Table::new(key)),
            outputs: vec![Selection::default(); ports.into()],
            counters: Counters::default(),
        }
    }

    /// A part of this bridge for another worker: what one learns, all know.
    pub fn part(&self) -> Self {
        Self {
            table: self.table.clone(),
            outputs: vec![Selection::default(); self.outputs.len()],
            counters: Counters::default(),
        }
    }

    /// The addresses that are known, to all parts and to whoever keeps this: any thread may have
    /// them forgotten, when a port's link goes down and its stations may turn up elsewhere.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Decides where a frame goes that came in by `input`.
    #[inline]
    fn forward(&mut self, input: usize, burst: &mut Burst<'_>, index: usize) -> Option<DropReason> {
        let now = (burst.now() / NANOSECONDS) as u32;
        let frame = burst.frame(index);
        let Some(ethernet) = Ethernet::parse(frame.head) else {
            return Some(DropReason::TooShort);
        };
        if ethernet.source.is_multicast() {
            return Some(DropReason::BadSource);
        }
        self.table.learn(ethernet.source, input as PortNumber, now);
        let destination = ethernet.destination;
        if destination.is_reserved() {
            return Some(DropReason::ReservedAddress);
        }
        if !destination.is_multicast()
            && let Some(port) = self.table.find(destination, now)
        {
            if usize::from(port) == input {
                return Some(DropReason::SamePort);
            }
            let Some(output) = self.outputs.get_mut(usize::from(port)) else {
                return Some(DropReason::NoDestination);
            };
            output.push(index);
            return None;
        }
        match self.outputs.len() {
            0 | 1 => return Some(DropReason::NoDestination),
            2 => {}
            _ => burst.replicate(index),
        }
        for (port, output) in self.outputs.iter_mut().enumerate() {
            if port != input {
                output.push(index);
            }
        }
        None
    }
}

impl App for Bridge {
    fn push(
        &mut self,
        input: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        outputs: &mut Outputs<'_>,
    ) {
        for index in selection.iter() {
            if let Some(reason) = self.forward(input, burst, index) {
                self.counters.drop(reason);
            }
        }
        for (port, selection) in self.outputs.iter_mut().enumerate() {
            if !selection.is_empty() {
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
