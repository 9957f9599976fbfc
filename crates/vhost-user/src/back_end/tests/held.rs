//! What a back end may do with what it has taken, and what it may not.

use std::panic::{AssertUnwindSafe, catch_unwind};

use memory::{FrontEndAddress, GuestAddress, GuestMemory, RegionRequest, WriteCursor};
use sys::notify::Notifier;
use virtqueue::{Buffer, DriverQueue, Form, Layout};
use wire::virtio::NetHeader;

use super::*;

const SIZE: u64 = 0x4_0000;
const RING_SIZE: u16 = 8;
const BUFFER: u64 = 0x1000;

const FLAVOURS: [Features; 4] = [
    Features::VERSION_1,
    Features::VERSION_1.union(Features::IN_ORDER),
    Features::VERSION_1.union(Features::RING_PACKED),
    Features::VERSION_1.union(Features::RING_PACKED).union(Features::IN_ORDER),
];

/// A guest that transmits, and the ring as the back end has it.
struct Bed {
    memory: GuestMemory,
    features: Features,
    driver: DriverQueue,
    ring: RunningRing,
    notifier: Notifier,
}

impl Bed {
    fn new(features: Features) -> Self {
        let shared = SharedMemory::create("held", SIZE).unwrap();
        let memory = GuestMemory::map([RegionRequest {
            guest: GuestAddress(0),
            size: SIZE,
            front_end: FrontEndAddress(0),
            offset: 0,
            file: shared.as_fd().try_clone_to_owned().unwrap(),
        }]);
        let memory = memory.unwrap();
        let [one, two, three] = [0, 0x1000, 0x2000].map(GuestAddress);
        let layout = Layout::new(&memory, features, RING_SIZE.into(), one, two, three).unwrap();
        // As the session names every start: no two are the same.
        static STARTS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let setup = RingSetup {
            layout: layout.clone(),
            base: Layout::first_position(features),
            start: STARTS.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            enabled: true,
            kick: None,
            call: Some(Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap())),
        };
        let driver = DriverQueue::new(layout, features, None);
        let notifier = Notifier::new().unwrap();
        Self { ring: RunningRing::new(&setup, features), memory, features, driver, notifier }
    }

    /// A frame of so many bytes, whose first is its number.
    fn send(&mut self, number: u8, len: usize) {
        let address = GuestAddress(0x1_0000 + u64::from(number % 16) * BUFFER);
        let mut bytes = vec![0; NetHeader::SIZE + len];
        if let Some(first) = bytes.get_mut(NetHeader::SIZE) {
            *first = number;
        }
        let (mut slices, len) = (Vec::new(), bytes.len() as u32);
        self.memory.translator().write(address, len, &mut slices).unwrap();
        WriteCursor::new(&slices).write(bytes.as_slice().into());
        let buffer = Buffer { address, len, writable: false };
        self.driver.add(&[buffer], Form::Direct, number.into()).unwrap();
        let _ = self.driver.publish();
    }

    fn pair(&mut self) -> Pair<'_> {
        let Self { memory, features, ring, .. } = self;
        Pair { memory, features: *features, receive: None, transmit: Some(ring), whole: 0 }
    }

    /// Takes the next frame, and returns its number.
    #[track_caller]
    fn take(&mut self) -> (Taken, u8) {
        let mut frame = Vec::new();
        let taken = self.pair().take(100, &mut frame).unwrap().expect("a frame");
        (taken, frame[0])
    }

    fn publish(&mut self) {
        self.ring.publish(&mut self.notifier);
    }

    /// The numbers of the frames that the driver has back.
    fn sent(&mut self) -> Vec<u32> {
        self.publish();
        std::iter::from_fn(|| self.driver.reap().unwrap().map(|used| used.token)).collect()
    }
}

/// What a panic says.
#[track_caller]
fn panics(misuse: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(misuse)).expect_err("it is misuse");
    match panic.downcast::<String>() {
        Ok(says) => *says,
        Err(panic) => (*panic.downcast::<&str>().expect("words")).to_owned(),
    }
}

#[test]
fn frames_are_completed_in_any_order_and_come_back_in_theirs() {
    for features in FLAVOURS {
        let mut bed = Bed::new(features);
        // More than once around the ring.
        for round in 0..5 {
            for number in 0..4 {
                bed.send(number, 60);
            }
            let [one, two, three, four] = [0, 1, 2, 3].map(|number| {
                let (taken, found) = bed.take();
                assert_eq!(found, number, "round {round} with {features}");
                taken
            });
            bed.pair().complete(three);
            bed.pair().complete(two);
            assert_eq!(bed.sent(), [], "with {features}");
            bed.pair().complete(one);
            assert_eq!(bed.sent(), [0, 1, 2], "with {features}");
            bed.pair().complete(four);
            assert_eq!(bed.sent(), [3], "with {features}");
        }
    }
}

