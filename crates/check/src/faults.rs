//! A back end that does one thing wrong: the proof that cases can fail.
//!
//! Behind the feature `faults`, which no build of the program for anybody's use has. Unlike the judge
//! this is built on the library's own session and rings, and so is right in everything but its one
//! [`Fault`]: the cases that fail with it, and pass without, are those that look at that.
//!
//! A fault is a row of [`all`]: its name, what it [`Does`], and the cases that catch it. Most are said as
//! "when this happens for the nth time, then that": what happens is a text, such as
//! `message SET_VRING_NUM size=8 files=0 …` or `wrong split ring=1 Head { … }`, and a fault waits for
//! one with certain words in it.

mod back_end;
mod table;

use wire::virtio::Features;

pub use back_end::serve;
pub use table::all;

/// One thing that is wrong.
#[derive(Debug)]
pub struct Fault {
    /// Its name, for `--fault`.
    pub name: &'static str,
    /// What is wrong.
    pub does: Does,
    /// The cases that catch it, of the topics that these are of: no other of theirs does. The first is the
    /// one that it was made for. None if it is a liberty, which the specification leaves to a back end: no
    /// case of any topic may fail.
    pub caught: &'static [&'static str],
    /// Hardly any case can pass with it: these are looked at alone.
    pub is_broad: bool,
}

impl Fault {
    /// No fault at all.
    pub const NONE: &'static Self =
        &Self { name: "none", does: Does::Nothing, caught: &[], is_broad: false };

    pub(crate) fn is(&self, slip: Slip) -> bool {
        matches!(self.does, Does::Slip(found) if found == slip)
    }
}

/// The fault of this name; `none` is one.
pub fn find(name: &str) -> Option<&'static Fault> {
    all().iter().chain([Fault::NONE]).find(|fault| fault.name == name)
}

/// What is wrong with a back end.
#[derive(Clone, Copy, Debug)]
pub enum Does {
    /// Nothing is.
    Nothing,
    /// It offers these features, and not those.
    Offers(Features, Features),
    /// It offers features that its rings know nothing of.
    Forgets(Features),
    /// When something with all these words happens so many times, harm is done, then and ever after.
    On(&'static [&'static str], u32, Harm),
    /// Something else.
    Slip(Slip),
}

/// What becomes of a back end, or of what it met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// It ends.
    Dies,
    /// It does nothing any more.
    Hangs,
    /// It goes on, but serves no ring for a while: until the third connection from here.
    Stalls,
    /// It closes the connection.
    Closes,
    /// A message is acknowledged and has no effect; a frame is dropped.
    Ignores,
    /// A message is acknowledged as failed.
    Refuses,
    /// What must be refused is acknowledged.
    Accepts,
    /// The descriptors of a message stay open for ever.
    Leaks,
}

/// What is wrong in a place of its own.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slip {
    AcknowledgesOne,
    AcknowledgesUnasked,
    AcknowledgesUnknown,
    AlwaysCalls,
    AnswersAll,
    AnswersOwner,
    AnswersTwice,
    AsksForNoKicks,
    BaseIsZero,
    BaseOfAnotherRing,
    BaseOnce,
    CallsLate,
    ChangesByte,
    ClosesWhenIdle,
    ChecksumFlag,
    ChecksumWithoutFlag,
    CutsLargeFrames,
    DeliversTwice,
    DeliversWhenDisabled,
    DropsUnknownFlags,
    FeaturesChange,
    FirstDescriptorOnly,
    FirstPairOnly,
    ForgetsEarlyKicks,
    ForgetsNeedsChecksum,
    ForgetsStatus,
    GsoType,
    HalfABase,
    IgnoresReset,
    KeepsDescriptors,
    KeepsFormerCall,
    KeepsFormerKick,
    KeepsMemory,
    KeepsStatus,
    LastPairOnly,
    LeavesChecksums,
    LeavesUdpChecksums,
    LengthWithoutHeader,
    LogsAtStart,
    LogsFirstPage,
    LogsForever,
    LogsForeverLate,
    LogsNoBuffers,
    LogsNoRings,
    LogsSplitOnly,
    LongHeaderBothWays,
    LongHeaderOnly,
    LongLength,
    LosesASegment,
    LosesLastByte,
    LosesMessages,
    MergesLoosely,
    NeedsReceiveRing,
    NeverAcknowledges,
    NeverCalls,
    NeverCallsSenders,
    NoBuffersCounted,
    NoQueues,
    NoSlots,
    OneBufferCounted,
    OneOwner,
    PassesOffloads,
    ProtocolFeaturesChange,
    RefusesMtu,
    RemembersMerging,
    ReplyDescriptors,
    ReplyFlags,
    ReplyNumber,
    ReplySize,
    RunsWhenStopped,
    SegmentsWithoutChecksum,
    SendsWhenDisabled,
    ServesNoLegacy,
    ShortLength,
    SpeaksFirst,
    StallsWhenDisabled,
    StartsAtZero,
    StopsAfterARound,
    TakesInbandAlone,
    TransmitLength,
    TrustsHeaderLength,
    UsesOutOfOrder,
    WritesAvailable,
    WritesBehindBuffer,
    WritesTable,
    WrongChecksumStart,
}
