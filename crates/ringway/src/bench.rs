//! `ringway bench`: loads any vhost-user back end, and reports what came of it.
//!
//! The load itself is made by [`guest::load`], on a thread of its own. Here is what is around it: which
//! trials there are, the progress line, and the report as a table, as JSON and as a plot.

mod options;
mod plot;
mod report;

use std::cell::RefCell;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use guest::load::{
    Generator, Load, LoadError, Pace, Port, PortOptions, Progress, Search, Setup, no_drop_rate,
};
use rustix::thread::{CpuSet, sched_setaffinity};
use tokio::sync::{mpsc, oneshot};
use wire::virtio::Features;

use crate::Stop;
pub use options::Options;
use options::{MAX_RATE, Size};
use report::{Found, Results, Trial};

/// How long a back end may take for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How often the progress line is drawn anew.
const REDRAW: Duration = Duration::from_millis(200);
/// How long the load may take to end when it is told to: frames under way are waited for.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How much faster than the closed loop a search begins.
const HEADROOM: f64 = 1.25;

/// What the load's thread has to say.
enum Event {
    /// All ports are there; what was agreed on with each.
    Connected(Vec<Features>),
    /// A trial begins.
    Begin { what: String, time: Duration },
    /// It is over.
    End(Box<Trial>),
    /// A search is over.
    Found(Found),
}

/// Runs the load, about as long as all trials take.
pub async fn bench(options: Options, stop: &mut Stop) -> anyhow::Result<()> {
    options.check()?;
    // Before the first trial: when all are through, it is late to learn that there can be no such file.
    let cannot_write = |path: &Path| format!("cannot write {}", path.display());
    let plot = match options.plot.clone() {
        Some(path) => {
            let file = File::create(&path).with_context(|| cannot_write(&path))?;
            Some((path, file))
        }
        None => None,
    };
    let options = Arc::new(options);
    let progress = Arc::new(Progress::default());
    let (events, mut came) = mpsc::unbounded_channel();
    let (done, mut is_done) = oneshot::channel();
    {
        let (options, progress) = (options.clone(), progress.clone());
        let thread = std::thread::Builder::new().name("load".to_owned());
        let run = move || {
            // Nobody listens only when the program is about to end.
            let _ = done.send(run(&options, &progress, &events));
        };
        thread.spawn(run).context("cannot start the load's thread")?;
    }

    let mut out = std::io::stdout();
    let mut results = Results::default();
    let mut line = ProgressLine::default();
    let mut redraw = tokio::time::interval(REDRAW);
    let mut deadline = None;
    let ended = loop {
        tokio::select! {
            biased;
            Some(event) = came.recv() => {
                line.clear();
                match event {
                    Event::Connected(features) => {
                        results.features = features;
                        if !options.json {
                            writeln!(out, "{}\n", results.heading(&options))?;
                        }
                    }
                    Event::Begin { what, time } => line.begin(what, time),
                    Event::End(trial) => {
                        if !options.json {
                            write!(out, "{}", trial.rows(results.trials.is_empty()))?;
                        }
                        results.trials.push(*trial);
                    }
                    Event::Found(found) => {
                        if !options.json {
                            writeln!(out, "{found}\n")?;
                        }
                        results.found.push(found);
                    }
                }
            }
            ended = &mut is_done => break ended,
            () = stop.asked(), if deadline.is_none() => {
                deadline = Some(tokio::time::Instant::now() + STOP_LIMIT);
                progress.stop.store(true, Ordering::Relaxed);
            }
            () = tokio::time::sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)),
                if deadline.is_some() =>
            {
                bail!("the load did not end within {STOP_LIMIT:?}");
            }
            _ = redraw.tick() => line.draw(&progress),
        }
    };
    line.clear();
    // What was measured before something went wrong is worth as much as ever.
    if options.json {
        writeln!(out, "{:#}", results.json(&options))?;
    }
    if let Some((path, mut file)) = plot
        && !results.trials.is_empty()
    {
        let drawn = plot::svg(&results.trials);
        file.write_all(drawn.as_bytes()).with_context(|| cannot_write(&path))?;
    }
    ended.map_err(|_| anyhow!("the load's thread panicked: that is a bug"))??;
    results.verdict(&options)
}

