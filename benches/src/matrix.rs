//! What is measured: each *case* is one load or one state, each *cell* a case with a switch and, where frames are
//! generated, a generator. A cell has a name, by which `--only` finds it and under which its results are kept.

use std::fmt;

/// Entries of the rings that hold the longest window.
pub const LONG_RING: u16 = 512;
/// Entries of all others, as everybody has them.
pub const USUAL_RING: u16 = 256;
/// Bytes of a receive buffer of `ringway bench`: a frame may fill several.
const RECEIVE_BUFFER: usize = 2048;
/// Frames that testpmd sends and receives at a time: its windows are whole numbers of them.
pub const BURST: u16 = 32;
/// Bytes of a frame of 64 KiB that is yet to be segmented, as `ringway bench --size tso` sends it.
const TSO_BYTES: usize = 65214;
/// Addresses of each of two ports, where many are asked for.
const MANY_ADDRESSES: u32 = 5000;
/// Flows between the addresses of two ports, where many are asked for.
const MANY_FLOWS: u32 = 1000;

/// What frames go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Switch {
    RingwayPoll,
    RingwayAdaptive,
    /// testpmd with vhost ports: a wire, without any lookup.
    Testpmd,
    Ovs,
    /// The same with `userspace-tso-enable`, which is off unless somebody asks for it. Its ports connect.
    OvsTso,
    /// QEMU's taps and a bridge of Linux.
    Bridge,
}

impl Switch {
    /// In file names and on the command line.
    pub fn id(self) -> &'static str {
        match self {
            Switch::RingwayPoll => "ringway-poll",
            Switch::RingwayAdaptive => "ringway-adaptive",
            Switch::Testpmd => "testpmd-io",
            Switch::Ovs => "ovs",
            Switch::OvsTso => "ovs-tso",
            Switch::Bridge => "tap-bridge",
        }
    }

    /// In tables.
    pub fn title(self) -> &'static str {
        match self {
            Switch::RingwayPoll => "ringway, poll",
            Switch::RingwayAdaptive => "ringway, adaptive",
            Switch::Testpmd => "testpmd io",
            Switch::Ovs => "OVS NORMAL",
            Switch::OvsTso => "OVS NORMAL with TSO",
            Switch::Bridge => "tap and bridge",
        }
    }

    /// Whether it is ours.
    pub fn is_ours(self) -> bool {
        matches!(self, Switch::RingwayPoll | Switch::RingwayAdaptive)
    }
}

/// What sends and receives frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Generator {
    Bench,
    /// testpmd with virtio-user ports, which sends back whatever comes.
    Testpmd,
}

impl Generator {
    pub const ALL: [Generator; 2] = [Generator::Bench, Generator::Testpmd];

    pub fn id(self) -> &'static str {
        match self {
            Generator::Bench => "by-bench",
            Generator::Testpmd => "by-testpmd",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Generator::Bench => "`ringway bench`",
            Generator::Testpmd => "`dpdk-testpmd` (virtio-user, macswap)",
        }
    }
}

/// What the frames measure, without the Ethernet checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    Bytes(u16),
    Imix,
    Tso,
}

impl Size {
    pub const ALL: [Size; 9] = [
        Size::Bytes(64),
        Size::Bytes(128),
        Size::Bytes(256),
        Size::Bytes(512),
        Size::Bytes(1024),
        Size::Bytes(1518),
        Size::Bytes(9000),
        Size::Imix,
        Size::Tso,
    ];

    /// Bytes of the longest frame.
    pub fn longest(self) -> usize {
        match self {
            Size::Bytes(bytes) => bytes.into(),
            Size::Imix => 1518,
            Size::Tso => TSO_BYTES,
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::Bytes(bytes) => write!(f, "{bytes}"),
            Size::Imix => f.write_str("imix"),
            Size::Tso => f.write_str("tso"),
        }
    }
}

