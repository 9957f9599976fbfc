//! Values: how each is written, and the nearest right one for a wrong one.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use apps::bridge::vlan::{FIRST_VLAN, LAST_VLAN, VlanSet};
use apps::mirror;
use apps::source::MAX_SIZE;
use ports::pcap::Times;
use ports::tun::Subnet;
use tracing::level_filters::LevelFilter;
use wire::ethernet::{EtherType, HEADER_SIZE, MacAddress};
use wire::pcap::MAX_CAPTURED;
use wire::prefix::{Prefix, PrefixError};

use super::app::{self, AppType};
use super::fault::Place;
use super::keys::{PORT_TYPES, PortType};
use super::{ControlSocket, Mode};

/// A value as it was written, before it means anything.
#[derive(Debug, Clone)]
pub struct Value {
    pub scalar: Scalar,
    pub place: Place,
}

/// The forms a value has in TOML. A flag's value is always text.
#[derive(Debug, Clone)]
pub enum Scalar {
    Text(String),
    /// The digits have no underscores and no prefix, but may have a sign.
    Integer {
        digits: String,
        radix: u32,
    },
    Boolean(bool),
    /// A list, which a flag's value never is.
    List(Vec<Value>),
    /// A form that no key takes, by its name: "table", "float", "datetime".
    Other(&'static str),
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scalar::Text(text) => write!(f, "`{text}`"),
            Scalar::Integer { digits, radix } => {
                let prefix = match radix {
                    2 => "0b",
                    8 => "0o",
                    16 => "0x",
                    _ => "",
                };
                write!(f, "`{prefix}{digits}`")
            }
            Scalar::Boolean(boolean) => write!(f, "`{boolean}`"),
            Scalar::List(_) => f.write_str("of type array"),
            Scalar::Other(form) => write!(f, "of type {form}"),
        }
    }
}

/// Why a value does not fit its key.
#[derive(Debug, PartialEq, Eq)]
pub struct Misfit {
    pub expected: String,
    pub nearest: Option<String>,
}

impl Misfit {
    fn expected(expected: impl Into<String>) -> Misfit {
        Misfit { expected: expected.into(), nearest: None }
    }

    fn nearest(self, nearest: impl Into<String>) -> Misfit {
        Misfit { nearest: Some(nearest.into()), ..self }
    }
}

/// Below this likeness a suggestion confuses more than it helps.
const LIKENESS: f64 = 0.8;

/// The choice that is spelt most like `word`, if any is like it.
pub fn nearest<'a>(word: &str, choices: impl IntoIterator<Item = &'a str>) -> Option<String> {
    choices
        .into_iter()
        .map(|choice| (strsim::jaro_winkler(&word.to_lowercase(), choice), choice))
        .filter(|(likeness, _)| *likeness >= LIKENESS)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, choice)| choice.to_owned())
}

/// "a, b or c"
pub fn one_of<T: AsRef<str>>(choices: &[T]) -> String {
    enumerate(choices, "or")
}

/// "a, b and c"
pub fn all_of<T: AsRef<str>>(names: &[T]) -> String {
    enumerate(names, "and")
}

fn enumerate<T: AsRef<str>>(names: &[T], conjunction: &str) -> String {
    match names {
        [] => "nothing".to_owned(),
        [only] => only.as_ref().to_owned(),
        [init @ .., last] => {
            let init: Vec<&str> = init.iter().map(AsRef::as_ref).collect();
            format!("{} {conjunction} {}", init.join(", "), last.as_ref())
        }
    }
}

fn word<T: Copy>(scalar: &Scalar, choices: &[(&str, T)]) -> Result<T, Misfit> {
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    let misfit = Misfit::expected(one_of(&words));
    let Scalar::Text(text) = scalar else {
        return Err(misfit);
    };
    match choices.iter().find(|(word, _)| word == text) {
        Some((_, choice)) => Ok(*choice),
        None => Err(Misfit { nearest: nearest(text, words), ..misfit }),
    }
}

/// `mode`
pub fn mode(scalar: &Scalar) -> Result<Mode, Misfit> {
    let modes =
        [("adaptive", Mode::Adaptive), ("poll", Mode::Poll), ("interrupt", Mode::Interrupt)];
    word(scalar, &modes)
}

/// `log`
pub fn log(scalar: &Scalar) -> Result<LevelFilter, Misfit> {
    let levels = [
        ("off", LevelFilter::OFF),
        ("error", LevelFilter::ERROR),
        ("warn", LevelFilter::WARN),
        ("info", LevelFilter::INFO),
        ("debug", LevelFilter::DEBUG),
        ("trace", LevelFilter::TRACE),
    ];
    word(scalar, &levels)
}

/// `type`
pub fn port_type(scalar: &Scalar) -> Result<&'static PortType, Misfit> {
    word(scalar, &PORT_TYPES.map(|known| (known.name, known)))
}

/// `type` of an app. One of a port says where that would belong.
pub fn app_type(scalar: &Scalar) -> Result<&'static AppType, Misfit> {
    word(scalar, &app::TYPES.map(|known| (known.name, known))).map_err(|misfit| match scalar {
        Scalar::Text(text) if PORT_TYPES.iter().any(|known| known.name == text) => {
            Misfit::expected(format!("{} (a port has a section [port.NAME])", misfit.expected))
        }
        _ => misfit,
    })
}

