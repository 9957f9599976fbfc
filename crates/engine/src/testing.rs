//! Apps to test with: a source, a sink, one that panics.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Once, PoisonError};

use crate::{
    App, Burst, Counters, DropReason, Fault, Lease, Numbers, Outcome, Outcomes, Outputs, Poller,
    Selection, settings,
};
use wire::virtio::Offload;

/// What panics on purpose say. [`silence_deliberate_panics`] keeps them out of the tests' output.
pub(crate) const DELIBERATE: &str = "deliberate";

pub(crate) fn silence_deliberate_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let message = info.payload_as_str().unwrap_or_default();
            if !message.starts_with(DELIBERATE) {
                usual(info);
            }
        }));
    });
}

/// Sends frames, each one byte long, and sends those again that were held.
#[derive(Default)]
pub(crate) struct Source {
    pub(crate) frames: VecDeque<u8>,
    pub(crate) reclaims: usize,
    pub(crate) panics_after_pull: bool,
    /// By which output they leave, if it says so.
    pub(crate) output: Option<usize>,
    pulled: Vec<u8>,
    counters: Counters,
}

impl Source {
    pub(crate) fn new(frames: impl IntoIterator<Item = u8>) -> Self {
        Self { frames: frames.into_iter().collect(), ..Self::default() }
    }
}

