//! What a case has in its hands.

use std::path::PathBuf;
use std::time::Duration;

use wire::ethernet::MacAddress;
use wire::vhost_user::{FrontEndRequest, Payload, ProtocolFeatures, VringState};
use wire::virtio::Features;

use crate::device::{BUFFER, Device, RX, Received, Setup, TX};
use crate::peer::{Answer, Peer, QUIET};
use crate::ring::Buffer;
use crate::verdict::{Check, fail, skip};

/// The address of the device under test.
pub const NEAR: MacAddress = MacAddress([0x52, 0x54, 0, 0xc0, 0, 1]);
/// The address of whoever it talks to.
pub const FAR: MacAddress = MacAddress([0x52, 0x54, 0, 0xc0, 0, 2]);
/// The header of a frame for which nothing is to be done.
pub const PLAIN: [u8; 12] = [0; 12];
/// How often a frame is sent, within the limit of one, before it counts as lost: networks may lose one, and
/// switches do while the other end comes up.
pub const ATTEMPTS: u16 = 8;
/// What our frames carry: an EtherType for experiments (IEEE 802).
const ETHER_TYPE: [u8; 2] = [0x88, 0xb5];

/// The back end under test.
#[derive(Clone, Debug)]
pub struct Target {
    /// The socket that is judged.
    pub path: PathBuf,
    /// Another socket of the same switch: what is sent at one comes out at the other.
    pub peer: Option<PathBuf>,
    /// How long one answer, or one frame, may take.
    pub limit: Duration,
    /// How long the back end may take until it accepts a connection after a case.
    pub patience: Duration,
}

/// What becomes of a frame that the device under test sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// It comes back.
    Echo,
    /// It comes out at the other socket.
    Through,
    /// Nothing is seen of it.
    None,
}

/// What a case works with.
pub struct Bench<'a> {
    /// The back end.
    pub target: &'a Target,
    /// What it does with frames.
    pub traffic: Traffic,
}

impl Bench<'_> {
    /// A connection on which nothing was said.
    pub fn connect(&self) -> Check<Peer> {
        Peer::connect(&self.target.path, self.target.limit)
    }

    /// A connection with REPLY_ACK, if it is offered, and these protocol features that must be.
    pub fn hello(&self, needed: ProtocolFeatures) -> Check<Peer> {
        let mut peer = self.connect()?;
        peer.hello(needed | ProtocolFeatures::REPLY_ACK)?;
        peer.needs(needed)?;
        Ok(peer)
    }

    /// A device without any ring set up.
    pub fn prepare(&self, setup: &Setup) -> Check<Device> {
        Device::prepare(self.connect()?, setup, self.target.limit)
    }

    /// A device that runs, with these features.
    pub fn device(&self, features: Features) -> Check<Device> {
        let setup = Setup { features: features | Features::VERSION_1, ..Setup::default() };
        Device::bring_up(self.connect()?, &setup, self.target.limit)
    }

    /// A device that runs and can send and receive.
    pub fn rig(&self, features: Features) -> Check<Rig> {
        self.rig_with(&Setup { features: features | Features::VERSION_1, ..Setup::default() })
    }

    /// A device brought up like this that can send and receive.
    pub fn rig_with(&self, setup: &Setup) -> Check<Rig> {
        self.need_traffic()?;
        let mut rig = self.rig_of(Device::bring_up(self.connect()?, setup, self.target.limit)?)?;
        rig.warm_up()?;
        Ok(rig)
    }

    /// A rig whose device has received a frame and has no receive buffer left.
    pub fn rig_that_receives(&self, features: Features) -> Check<Rig> {
        let mut rig = self.rig(features)?;
        rig.device.post(0, 1, BUFFER)?;
        rig.delivers(60)?;
        Ok(rig)
    }

    /// As [`Self::rig_with`]. Skips the case when a ring's size is refused: which ones are taken is for the
    /// back end to say.
    pub fn rig_of_size(&self, setup: &Setup) -> Check<Rig> {
        self.need_traffic()?;
        let device = self.prepare(setup)?;
        for ring in 0..device.rings.len() as u32 {
            let num = Payload::VringState(VringState { index: ring, num: setup.size.into() });
            let number = FrontEndRequest::SetVringNum.number();
            if device.peer.try_bytes(number, &num.encode(), &[])? != Answer::Accepted {
                return Err(skip(format!("rings of {} entries are refused", setup.size)));
            }
        }
        device.start()?;
        device.open()?;
        let mut rig = self.rig_of(device)?;
        rig.warm_up()?;
        Ok(rig)
    }

    /// Skips the case when no frames pass.
    pub fn need_traffic(&self) -> Check {
        if self.traffic == Traffic::None {
            return Err(skip("no frame that is sent is seen again: is there a --peer?"));
        }
        Ok(())
    }

    /// Puts somebody at the other end, for a device that is set up already.
    pub fn rig_of(&self, device: Device) -> Check<Rig> {
        self.rig_to(device, Features::NONE)
    }

    /// As [`Self::rig_of`]; at the other end these features are negotiated, as far as they are offered.
    pub fn rig_to(&self, device: Device, far: Features) -> Check<Rig> {
        self.need_traffic()?;
        let far = match (&self.target.peer, self.traffic) {
            (Some(path), Traffic::Through) => {
                let peer = Peer::connect(path, self.target.limit)?;
                let features = Features::VERSION_1 | far;
                let pairs = device.rings.len() as u16 / 2;
                let features = if pairs > 1 { features | Features::MQ } else { features };
                let setup = Setup { features, pairs, ..Setup::default() };
                let mut far = Device::bring_up(peer, &setup, self.target.limit)?;
                for pair in 0..u32::from(pairs) {
                    far.post(pair, 48, BUFFER)?;
                }
                Some(far)
            }
            _ => None,
        };
        Ok(Rig { device, far, number: 0 })
    }
}