/// `connect`: `on` or `off`, or a boolean of TOML.
pub fn switch(scalar: &Scalar) -> Result<bool, Misfit> {
    if let Scalar::Boolean(boolean) = scalar {
        return Ok(*boolean);
    }
    word(scalar, &[("on", true), ("off", false)]).map_err(|misfit| match scalar {
        Scalar::Text(text) if ["true", "yes", "1"].contains(&text.as_str()) => misfit.nearest("on"),
        Scalar::Text(text) if ["false", "no", "0"].contains(&text.as_str()) => {
            misfit.nearest("off")
        }
        _ => misfit,
    })
}

/// The longest `idle-spin`. Longer is the poll mode under another name.
const IDLE_SPIN_LIMIT: Duration = Duration::from_secs(1);

/// `idle-spin`: a whole number and a unit.
pub fn idle_spin(scalar: &Scalar) -> Result<Duration, Misfit> {
    let expected = "a duration of at most 1s, as 50us (units: ns, us, ms, s)";
    duration(scalar, IDLE_SPIN_LIMIT, "us", expected)
}

/// The longest delay of an impairment. Around the moon it is three seconds.
const DELAY_LIMIT: Duration = Duration::from_secs(60);

/// `delay-from` and its like, in nanoseconds.
pub fn delay(scalar: &Scalar) -> Result<u64, Misfit> {
    let expected = "a duration of at most 60s, as 10ms (units: ns, us, ms, s)";
    // Within the limit, which is of this type.
    duration(scalar, DELAY_LIMIT, "ms", expected).map(|delay| delay.as_nanos() as u64)
}

/// A whole number and a unit; `usual` is the unit that is meant where there is none.
fn duration(
    scalar: &Scalar,
    limit: Duration,
    usual: &str,
    expected: &str,
) -> Result<Duration, Misfit> {
    let misfit = Misfit::expected(expected);
    let text = match scalar {
        Scalar::Text(text) => text,
        // A number without its unit: the unit is what to add.
        Scalar::Integer { digits, radix: 10 } => {
            return Err(misfit.nearest(format!("\"{digits}{usual}\"")));
        }
        _ => return Err(misfit),
    };
    let digits_end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let Ok(number) = digits.parse::<u64>() else {
        return Err(misfit);
    };
    let nanoseconds: u64 = match unit {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "" => return Err(misfit.nearest(format!("{digits}{usual}"))),
        _ => {
            let unit = unit.trim().replace('µ', "u");
            return Err(match nearest(&unit, ["ns", "us", "ms", "s"]) {
                Some(unit) => misfit.nearest(format!("{digits}{unit}")),
                None => misfit,
            });
        }
    };
    number
        .checked_mul(nanoseconds)
        .map(Duration::from_nanos)
        .filter(|duration| *duration <= limit)
        .ok_or(misfit)
}

/// `loss-from` and its like: a percentage.
pub fn chance(scalar: &Scalar) -> Result<f64, Misfit> {
    let misfit = Misfit::expected("a percentage from 0% to 100%, as 0.1%");
    let percentage = |number: &str| -> Option<f64> {
        // `parse` alone would take "1e2" and "inf".
        let is_plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let percent = number.parse().ok().filter(|_| is_plain);
        percent.filter(|percent| (0.0..=100.0).contains(percent))
    };
    match scalar {
        Scalar::Text(text) => match text.strip_suffix('%') {
            Some(number) => percentage(number).ok_or(misfit),
            None if percentage(text).is_some() => Err(misfit.nearest(format!("{text}%"))),
            None => Err(misfit),
        },
        Scalar::Integer { digits, radix: 10 } if percentage(digits).is_some() => {
            Err(misfit.nearest(format!("\"{digits}%\"")))
        }
        _ => Err(misfit),
    }
}

/// `seed`.
pub fn seed(scalar: &Scalar) -> Result<u64, Misfit> {
    wide_number(scalar, 0..=u32::MAX).map(u64::from)
}

/// `mirror`.
pub fn mirrored(scalar: &Scalar) -> Result<mirror::Settings, Misfit> {
    let directions = [("from", (true, false)), ("to", (false, true)), ("both", (true, true))];
    let (from_port, to_port) = word(scalar, &directions)?;
    Ok(mirror::Settings { from_port, to_port })
}

/// `mirror-to`: a name.
pub fn port_name(scalar: &Scalar) -> Result<String, Misfit> {
    match scalar {
        Scalar::Text(text) if !text.is_empty() => Ok(text.clone()),
        _ => Err(Misfit::expected("the name of another port")),
    }
}

/// One more than the highest CPU number that the kernel's affinity calls take (CPU_SETSIZE).
const CPU_LIMIT: usize = 1024;

