//! Features and their effects.

use wire::vhost_user::{
    FrontEndRequest as R, Payload, ProtocolFeatures as P, RingDescriptor, Shape, VringState,
};
use wire::virtio::Features as F;

use crate::bench::Bench;
use crate::case::{Rule, case, hostile};
use crate::device::event;
use crate::peer::{NEED_REPLY, Peer, VERSION};
use crate::verdict::{Check, ensure, equal, skip};
use std::os::fd::AsFd;

const GET_FEATURES: &str = "vhost-user, \"VHOST_USER_GET_FEATURES\"";
const SET_FEATURES: &str = "vhost-user, \"VHOST_USER_SET_FEATURES\"";
const REPLY_ACK: &str = "vhost-user, \"VHOST_USER_PROTOCOL_F_REPLY_ACK\"";
const COMMUNICATION: &str = "vhost-user, \"Communication\"";
const DEPENDENCIES: &str = "virtio 1.3, 2.2.2 and 5.1.3.1";

/// What the back end offers.
fn offered(bench: &Bench<'_>) -> Check<F> {
    Ok(F(bench.connect()?.ask_u64(R::GetFeatures)?))
}

/// A connection and the protocol features that are offered on it.
fn protocol(bench: &Bench<'_>) -> Check<(Peer, P)> {
    let peer = bench.connect()?;
    let features = F(peer.ask_u64(R::GetFeatures)?);
    if !features.contains(F::PROTOCOL_FEATURES) {
        return Err(skip("PROTOCOL_FEATURES is not offered"));
    }
    let offered = P(peer.ask_u64(R::GetProtocolFeatures)?);
    Ok((peer, offered))
}

/// Of these offered features, none may lack what it needs.
fn complete(bench: &Bench<'_>, of: F) -> Check {
    let offered = offered(bench)?;
    if !offered.intersects(of) {
        return Err(skip("none of these features is offered"));
    }
    match offered.unmet_dependencies().find(|(feature, _)| of.contains(*feature)) {
        None => Ok(()),
        Some((feature, needs)) => {
            ensure(false, format!("{feature} is offered without {needs}, which it needs"))
        }
    }
}

/// A connection on which NET_SET_MTU may be sent: its feature and the device's were negotiated.
pub(super) fn mtu(bench: &Bench<'_>) -> Check<Peer> {
    let peer = bench.hello(P::NET_MTU)?;
    if !peer.offered.contains(F::MTU) {
        return Err(skip("MTU is not offered"));
    }
    let features = peer.offered & (F::VERSION_1 | F::PROTOCOL_FEATURES | F::MTU);
    peer.tell(R::SetFeatures, &Payload::U64(features.0), &[])?;
    Ok(peer)
}

/// A request that asks for an acknowledgement gets one, of 0, and nothing more.
fn acknowledged(bench: &Bench<'_>, request: R, payload: &Payload) -> Check {
    let peer = bench.hello(P::REPLY_ACK)?;
    peer.tell(request, payload, &[])?;
    peer.expect_silence()
}