#[test]
fn frames_are_put_back_from_the_last_to_the_first() {
    for features in FLAVOURS {
        let mut bed = Bed::new(features);
        for number in 0..3 {
            bed.send(number, 60);
        }
        let [one, two, three] = [0; 3].map(|_| bed.take().0);
        bed.pair().put_back(three);
        bed.pair().put_back(two);
        let (two, number) = bed.take();
        assert_eq!(number, 1, "with {features}");
        bed.pair().complete(two);
        bed.pair().complete(one);
        assert_eq!(bed.sent(), [0, 1], "with {features}");
        bed.ring.check_returned();
    }
}

#[test]
fn only_the_last_frame_can_be_put_back() {
    let mut bed = Bed::new(Features::VERSION_1);
    bed.send(1, 60);
    bed.send(2, 60);
    let [one, two] = [0; 2].map(|_| bed.take().0);
    let says = panics(|| bed.pair().put_back(one));
    assert_eq!(says, "only the chain that was taken last can be put back");
    // Nor one behind which another was completed.
    bed.pair().complete(two);
    assert_eq!(bed.sent(), []);
}

#[test]
fn a_frame_goes_back_to_its_own_ring_only() {
    for features in FLAVOURS {
        let (mut bed, mut other) = (Bed::new(features), Bed::new(features));
        for bed in [&mut bed, &mut other] {
            bed.send(1, 60);
            bed.send(2, 60);
        }
        let kept = other.take().0;
        let (taken, again) = (bed.take().0, bed.take().0);
        assert_eq!(panics(|| other.pair().complete(taken)), super::running::FOREIGN);
        assert_eq!(panics(|| other.pair().put_back(again)), super::running::FOREIGN);
        // Nothing came of it.
        assert_eq!(other.sent(), []);
        other.pair().complete(kept);
        assert_eq!(other.sent(), [1]);
        let taken = other.take().0;
        let (memory, transmit) = (&bed.memory, None);
        let mut pair = Pair { memory, features, receive: None, transmit, whole: 0 };
        assert_eq!(panics(|| pair.complete(taken)), super::running::FOREIGN);
    }
}

#[test]
fn what_is_kept_is_found_out() {
    let mut bed = Bed::new(Features::VERSION_1);
    bed.send(1, 60);
    bed.send(2, 60);
    let (_lost, two) = (bed.take().0, bed.take().0);
    bed.pair().complete(two);
    let says = panics(|| bed.ring.check_returned());
    assert!(says.starts_with("`process` returned and kept 1 chains of a ring"), "{says}");
}

#[test]
fn less_than_an_ethernet_header_is_no_frame() {
    for features in FLAVOURS {
        let mut bed = Bed::new(features);
        for len in 0..=14u8 {
            bed.send(len, len.into());
            let mut frame = Vec::new();
            // However much is allowed.
            let taken = bed.pair().take(usize::MAX, &mut frame).unwrap().expect("a frame");
            assert_eq!(frame.len(), usize::from(len));
            if len < 14 {
                let len = u64::from(len) + NetHeader::SIZE as u64;
                assert_eq!(taken.header, Err(FrameFault::Short { len }));
            } else {
                assert_eq!(taken.header, Ok(NetHeader::default()));
            }
            bed.pair().complete(taken);
            assert_eq!(bed.sent(), [u32::from(len)], "with {features}");
        }
    }
}

#[test]
fn who_publishes_calls_the_driver_once() {
    let mut bed = Bed::new(Features::VERSION_1 | Features::EVENT_IDX);
    let call = bed.ring.setup.call.clone().unwrap();
    let is_called = || rustix::io::read(&call, &mut [0; 8]).is_ok();
    for round in 0..3 {
        bed.send(1, 60);
        assert!(!bed.driver.enable_calls());
        let taken = bed.take().0;
        bed.pair().complete(taken);
        assert!(!is_called());
        bed.publish();
        assert!(is_called(), "round {round}");
        bed.publish();
        assert!(!is_called(), "once");
        assert_eq!(bed.sent(), [1]);
    }
}

/// The chains themselves, for back ends that copy nothing.
#[test]
fn chains_can_be_read_where_they_are() {
    for features in FLAVOURS {
        let mut bed = Bed::new(features);
        bed.send(1, 60);
        bed.send(2, 70);
        let mut slices = Vec::new();
        let mut translator = bed.memory.translator();
        let mut take = || bed.ring.take_readable(&mut translator, 1000, &mut slices).unwrap();
        let (one, two) = (take().unwrap(), take().unwrap());
        assert!(take().is_none());
        let header = NetHeader::SIZE as u64;
        assert_eq!((one.bytes(), two.bytes()), (header + 60, header + 70));
        assert_eq!(
            slices.iter().map(memory::ReadSlice::len).sum::<usize>() as u64,
            2 * header + 130
        );
        bed.ring.give_back(two, 0);
        bed.ring.give_back(one, 0);
        assert_eq!(bed.sent(), [1, 2]);
    }
}
