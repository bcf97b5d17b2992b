//! Memory and processor of the processes of a run, twice a second: this one, the kernel's sockets,
//! and the servers that `--observe` names. For the report's predicted and measured; it judges nothing.

use std::{
    fs,
    str::FromStr,
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const EVERY: Duration = Duration::from_millis(500);
/// A metrics page that does not come in time is left out of its second.
const PAGE_MAX: Duration = Duration::from_millis(400);
/// Samples kept; then every second one is dropped, as a run so long is seen well enough.
const SAMPLES_MAX: usize = 20_000;
/// A page of metrics is some kilobytes.
const PAGE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// What a server is, which says what the ledger knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// A gateway.
    Gateway,
    /// A logic process.
    Logic,
    /// Both in one process, as `millrace dev` is.
    Both,
}

/// A server to look at: `gateway=1234`, `logic=1234`, `both=1234`, `gateway=http://127.0.0.1:9600/metrics`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// What it is.
    pub tier: Tier,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Process(u32),
    Metrics(String),
}

impl FromStr for Observed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{text}: write gateway=, logic= or both= and a process id or the URL of its metrics"
            )
        };
        let (name, place) = text.split_once('=').ok_or_else(bad)?;
        let tier = match name.trim() {
            "gateway" => Tier::Gateway,
            "logic" => Tier::Logic,
            "both" => Tier::Both,
            _ => return Err(bad()),
        };
        let place = place.trim();
        let place = if place.starts_with("http://") {
            Place::Metrics(place.to_owned())
        } else {
            Place::Process(place.parse().map_err(|_| bad())?)
        };
        Ok(Self { tier, place })
    }
}

/// Memory and processor of a process until now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Resident memory.
    pub resident_bytes: f64,
    /// User and system time.
    pub cpu_seconds: f64,
}

/// A moment of the run.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    /// On the wall clock.
    pub unix_ms: i64,
    /// This process.
    pub own: Usage,
    /// The kernel's slab, in which its sockets lie.
    pub slab_bytes: f64,
    /// The servers, in the order of the arguments; `None`: not to be read then.
    pub servers: Vec<Option<Usage>>,
}

/// All moments of a run, and what the servers are.
#[derive(Clone, Debug, Default)]
pub struct Observations {
    /// What was looked at.
    pub tiers: Vec<Tier>,
    /// In the order of time.
    pub moments: Vec<Moment>,
}

impl Observations {
    /// The last moment at or before a point on the wall clock, else the first.
    pub fn at(&self, unix_ms: i64) -> Option<&Moment> {
        let after = self.moments.partition_point(|moment| moment.unix_ms <= unix_ms);
        self.moments.get(after.saturating_sub(1))
    }
}

/// Looks until it is finished.
pub struct Observer {
    moments: Arc<Mutex<Vec<Moment>>>,
    tiers: Vec<Tier>,
    stop: mpsc::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    /// Starts to look; the first moment is taken before it returns.
    pub fn start(servers: &[Observed]) -> Self {
        let moments = Arc::new(Mutex::new(vec![moment(servers)]));
        let (stop, stopped) = mpsc::channel();
        let (into, servers_there) = (moments.clone(), servers.to_vec());
        let look = move || {
            let mut every = EVERY;
            while stopped.recv_timeout(every) == Err(mpsc::RecvTimeoutError::Timeout) {
                let now = moment(&servers_there);
                let mut moments = into.lock().expect("nobody panics while it holds this");
                moments.push(now);
                if moments.len() > SAMPLES_MAX {
                    let mut number = 0;
                    moments.retain(|_| {
                        number += 1;
                        number % 2 == 1
                    });
                    every *= 2;
                }
            }
        };
        // Without it the report has predictions alone.
        let thread = std::thread::Builder::new().name("observer".to_owned()).spawn(look).ok();
        Self { moments, tiers: servers.iter().map(|server| server.tier).collect(), stop, thread }
    }

    /// Ends the looking.
    pub fn finish(mut self) -> Observations {
        // The thread may be gone already.
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let moments = std::mem::take(&mut *self.moments.lock().expect("the thread is over"));
        Observations { tiers: std::mem::take(&mut self.tiers), moments }
    }
}

fn moment(servers: &[Observed]) -> Moment {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment {
        unix_ms: unix.as_millis() as i64,
        own: process(None).unwrap_or_default(),
        slab_bytes: slab_bytes().unwrap_or(0.0),
        servers: servers.iter().map(usage).collect(),
    }
}

fn usage(server: &Observed) -> Option<Usage> {
    match &server.place {
        Place::Process(pid) => process(Some(*pid)),
        Place::Metrics(url) => {
            let agent: ureq::Agent =
                ureq::Agent::config_builder().timeout_global(Some(PAGE_MAX)).build().into();
            let mut page = agent.get(url).call().ok()?;
            let text = page.body_mut().with_config().limit(PAGE_BYTES_MAX).read_to_string().ok()?;
            metrics(&text)
        }
    }
}

fn metrics(page: &str) -> Option<Usage> {
    let value = |name: &str| {
        let rest = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        rest.split_whitespace().next()?.parse::<f64>().ok()
    };
    Some(Usage {
        resident_bytes: value("process_resident_memory_bytes")?,
        cpu_seconds: value("process_cpu_seconds_total")?,
    })
}

fn process(pid: Option<u32>) -> Option<Usage> {
    let folder = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let status = fs::read_to_string(format!("/proc/{folder}/status")).ok()?;
    Some(Usage {
        resident_bytes: kib(&status, "VmRSS:")? * 1024.0,
        cpu_seconds: millrace_service::cpu_time::of_process(pid)?.as_secs_f64(),
    })
}

fn slab_bytes() -> Option<f64> {
    Some(kib(&fs::read_to_string("/proc/meminfo").ok()?, "Slab:")? * 1024.0)
}

fn kib(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Observed, Observer, Tier, metrics};

    #[test]
    fn servers_are_named_by_what_they_are_and_where() {
        let read = |text: &str| text.parse::<Observed>();
        assert_eq!(read("gateway=12").map(|observed| observed.tier), Ok(Tier::Gateway));
        assert!(read("both=http://127.0.0.1:9600/metrics").is_ok());
        for text in ["", "gateway", "gateway=x", "disk=12", "gateway=https://x"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_page_of_metrics_gives_memory_and_processor_or_nothing() {
        let page = "# HELP x\nprocess_resident_memory_bytes 1000\nprocess_cpu_seconds_total 2.5\n";
        let usage = metrics(page).expect("both are there");
        assert_eq!((usage.resident_bytes, usage.cpu_seconds), (1000.0, 2.5));
        assert_eq!(metrics("process_cpu_seconds_total 2.5\n"), None);
    }

    #[test]
    fn this_process_is_seen_and_one_that_is_gone_is_not() {
        let own = format!("both={}", std::process::id()).parse().expect("valid");
        let gone = format!("logic={}", u32::MAX / 2).parse().expect("valid");
        let observations = Observer::start(&[own, gone]).finish();
        let moment = observations.at(i64::MAX).expect("the first moment");
        assert!(moment.own.resident_bytes > 0.0 && moment.slab_bytes > 0.0, "{moment:?}");
        assert!(moment.servers[0].is_some() && moment.servers[1].is_none(), "{moment:?}");
        assert_eq!(observations.at(0), Some(&observations.moments[0]));
    }
}
