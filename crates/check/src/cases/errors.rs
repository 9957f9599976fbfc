//! Wrong messages.

use std::os::fd::{AsFd, BorrowedFd};

use wire::vhost_user::{FrontEndRequest as R, Gate, Payload, ProtocolFeatures as P, VringState};
use wire::virtio::Features as F;

use crate::bench::Bench;
use crate::case::{Rule, case, hostile};
use crate::device::{Device, RX, Setup, TX, event};
use crate::peer::{Answer, MOST_DESCRIPTORS, NEED_REPLY, VERSION};
use crate::verdict::{Check, ensure, fail};

const REPLY_ACK: &str = "vhost-user, \"VHOST_USER_PROTOCOL_F_REPLY_ACK\"";
const HEADER: &str = "vhost-user, \"Header\"";
const TYPES: &str = "vhost-user, \"Front-end message types\"";
const PROTOCOL: &str = "vhost-user, \"Communication\"";
const SET_VRING_NUM: &str = "vhost-user, \"VHOST_USER_SET_VRING_NUM\"";
const SET_VRING_ADDR: &str = "vhost-user, \"VHOST_USER_SET_VRING_ADDR\"";
const RING_INDEX: &str = "vhost-user, \"Multiple queue support\"";

/// A request that cannot succeed is not acknowledged with 0.
fn refused(bench: &Bench<'_>, number: u32, payload: &[u8]) -> Check {
    let peer = bench.hello(P::REPLY_ACK)?;
    let answer = peer.try_bytes(number, payload, &[])?;
    ensure(answer != Answer::Accepted, "it was acknowledged with 0")
}

/// What a ring is told on a connection of its own. Nothing is expected but that the back end stays.
fn tells(bench: &Bench<'_>, request: R, payload: &[u8], files: &[BorrowedFd<'_>]) -> Check {
    let peer = bench.hello(P::NONE)?;
    let _ = peer.send(request.number(), VERSION, payload, files);
    let _ = peer.barrier();
    Ok(())
}

fn state(index: u32, num: u32) -> Vec<u8> {
    Payload::VringState(VringState { index, num }).encode()
}

/// A device whose transmit ring is told something wrong, and then started.
fn set_up_wrong(bench: &Bench<'_>, wrong: impl Fn(&Device) -> Check) -> Check {
    let device = bench.prepare(&Setup::default())?;
    let steps = || {
        device.set_num(TX, 64)?;
        device.set_base(TX, 0)?;
        device.set_addresses(TX)?;
        wrong(&device)?;
        device.set_call(TX, Some(device.call(TX)))?;
        device.set_kick(TX, Some(device.kick_descriptor(TX)))?;
        device.open_ring(TX)
    };
    let _ = steps();
    device.kick(TX);
    device.look(TX);
    Ok(())
}

/// Places an area of the transmit ring at a front-end address.
fn place(bench: &Bench<'_>, area: usize, at: fn(u64) -> u64) -> Check {
    set_up_wrong(bench, |device| {
        let mut address = device.addresses(TX);
        let field = match area {
            0 => &mut address.descriptors,
            1 => &mut address.available,
            _ => &mut address.used,
        };
        *field = at(*field);
        device.peer.tell(R::SetVringAddr, &Payload::VringAddress(address), &[])
    })
}

fn everywhere(bench: &Bench<'_>, at: fn(u64) -> u64) -> Check {
    (0..3).try_for_each(|area| place(bench, area, at))
}

/// Requests of every kind, with a payload of `len` bytes.
fn sized(bench: &Bench<'_>, len: usize) -> Check {
    for request in R::ALL {
        if !request.message().payload.allows(len) {
            tells(bench, *request, &vec![0xff; len], &[])?;
        }
    }
    Ok(())
}