/// A device under test, and whoever it talks to: itself, when what it sends comes back.
pub struct Rig {
    /// The device under test.
    pub device: Device,
    far: Option<Device>,
    number: u32,
}

/// A frame of `len` bytes between two addresses, with a content of its own.
pub fn frame_between(from: MacAddress, to: MacAddress, len: usize, number: u32) -> Vec<u8> {
    let mut frame = [&to.0[..], &from.0, &ETHER_TYPE, &number.to_be_bytes()].concat();
    let noise = (0u32..).map(|at| (at.wrapping_add(number).wrapping_mul(0x9e37_79b1) >> 24) as u8);
    frame.extend(noise.take(len.saturating_sub(frame.len())));
    frame
}

impl Rig {
    /// The next frame from the device under test, of `len` bytes.
    pub fn frame(&mut self, len: usize) -> Vec<u8> {
        self.number += 1;
        frame_between(NEAR, FAR, len, self.number)
    }

    /// The next frame for the device under test, of `len` bytes.
    pub fn frame_back(&mut self, len: usize) -> Vec<u8> {
        self.number += 1;
        match self.far {
            Some(_) => frame_between(FAR, NEAR, len, self.number),
            None => frame_between(NEAR, FAR, len, self.number),
        }
    }

    /// Whoever gets what the device under test sends.
    pub fn far(&mut self) -> &mut Device {
        self.far.as_mut().unwrap_or(&mut self.device)
    }

    /// The device under test; whoever it talks to leaves.
    pub fn into_device(self) -> Device {
        self.device
    }

    /// Whether what is sent comes back to the device itself.
    pub fn is_echo(&self) -> bool {
        self.far.is_none()
    }

    /// Has a frame passed. Switches lose frames while the other end comes up: better this one than one
    /// that counts.
    pub fn warm_up(&mut self) -> Check {
        if self.is_echo() { Ok(()) } else { self.passes(60) }
    }

    /// Posts receive buffers at the end that receives what the device under test sends, if that is
    /// the device itself. The other one has some.
    pub fn listen(&mut self) -> Check {
        match &mut self.far {
            Some(_) => Ok(()),
            None => {
                let room = self.device.rings[0].size / 2;
                let free = room.saturating_sub(self.device.rings[0].outstanding() as u16);
                self.device.post(0, free, BUFFER)
            }
        }
    }

    /// Waits until `frame` comes to whoever gets what the device sends.
    pub fn arrives(&mut self, frame: &[u8]) -> Check<Received> {
        let patience = self.far().limit();
        self.arrives_within(&[frame.to_vec()], patience)
    }

    /// Waits until one of these frames comes to whoever gets what the device sends.
    fn arrives_within(&mut self, frames: &[Vec<u8>], patience: Duration) -> Check<Received> {
        let received = self.far().expect_within(|found| is_one_of(found, frames), patience)?;
        if let Some(far) = &mut self.far
            && far.rings[0].outstanding() < 48
        {
            far.post(0, received.used.len() as u16, BUFFER)?;
        }
        Ok(received)
    }

