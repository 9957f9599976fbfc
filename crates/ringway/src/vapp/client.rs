//! The client of the reference pair: a front end whose guest sends frames and expects them back.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use guest::{Guest, GuestError, Options};
use vhost_user::{Direction, FrontEnd};
use wire::virtio::NetHeader;

use super::cli::Client;
use super::dump::Dump;
use super::frame::Kind;
use super::{Stopping, socket};

/// A frame that is not back by then is lost.
const LOST: Duration = Duration::from_secs(1);
/// Frames on their way, if there is no rate.
const WINDOW: usize = 64;
/// Receive buffers' worth of frames on their way at most. They fit the ring of 256.
const MOST: usize = 192;
/// How often to look whether the back end is still there, and whether it is time to stop.
const LOOK: Duration = Duration::from_millis(50);
/// How often to say how it goes.
const REPORT: Duration = Duration::from_secs(1);
/// Round trips that are kept for one report, to find the median of.
const SAMPLES: usize = 100_000;

/// Runs the client until it is done, or told to stop.
pub fn run(flags: &Client, stopping: &Stopping) -> anyhow::Result<()> {
    let place = flags.path.display();
    let dump = flags.dump.then(|| Dump::new(stopping));
    let mut guest = connect(flags, dump.as_ref())?;
    let (kind, most) = (flags.kind(), guest.driver().max_frame());
    ensure!(kind.size() <= most, "a frame may have {most} bytes at most");
    say(&format!("connected to {place}, features {}", guest.driver().features()))?;
    let mut check = Check::new(kind);
    let result = exchange(flags, &mut guest, &mut check, dump.as_ref(), stopping);
    say(&check.total.summary(check.in_flight.len()))?;
    result.with_context(|| format!("the back end at {place}"))?;
    if flags.verify && !check.total.is_flawless() {
        bail!("not every frame came back once, in order and as it was sent");
    }
    Ok(())
}

/// Connects to the back end, or says in plain words why that cannot be done.
fn connect(flags: &Client, dump: Option<&Dump>) -> anyhow::Result<Guest> {
    let place = flags.path.display();
    let mut front_end = FrontEnd::connect(&flags.path, socket::LIMIT)?;
    if let Some(dump) = dump {
        front_end.observe(dump.messages());
    }
    let options =
        Options { features: flags.features(), limit: socket::LIMIT, ..Options::default() };
    Guest::start(front_end, &options).map_err(|error| {
        let is_foreign = matches!(&error, GuestError::FrontEnd(error) if error.is_foreign());
        let hint = if is_foreign { ", which does not look like a vhost-user back end" } else { "" };
        let context = format!("cannot use what listens at {place}{hint}");
        anyhow::Error::from(error).context(context)
    })
}

/// One line on standard output.
fn say(line: &str) -> std::io::Result<()> {
    writeln!(std::io::stdout(), "{line}")
}

/// Sends frames and takes those that come back, until all are back or lost.
fn exchange(
    flags: &Client,
    guest: &mut Guest,
    check: &mut Check,
    dump: Option<&Dump>,
    stopping: &Stopping,
) -> anyhow::Result<()> {
    let mut pace = Pace::new(flags, guest.driver().receive_buffers(check.kind.size()));
    let mut frame = Vec::new();
    let mut report = Report::new(pace.start);
    let mut looked = pace.start;
    loop {
        let mut came = false;
        let now = Instant::now();
        // As many as there are buffers for, so that we also send.
        for _ in 0..MOST {
            let taken = guest.driver().receive(|received| {
                if let Some(dump) = dump {
                    dump.frame(Direction::Received, Ok(received.header), received.frame);
                }
                check.take(received.frame, now)
            })?;
            let Some(round_trip) = taken else { break };
            report.add(round_trip);
            came = true;
        }
        check.give_up(now);
        guest.driver().reclaim()?;
        while pace.may_send(check.in_flight.len(), now) {
            check.kind.write(&mut frame, pace.sent);
            if !guest.driver().send(NetHeader::default(), &frame)? {
                break;
            }
            if let Some(dump) = dump {
                dump.frame(Direction::Sent, Ok(NetHeader::default()), &frame);
            }
            check.sent(pace.sent, now);
            pace.sent += 1;
        }
        guest.flush();
        if pace.is_over() && check.in_flight.is_empty() {
            return Ok(());
        }
        if let Some(line) = report.due(now, &check.total) {
            say(&line)?;
        }
        if !came {
            let limit = pace.next().map_or(LOOK, |next| next.saturating_duration_since(now));
            guest.wait(limit.min(LOOK))?;
        }
        if now - looked >= LOOK {
            looked = now;
            let [is_gone, stopped] = stopping.wait_for(guest.front_end(), Some(Duration::ZERO))?;
            // Nobody talks to us unless we have asked.
            ensure!(!is_gone, "closed the connection");
            if stopped {
                return Ok(());
            }
        }
    }
}

