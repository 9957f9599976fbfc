//! A report as a page of text.

use std::time::Duration;

use crate::report::{App, Guest, Link, LinkState, Number, Port, Report, State, Traffic, Worker};

/// What there is to say of a switch: since its start, or since the look before.
pub fn page(before: Option<&Report>, now: &Report) -> String {
    let empty = Report::default();
    let past = before.unwrap_or(&empty);
    let time = now.uptime().saturating_sub(past.uptime());
    let view = View { past, now, seconds: time.as_secs_f64(), is_rate: before.is_some() };
    let since = match before {
        Some(_) => format!("in the last {:.1} s", time.as_secs_f64()),
        None => "since its start".to_owned(),
    };
    let head = format!(
        "ringway {}, process {}, up {}; {since}:\n",
        now.version,
        now.process,
        duration(now.uptime())
    );
    let sections = [
        head,
        view.workers(),
        view.ports(),
        view.guests(),
        view.links(),
        view.numbers(),
        view.drops(),
        view.failed(),
    ];
    let sections: Vec<_> = sections.into_iter().filter(|section| !section.is_empty()).collect();
    sections.join("\n")
}

struct View<'r> {
    past: &'r Report,
    now: &'r Report,
    seconds: f64,
    /// Amounts are given for each second.
    is_rate: bool,
}

impl View<'_> {
    /// An amount that grew from `past`: for each second, or as it is.
    fn amount(&self, past: u64, now: u64) -> String {
        let grown = now.saturating_sub(past);
        if self.is_rate { rate(grown as f64, self.seconds) } else { grown.to_string() }
    }

    fn per(&self, what: &str) -> String {
        if self.is_rate { format!("{what}/s") } else { what.to_owned() }
    }

    fn workers(&self) -> String {
        let head = ["worker", "load", "frames", "breaths", "busy", "frames/busy breath"];
        let times = ["half under", "99 % under", "all under", "sleeps"];
        let head = head.into_iter().chain(times).map(|name| match name {
            "frames" | "breaths" | "sleeps" => self.per(name),
            name => name.to_owned(),
        });
        let mut rows = vec![head.collect()];
        for (number, worker) in self.now.workers.iter().enumerate() {
            let past = self.past.workers.get(number).cloned().unwrap_or_default();
            rows.push(self.worker(number, &past, worker));
        }
        table(&rows, 1)
    }

    fn worker(&self, number: usize, past: &Worker, now: &Worker) -> Vec<String> {
        let grown = |of: fn(&Worker) -> u64| of(now).saturating_sub(of(past)) as f64;
        let busy = grown(|worker| worker.busy_breaths);
        let times = grown_by(&past.breath_times, &now.breath_times);
        vec![
            number.to_string(),
            percent(grown(|worker| worker.cpu_ns) / 1e9, self.seconds),
            self.amount(past.frames, now.frames),
            self.amount(past.breaths, now.breaths),
            percent(busy, grown(|worker| worker.breaths)),
            share(grown(|worker| worker.frames), busy).map_or("-".into(), |n| format!("{n:.1}")),
            took_less(&times, 0.5),
            took_less(&times, 0.99),
            took_less(&times, 1.0),
            self.amount(past.sleeps, now.sleeps),
        ]
    }

    fn ports(&self) -> String {
        let (frames, bits) = match self.is_rate {
            true => ("frame/s", "bit/s"),
            false => ("frames", "bytes"),
        };
        let head = ["port", "type", "link", "MTU"].map(str::to_owned).into_iter();
        let amounts = ["received", "sent"].map(|way| [format!("{way} {frames}"), bits.to_owned()]);
        let dropped = self.per("dropped");
        let mut rows = vec![head.chain(amounts.into_iter().flatten()).chain([dropped]).collect()];
        let nothing = App::default();
        for Port { name, link, mtu, .. } in &self.now.ports {
            let now = self.now.app(name).unwrap_or(&nothing);
            let past = self.past.app(name).unwrap_or(&nothing);
            let link = match link {
                Some(LinkState::Up) => "up",
                Some(LinkState::Down) => "down",
                None => "-",
            };
            let mtu = mtu.map_or("-".to_owned(), |mtu| mtu.to_string());
            let mut row = vec![name.clone(), now.kind.clone(), link.to_owned(), mtu];
            row.extend(self.traffic(past.received, now.received));
            row.extend(self.traffic(past.sent, now.sent));
            row.push(self.amount(past.drops.values().sum(), now.drops.values().sum()));
            rows.push(row);
        }
        table(&rows, 3)
    }

    fn traffic(&self, past: Traffic, now: Traffic) -> [String; 2] {
        // Bytes in all, and bits in a second.
        let bytes = if self.is_rate { 8 } else { 1 };
        [self.amount(past.frames, now.frames), self.amount(bytes * past.bytes, bytes * now.bytes)]
    }

    fn guests(&self) -> String {
        let guests = self.now.ports.iter().filter_map(|port| Some((port, port.guest.as_ref()?)));
        let line = |(port, guest): (&Port, &Guest)| {
            let rings = guest.rings.iter();
            let fill: Vec<_> =
                rings.map(|ring| format!("{}/{}", ring.waiting, ring.size)).collect();
            let held: u64 = guest.rings.iter().map(|ring| u64::from(ring.outstanding)).sum();
            let regions = guest.memory_regions;
            let several = if regions == 1 { "" } else { "s" };
            format!(
                "guest of {}: {} of memory in {regions} region{several}; rings {}, {held} held\n  {}\n",
                port.name,
                size(guest.memory_bytes),
                fill.join(" "),
                guest.features.join(" "),
            )
        };
        guests.map(line).collect()
    }

    /// The links that something went by.
    fn links(&self) -> String {
        let (frames, bits) = match self.is_rate {
            true => ("frame/s", "bit/s"),
            false => ("frames", "bytes"),
        };
        let mut rows = vec![["link", "", frames, bits].map(str::to_owned).to_vec()];
        for link @ Link { from, to, traffic, .. } in &self.now.links {
            let is_same = |past: &&Link| (&past.from, &past.to) == (&link.from, &link.to);
            let past = self.past.links.iter().find(is_same);
            let past = past.map(|past| past.traffic).unwrap_or_default();
            if traffic.frames > past.frames {
                let [frames, bits] = self.traffic(past, *traffic);
                rows.push(vec![from.clone(), format!("-> {to}"), frames, bits]);
            }
        }
        if rows.len() == 1 {
            return "nothing went by any link\n".to_owned();
        }
        table(&rows, 2)
    }

    /// What apps say of themselves, as it is now.
    fn numbers(&self) -> String {
        let apps = self.now.apps.iter().filter(|app| !app.own.is_empty());
        let row = |app: &App| {
            let phrases: Vec<_> = app.own.iter().map(phrase).collect();
            vec![app.name.clone(), phrases.join(", ")]
        };
        let rows: Vec<_> = apps.map(row).collect();
        if rows.is_empty() {
            return String::new();
        }
        let head = ["app", "has now"].map(str::to_owned).to_vec();
        table(&[vec![head], rows].concat(), 2)
    }

    /// Why frames were dropped, the most frequent reason of an app first.
    fn drops(&self) -> String {
        let mut rows = Vec::new();
        let nothing = App::default();
        for now in &self.now.apps {
            let past = self.past.app(&now.name).unwrap_or(&nothing);
            let grown = now.drops.iter().map(|(reason, count)| {
                (reason, past.drops.get(reason).copied().unwrap_or(0), *count)
            });
            let mut grown: Vec<_> = grown.filter(|(_, past, count)| count > past).collect();
            grown.sort_by_key(|(_, past, count)| std::cmp::Reverse(count - past));
            rows.extend(grown.into_iter().map(|(reason, past, count)| {
                vec![now.name.clone(), reason.clone(), self.amount(past, count)]
            }));
        }
        if rows.is_empty() {
            return "nothing was dropped\n".to_owned();
        }
        rows.insert(0, vec!["dropped by".to_owned(), "reason".to_owned(), self.per("frames")]);
        table(&rows, 2)
    }

    /// The apps that do not run.
    fn failed(&self) -> String {
        let failed = self.now.apps.iter().filter(|app| app.state == State::Failed);
        failed.map(|app| format!("{} has failed, and is to be started again\n", app.name)).collect()
    }
}