impl App for Source {
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        self.pulled = self.frames.drain(..).collect();
        if let Some(output) = self.output {
            burst.leave_by(output);
        }
        let bytes = lease.private(self.pulled.clone().into());
        for byte in bytes.chunks(1) {
            let start = burst.segments().len();
            burst.segments().push(byte.into());
            let pushed = burst.push::<()>(start..start + 1, 0, |_, _| Ok(Offload::NONE));
            assert!(matches!(pushed, Ok(Some(_))));
        }
        assert!(!self.panics_after_pull, "{DELIBERATE}: pull");
        !self.pulled.is_empty()
    }

    fn reclaim(&mut self, outcomes: Outcomes<'_>, lease: Lease) {
        self.reclaims += 1;
        assert!(matches!(lease, Lease::Private(_)), "not our lease");
        for (index, frame) in self.pulled.drain(..).enumerate() {
            if outcomes.get(index) == Outcome::Held {
                self.frames.push_back(frame);
            }
        }
    }

    fn push(&mut self, _: usize, _: &mut Burst<'_>, selection: &Selection, _: &mut Outputs<'_>) {
        self.counters[DropReason::Refused] += selection.len() as u64;
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// What sinks took, by input and first byte.
pub(crate) type Taken = Arc<Mutex<Vec<(usize, u8)>>>;

pub(crate) fn taken(taken: &Taken) -> Vec<(usize, u8)> {
    taken.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
}

/// Takes frames, up to `room` of them in its life. Holds those for which there is no room.
pub(crate) struct Sink {
    pub(crate) taken: Taken,
    pub(crate) room: usize,
    counters: Counters,
}

impl Sink {
    pub(crate) fn new() -> (Self, Taken) {
        let taken = Taken::default();
        let sink = Self { taken: taken.clone(), room: usize::MAX, counters: Counters::default() };
        (sink, taken)
    }
}

impl App for Sink {
    fn push(
        &mut self,
        input: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        _: &mut Outputs<'_>,
    ) {
        for index in selection.iter() {
            if self.room == 0 {
                if !burst.hold(index) {
                    self.counters.drop(DropReason::ReceiverFull);
                }
                continue;
            }
            self.room -= 1;
            let frame = burst.frame(index);
            self.counters.sent.count(frame.len);
            let first = frame.head.first().copied().unwrap_or_default();
            self.taken.lock().unwrap().push((input, first));
        }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// Passes everything on to each of its first `outputs` outputs.
pub(crate) struct Repeater {
    pub(crate) outputs: usize,
    pub(crate) counters: Counters,
}

impl Repeater {
    pub(crate) fn new(outputs: usize) -> Self {
        Self { outputs, counters: Counters::default() }
    }
}

impl App for Repeater {
    fn push(
        &mut self,
        _: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        outputs: &mut Outputs<'_>,
    ) {
        if self.outputs > 1 {
            selection.iter().for_each(|index| burst.replicate(index));
        }
        for output in 0..self.outputs {
            outputs.push(output, burst, selection);
        }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// Where [`Faulty`] panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    Register,
    Pull,
    Reclaim,
    Push,
    Publish,
    Notify,
    Arm,
    Disarm,
    Tick,
    IsUp,
    Link,
    Reconfigure,
    Report,
    Stop,
}

/// Panics each time at that moment, and no other.
pub(crate) struct Faulty {
    pub(crate) moment: Moment,
    pub(crate) counters: Counters,
}

impl Faulty {
    pub(crate) fn new(moment: Moment) -> Self {
        Self { moment, counters: Counters::default() }
    }

    fn at(&self, moment: Moment) {
        assert!(self.moment != moment, "{DELIBERATE}: {moment:?}");
    }
}

impl App for Faulty {
    fn pull<'b>(&mut self, lease: &'b mut Lease, _: &mut Burst<'b>) -> bool {
        self.at(Moment::Pull);
        // Or it would not be called at these moments.
        if self.moment == Moment::Reclaim {
            lease.private(Box::default());
        }
        matches!(self.moment, Moment::Publish | Moment::Notify)
    }

    fn reclaim(&mut self, _: Outcomes<'_>, _: Lease) {
        self.at(Moment::Reclaim);
    }

    fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {
        self.at(Moment::Push);
    }

    fn publish(&mut self) -> Result<(), Fault> {
        self.at(Moment::Publish);
        Ok(())
    }

    fn notify(&mut self) {
        self.at(Moment::Notify);
    }

    fn arm(&mut self) -> bool {
        self.at(Moment::Arm);
        false
    }

    fn disarm(&mut self) {
        self.at(Moment::Disarm);
    }

    fn register(&mut self, _: &Poller) -> std::io::Result<()> {
        self.at(Moment::Register);
        Ok(())
    }

    fn tick(&mut self, _: u64) {
        self.at(Moment::Tick);
    }

    fn is_up(&self) -> bool {
        self.at(Moment::IsUp);
        true
    }

    fn link(&mut self, _: usize, _: bool) -> Option<usize> {
        self.at(Moment::Link);
        None
    }

    fn reconfigure(&mut self, _: &dyn Any) -> Result<(), Fault> {
        self.at(Moment::Reconfigure);
        Ok(())
    }

    fn report(&self, _: u64, _: &mut Numbers) {
        self.at(Moment::Report);
    }

    fn stop(&mut self) {
        self.at(Moment::Stop);
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// What a [`Listener`] was told beside frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Tick(u64),
    Link(usize, bool),
    Settings(u32),
    Stop,
}

pub(crate) type Tidings = Arc<Mutex<Vec<Told>>>;

/// Has no outside, passes frames that come by an input on by the output of the same number, and what it hears of that input, too.
pub(crate) struct Listener {
    pub(crate) tidings: Tidings,
    pub(crate) is_up: bool,
    pub(crate) settings: u32,
    counters: Counters,
}

impl Listener {
    pub(crate) fn new() -> (Self, Tidings) {
        let tidings = Tidings::default();
        let counters = Counters::default();
        (Self { tidings: tidings.clone(), is_up: true, settings: 0, counters }, tidings)
    }

    fn note(&self, told: Told) {
        self.tidings.lock().unwrap().push(told);
    }
}

/// What a listener was told since this was asked last.
pub(crate) fn told(tidings: &Tidings) -> Vec<Told> {
    std::mem::take(&mut tidings.lock().unwrap())
}

impl App for Listener {
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
        outputs.push(input, burst, selection);
    }

    fn tick(&mut self, now: u64) {
        self.note(Told::Tick(now));
    }

    fn is_up(&self) -> bool {
        self.is_up
    }

    fn link(&mut self, input: usize, is_up: bool) -> Option<usize> {
        self.note(Told::Link(input, is_up));
        Some(input)
    }

    fn reconfigure(&mut self, given: &dyn Any) -> Result<(), Fault> {
        self.settings = *settings::<u32>(given)?;
        self.note(Told::Settings(self.settings));
        Ok(())
    }

    fn report(&self, now: u64, numbers: &mut Numbers) {
        numbers.own("settings", "", self.settings.into());
        numbers.own("by the clock", "ns", now);
    }

    fn stop(&mut self) {
        self.note(Told::Stop);
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}