/// When to send.
struct Pace {
    start: Instant,
    /// Frames that were sent.
    sent: u64,
    count: Option<u64>,
    /// Between two frames; none if frames follow those that come back.
    interval: Option<Duration>,
    /// Frames that may be on their way.
    window: usize,
}

impl Pace {
    fn new(flags: &Client, buffers: usize) -> Self {
        let most = (MOST / buffers.max(1)).max(1);
        let interval = flags.rate.map(|rate| Duration::from_secs(1) / rate);
        let window = if interval.is_some() { most } else { most.min(WINDOW) };
        Self { start: Instant::now(), sent: 0, count: flags.count, interval, window }
    }

    fn is_over(&self) -> bool {
        self.count.is_some_and(|count| self.sent >= count)
    }

    /// When the next frame is to go, if that is known.
    fn next(&self) -> Option<Instant> {
        let due = |interval: Duration| {
            // Not by multiplication with a u32, which would end after 2^32 frames.
            self.start + Duration::from_secs_f64(interval.as_secs_f64() * self.sent as f64)
        };
        self.interval.filter(|_| !self.is_over()).map(due)
    }

    fn may_send(&self, in_flight: usize, now: Instant) -> bool {
        let is_due = self.next().is_none_or(|next| next <= now);
        is_due && !self.is_over() && in_flight < self.window
    }
}

/// What became of the frames.
#[derive(Debug, Default, PartialEq, Eq)]
struct Total {
    sent: u64,
    back: u64,
    lost: u64,
    damaged: u64,
    /// Came after one that was sent later.
    reordered: u64,
    /// Came twice, or after it was given up.
    surplus: u64,
    /// None of ours.
    foreign: u64,
    fastest: Option<Duration>,
    slowest: Duration,
    round_trips: Duration,
}

impl Total {
    fn is_flawless(&self) -> bool {
        self.lost + self.damaged + self.reordered + self.surplus == 0
    }

    fn summary(&self, in_flight: usize) -> String {
        let mut text = format!(
            "{} frames sent, {} came back, {} lost, {} damaged, {} out of order, {} surplus",
            self.sent, self.back, self.lost, self.damaged, self.reordered, self.surplus
        );
        if self.foreign > 0 {
            text += &format!(", {} of others", self.foreign);
        }
        if in_flight > 0 {
            text += &format!(", {in_flight} still on their way");
        }
        if let Some(fastest) = self.fastest {
            let mean = self.round_trips.as_secs_f64() / self.back as f64;
            let (mean, slowest) = (Duration::from_secs_f64(mean), self.slowest);
            text += &format!(
                "; round trip min/mean/max {}/{}/{} us",
                Micros(fastest),
                Micros(mean),
                Micros(slowest)
            );
        }
        text
    }
}

/// A time in microseconds.
struct Micros(Duration);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}", self.0.as_secs_f64() * 1e6)
    }
}

/// Compares what comes with what was sent.
struct Check {
    kind: Kind,
    /// Numbers of frames on their way, and when they were sent.
    in_flight: VecDeque<(u64, Instant)>,
    /// The highest number that came, and one.
    next: u64,
    expected: Vec<u8>,
    total: Total,
}

impl Check {
    fn new(kind: Kind) -> Self {
        let total = Total::default();
        Self { kind, in_flight: VecDeque::new(), next: 0, expected: Vec::new(), total }
    }

    fn sent(&mut self, number: u64, now: Instant) {
        self.total.sent += 1;
        self.in_flight.push_back((number, now));
    }

    /// Judges a frame that came. Its round trip, if it is one of those that were waited for.
    fn take(&mut self, frame: &[u8], now: Instant) -> Option<Duration> {
        let place = if self.kind.is_answer(frame) {
            // It does not say which question it answers.
            (!self.in_flight.is_empty()).then_some(0)
        } else {
            let Some(number) = self.kind.number(frame) else {
                self.total.foreign += 1;
                return None;
            };
            self.kind.write(&mut self.expected, number);
            self.in_flight.iter().position(|(other, _)| *other == number)
        };
        let Some((number, sent)) = place.and_then(|place| self.in_flight.remove(place)) else {
            self.total.surplus += 1;
            return None;
        };
        if !self.kind.is_answer(frame) && frame != self.expected {
            self.total.damaged += 1;
        }
        if number < self.next {
            self.total.reordered += 1;
        }
        self.next = self.next.max(number + 1);
        let round_trip = now.saturating_duration_since(sent);
        self.total.back += 1;
        self.total.round_trips += round_trip;
        self.total.slowest = self.total.slowest.max(round_trip);
        let fastest = self.total.fastest.unwrap_or(round_trip);
        self.total.fastest = Some(fastest.min(round_trip));
        Some(round_trip)
    }