/// Frames, and the rings that they are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Load {
    pub size: Size,
    pub packed: bool,
    /// Frames under way each way, as far as the rings hold them.
    pub window: u16,
    /// Ethernet addresses of each port.
    pub addresses: u32,
    /// UDP flows of each pair of addresses.
    pub flows: u32,
}

impl Load {
    /// One flow, split rings, as many frames under way as rings of 512 take in each case.
    pub const fn of(size: Size) -> Load {
        Load { size, packed: false, window: 256, addresses: 1, flows: 1 }
    }

    pub const fn packed(self) -> Load {
        Load { packed: true, ..self }
    }

    pub const fn window(self, window: u16) -> Load {
        Load { window, ..self }
    }

    pub const fn many_addresses(self) -> Load {
        Load { addresses: MANY_ADDRESSES, ..self }
    }

    /// A bridge has no more to do than with one flow. But the generator has as much to do as with many addresses, which it writes into each
    /// frame and tells apart, and a word of each frame more.
    pub const fn many_flows(self) -> Load {
        Load { flows: MANY_FLOWS, ..self }
    }

    /// Entries of each ring.
    pub fn ring(&self) -> u16 {
        if self.window > USUAL_RING / 2 { LONG_RING } else { USUAL_RING }
    }

    /// Frames that are really under way each way: what the ring holds, if that is less; in whole bursts, if that is more
    /// than one, as either generator has to have the same.
    pub fn fitting_window(&self) -> u16 {
        let buffers = (12 + self.size.longest()).div_ceil(RECEIVE_BUFFER);
        let fits = self.ring() / u16::try_from(buffers).unwrap_or(u16::MAX);
        let window = self.window.min(fits).max(1);
        if window > BURST { window / BURST * BURST } else { window }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rings = if self.packed { "packed" } else { "split" };
        let (size, window) = (self.size, self.window);
        write!(f, "{size}/{rings}/window-{window}/")?;
        match (self.addresses, self.flows) {
            (1, 1) => f.write_str("one-flow"),
            (1, flows) => write!(f, "{flows}-flows"),
            (each, 1) => write!(f, "{}-macs", 2 * each),
            (each, flows) => write!(f, "{}-macs-{flows}-flows", 2 * each),
        }
    }
}

/// One load or one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Case {
    /// As many frames as come back.
    Throughput(Load),
    /// The highest rate without loss, and how late frames are at parts of it.
    Latency(Size),
    /// Ports that are connected and silent.
    Idle { ports: u16 },
    /// Two busy ports of so many.
    Pair { ports: u16 },
    /// iperf3 between two emulated guests.
    Tcp,
}

/// Ports where there are many.
pub const MANY_PORTS: u16 = 64;
/// Parts of the highest rate at which latency is measured, in percent.
pub const PARTS: [u16; 3] = [10, 50, 90];

impl Case {
    /// All of them, in the order in which they are measured.
    pub fn all() -> Vec<Case> {
        let mut cases = Vec::new();
        for size in Size::ALL {
            cases.extend([Load::of(size), Load::of(size).packed()].map(Case::Throughput));
        }
        for size in [Size::Bytes(64), Size::Bytes(1518)] {
            for window in [1, 32] {
                let load = Load::of(size).window(window);
                cases.extend([load, load.packed()].map(Case::Throughput));
            }
        }
        cases.push(Case::Throughput(Load::of(Size::Bytes(64)).many_flows()));
        for size in [Size::Bytes(64), Size::Imix] {
            cases.push(Case::Throughput(Load::of(size).many_addresses()));
        }
        cases.extend([Size::Bytes(64), Size::Bytes(1518)].map(Case::Latency));
        cases.extend([2, MANY_PORTS].map(|ports| Case::Pair { ports }));
        cases.extend([2, MANY_PORTS].map(|ports| Case::Idle { ports }));
        cases.push(Case::Tcp);
        cases
    }

