//! Switches, each as its users run it for speed: all that moves frames on one processor, DPDK's own memory in
//! hugepages if there are any, its buffers large enough for a frame, and tables large enough for all addresses.

use std::path::PathBuf;

use anyhow::{Result, bail};
use ringway_tests::Switch as Ringway;
use tempfile::TempDir;
use testbed::dpdk::{self, Testpmd, Vhost};
use testbed::hugepages::Hugepages;
use testbed::ovs::Ovs;

use crate::matrix::{Size, Switch};

/// Bytes that DPDK keeps free before a frame, and some for headers.
const HEADROOM: usize = 128 + 64;
/// A buffer cannot have more, for DPDK counts its bytes in 16 bits.
const LARGEST_BUFFER: usize = 65535;
/// Packet buffers of a testpmd: all rings full, and as many again. Of the largest ones a quarter, which is enough.
const BUFFERS: u32 = 8192;
/// Frames up to this fit DPDK's usual buffers.
const USUAL_FRAME: usize = 1984;
/// The MTU of Open vSwitch's ports, where none is longer.
const USUAL_MTU: u16 = 1500;

/// Where everything runs.
pub struct Place {
    /// The processor of the switch.
    pub switch: usize,
    /// The processor of the generator, and of all that waits.
    pub generator: usize,
    /// For DPDK's own memory.
    pub hugepages: Option<Hugepages>,
}

/// What a switch has to do.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub ports: u16,
    pub size: Size,
    /// All that it will see.
    pub addresses: u32,
}

/// A testpmd with buffers for such frames, in hugepages, with its busy thread on this processor.
pub fn testpmd(place: &Place, processor: usize, size: Size) -> dpdk::Builder {
    let longest = size.longest();
    let builder = Testpmd::builder().processors(place.generator, processor);
    let builder = match longest {
        0..=USUAL_FRAME => builder.buffers(BUFFERS, None),
        _ => {
            let bytes = (longest + HEADROOM).min(LARGEST_BUFFER);
            let count = if size == Size::Tso { BUFFERS / 4 } else { BUFFERS };
            builder.buffers(count, u16::try_from(bytes).ok())
        }
    };
    match &place.hugepages {
        Some(pages) => builder.hugepages_of(pages),
        None => builder,
    }
}

/// A switch at work. Dropping it ends it.
pub enum Running {
    Ringway(Ringway, Vec<PathBuf>),
    /// And its sockets' directory, which goes with it.
    Testpmd(Box<Testpmd>, Vec<PathBuf>, #[expect(dead_code)] TempDir),
    Ovs(Ovs, Vec<PathBuf>),
}

impl Running {
    /// Starts a switch, and waits until guests may come.
    pub fn start(switch: Switch, place: &Place, work: Work) -> Result<Running> {
        let names: Vec<String> = (0..work.ports).map(|port| format!("port{port}")).collect();
        match switch {
            Switch::RingwayPoll => ringway("poll", place, &names),
            Switch::RingwayAdaptive => ringway("adaptive", place, &names),
            Switch::Testpmd => {
                let directory = tempfile::Builder::new().prefix("peers-").tempdir()?;
                let sockets: Vec<PathBuf> =
                    names.iter().map(|name| directory.path().join(name)).collect();
                let mut builder = testpmd(place, place.switch, work.size);
                for socket in &sockets {
                    let port = Vhost::new(socket);
                    builder = builder.back_end(match work.size {
                        // Frames are passed on as they are, and what is to be done with them too.
                        Size::Tso => port.option("tso=1").option("legacy-ol-flags=1"),
                        _ => port,
                    });
                }
                // It forwards in pairs, at once, and waits for no guest. A bare wire is its usual mode.
                let arguments = ["--disable-link-check", "--no-flush-rx", "--forward-mode=io"];
                builder = arguments.iter().fold(builder, |builder, it| builder.argument(it));
                let mut testpmd = builder.start()?;
                testpmd.forward(None)?;
                Ok(Running::Testpmd(Box::new(testpmd), sockets, directory))
            }
            Switch::Ovs => {
                let builder = Ovs::builder().processors(place.generator, place.switch);
                let mut builder = names.iter().fold(builder, |builder, name| builder.port(name));
                if let Size::Bytes(bytes) = work.size
                    && bytes > USUAL_MTU + 18
                {
                    builder = builder.mtu(bytes);
                }
                if work.addresses > u32::from(work.ports) {
                    builder = builder.addresses(2 * work.addresses);
                }
                if let Some(pages) = &place.hugepages {
                    builder = builder.hugepages_of(pages);
                }
                let ovs = builder.start()?;
                let sockets = names.iter().map(|name| ovs.socket(name)).collect();
                Ok(Running::Ovs(ovs, sockets))
            }
            Switch::OvsTso | Switch::Bridge => {
                bail!("{} is for virtual machines", switch.title())
            }
        }
    }

    /// Where its ports are.
    pub fn sockets(&self) -> &[PathBuf] {
        match self {
            Running::Ringway(_, sockets)
            | Running::Testpmd(_, sockets, _)
            | Running::Ovs(_, sockets) => sockets,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        match self {
            Running::Ringway(switch, _) => switch.pid(),
            Running::Testpmd(testpmd, ..) => testpmd.pid(),
            Running::Ovs(ovs, _) => ovs.pid(),
        }
    }
}

fn ringway(mode: &str, place: &Place, names: &[String]) -> Result<Running> {
    let ports: Vec<String> = names.iter().map(|name| format!("{name}=vhost-user:{name}")).collect();
    let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
    let cpu = place.switch.to_string();
    let switch = Ringway::start_with(&["--mode", mode, "--cpus", &cpu], &ports)?;
    let sockets = names.iter().map(|name| switch.path(name)).collect();
    Ok(Running::Ringway(switch, sockets))
}