    /// Waits no more for what has been on its way for too long.
    fn give_up(&mut self, now: Instant) {
        let is_late = |(_, sent): &mut (u64, Instant)| now.saturating_duration_since(*sent) > LOST;
        while self.in_flight.pop_front_if(is_late).is_some() {
            self.total.lost += 1;
        }
    }
}

/// One line a second.
struct Report {
    start: Instant,
    last: Instant,
    back: u64,
    samples: Vec<Duration>,
}

impl Report {
    fn new(start: Instant) -> Self {
        Self { start, last: start, back: 0, samples: Vec::new() }
    }

    fn add(&mut self, round_trip: Option<Duration>) {
        if self.samples.len() < SAMPLES {
            self.samples.extend(round_trip);
        }
    }

    /// The line, if it is time for it.
    fn due(&mut self, now: Instant, total: &Total) -> Option<String> {
        let elapsed = now - self.last;
        if elapsed < REPORT {
            return None;
        }
        let rate = (total.back - self.back) as f64 / elapsed.as_secs_f64();
        self.samples.sort_unstable();
        let at = |percent: usize| self.samples.get(self.samples.len() * percent / 100);
        let round_trip = match (at(50), at(99)) {
            (Some(median), Some(slow)) => {
                format!("round trip p50 {} us, p99 {} us", Micros(*median), Micros(*slow))
            }
            _ => "nothing came back".to_owned(),
        };
        let line = format!(
            "{:5.0} s {rate:12.0} frames/s   {round_trip}   lost {}   damaged {}",
            (now - self.start).as_secs_f64(),
            total.lost,
            total.damaged
        );
        (self.last, self.back) = (now, total.back);
        self.samples.clear();
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind::Numbered { size: 100 };

    /// Frames 0 to 3 on their way since `start`.
    fn four(start: Instant) -> Check {
        let mut check = Check::new(KIND);
        (0..4).for_each(|number| check.sent(number, start));
        check
    }

    fn frame(number: u64) -> Vec<u8> {
        let mut frame = Vec::new();
        KIND.write(&mut frame, number);
        frame
    }

    #[test]
    fn what_comes_back_as_it_was_sent_is_flawless() {
        let start = Instant::now();
        let mut check = four(start);
        for number in 0..4 {
            let later = start + Duration::from_micros(10 + number);
            assert_eq!(check.take(&frame(number), later), Some(later - start));
        }
        assert!(check.total.is_flawless() && check.in_flight.is_empty());
        assert_eq!(
            check.total.summary(0),
            "4 frames sent, 4 came back, 0 lost, 0 damaged, 0 out of order, 0 surplus; round trip \
             min/mean/max 10.0/11.5/13.0 us"
        );
    }

    #[test]
    fn every_flaw_is_counted_as_what_it_is() {
        let start = Instant::now();
        let mut check = four(start);
        check.take(&frame(1), start);
        check.take(&frame(0), start);
        assert_eq!(check.total.reordered, 1);
        check.take(&frame(1), start);
        assert_eq!(check.total.surplus, 1);
        for at in [30, 99] {
            let mut damaged = frame(2);
            damaged[at] ^= 1;
            let mut check = four(start);
            check.take(&damaged, start);
            assert_eq!((check.total.damaged, check.total.back), (1, 1), "byte {at}");
            assert!(!check.total.is_flawless());
        }
        let mut check_short = four(start);
        check_short.take(&frame(2)[..99], start);
        assert_eq!(check_short.total.damaged, 1);
        check.take(&[0xff; 60], start);
        assert_eq!(check.total.foreign, 1);
        check.give_up(start + LOST);
        assert_eq!(check.total.lost, 0);
        check.give_up(start + LOST + Duration::from_millis(1));
        assert_eq!((check.total.lost, check.in_flight.len()), (2, 0));
        check.take(&frame(2), start);
        assert_eq!(check.total.surplus, 2, "late");
        assert!(!check.total.is_flawless());
    }

    #[test]
    fn one_line_a_second() {
        let start = Instant::now();
        let mut report = Report::new(start);
        let total = Total { sent: 200, back: 100, lost: 3, ..Total::default() };
        (1..=100).for_each(|time| report.add(Some(Duration::from_micros(time))));
        assert_eq!(report.due(start + Duration::from_millis(999), &total), None);
        assert_eq!(
            report.due(start + Duration::from_secs(2), &total).as_deref(),
            Some(
                "    2 s           50 frames/s   round trip p50 51.0 us, p99 100.0 us   lost 3   \
                 damaged 0"
            )
        );
        let line = report.due(start + Duration::from_secs(3), &total).unwrap();
        assert!(line.contains("nothing came back"), "{line}");
    }
}