    /// What tells in a minute whether something has changed much.
    pub fn quick() -> Vec<Case> {
        [Size::Bytes(64), Size::Bytes(1518)].map(|size| Case::Throughput(Load::of(size))).into()
    }

    /// The switches that it compares.
    pub fn switches(self) -> Vec<Switch> {
        use Switch::{Bridge, Ovs, OvsTso, RingwayAdaptive, RingwayPoll, Testpmd};
        match self {
            Case::Tcp => vec![RingwayAdaptive, Bridge, Ovs, OvsTso],
            _ => vec![RingwayPoll, RingwayAdaptive, Testpmd, Ovs],
        }
    }

    /// The generators that load it: `ringway bench` where only that can, or nothing is loaded.
    pub fn generators(self) -> &'static [Generator] {
        match self {
            Case::Throughput(_) => &Generator::ALL,
            _ => &[Generator::Bench],
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Case::Throughput(load) => write!(f, "throughput/{load}"),
            Case::Latency(size) => write!(f, "latency/{size}"),
            Case::Idle { ports } => write!(f, "idle/{ports}-ports"),
            Case::Pair { ports } => write!(f, "pair/{ports}-ports"),
            Case::Tcp => f.write_str("tcp"),
        }
    }
}

/// A case, with all that it is measured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    pub case: Case,
    pub switch: Switch,
    pub generator: Generator,
}

impl Cell {
    pub fn new(case: Case, switch: Switch, generator: Generator) -> Cell {
        Cell { case, switch, generator }
    }

    /// Whether one of these patterns names it; all cells are named by none at all. The words of a pattern must all occur.
    pub fn is_named_by(&self, patterns: &[String]) -> bool {
        let name = self.to_string();
        let named = |pattern: &String| pattern.split_whitespace().all(|word| name.contains(word));
        patterns.is_empty() || patterns.iter().any(named)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cell { case, switch, generator } = self;
        write!(f, "{case}/{}", switch.id())?;
        if matches!(case, Case::Throughput(_)) { write!(f, "/{}", generator.id()) } else { Ok(()) }
    }
}

/// All cells of these cases, case by case.
pub fn cells(cases: &[Case]) -> Vec<Cell> {
    let of = |case: &Case| {
        let case = *case;
        let switches = case.switches().into_iter();
        switches.flat_map(move |switch| {
            case.generators().iter().map(move |generator| Cell::new(case, switch, *generator))
        })
    };
    cases.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_cell_has_a_name_of_its_own() {
        let cells = cells(&Case::all());
        let names: BTreeSet<String> = cells.iter().map(Cell::to_string).collect();
        assert_eq!(names.len(), cells.len());
        assert!(names.contains("throughput/64/split/window-256/one-flow/testpmd-io/by-testpmd"));
        assert!(names.contains("throughput/64/split/window-256/10000-macs/ovs/by-bench"));
        assert!(names.contains("tcp/tap-bridge"));
    }

    #[test]
    fn patterns_name_cells() {
        let cells = cells(&Case::all());
        let named = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.into()).collect();
            cells.iter().filter(|cell| cell.is_named_by(&patterns)).count()
        };
        assert_eq!(named(&[]), cells.len());
        assert_eq!(named(&["idle/"]), 8);
        assert_eq!(named(&["idle/ ovs"]), 2);
        assert_eq!(named(&["idle/ ovs", "tcp"]), 6);
        assert_eq!(named(&["nothing"]), 0);
    }

    #[test]
    fn windows_fit_the_rings_of_both_generators() {
        let window = |size| Load::of(size).fitting_window();
        assert_eq!([64, 1518, 9000].map(|bytes| window(Size::Bytes(bytes))), [256, 256, 96]);
        assert_eq!(window(Size::Tso), 16);
        let short = Load::of(Size::Bytes(64)).window(32);
        assert_eq!((short.fitting_window(), short.ring()), (32, USUAL_RING));
        assert_eq!(short.window(1).fitting_window(), 1);
    }
}