/// `cpus`: numbers and ranges, in ascending order and each once.
pub fn cpus(scalar: &Scalar) -> Result<Vec<usize>, Misfit> {
    let misfit = || Misfit::expected("CPU numbers and ranges, as 2 or 0-3,8, none above 1023");
    let text = match scalar {
        Scalar::Text(text) => text,
        Scalar::Integer { digits, radix: 10 } => digits,
        _ => return Err(misfit()),
    };
    let number = |text: &str| -> Result<usize, Misfit> {
        // `parse` alone would take "+1".
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number.filter(|number| *number < CPU_LIMIT).ok_or_else(misfit)
    };
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = number(first)?..=number(last)?;
        if range.is_empty() {
            return Err(misfit());
        }
        cpus.extend(range);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

/// The smallest MTU that IPv4 allows, and virtio with it (virtio 5.1.4.1).
const MTU_MINIMUM: u16 = 68;

/// `mtu`, in bytes.
pub fn mtu(scalar: &Scalar) -> Result<u16, Misfit> {
    number(scalar, MTU_MINIMUM..=u16::MAX)
}

/// The largest MTU of a tap interface: a frame has 64 KiB with its Ethernet header.
const TAP_MTU_LIMIT: u16 = u16::MAX - wire::ethernet::HEADER_SIZE as u16;

/// `mtu` of a tap interface, in bytes.
pub fn tap_mtu(scalar: &Scalar) -> Result<u16, Misfit> {
    number(scalar, MTU_MINIMUM..=TAP_MTU_LIMIT)
}

/// `mac`: the address of one station, as the kernel takes it.
pub fn mac(scalar: &Scalar) -> Result<MacAddress, Misfit> {
    let misfit = Misfit::expected("the hardware address of one station, as 52:54:00:12:34:56");
    let Scalar::Text(text) = scalar else {
        return Err(misfit);
    };
    let is_one = |address: &MacAddress| !address.is_multicast() && *address != MacAddress([0; 6]);
    match text.parse() {
        Ok(address) if is_one(&address) => Ok(address),
        Ok(_) => Err(misfit),
        Err(_) => {
            let colons = text.replace(['-', '.'], ":").to_lowercase();
            let near = colons.parse().ok().filter(is_one);
            Err(Misfit { nearest: near.map(|near| near.to_string()), ..misfit })
        }
    }
}

/// `to` of a source: the address of a station or a group.
pub fn destination(scalar: &Scalar) -> Result<MacAddress, Misfit> {
    let misfit = Misfit::expected("a hardware address, as 52:54:00:12:34:56 or ff:ff:ff:ff:ff:ff");
    match scalar {
        Scalar::Text(text) => text.parse().map_err(|_| misfit),
        _ => Err(misfit),
    }
}

/// `ethertype` of a source: hexadecimal digits behind 0x, or a number of TOML.
pub fn ethertype(scalar: &Scalar) -> Result<EtherType, Misfit> {
    let (digits, radix) = match scalar {
        Scalar::Text(text) => match text.strip_prefix("0x") {
            Some(digits) => (digits, 16),
            None => (text.as_str(), 10),
        },
        Scalar::Integer { digits, radix } => (digits.as_str(), *radix),
        _ => ("", 10),
    };
    // Parsing alone would take "+1". Smaller numbers are lengths (802.3-2018, 3.2.6).
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let number = u16::from_str_radix(digits, radix).ok().filter(|_| is_plain);
    let ethertype = number.filter(|number| *number >= 0x600).map(EtherType);
    ethertype.ok_or_else(|| Misfit::expected("a type of frame from 0x600 to 0xffff, as 0x88b5"))
}

/// `size` of a source's frames.
pub fn frame_size(scalar: &Scalar) -> Result<usize, Misfit> {
    // In the range.
    wide_number(scalar, HEADER_SIZE as u32..=MAX_SIZE as u32).map(|size| size as usize)
}

/// `frames` of a source.
pub fn frames(scalar: &Scalar) -> Result<u64, Misfit> {
    wide_number(scalar, 1..=u32::MAX).map(u64::from)
}

/// The items of a list: a flag has `+` between them, a file has one or a list. None when something else is
/// among them, or there is none.
fn items<T>(scalar: &Scalar, read: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    let one = |scalar: &Scalar| match scalar {
        Scalar::Text(text) => text.split('+').map(&read).collect::<Option<Vec<T>>>(),
        _ => None,
    };
    let Scalar::List(items) = scalar else { return one(scalar) };
    let all: Vec<Vec<T>> = items.iter().map(|item| one(&item.scalar)).collect::<Option<_>>()?;
    (!all.is_empty()).then(|| all.into_iter().flatten().collect())
}

/// `address` of a tun port: addresses and their prefixes, each once.
pub fn subnets(scalar: &Scalar) -> Result<Vec<Subnet>, Misfit> {
    let misfit = || {
        Misfit::expected(
            "addresses of single stations with the lengths of their networks' prefixes, each once, as \
             10.0.0.1/24 or 10.0.0.1/24+fd00::1/64",
        )
    };
    let subnets = items(scalar, |text| text.parse::<Subnet>().ok()).ok_or_else(misfit)?;
    let is_new = |(index, subnet): (usize, &Subnet)| {
        subnets.iter().take(index).all(|other| other.address != subnet.address)
    };
    if subnets.iter().enumerate().all(is_new) { Ok(subnets) } else { Err(misfit()) }
}

/// `vlan`.
pub fn vlan(scalar: &Scalar) -> Result<u16, Misfit> {
    number(scalar, FIRST_VLAN..=LAST_VLAN)
}

/// `trunk`: numbers of VLANs and ranges of them, or all.
pub fn vlans(scalar: &Scalar) -> Result<VlanSet, Misfit> {
    let misfit =
        || Misfit::expected("all, or VLANs and ranges of them, from 1 to 4094, as 10 or 10+20-29");
    let vlan = |text: &str| {
        // `parse` alone would take "+1".
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
        let vlan = text.parse().ok().filter(|vlan| (FIRST_VLAN..=LAST_VLAN).contains(vlan));
        vlan.filter(|_| is_plain)
    };
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = vlan(first)?..=vlan(last)?;
        (!range.is_empty()).then_some(range)
    };
    match scalar {
        Scalar::Text(text) if text == "all" => Ok(VlanSet::all()),
        Scalar::Integer { .. } => Ok(VlanSet::from_iter([self::vlan(scalar)?])),
        Scalar::List(items) => {
            let sets = items.iter().map(|item| match &item.scalar {
                Scalar::List(_) => Err(misfit()),
                scalar => vlans(scalar),
            });
            sets.reduce(|all, set| Ok(all? | set?)).unwrap_or_else(|| Err(misfit()))
        }
        scalar => items(scalar, range)
            .map(|ranges| ranges.into_iter().flatten().collect())
            .ok_or_else(misfit),
    }
}

