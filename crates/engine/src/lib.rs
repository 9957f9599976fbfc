//! The engine: frames flow through a network of apps, a burst at a time.
//!
//! # One breath
//!
//! A [`Worker`] is a thread that breathes, again and again ([`Graph::breathe`]). In one breath, for
//! each app that has an outside:
//!
//! 1. **pull**: the app fills a [`Burst`] with up to [`BURST`] frames. A frame is borrowed, not
//!    owned: its first bytes are copied into private memory, once, and the rest stays in the
//!    sender's memory.
//! 2. **push**: the burst runs through the apps it is linked to, to completion. Apps say what
//!    happens to a frame by passing a [`Selection`] of the burst on; at the end of the way a port
//!    copies each frame from the sender's memory into the receiver's.
//! 3. **reclaim**: the app that pulled learns which frames are done and which are *held*, because
//!    their receiver is full for the moment, and will be pulled again.
//!
//! Behind each turn the apps that had a part in it **publish**: what becomes visible to a guest becomes
//! so here. Then, behind one fence for all of them, they **notify**: at most one notification goes out per ring. An app that has done so in this breath does it
//! once more at its end, so that many senders do not cost their receiver as many notifications. Apps that
//! have had nothing for a while are asked in one breath of four, and then of thirty-two. When nothing has happened for a while the worker **arms**
//! every app, which looks one last time, and sleeps.
//!
//! # Who owns what
//!
//! A worker owns its apps and runs them on its thread alone, so that nothing here locks. Control
//! reaches in by [`WorkerHandle::run`]: a closure that runs between two breaths, when no frame is
//! in flight, and whose answer carries out whatever is to be closed or unmapped.
//!
//! # When we are wrong
//!
//! A peer's faults are errors that an app reports from [`App::publish`]. A panic is our own bug: it
//! is caught where the engine calls an app, costs that app, and the others breathe on.

pub mod app;
mod breath;
mod burst;
mod change;
mod counters;
mod graph;
mod histogram;
mod id;
mod numbers;
mod poller;
mod pulse;
mod worker;

#[cfg(test)]
mod testing;

pub use app::{App, Fault, NoSettings, OtherSettings, settings};
pub use breath::Event;
pub use burst::{
    Arrival, BURST, Burst, ENOUGH_SEGMENTS, Frame, Framed, HEAD, HEADER_ROOM, HELD, Lease, Outcome,
    Outcomes, Outline, PRIVATE, Selection, TAGS,
};
pub use change::Change;
pub use counters::{Counters, DropReason, Traffic};
pub use graph::{Graph, Link, LinkError, Outputs};
pub use histogram::Histogram;
pub use id::{AppId, Ids};
pub use numbers::{Number, Numbers};
pub use poller::Poller;
pub use pulse::{Beat, Pulse};
pub use worker::{COMMANDS, Events, Load, Mode, Settings, Stopped, Worker, WorkerHandle};