/// Descriptors that are no eventfds, for kick, call and error.
fn odd_descriptor(bench: &Bench<'_>, file: BorrowedFd<'_>) -> Check {
    for request in [R::SetVringKick, R::SetVringCall, R::SetVringErr] {
        for ring in [RX, TX] {
            let mut device = bench.device(F::NONE)?;
            let payload = u64::from(ring).to_ne_bytes();
            let answer = device.peer.try_bytes(request.number(), &payload, &[file]);
            let frame = crate::bench::frame_between(crate::bench::NEAR, crate::bench::FAR, 100, 1);
            let sent = device.transmit(0, crate::bench::PLAIN, &frame);
            // Who takes such a descriptor comes to use it now, and not when we have gone.
            if answer == Ok(Answer::Accepted) && sent.is_ok() {
                let _ = device.reap_soon(TX);
            }
        }
    }
    Ok(())
}

pub(crate) const CASES: &[Rule] = &[
    case("does not acknowledge an unknown request with 0.", REPLY_ACK, |bench| {
        refused(bench, 200, &[])?;
        refused(bench, u32::MAX, &[])
    }),
    case(
        "does not acknowledge a request that needs a feature that was not negotiated with 0.",
        PROTOCOL,
        |bench| {
            let offered = {
                let peer = bench.hello(P::REPLY_ACK)?;
                P(peer.ask_u64(R::GetProtocolFeatures)?)
            };
            let unoffered = R::ALL.iter().find(|request| {
                let message = request.message();
                let needs = match message.gate {
                    Gate::Protocol(needs) => !offered.intersects(needs),
                    _ => false,
                };
                needs
                    && message.descriptors.0 == 0
                    && message.answer == wire::vhost_user::Answer::Acknowledgement
            });
            let Some(request) = unoffered else {
                return Err(crate::verdict::skip("every feature is offered"));
            };
            let (least, _, _) = request.message().payload.sizes();
            refused(bench, request.number(), &vec![0; least])
        },
    ),
    case(
        "does not acknowledge an MTU of 0 with 0.",
        "vhost-user, \"VHOST_USER_NET_SET_MTU\"; virtio 1.3, 5.1.4.1",
        |bench| {
            let peer = super::negotiation::mtu(bench)?;
            peer.needs(P::REPLY_ACK)?;
            let answer = peer.try_bytes(R::NetSetMtu.number(), &0u64.to_ne_bytes(), &[])?;
            ensure(answer != Answer::Accepted, "it was acknowledged with 0")
        },
    ),
    case("goes on after an unknown request, or closes the connection.", TYPES, |bench| {
        let peer = bench.hello(P::NONE)?;
        let sent = peer.send(200, VERSION, &[0; 16], &[]);
        if sent.is_ok() && peer.send(R::GetFeatures.number(), VERSION, &[], &[]).is_ok() {
            // Anything but the reply, or the end, is wrong.
            if let Some(reply) = peer.receive()? {
                ensure(reply.number == R::GetFeatures.number(), "another message came")?;
            }
        }
        Ok(())
    }),
    hostile(
        "does not acknowledge features with 0 that it does not offer.",
        "vhost-user, \"VHOST_USER_SET_FEATURES\"",
        |bench| {
            let offered = bench.hello(P::REPLY_ACK)?.offered;
            let unoffered = !offered.0 & (1 << 41 | 1 << 42 | 1 << 63 | 1 << 4);
            refused(bench, R::SetFeatures.number(), &(offered.0 | unoffered).to_ne_bytes())
        },
    ),
    hostile("does not acknowledge a ring index beyond 256 with 0.", RING_INDEX, |bench| {
        for index in [256, 65536, u32::MAX] {
            refused(bench, R::SetVringNum.number(), &state(index, 64))?;
        }
        Ok(())
    }),
    hostile(
        "does not acknowledge a memory table without descriptors with 0.",
        "vhost-user, \"VHOST_USER_SET_MEM_TABLE\"",
        |bench| {
            let words = [1u64, 0x1000_0000, 4096, 0x7f00_0000_0000, 0];
            let payload: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            refused(bench, R::SetMemTable.number(), &payload)
        },
    ),
    hostile("survives every request with no payload, if it has one.", HEADER, |bench| {
        sized(bench, 0)
    }),
    hostile("survives every request with 3 bytes of payload.", HEADER, |bench| sized(bench, 3)),
    hostile("survives every request with 4000 bytes of payload.", HEADER, |bench| {
        sized(bench, 4000)
    }),
    hostile("survives every request without the descriptors that it needs.", TYPES, |bench| {
        for request in R::ALL.iter().filter(|request| request.message().descriptors.1 > 0) {
            let (least, _, _) = request.message().payload.sizes();
            tells(bench, *request, &vec![0; least], &[])?;
        }
        Ok(())
    }),
    hostile("survives every request with nine descriptors.", TYPES, |bench| {
        let file = event(0)?;
        for request in R::ALL {
            let (least, _, _) = request.message().payload.sizes();
            tells(bench, *request, &vec![0; least], &[file.as_fd(); 9])?;
        }
        Ok(())
    }),
    hostile("survives as many descriptors as the kernel passes.", TYPES, |bench| {
        let file = event(0)?;
        for request in [R::GetFeatures, R::SetMemTable, R::SetVringKick] {
            tells(bench, request, &[0; 8], &vec![file.as_fd(); MOST_DESCRIPTORS])?;
        }
        Ok(())
    }),
    hostile("survives descriptors that come with the payload.", TYPES, |bench| {
        let file = event(0)?;
        let peer = bench.hello(P::NONE)?;
        let bytes = crate::peer::message(R::SetVringKick.number(), VERSION, &[0; 8]);
        let (header, payload) = bytes.split_at(12);
        // The kernel keeps the two apart, because only one of them has a descriptor.
        let _ = peer.send_bytes(header, &[]);
        let _ = peer.send_bytes(payload, &[file.as_fd()]);
        let _ = peer.barrier();
        Ok(())
    }),
    hostile("survives request 0 and every unknown one up to 255.", TYPES, |bench| {
        for number in (0..=255).filter(|number| R::from_number(*number).is_none()) {
            let peer = bench.hello(P::NONE)?;
            let _ = peer.send(number, VERSION | NEED_REPLY, &[0; 8], &[]);
            let _ = peer.send(R::GetFeatures.number(), VERSION, &[], &[]);
            let _ = peer.receive();
        }
        Ok(())
    }),
    hostile("survives ring sizes of 0, 3, 32769 and 65536.", SET_VRING_NUM, |bench| {
        for size in [0, 3, 32769, 65536, u32::MAX] {
            set_up_wrong(bench, |device| device.set_num(TX, size))?;
        }
        Ok(())
    }),
    hostile("survives a ring size that changes while the ring runs.", SET_VRING_NUM, |bench| {
        for size in [8, 32768] {
            let mut device = bench.device(F::NONE)?;
            let _ = device.set_num(TX, size);
            let frame = crate::bench::frame_between(crate::bench::NEAR, crate::bench::FAR, 100, 1);
            let _ = device.transmit(0, crate::bench::PLAIN, &frame);
            device.look(TX);
        }
        Ok(())
    }),
    hostile("survives rings outside of the memory.", SET_VRING_ADDR, |bench| {
        everywhere(bench, |_| 0x1000)?;
        everywhere(bench, |_| u64::MAX - 0xf)
    }),
    hostile("survives rings that end outside of the memory.", SET_VRING_ADDR, |bench| {
        everywhere(bench, |_| 0x7f00_0000_0000 + crate::memory::SIZE - 16)
    }),
    hostile("survives rings at addresses that are not aligned.", SET_VRING_ADDR, |bench| {
        everywhere(bench, |address| address + 1)
    }),
    hostile(
        "survives bases beyond the end of a ring.",
        "vhost-user, \"VHOST_USER_SET_VRING_BASE\"",
        |bench| {
            for base in [65, 0x7fff, 0xffff, 0x1_0000, u32::MAX] {
                set_up_wrong(bench, |device| device.set_base(TX, base))?;
            }
            Ok(())
        },
    ),
    hostile(
        "survives rings that start before there is memory.",
        "vhost-user, \"VHOST_USER_SET_VRING_KICK\"",
        |bench| {
            let peer = bench.hello(P::NONE)?;
            let kick = event(1)?;
            let features = peer.offered & (F::VERSION_1 | F::PROTOCOL_FEATURES);
            let say = |request: R, payload: &[u8], files: &[BorrowedFd<'_>]| {
                let _ = peer.send(request.number(), VERSION, payload, files);
            };
            say(R::SetFeatures, &features.0.to_ne_bytes(), &[]);
            say(R::SetVringKick, &0u64.to_ne_bytes(), &[kick.as_fd()]);
            say(R::SetVringEnable, &state(RX, 1), &[]);
            let _ = peer.barrier();
            Ok(())
        },
    ),
    hostile(
        "survives GET_VRING_BASE of a ring that was never set up.",
        "vhost-user, \"VHOST_USER_GET_VRING_BASE\"",
        |bench| {
            tells(bench, R::GetVringBase, &state(RX, 0), &[])?;
            tells(bench, R::GetVringBase, &state(5, 0), &[])
        },
    ),
    hostile(
        "survives features that change while rings run.",
        "vhost-user, \"VHOST_USER_SET_FEATURES\"",
        |bench| {
            for features in [F::RING_PACKED, F::MRG_RXBUF, F::NONE] {
                let mut device = bench.device(F::NONE)?;
                device.post(0, 4, 2048)?;
                let features = features | device.peer.offered & F::PROTOCOL_FEATURES;
                let _ =
                    device.peer.try_bytes(R::SetFeatures.number(), &features.0.to_ne_bytes(), &[]);
                device.kick(TX);
                device.look(TX);
            }
            Ok(())
        },
    ),
    hostile("survives SET_OWNER and RESET_OWNER while rings run.", TYPES, |bench| {
        for request in [R::SetOwner, R::ResetOwner] {
            let device = bench.device(F::NONE)?;
            let _ = device.peer.try_bytes(request.number(), &[], &[]);
            device.kick(TX);
            device.look(TX);
        }
        Ok(())
    }),
    hostile(
        "survives kick, call and error descriptors that are pipes.",
        "vhost-user, \"VHOST_USER_SET_VRING_KICK\"",
        |bench| {
            let (reader, writer) = rustix::pipe::pipe().map_err(|error| fail(error.to_string()))?;
            odd_descriptor(bench, reader.as_fd())?;
            odd_descriptor(bench, writer.as_fd())?;
            // Nobody reads: a write raises SIGPIPE.
            drop(reader);
            odd_descriptor(bench, writer.as_fd())
        },
    ),
    hostile(
        "survives kick, call and error descriptors that are files and directories.",
        "vhost-user, \"VHOST_USER_SET_VRING_KICK\"",
        |bench| {
            for path in ["/dev/null", "/", "/proc/self/cmdline"] {
                let file = std::fs::File::open(path).map_err(|error| fail(error.to_string()))?;
                odd_descriptor(bench, file.as_fd())?;
            }
            Ok(())
        },
    ),
    hostile(
        "is not held up by a call descriptor whose counter is full.",
        "vhost-user, \"VHOST_USER_SET_VRING_CALL\"",
        |bench| {
            let mut rig = bench.rig(F::NONE)?;
            let full = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)
                .map_err(|error| fail(error.to_string()))?;
            rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes())
                .map_err(|error| fail(error.to_string()))?;
            rig.device.set_call(TX, Some(full.as_fd()))?;
            for _ in 0..5 {
                rig.passes(100)?;
            }
            Ok(())
        },
    ),
];