/// `allow-macs`: addresses of single stations.
pub fn macs(scalar: &Scalar) -> Result<Vec<MacAddress>, Misfit> {
    let one = |text: &str| mac(&Scalar::Text(text.to_owned()));
    items(scalar, |text| one(text).ok()).ok_or_else(|| {
        let misfit = Misfit::expected(
            "hardware addresses of single stations, as 52:54:00:12:34:56 or 52:54:00:12:34:56+52:54:00:12:34:57",
        );
        let near = near_items(scalar, |text| match one(text) {
            Ok(address) => Some(address.to_string()),
            Err(misfit) => misfit.nearest,
        });
        Misfit { nearest: near, ..misfit }
    })
}

/// The nearest right spelling of a list, in one text, if there is one of each item.
fn near_items(scalar: &Scalar, near: impl Fn(&str) -> Option<String>) -> Option<String> {
    Some(items(scalar, near)?.join("+"))
}

/// `allow-ips`: addresses, and prefixes of networks.
pub fn prefixes(scalar: &Scalar) -> Result<Vec<Prefix>, Misfit> {
    items(scalar, |text| text.parse().ok()).ok_or_else(|| {
        let misfit = Misfit::expected(
            "IP addresses and prefixes of networks, as 10.0.0.1 or 10.0.0.0/24+fd00::/64",
        );
        let near = near_items(scalar, |text| match text.parse::<Prefix>() {
            Ok(_) => Some(text.to_owned()),
            Err(PrefixError::HostBits { network, .. }) => Some(network.to_string()),
            Err(_) => None,
        });
        Misfit { nearest: near, ..misfit }
    })
}

/// How much of something: of bits or bytes, and of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Bits of a rate, bytes of a burst.
    pub bulk: Option<u64>,
    /// Frames.
    pub frames: Option<u64>,
}

impl Amounts {
    /// The most frames that can be said, and more than any wire carries in a second.
    pub const MOST_FRAMES: u64 = 1_000_000_000;
    /// The most bytes that can be said.
    pub const MOST_BYTES: u64 = 1 << 30;
    /// The most bits a second that can be said.
    const MOST_BITS: u64 = 1_000_000_000_000;
}