pub(crate) const CASES: &[Rule] = &[
    case("offers the same features each time that it is asked.", GET_FEATURES, |bench| {
        let peer = bench.connect()?;
        let first = peer.ask_u64(R::GetFeatures)?;
        equal("the second answer", peer.ask_u64(R::GetFeatures)?, first)
    }),
    case("offers VERSION_1.", "virtio 1.3, 6.2", |bench| {
        ensure(offered(bench)?.contains(F::VERSION_1), "VERSION_1 is not offered")
    }),
    case(
        "offers GUEST_TSO4, GUEST_TSO6, GUEST_UFO and GUEST_USO only with GUEST_CSUM.",
        DEPENDENCIES,
        |bench| {
            complete(
                bench,
                F::GUEST_TSO4 | F::GUEST_TSO6 | F::GUEST_UFO | F::GUEST_USO4 | F::GUEST_USO6,
            )
        },
    ),
    case(
        "offers HOST_TSO4, HOST_TSO6, HOST_UFO and HOST_USO only with CSUM.",
        DEPENDENCIES,
        |bench| complete(bench, F::HOST_TSO4 | F::HOST_TSO6 | F::HOST_UFO | F::HOST_USO),
    ),
    case("offers GUEST_ECN and HOST_ECN only with TSO of the same side.", DEPENDENCIES, |bench| {
        complete(bench, F::GUEST_ECN | F::HOST_ECN)
    }),
    case(
        "answers GET_PROTOCOL_FEATURES before features were set.",
        "vhost-user, \"VHOST_USER_GET_PROTOCOL_FEATURES\"",
        |bench| protocol(bench).map(drop),
    ),
    case(
        "offers the same protocol features each time that it is asked.",
        "vhost-user, \"VHOST_USER_GET_PROTOCOL_FEATURES\"",
        |bench| {
            let (peer, first) = protocol(bench)?;
            equal("the second answer", P(peer.ask_u64(R::GetProtocolFeatures)?), first)
        },
    ),
    case(
        "takes SET_PROTOCOL_FEATURES before features were set.",
        "vhost-user, \"VHOST_USER_SET_PROTOCOL_FEATURES\"",
        |bench| {
            let (peer, offered) = protocol(bench)?;
            let agreed = offered & (P::REPLY_ACK | P::MQ);
            peer.say(R::SetProtocolFeatures, &Payload::U64(agreed.0))?;
            peer.barrier()
        },
    ),
    case(
        "takes SET_PROTOCOL_FEATURES twice with the same value.",
        "vhost-user, \"VHOST_USER_SET_PROTOCOL_FEATURES\"",
        |bench| {
            let (peer, offered) = protocol(bench)?;
            let agreed = Payload::U64((offered & (P::REPLY_ACK | P::MQ)).0);
            peer.say(R::SetProtocolFeatures, &agreed)?;
            peer.say(R::SetProtocolFeatures, &agreed)?;
            peer.barrier()
        },
    ),
    case(
        "takes no protocol features at all.",
        "vhost-user, \"VHOST_USER_SET_PROTOCOL_FEATURES\"",
        |bench| {
            let (peer, _) = protocol(bench)?;
            peer.say(R::SetProtocolFeatures, &Payload::U64(0))?;
            peer.barrier()
        },
    ),
    hostile(
        "closes the connection when INBAND_NOTIFICATIONS is agreed on without what it needs.",
        "vhost-user, \"In-band notifications\"",
        |bench| {
            let (peer, offered) = protocol(bench)?;
            if !offered.contains(P::INBAND_NOTIFICATIONS) {
                return Err(skip("INBAND_NOTIFICATIONS is not offered"));
            }
            peer.say(R::SetProtocolFeatures, &Payload::U64(P::INBAND_NOTIFICATIONS.0))?;
            ensure(peer.closed(), "it did not close the connection")
        },
    ),
    case("takes SET_FEATURES with all features that it offers.", SET_FEATURES, |bench| {
        let peer = bench.hello(P::NONE)?;
        let all = peer.offered.without(F::LOG_ALL);
        peer.tell(R::SetFeatures, &Payload::U64(all.0), &[])
    }),
    case("takes SET_FEATURES with VERSION_1 alone.", SET_FEATURES, |bench| {
        let peer = bench.hello(P::NONE)?;
        let few = peer.offered & (F::VERSION_1 | F::PROTOCOL_FEATURES);
        peer.tell(R::SetFeatures, &Payload::U64(few.0), &[])
    }),
    case("takes SET_FEATURES twice with the same value.", SET_FEATURES, |bench| {
        let peer = bench.hello(P::NONE)?;
        let few = Payload::U64((peer.offered & (F::VERSION_1 | F::PROTOCOL_FEATURES)).0);
        peer.tell(R::SetFeatures, &few, &[])?;
        peer.tell(R::SetFeatures, &few, &[])
    }),
    case("acknowledges SET_OWNER with 0, once, when it is asked to.", REPLY_ACK, |bench| {
        // A back end may refuse a second one, so this is the first.
        let mut peer = bench.connect()?;
        peer.ask_features()?;
        peer.agree(P::REPLY_ACK)?;
        peer.needs(P::REPLY_ACK)?;
        peer.tell(R::SetOwner, &Payload::Empty, &[])?;
        peer.expect_silence()
    }),
    case("acknowledges SET_FEATURES with 0, once, when it is asked to.", REPLY_ACK, |bench| {
        let features = offered(bench)? & (F::VERSION_1 | F::PROTOCOL_FEATURES);
        acknowledged(bench, R::SetFeatures, &Payload::U64(features.0))
    }),
    case("acknowledges SET_VRING_NUM with 0, once, when it is asked to.", REPLY_ACK, |bench| {
        acknowledged(bench, R::SetVringNum, &Payload::VringState(VringState { index: 0, num: 64 }))
    }),
    case("acknowledges SET_VRING_CALL with 0, once, when it is asked to.", REPLY_ACK, |bench| {
        let peer = bench.hello(P::REPLY_ACK)?;
        let call = event(0)?;
        let payload = Payload::RingDescriptor(RingDescriptor { ring: 0, attached: true });
        peer.tell(R::SetVringCall, &payload, &[call.as_fd()])?;
        peer.expect_silence()
    }),
    case("does not acknowledge what does not ask for it.", REPLY_ACK, |bench| {
        let peer = bench.hello(P::REPLY_ACK)?;
        let num = Payload::VringState(VringState { index: 0, num: 64 });
        peer.say(R::SetVringNum, &num)?;
        peer.expect_silence()
    }),
    case(
        "answers nothing that has no reply while REPLY_ACK was not negotiated.",
        COMMUNICATION,
        |bench| {
            let peer = bench.connect()?;
            let features = F(peer.ask_u64(R::GetFeatures)?) & (F::VERSION_1 | F::PROTOCOL_FEATURES);
            peer.say(R::SetOwner, &Payload::Empty)?;
            peer.say(R::SetFeatures, &Payload::U64(features.0))?;
            peer.say(R::SetVringNum, &Payload::VringState(VringState { index: 0, num: 64 }))?;
            peer.expect_silence()
        },
    ),
    case(
        "answers GET_FEATURES once, also when an acknowledgement is asked for.",
        REPLY_ACK,
        |bench| {
            let peer = bench.hello(P::REPLY_ACK)?;
            peer.send(R::GetFeatures.number(), VERSION | NEED_REPLY, &[], &[])?;
            peer.reply(R::GetFeatures)?;
            peer.expect_silence()
        },
    ),
    case(
        "answers GET_VRING_BASE once, also when an acknowledgement is asked for.",
        REPLY_ACK,
        |bench| {
            let device = bench.device(F::NONE)?;
            device.peer.needs(P::REPLY_ACK)?;
            let payload = Payload::VringState(VringState { index: 0, num: 0 }).encode();
            device.peer.send(R::GetVringBase.number(), VERSION | NEED_REPLY, &payload, &[])?;
            device.peer.reply(R::GetVringBase)?;
            device.peer.expect_silence()
        },
    ),
    case(
        "says by GET_QUEUE_NUM that there is at least one queue.",
        "vhost-user, \"VHOST_USER_GET_QUEUE_NUM\"",
        |bench| {
            let queues = bench.hello(P::MQ)?.ask_u64(R::GetQueueNum)?;
            ensure(queues >= 1, "GET_QUEUE_NUM says 0")
        },
    ),
    case(
        "says by GET_MAX_MEM_SLOTS that there is at least one slot.",
        "vhost-user, \"VHOST_USER_GET_MAX_MEM_SLOTS\"",
        |bench| {
            let slots = bench.hello(P::CONFIGURE_MEM_SLOTS)?.ask_u64(R::GetMaxMemSlots)?;
            ensure(slots >= 1, "GET_MAX_MEM_SLOTS says 0")
        },
    ),
    case(
        "keeps the status that SET_STATUS gives.",
        "vhost-user, \"VHOST_USER_GET_STATUS\"",
        |bench| {
            let peer = bench.hello(P::STATUS)?;
            for status in [1, 3] {
                peer.tell(R::SetStatus, &Payload::U64(status), &[])?;
                equal("the status", peer.ask_u64(R::GetStatus)?, status)?;
            }
            Ok(())
        },
    ),
    case("has status 0 after SET_STATUS 0.", "virtio 1.3, 2.4.1", |bench| {
        let peer = bench.hello(P::STATUS)?;
        peer.tell(R::SetStatus, &Payload::U64(3), &[])?;
        peer.tell(R::SetStatus, &Payload::U64(0), &[])?;
        equal("the status", peer.ask_u64(R::GetStatus)?, 0)
    }),
    case(
        "takes an MTU of 1500 by NET_SET_MTU.",
        "vhost-user, \"VHOST_USER_NET_SET_MTU\"",
        |bench| {
            let peer = mtu(bench)?;
            peer.tell(R::NetSetMtu, &Payload::U64(1500), &[])
        },
    ),
    case(
        "answers GET_VRING_BASE with the ring that was asked for.",
        "vhost-user, \"VHOST_USER_GET_VRING_BASE\"",
        |bench| {
            let device = bench.device(F::NONE)?;
            let ask = Payload::VringState(VringState { index: 1, num: 0 });
            let reply = device.peer.ask(R::GetVringBase, &ask, Shape::VringState)?;
            let named = matches!(reply, Payload::VringState(VringState { index: 1, .. }));
            ensure(named, format!("it answers {reply:?}"))
        },
    ),
];