    /// Has the device send a plain frame, in one buffer, and expects it at the other end and its
    /// buffer back.
    pub fn passes(&mut self, len: usize) -> Check {
        let mut sent = Vec::new();
        let mut last = Ok(());
        for _ in 0..ATTEMPTS {
            self.listen()?;
            let frame = self.frame(len);
            self.device.transmit(0, PLAIN, &frame)?;
            sent.push(frame);
            let patience = self.far().limit() / ATTEMPTS.into();
            // The former one may be late, rather than lost.
            last = self.arrives_within(&sent, patience).map(drop);
            self.device.drain(TX)?;
            if last.is_ok() {
                break;
            }
        }
        last
    }

    /// Has the device send a frame as this chain, and expects it at the other end and the chain back.
    /// Returns what the used entry says.
    pub fn passes_as(&mut self, frame: &[u8], chain: &[Buffer]) -> Check<(u16, crate::ring::Used)> {
        self.listen()?;
        let id = self.device.offer(TX, chain)?;
        self.arrives(frame)?;
        Ok((id, self.device.reap_soon(TX)?))
    }

    /// Sends a frame to the device under test; it must have posted buffers.
    pub fn inject(&mut self, header: [u8; 12], frame: &[u8]) -> Check {
        let from = self.far.as_mut().unwrap_or(&mut self.device);
        from.transmit(0, header, frame)?;
        // A far end's buffers are of no further interest, but there must be room for the next.
        from.drain(TX)
    }

    /// Sends a frame of `len` bytes to the device under test, whose receive ring has something wrong at
    /// its next position, and lets the back end look at that. Nothing is expected of either ring.
    pub fn provoke(&mut self, len: usize) {
        let frame = self.frame_back(len);
        let from = self.far.as_mut().unwrap_or(&mut self.device);
        let _ = from.transmit(0, PLAIN, &frame);
        self.device.look_beyond_kick(RX);
    }

    /// Sends a plain frame to the device under test, and expects it there. It may be sent up to
    /// [`ATTEMPTS`] times, and come as often.
    pub fn delivers(&mut self, len: usize) -> Check<Received> {
        let mut sent = Vec::new();
        let mut last = Err(fail("nothing was sent"));
        for _ in 0..ATTEMPTS {
            let frame = self.frame_back(len);
            self.inject(PLAIN, &frame)?;
            sent.push(frame);
            let patience = self.device.limit() / ATTEMPTS.into();
            last = self.device.expect_within(|found| is_one_of(found, &sent), patience);
            if last.is_ok() {
                break;
            }
        }
        last
    }

    /// Posts a buffer, has a frame delivered to it, and gives the buffer's chain back.
    pub fn exchange(&mut self, len: usize) -> Check {
        self.passes(len)?;
        if self.device.rings[RX as usize].outstanding() == 0 {
            self.device.post(0, 4, BUFFER)?;
        }
        self.delivers(len).map(drop)
    }

    /// Fails when `frame` comes to whoever gets what the device sends.
    pub fn stays_away(&mut self, frame: &[u8]) -> Check {
        self.far().expect_none(|found| same(found, frame), QUIET)
    }

    /// Fails when `frame` comes to the device under test.
    pub fn is_not_delivered(&mut self, frame: &[u8]) -> Check {
        self.device.expect_none(|found| same(found, frame), QUIET)
    }
}

/// Whether two frames are the same. A back end that echoes may swap the addresses.
pub fn same(found: &[u8], frame: &[u8]) -> bool {
    found.len() == frame.len() && found.get(12..) == frame.get(12..)
}

/// Whether `found` is `frame`, or the beginning of it. A back end that echoes may swap the addresses.
pub fn is_part(found: &[u8], frame: &[u8]) -> bool {
    let payload = |bytes: &[u8]| bytes.get(12..).unwrap_or_default().to_vec();
    !found.is_empty() && payload(frame).starts_with(&payload(found))
}

fn is_one_of(found: &[u8], frames: &[Vec<u8>]) -> bool {
    frames.iter().any(|frame| same(found, frame))
}

/// Finds out what becomes of a frame.
pub(crate) fn probe(target: &Target) -> Traffic {
    let candidates: &[Traffic] = match target.peer {
        Some(_) => &[Traffic::Through, Traffic::Echo],
        None => &[Traffic::Echo],
    };
    let limit = target.limit.min(Duration::from_secs(2));
    let target = &Target { limit, ..target.clone() };
    // Anything that comes will do: whether it is right is for the cases to say.
    let works = |traffic| {
        let mut rig = Bench { target, traffic }.rig(Features::NONE)?;
        rig.listen()?;
        let frame = rig.frame(100);
        rig.device.transmit(0, PLAIN, &frame)?;
        rig.far().reap_soon(RX)
    };
    let found = candidates.iter().copied().find(|&traffic| works(traffic).is_ok());
    found.unwrap_or(Traffic::None)
}