/// A unit, and what one of it is worth.
type Unit = (&'static str, u64);

const FRAMES: [Unit; 1] = [("frames", 1)];
const BITS: [Unit; 4] = [("bit", 1), ("kbit", 1_000), ("Mbit", 1_000_000), ("Gbit", 1_000_000_000)];
const BYTES: [Unit; 5] =
    [("bytes", 1), ("kB", 1_000), ("MB", 1_000_000), ("KiB", 1 << 10), ("MiB", 1 << 20)];

/// `rate-from` and `rate-to`.
pub fn rates(scalar: &Scalar) -> Result<Amounts, Misfit> {
    let expected = "a rate of at most 1000Gbit or 1000000000frames, or one of each, as 10Gbit or \
                    1Gbit+100000frames (units: bit, kbit, Mbit, Gbit, frames)";
    amounts(scalar, &BITS, Amounts::MOST_BITS, expected)
}

/// `burst-from` and `burst-to`.
pub fn bursts(scalar: &Scalar) -> Result<Amounts, Misfit> {
    let expected = "a size of at most 1024MiB or 1000000000frames, or one of each, as 256KiB or \
                    1MB+1000frames (units: bytes, kB, MB, KiB, MiB, frames)";
    amounts(scalar, &BYTES, Amounts::MOST_BYTES, expected)
}

/// `storm-broadcast` and `storm-multicast`: frames.
pub fn frame_rate(scalar: &Scalar) -> Result<u64, Misfit> {
    let expected = "a rate of at most 1000000000frames, as 1000frames";
    let Amounts { frames, .. } = amounts(scalar, &[], 0, expected)?;
    frames.ok_or_else(|| Misfit::expected(expected))
}

/// Amounts of something that has these units, and at most `most` of it, and of frames: one of each at most.
fn amounts(scalar: &Scalar, units: &[Unit], most: u64, expected: &str) -> Result<Amounts, Misfit> {
    let bulk = |text: &str| quantity(text, units, most).map(|bulk| (Some(bulk), None));
    let frames = |text: &str| {
        quantity(text, &FRAMES, Amounts::MOST_FRAMES).map(|frames| (None, Some(frames)))
    };
    let read = |scalar: &Scalar| {
        let all = items(scalar, |text| bulk(text).or_else(|| frames(text)))?;
        all.into_iter().try_fold(Amounts::default(), |sum, (bulk, frames)| {
            let is_new = sum.bulk.and(bulk).is_none() && sum.frames.and(frames).is_none();
            let sum = Amounts { bulk: sum.bulk.or(bulk), frames: sum.frames.or(frames) };
            is_new.then_some(sum)
        })
    };
    read(scalar).ok_or_else(|| {
        let near = near_items(scalar, |text| respelt(text, units));
        // What has the right units may have another fault.
        let near = near.filter(|near| read(&Scalar::Text(near.clone())).is_some());
        Misfit { nearest: near, ..Misfit::expected(expected) }
    })
}

/// A whole number, at least 1, and a unit.
fn quantity(text: &str, units: &[Unit], most: u64) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let (_, worth) = units.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*worth).filter(|amount| (1..=most).contains(amount))
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    Some((digits.parse().ok()?, unit))
}

/// The same amount with a unit that there is, if it has one, or one in other letters, or as one or many.
fn respelt(text: &str, units: &[Unit]) -> Option<String> {
    let (number, unit) = split_unit(text.trim())?;
    let plain = |unit: &str| unit.trim().to_lowercase().trim_end_matches('s').to_owned();
    let (unit, _) = units.iter().chain(&FRAMES).find(|(name, _)| plain(name) == plain(unit))?;
    Some(format!("{number}{unit}"))
}

/// `filter-from` and `filter-to`, as text.
pub fn filter(scalar: &Scalar) -> Result<String, Misfit> {
    match scalar {
        Scalar::Text(text) if !text.trim().is_empty() => Ok(text.clone()),
        _ => Err(Misfit::expected(
            "an expression of pcap-filter(7), as \"tcp port 80\", or the numbers of `tcpdump -ddd`",
        )),
    }
}

/// `gateway` of a tun port.
pub fn gateways(scalar: &Scalar) -> Result<Vec<IpAddr>, Misfit> {
    let misfit = || {
        Misfit::expected("an IP address, or one of IPv4 and one of IPv6, as 10.0.0.254+fd00::fe")
    };
    let gateways = items(scalar, |text| text.parse::<IpAddr>().ok()).ok_or_else(misfit)?;
    match gateways[..] {
        [_] => Ok(gateways),
        [one, other] if one.is_ipv4() != other.is_ipv4() => Ok(gateways),
        _ => Err(misfit()),
    }
}

/// `queue-pairs`: as many as there are numbers for in messages.
pub fn queue_pairs(scalar: &Scalar) -> Result<u16, Misfit> {
    number(scalar, 1..=ports::vhost_user::MAX_PAIRS as u16)
}

/// `workers`.
pub fn workers(scalar: &Scalar) -> Result<usize, Misfit> {
    number(scalar, 1..=ports::vhost_user::MAX_WORKERS as u16).map(usize::from)
}

fn number(scalar: &Scalar, range: RangeInclusive<u16>) -> Result<u16, Misfit> {
    let range = (*range.start()).into()..=(*range.end()).into();
    // In the range, which is of this type.
    wide_number(scalar, range).map(|number| number as u16)
}