/// Columns, of which the first few are words, and begin at the left.
fn table(rows: &[Vec<String>], words: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, &width))| {
            if column < words { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// A number as it is read: `3 frames waiting`.
fn phrase(Number { value, unit, name }: &Number) -> String {
    let space = if unit.is_empty() { "" } else { " " };
    format!("{value}{space}{unit} {name}")
}

/// How often something took how long since: nanoseconds that some took less than, and how many those were.
fn grown_by(past: &[(u64, u64)], now: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let grown = |(limit, count): &(u64, u64)| {
        let past = past.iter().find(|(other, _)| other == limit).map_or(0, |(_, count)| *count);
        (*limit, count.saturating_sub(past))
    };
    now.iter().map(grown).filter(|(_, count)| *count > 0).collect()
}

/// Less than what time such a share of all took.
fn took_less(times: &[(u64, u64)], share: f64) -> String {
    let total: u64 = times.iter().map(|(_, count)| count).sum();
    let wanted = (total as f64 * share).ceil() as u64;
    let mut so_far = 0;
    let limit = times.iter().find(|(_, count)| {
        so_far += count;
        so_far >= wanted
    });
    limit.map_or("-".to_owned(), |(limit, _)| short_time(*limit))
}

/// Nanoseconds in two digits or three.
fn short_time(nanoseconds: u64) -> String {
    let time = nanoseconds as f64;
    let units = [(1e9, "s"), (1e6, "ms"), (1e3, "us")];
    match units.into_iter().find(|(unit, _)| time >= *unit) {
        Some((unit, name)) if time < 10.0 * unit => format!("{:.1} {name}", time / unit),
        Some((unit, name)) => format!("{:.0} {name}", time / unit),
        None => format!("{nanoseconds} ns"),
    }
}

fn share(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

fn percent(part: f64, whole: f64) -> String {
    share(part, whole).map_or("-".to_owned(), |share| format!("{:.1} %", 100.0 * share))
}

/// An amount for each second, with a prefix that leaves three or four digits of it.
fn rate(amount: f64, seconds: f64) -> String {
    let Some(rate) = share(amount, seconds) else { return "-".to_owned() };
    let units = [(1e9, " G"), (1e6, " M"), (1e3, " k")];
    match units.into_iter().find(|(unit, _)| rate >= *unit) {
        Some((unit, name)) => format!("{:.2}{name}", rate / unit),
        None if rate == 0.0 || rate >= 100.0 => format!("{rate:.0}"),
        None => format!("{rate:.1}"),
    }
}

/// Bytes of memory.
fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) if bytes.is_multiple_of(unit) => format!("{} {name}", bytes / unit),
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

/// A time, in its two largest units.
fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests;
