//! Bytes on the socket.

use wire::vhost_user::{FrontEndRequest as R, MAX_PAYLOAD, Payload, ProtocolFeatures};

use crate::bench::Bench;
use crate::case::{Rule, case, hostile};
use crate::peer::{FLAGS, REPLY, VERSION, message};
use crate::verdict::{Check, equal};

const HEADER: &str = "vhost-user, \"Header\"";
const COMMUNICATION: &str = "vhost-user, \"Communication\"";
const GET_FEATURES: &str = "vhost-user, \"VHOST_USER_GET_FEATURES\"";

fn get_features() -> Vec<u8> {
    message(R::GetFeatures.number(), VERSION, &[])
}

/// Sends bytes that start no message, and does not care how they are taken.
fn garbage(bench: &Bench<'_>, bytes: &[u8]) -> Check {
    let peer = bench.connect()?;
    // The back end may have closed the connection inside of it.
    let _ = peer.send_bytes(bytes, &[]);
    Ok(())
}

pub(crate) const CASES: &[Rule] = &[
    case("answers GET_FEATURES on a new connection.", GET_FEATURES, |bench| {
        bench.connect()?.ask_u64(R::GetFeatures).map(drop)
    }),
    case("sets version 1 and the reply flag in a reply, and not need_reply.", HEADER, |bench| {
        let peer = bench.connect()?;
        peer.say(R::GetFeatures, &Payload::Empty)?;
        let flags = peer.receive()?.map(|reply| reply.flags & FLAGS);
        equal("the flags of the reply", flags, Some(VERSION | REPLY))
    }),
    case("repeats the number of the request in the reply.", HEADER, |bench| {
        let peer = bench.connect()?;
        peer.say(R::GetFeatures, &Payload::Empty)?;
        let number = peer.receive()?.map(|reply| reply.number);
        equal("the number of the reply", number, Some(R::GetFeatures.number()))
    }),
    case("answers GET_FEATURES with eight bytes.", GET_FEATURES, |bench| {
        let peer = bench.connect()?;
        peer.say(R::GetFeatures, &Payload::Empty)?;
        equal("the size of the reply", peer.reply(R::GetFeatures)?.payload.len(), 8)
    }),
    case("attaches no descriptors to the reply to GET_FEATURES.", GET_FEATURES, |bench| {
        let peer = bench.connect()?;
        peer.say(R::GetFeatures, &Payload::Empty)?;
        equal("the number of descriptors", peer.reply(R::GetFeatures)?.descriptors, 0)
    }),
    case("says nothing before it is asked.", COMMUNICATION, |bench| {
        bench.connect()?.expect_silence()
    }),
    case("puts a header together that comes byte by byte.", COMMUNICATION, |bench| {
        let peer = bench.connect()?;
        peer.send_slowly(&get_features())?;
        peer.reply(R::GetFeatures).map(drop)
    }),
    case("puts a payload together that comes byte by byte.", COMMUNICATION, |bench| {
        let mut peer = bench.connect()?;
        peer.hello(ProtocolFeatures::NONE)?;
        let features = peer.offered;
        let bytes = message(R::SetFeatures.number(), VERSION, &features.0.to_ne_bytes());
        peer.send_slowly(&bytes)?;
        peer.barrier()
    }),
    case(
        "takes several messages that come at once, and answers in order.",
        COMMUNICATION,
        |bench| {
            let peer = bench.connect()?;
            let owner = message(R::SetOwner.number(), VERSION, &[]);
            peer.send_bytes(&[get_features(), owner, get_features()].concat(), &[])?;
            let first = peer.reply(R::GetFeatures)?.payload;
            equal("the second answer", peer.reply(R::GetFeatures)?.payload, first)?;
            peer.expect_silence()
        },
    ),
    case(
        "answers a hundred requests that were sent in one go, each once.",
        COMMUNICATION,
        |bench| {
            let peer = bench.connect()?;
            peer.send_bytes(&get_features().repeat(100), &[])?;
            for _ in 0..100 {
                peer.reply(R::GetFeatures)?;
            }
            peer.expect_silence()
        },
    ),
    case(
        "does not answer SET_OWNER, which has no reply.",
        "vhost-user, \"VHOST_USER_SET_OWNER\"",
        |bench| {
            let peer = bench.connect()?;
            peer.say(R::SetOwner, &Payload::Empty)?;
            peer.expect_silence()
        },
    ),
    case("keeps a connection on which nothing is said.", COMMUNICATION, |bench| {
        let peer = bench.connect()?;
        peer.barrier()?;
        peer.expect_silence()?;
        peer.barrier()
    }),
    hostile("survives a connection that is closed without a word.", COMMUNICATION, |bench| {
        for _ in 0..20 {
            bench.connect()?;
        }
        Ok(())
    }),
    hostile("survives a front end that goes away inside a header.", COMMUNICATION, |bench| {
        garbage(bench, get_features().get(..7).unwrap_or_default())
    }),
    hostile("survives a front end that goes away inside a payload.", COMMUNICATION, |bench| {
        let mut bytes = message(R::SetFeatures.number(), VERSION, &[0; 8]);
        bytes.truncate(15);
        garbage(bench, &bytes)
    }),
    hostile(
        "survives a front end that goes away before it reads the reply.",
        COMMUNICATION,
        |bench| garbage(bench, &get_features().repeat(10)),
    ),
    hostile("survives messages of version 0, 2 and 3.", HEADER, |bench| {
        for version in [0, 2, 3] {
            garbage(bench, &message(R::GetFeatures.number(), version, &[]))?;
        }
        Ok(())
    }),
    hostile("survives a request with the reply flag.", HEADER, |bench| {
        garbage(bench, &message(R::GetFeatures.number(), VERSION | REPLY, &[]))
    }),
    hostile("survives flags that mean nothing.", HEADER, |bench| {
        garbage(bench, &message(R::GetFeatures.number(), 0xffff_fff0 | VERSION, &[]))
    }),
    hostile("survives a header that announces 4 GiB.", HEADER, |bench| {
        let mut bytes = get_features();
        bytes.truncate(8);
        bytes.extend(u32::MAX.to_ne_bytes());
        bytes.extend([0xff; 256]);
        garbage(bench, &bytes)
    }),
    hostile("survives a payload that is longer than any message's.", HEADER, |bench| {
        garbage(bench, &message(R::SetFeatures.number(), VERSION, &[0xff; MAX_PAYLOAD + 1]))
    }),
    hostile("survives noise.", COMMUNICATION, |bench| {
        let noise = (0u32..5000).map(|at| (at.wrapping_mul(0x9e37_79b1) >> 24) as u8);
        garbage(bench, &noise.collect::<Vec<u8>>())
    }),
    hostile("survives a front end that never reads its replies.", COMMUNICATION, |bench| {
        let peer = bench.connect()?;
        for _ in 0..2000 {
            if peer.send_bytes(&get_features().repeat(8), &[]).is_err() {
                break;
            }
        }
        Ok(())
    }),
];