fn wide_number(scalar: &Scalar, range: RangeInclusive<u32>) -> Result<u32, Misfit> {
    let number = match scalar {
        // `parse` alone would take "+1".
        Scalar::Text(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        Scalar::Integer { digits, radix } => u32::from_str_radix(digits, *radix).ok(),
        _ => None,
    };
    let (first, last) = (range.start(), range.end());
    number
        .filter(|number| range.contains(number))
        .ok_or_else(|| Misfit::expected(format!("a number from {first} to {last}")))
}

/// `socket-mode`: octal digits, as chmod takes them, or an octal integer of TOML.
pub fn socket_mode(scalar: &Scalar) -> Result<u32, Misfit> {
    let misfit = Misfit::expected("octal permissions up to 0777, as \"0660\"");
    let (digits, octal) = match scalar {
        Scalar::Text(text) => (text, true),
        // 660 in a file is decimal: surely meant to be octal, but not said to be.
        Scalar::Integer { digits, radix } => (digits, *radix == 8),
        Scalar::Boolean(_) | Scalar::List(_) | Scalar::Other(_) => return Err(misfit),
    };
    let shaped = (3..=4).contains(&digits.len()) && !digits.starts_with(['+', '-']);
    let mode = u32::from_str_radix(digits, 8).ok();
    match mode.filter(|mode| shaped && *mode <= 0o777) {
        Some(mode) if octal => Ok(mode),
        Some(mode) => Err(misfit.nearest(format!("\"{mode:04o}\""))),
        None => Err(misfit),
    }
}

/// `socket-group`: a name, or a number as text or as an integer.
pub fn socket_group(scalar: &Scalar) -> Result<String, Misfit> {
    let misfit = Misfit::expected("the name or the number of a group, as kvm");
    let group = match scalar {
        Scalar::Text(text) => text,
        Scalar::Integer { digits, radix: 10 } => digits,
        _ => return Err(misfit),
    };
    let wrong = |character: char| {
        character.is_whitespace() || character.is_control() || ":,/+".contains(character)
    };
    if group.is_empty() || group.starts_with('-') || group.contains(wrong) {
        return Err(misfit);
    }
    Ok(group.clone())
}

/// `owner`: a name, or a number as text or as an integer.
pub fn owner(scalar: &Scalar) -> Result<String, Misfit> {
    // Users and groups are called alike.
    let misfit = |_| Misfit::expected("the name or the number of a user, as libvirt-qemu");
    socket_group(scalar).map_err(misfit)
}

/// Descriptors of one interface at most: a queue each.
const DESCRIPTORS_LIMIT: usize = ports::vhost_user::MAX_PAIRS;

/// `fd`: numbers of descriptors, each once, but those of standard input and output. A flag has `+`
/// between them, a file has one or a list.
pub fn descriptors(scalar: &Scalar) -> Result<Vec<RawFd>, Misfit> {
    let misfit = || {
        Misfit::expected("numbers of inherited descriptors, from 3 on and each once, as 3 or 3+4")
    };
    let number = |digits: &str, radix| -> Result<RawFd, Misfit> {
        // Parsing alone would take "+3".
        let is_plain = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let number = RawFd::from_str_radix(digits, radix).ok().filter(|_| is_plain);
        number.filter(|number| *number > 2).ok_or_else(misfit)
    };
    let one = |scalar: &Scalar| match scalar {
        Scalar::Text(text) => text.split('+').map(|text| number(text, 10)).collect(),
        Scalar::Integer { digits, radix } => number(digits, *radix).map(|number| vec![number]),
        _ => Err(misfit()),
    };
    let numbers: Vec<RawFd> = match scalar {
        Scalar::List(items) => {
            let all: Result<Vec<_>, _> = items.iter().map(|item| one(&item.scalar)).collect();
            all?.concat()
        }
        scalar => one(scalar)?,
    };
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    sorted.dedup();
    let is_right =
        sorted.len() == numbers.len() && (1..=DESCRIPTORS_LIMIT).contains(&numbers.len());
    if is_right { Ok(numbers) } else { Err(misfit()) }
}

/// The longest path of a Unix socket: `sun_path` has 108 bytes, the last of them a zero.
const SOCKET_PATH_LIMIT: usize = 107;

/// `path` of a socket.
pub fn socket_path(scalar: &Scalar) -> Result<PathBuf, Misfit> {
    let misfit = Misfit::expected("the path of a socket");
    let Scalar::Text(text) = scalar else {
        return Err(misfit);
    };
    let bytes = text.len();
    if bytes > SOCKET_PATH_LIMIT {
        return Err(Misfit::expected(format!(
            "at most {SOCKET_PATH_LIMIT} bytes, the limit of a Unix socket's path; this has {bytes}"
        )));
    }
    if text.is_empty() || text.ends_with('/') || text.contains('\0') {
        return Err(misfit);
    }
    Ok(PathBuf::from(text))
}

/// `control`: the path of a socket, or none.
pub fn control(scalar: &Scalar) -> Result<ControlSocket, Misfit> {
    match scalar {
        Scalar::Text(text) if text == "off" => Ok(ControlSocket::Off),
        scalar => socket_path(scalar).map(ControlSocket::At),
    }
}

/// `file`: a path.
pub fn file(scalar: &Scalar) -> Result<PathBuf, Misfit> {
    match scalar {
        Scalar::Text(text) if !text.is_empty() && !text.ends_with('/') && !text.contains('\0') => {
            Ok(PathBuf::from(text))
        }
        _ => Err(Misfit::expected("the path of a file")),
    }
}

/// `times` of a capture.
pub fn times(scalar: &Scalar) -> Result<Times, Misfit> {
    word(scalar, &[("fast", Times::Fast), ("recorded", Times::Recorded)])
}

/// `loops` of a capture: None is for ever.
pub fn loops(scalar: &Scalar) -> Result<Option<u32>, Misfit> {
    match scalar {
        Scalar::Text(text) if text == "forever" => Ok(None),
        _ => wide_number(scalar, 1..=u32::MAX).map(Some).map_err(|misfit| Misfit {
            expected: format!("{}, or forever", misfit.expected),
            nearest: match scalar {
                Scalar::Text(text) => nearest(text, ["forever"]),
                _ => None,
            },
        }),
    }
}

/// `snaplen` of a capture, in bytes.
pub fn snaplen(scalar: &Scalar) -> Result<u32, Misfit> {
    wide_number(scalar, 1..=MAX_CAPTURED)
}

/// The longest name of an interface: IFNAMSIZ is 16 bytes, the last of them a zero.
const INTERFACE_LIMIT: usize = 15;

/// `interface`: a name that the kernel takes as it is. It expands `%d`, so `%` is refused: the
/// interface would have another name than its port believes.
pub fn interface(scalar: &Scalar) -> Result<String, Misfit> {
    let misfit = Misfit::expected(
        "an interface name, as rw0: 1 to 15 bytes, not . or .., without space / : or %",
    );
    let Scalar::Text(name) = scalar else {
        return Err(misfit);
    };
    let wrong = |character: char| {
        character.is_whitespace() || character.is_control() || "/:%".contains(character)
    };
    let length = 1..=INTERFACE_LIMIT;
    if !length.contains(&name.len()) || name == "." || name == ".." || name.contains(wrong) {
        return Err(misfit);
    }
    Ok(name.clone())
}

/// `interface` of a tap port: a name, or one in which the kernel puts the first free number for `%d`.
pub fn interface_or_pattern(scalar: &Scalar) -> Result<String, Misfit> {
    let misfit = |_| {
        Misfit::expected(
            "an interface name, as rw0 or tap%d: 1 to 15 bytes, not . or .., without space / : or \
             another %",
        )
    };
    let Scalar::Text(name) = scalar else {
        return interface(scalar).map_err(misfit);
    };
    // The smallest number has one digit, and the pattern itself has to fit too.
    let as_name = interface(&Scalar::Text(name.replacen("%d", "00", 1)));
    as_name.map(|_| name.clone()).map_err(misfit)
}

/// `interface` of a tap port whose descriptors were inherited: its name, to be checked, or nothing.
pub fn interface_or_nothing(scalar: &Scalar) -> Result<String, Misfit> {
    match scalar {
        Scalar::Text(name) if name.is_empty() => Ok(String::new()),
        scalar => interface(scalar),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Scalar {
        Scalar::Text(text.to_owned())
    }

    fn integer(digits: &str, radix: u32) -> Scalar {
        Scalar::Integer { digits: digits.to_owned(), radix }
    }

    /// The suggestion for a value that must be wrong.
    #[track_caller]
    fn suggestion<T: fmt::Debug>(result: Result<T, Misfit>) -> Option<String> {
        result.expect_err("the value is wrong").nearest
    }

    #[test]
    fn durations_have_a_unit_and_a_limit() {
        let right =
            [("0us", 0), ("7ns", 7), ("50us", 50_000), ("1ms", 1_000_000), ("1s", 1_000_000_000)];
        for (written, nanoseconds) in right {
            let duration = Duration::from_nanos(nanoseconds);
            assert_eq!(idle_spin(&text(written)), Ok(duration), "{written}");
        }
        let wrong = [
            ("50", Some("50us")),
            ("50 us", Some("50us")),
            ("50µs", Some("50us")),
            ("50usec", Some("50us")),
            ("5min", None),
            ("", None),
            ("us", None),
            ("-1us", None),
            ("1.5ms", None),
            ("1001ms", None),
            ("18446744073709551615s", None),
            ("99999999999999999999ns", None),
        ];
        for (written, nearest) in wrong {
            let suggested = suggestion(idle_spin(&text(written)));
            assert_eq!(suggested.as_deref(), nearest, "{written}");
        }
        let suggested = suggestion(idle_spin(&integer("50", 10)));
        assert_eq!(suggested.as_deref(), Some("\"50us\""));
    }

    #[test]
    fn cpu_lists_are_numbers_and_ranges() {
        assert_eq!(cpus(&text("2")), Ok(vec![2]));
        assert_eq!(cpus(&text("8,0-2,1")), Ok(vec![0, 1, 2, 8]));
        assert_eq!(cpus(&text("1023")), Ok(vec![1023]));
        assert_eq!(cpus(&integer("2", 10)), Ok(vec![2]));
        for wrong in ["", ",", "1,", "3-1", "1-", "-1", "+1", "a", "1024", "0-99999999999"] {
            assert!(cpus(&text(wrong)).is_err(), "{wrong}");
        }
        assert!(cpus(&integer("-2", 10)).is_err());
    }

    #[test]
    fn addresses_are_suggested_in_the_form_that_is_taken() {
        let near = suggestion(macs(&text("52-54-00-12-34-5A+52:54:00:12:34:5b")));
        assert_eq!(near.as_deref(), Some("52:54:00:12:34:5a+52:54:00:12:34:5b"));
        assert_eq!(suggestion(macs(&text("52-54-00-12-34-5a+vm2"))), None);
        let item = |item: &str| Value { scalar: text(item), place: Place::CommandLine };
        let list = ["52-54-00-12-34-5a", "52:54:00:12:34:5b"].map(item);
        let near = suggestion(macs(&Scalar::List(list.into())));
        assert_eq!(near.as_deref(), Some("52:54:00:12:34:5a+52:54:00:12:34:5b"));
        let near = suggestion(prefixes(&text("10.0.0.1/24+fd00::1")));
        assert_eq!(near.as_deref(), Some("10.0.0.0/24+fd00::1"));
        assert_eq!(suggestion(prefixes(&text("10.0.0.1/33"))), None);
    }

    #[test]
    fn switches_are_on_and_off() {
        assert_eq!(switch(&text("on")), Ok(true));
        assert_eq!(switch(&text("off")), Ok(false));
        assert_eq!(switch(&Scalar::Boolean(true)), Ok(true));
        assert_eq!(suggestion(switch(&text("true"))).as_deref(), Some("on"));
        assert_eq!(suggestion(switch(&text("no"))).as_deref(), Some("off"));
        assert_eq!(suggestion(switch(&text("On"))).as_deref(), Some("on"));
        assert_eq!(suggestion(switch(&text("maybe"))), None);
    }

    #[test]
    fn mtus_are_what_virtio_allows() {
        for (right, bytes) in [("68", 68), ("1500", 1500), ("65535", 65535)] {
            assert_eq!(mtu(&text(right)), Ok(bytes));
            assert_eq!(mtu(&integer(right, 10)), Ok(bytes));
        }
        assert_eq!(mtu(&integer("5dc", 16)), Ok(1500));
        for wrong in ["67", "65536", "-1500", "1500B", ""] {
            assert!(mtu(&text(wrong)).is_err(), "{wrong}");
        }
        assert!(mtu(&Scalar::Boolean(true)).is_err());
    }

    #[test]
    fn socket_modes_are_octal() {
        assert_eq!(socket_mode(&text("0660")), Ok(0o660));
        assert_eq!(socket_mode(&text("660")), Ok(0o660));
        assert_eq!(socket_mode(&text("0777")), Ok(0o777));
        assert_eq!(socket_mode(&integer("660", 8)), Ok(0o660));
        let decimal = suggestion(socket_mode(&integer("660", 10)));
        assert_eq!(decimal.as_deref(), Some("\"0660\""));
        for wrong in ["", "60", "0680", "1777", "+660", "-660", "00660", "rw-rw----"] {
            assert!(socket_mode(&text(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn groups_are_names_or_numbers() {
        assert_eq!(socket_group(&text("libvirt-qemu")), Ok("libvirt-qemu".to_owned()));
        assert_eq!(socket_group(&integer("107", 10)), Ok("107".to_owned()));
        for wrong in ["", "a b", "a:b", "-1", "a\n"] {
            assert!(socket_group(&text(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn socket_paths_fit_an_address() {
        let longest = format!("/{}", "a".repeat(106));
        assert_eq!(socket_path(&text(&longest)), Ok(PathBuf::from(&longest)));
        // The limit is in bytes: 54 characters here.
        assert!(socket_path(&text(&"é".repeat(54))).is_err());
        for wrong in ["", "/run/", "/run/a\0b"] {
            assert!(socket_path(&text(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn interfaces_are_names_the_kernel_takes() {
        assert_eq!(interface(&text("rw0")), Ok("rw0".to_owned()));
        assert!(interface(&text("a23456789012345")).is_ok());
        let wrong = ["", ".", "..", "a234567890123456", "a/b", "a b", "a:1", "rw%d", "a\0"];
        for wrong in wrong {
            assert!(interface(&text(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn captures_have_files_times_loops_and_a_length() {
        assert_eq!(file(&text("/tmp/a.pcap")), Ok(PathBuf::from("/tmp/a.pcap")));
        for wrong in ["", "/tmp/", "a\0b"] {
            assert!(file(&text(wrong)).is_err(), "{wrong}");
        }
        assert_eq!(times(&text("recorded")), Ok(Times::Recorded));
        assert_eq!(suggestion(times(&text("record"))).as_deref(), Some("recorded"));
        assert_eq!(loops(&text("forever")), Ok(None));
        assert_eq!(loops(&integer("3", 10)), Ok(Some(3)));
        assert_eq!(loops(&text("4294967295")), Ok(Some(u32::MAX)));
        assert_eq!(suggestion(loops(&text("for-ever"))).as_deref(), Some("forever"));
        for wrong in ["0", "-1", "4294967296", ""] {
            let misfit = loops(&text(wrong)).expect_err(wrong);
            assert_eq!(misfit.expected, "a number from 1 to 4294967295, or forever");
        }
        assert_eq!(snaplen(&text("262144")), Ok(MAX_CAPTURED));
        assert!(snaplen(&text("262145")).is_err());
        assert!(snaplen(&integer("0", 10)).is_err());
    }

    #[test]
    fn only_a_near_word_is_suggested() {
        let words = ["adaptive", "poll", "interrupt"];
        assert_eq!(nearest("adaptiv", words).as_deref(), Some("adaptive"));
        assert_eq!(nearest("POLL", words).as_deref(), Some("poll"));
        assert_eq!(nearest("inter", words).as_deref(), Some("interrupt"));
        assert_eq!(nearest("fast", words), None);
        assert_eq!(nearest("", words), None);
    }
}