/// The load's thread: all trials, one after the other.
fn run(
    options: &Options,
    progress: &Progress,
    events: &mpsc::UnboundedSender<Event>,
) -> anyhow::Result<()> {
    if let Some(cpu) = options.cpu {
        ensure!(cpu < CpuSet::MAX_CPU, "there is no CPU {cpu}");
        let mut set = CpuSet::new();
        set.set(cpu);
        sched_setaffinity(None, &set).with_context(|| format!("cannot run on CPU {cpu}"))?;
    }
    let generator = connect(options)?;
    let tell = |event| {
        let _ = events.send(event);
    };
    tell(Event::Connected(generator.ports().iter().map(Port::features).collect()));
    let windows = options.sizes.iter().map(|size| window(options, &generator, *size));
    let windows: Vec<usize> = windows.collect();
    let generator = RefCell::new(generator);
    let load = |size: Size, pace: Pace, seconds: f64| {
        let setup = Setup {
            frames: size.frames(),
            addresses: options.addresses(),
            verify: options.verify,
            one_way: options.one_way,
        };
        let load = Load { setup, pace, time: Duration::from_secs_f64(seconds) };
        progress.sent.store(0, Ordering::Relaxed);
        progress.received.store(0, Ordering::Relaxed);
        let report = generator.borrow_mut().run(&load, progress).map_err(said)?;
        Ok::<_, anyhow::Error>((load, report))
    };
    let trial = |size: Size, pace: Pace| -> anyhow::Result<Option<Trial>> {
        let time = Duration::from_secs_f64(options.seconds);
        tell(Event::Begin { what: format!("{size} bytes, {}", report::pace(pace)), time });
        let (load, report) = load(size, pace, options.seconds)?;
        let interrupted = report.interrupted;
        let trial = Trial { size, mean: load.setup.frames.mean(), pace, report };
        tell(Event::End(Box::new(trial.clone())));
        Ok((!interrupted).then_some(trial))
    };
    for (size, window) in options.sizes.iter().copied().zip(windows) {
        let closed = Pace::Window(window);
        if options.warm_up > 0.0 {
            // Pages are touched, caches and branch predictors filled, sleepers woken.
            load(size, closed, options.warm_up)?;
        }
        if options.search {
            let (first, most) = match options.rates.first() {
                Some(rate) => (rate.0, rate.0),
                None => {
                    let Some(first) = trial(size, closed)? else { return Ok(()) };
                    (HEADROOM * first.fastest_way(), MAX_RATE)
                }
            };
            ensure!(first >= 1.0, "{size}: no frame came back, so there is no rate to search for");
            let search = Search { first, most, resolution: options.resolution / 100.0 };
            let (mut whole, mut lowest_failed) = (true, None);
            let rate = no_drop_rate(search, |rate| {
                let Some(trial) = trial(size, Pace::Rate(rate))? else {
                    whole = false;
                    return Ok(None);
                };
                let passed = trial.passed();
                if !passed {
                    lowest_failed = Some(trial);
                }
                Ok::<_, anyhow::Error>(Some(passed))
            })?;
            if !whole {
                return Ok(());
            }
            tell(Event::Found(Found {
                mean: size.frames().mean(),
                size,
                rate,
                resolution: options.resolution,
                is_highest: lowest_failed.is_none(),
                limited: lowest_failed.is_some_and(|trial| trial.may_be_limited()),
            }));
        } else if options.rates.is_empty() {
            if trial(size, closed)?.is_none() {
                return Ok(());
            }
        } else {
            for rate in &options.rates {
                if trial(size, Pace::Rate(rate.0))?.is_none() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Frames that are under way each way in a closed loop.
fn window(options: &Options, generator: &Generator, size: Size) -> usize {
    let longest = size.frames().longest();
    let fits = generator.ports().iter().map(|port| port.window(longest)).min();
    options.window.unwrap_or(match fits {
        Some(fits) if !options.is_sink() => (fits * 3 / 4).max(1),
        // The ring is the window, where nothing comes back.
        _ => options.ring_size.into(),
    })
}

/// Connects all ports.
fn connect(options: &Options) -> anyhow::Result<Generator> {
    let longest = options.sizes.iter().map(|size| size.frames().longest()).max();
    let port_options = PortOptions {
        required: options.required(),
        wanted: options.required() | options.wanted(),
        ring_size: options.ring_size,
        longest: longest.unwrap_or_default(),
        limit: ANSWER_LIMIT,
    };
    let ports = options.ports.iter().map(|path| Port::connect(path, &port_options));
    Ok(Generator::new(ports.collect::<Result<_, _>>().map_err(said)?))
}

/// An error, and what may be behind it.
fn said(error: LoadError) -> anyhow::Error {
    match &error {
        LoadError::FrontEnd { cause, .. } if cause.is_foreign() => {
            anyhow!("{error}; this does not look like a vhost-user back end")
        }
        _ => error.into(),
    }
}

/// The line that shows how a trial gets on; nothing, where nobody watches.
#[derive(Default)]
struct ProgressLine {
    trial: Option<(String, Instant, Duration)>,
}

impl ProgressLine {
    fn begin(&mut self, what: String, time: Duration) {
        self.trial = Some((what, Instant::now(), time));
    }

    fn draw(&self, progress: &Progress) {
        let Some((what, start, time)) = &self.trial else { return };
        let elapsed = start.elapsed();
        let rate = |count: u64| count as f64 / elapsed.as_secs_f64().max(1e-9) / 1e6;
        let sent = rate(progress.sent.load(Ordering::Relaxed));
        let received = rate(progress.received.load(Ordering::Relaxed));
        let left = time.saturating_sub(elapsed).as_secs_f64();
        Self::show(&format!(
            "{what}: {sent:.3} M/s sent, {received:.3} M/s received, {left:.1} s left"
        ));
    }

    fn clear(&self) {
        Self::show("");
    }

    fn show(line: &str) {
        let mut stderr = std::io::stderr();
        if stderr.is_terminal() {
            let _ = write!(stderr, "\r{line}\x1b[K");
            let _ = stderr.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[tokio::test]
    async fn a_plot_that_cannot_be_is_said_before_the_first_trial() {
        // There is no such socket either.
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let (socket, file) = (path("none.sock"), path("none/x.svg"));
        let line = Line::parse_from(["bench", &socket, "--size", "64,128", "--plot", &file]);
        let error = bench(line.options, &mut Stop::new().unwrap()).await.unwrap_err();
        assert_eq!(error.to_string(), format!("cannot write {file}"));
    }
}
