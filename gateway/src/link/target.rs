//! What `logic.endpoints` may say, and what a link connects to.
//!
//! A URI is one logic process. `dns:host:port` is a name: each address that it has is one. Asking for
//! the addresses is [`super::resolve`]'s.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tonic::transport::{Endpoint, Uri};

use super::client::LinkSettings;

/// HTTP/2 window of the stream and of its connection. 64 KiB, the protocol's default, costs half
/// of the throughput; credits bound what is under way, not this.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// HTTP/2 frames of a busy link; measured a quarter faster than the default of 16 KiB.
const HTTP2_FRAME_BYTES_MAX: u32 = 1024 * 1024;

/// One entry of `logic.endpoints`.
#[derive(Clone, Debug)]
enum Configured {
    /// One logic process.
    One(Target),
    /// As many as the name has addresses.
    Named(Name),
}

/// A name that stands for several logic processes, which all listen on one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    /// As a name server knows it.
    pub host: String,
    /// Of each of its addresses.
    pub port: u16,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dns:{}:{}", self.host, self.port)
    }
}

/// What a link connects to.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// For people and metrics.
    pub uri: Arc<str>,
    pub(super) endpoint: Endpoint,
}

/// All of `logic.endpoints`, each once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Endpoints {
    /// Those that are one logic process each.
    pub fixed: Vec<Target>,
    /// Those that stand for several.
    pub names: Vec<Name>,
    /// Entries that say what an earlier one says, and are left out.
    pub repeated: Vec<String>,
}

impl Endpoints {
    /// Reads the list.
    ///
    /// # Errors
    /// A sentence about the first entry that cannot be used.
    pub fn read(entries: &[String], settings: &LinkSettings) -> Result<Self, String> {
        let mut endpoints = Self::default();
        for text in entries {
            let is_new = match Configured::parse(text, settings)? {
                Configured::One(target) => {
                    let is_same = |other: &Target| other.is_same_place(&target);
                    let is_new = !endpoints.fixed.iter().any(is_same);
                    endpoints.fixed.extend(is_new.then_some(target));
                    is_new
                }
                Configured::Named(name) => {
                    let is_new = !endpoints.names.contains(&name);
                    endpoints.names.extend(is_new.then_some(name));
                    is_new
                }
            };
            if !is_new {
                endpoints.repeated.push(text.clone());
            }
        }
        Ok(endpoints)
    }

    /// Links of each shard: one for each endpoint, and where there are names up to `endpoints_max`.
    pub const fn places(&self, endpoints_max: usize) -> usize {
        if self.names.is_empty() { self.fixed.len() } else { endpoints_max }
    }
}

impl Configured {
    /// Reads one entry.
    ///
    /// # Errors
    /// A sentence, when it is neither a URI that can be used nor a name.
    fn parse(text: &str, settings: &LinkSettings) -> Result<Self, String> {
        match text.strip_prefix("dns:") {
            Some(name) => Name::parse(text, name).map(Self::Named),
            None => Target::of_uri(text, settings).map(Self::One),
        }
    }
}

impl Name {
    /// `dns:host:port`, or as gRPC writes it, `dns:///host:port`.
    fn parse(text: &str, name: &str) -> Result<Self, String> {
        let name = name.strip_prefix("///").unwrap_or(name);
        if name.starts_with('/') {
            return Err(format!(
                "{text:?} names a name server; the system's is asked, so write \"dns:host:port\""
            ));
        }
        let wrong =
            || format!("{text:?} must be a name and a port, as \"dns:logic.internal:9700\"");
        let (host, port) = name.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
        let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || !host.chars().all(is_host) {
            return Err(wrong());
        }
        if host.parse::<IpAddr>().is_ok() {
            return Err(format!("{text:?} is an address and no name; write \"http://{name}\""));
        }
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }
}

impl Target {
    /// The one logic process that a URI names.
    ///
    /// # Errors
    /// A sentence, when the URI cannot be used.
    pub fn of_uri(uri: &str, settings: &LinkSettings) -> Result<Self, String> {
        let endpoint = Endpoint::from_shared(uri.to_owned())
            .map_err(|_| format!("{uri:?} is not a URI such as \"http://127.0.0.1:9700\""))?;
        match endpoint.uri().scheme_str() {
            Some("http") if endpoint.uri().host().is_some_and(|host| !host.is_empty()) => {}
            _ => {
                return Err(format!(
                    "{uri:?} must begin with http:// and name a host, or be a name with all of its \
                     addresses: \"dns:logic.internal:9700\""
                ));
            }
        }
        Ok(Self { uri: uri.into(), endpoint: tuned(endpoint, settings) })
    }

    /// One address of a name. The server is asked for under its name, as a proxy or a certificate knows
    /// it.
    pub fn of_name(
        name: &Name,
        address: SocketAddr,
        settings: &LinkSettings,
    ) -> Result<Self, String> {
        // Without the scope and flow of an address of IPv6, which no URI can hold.
        let uri = format!("http://{}", SocketAddr::new(address.ip(), address.port()));
        let target = Self::of_uri(&uri, settings)?;
        let origin = format!("http://{}:{}", name.host, name.port).parse::<Uri>();
        let origin = origin.map_err(|error| format!("{name} is no name of a server: {error}"))?;
        Ok(Self { endpoint: target.endpoint.origin(origin), ..target })
    }

    fn is_same_place(&self, other: &Self) -> bool {
        let ((host, port), (other, other_port)) = (self.host_and_port(), other.host_and_port());
        host.eq_ignore_ascii_case(other) && port == other_port
    }

    /// The host of the URI and its port, without the brackets of an address of IPv6.
    pub fn host_and_port(&self) -> (&str, u16) {
        let uri = self.endpoint.uri();
        let host = uri.host().unwrap_or_default();
        (host.trim_start_matches('[').trim_end_matches(']'), uri.port_u16().unwrap_or(80))
    }

    /// The address, if the URI says one and no name.
    pub fn address(&self) -> Option<SocketAddr> {
        let (host, port) = self.host_and_port();
        host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port))
    }
}

/// Tuned as measured.
fn tuned(endpoint: Endpoint, settings: &LinkSettings) -> Endpoint {
    let ping = (settings.lease / 3).max(Duration::from_secs(1));
    endpoint
        .connect_timeout(settings.connect_timeout)
        .tcp_nodelay(true)
        .http2_adaptive_window(false)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES_MAX)
        .http2_keep_alive_interval(ping)
        .keep_alive_timeout(ping)
        .keep_alive_while_idle(true)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::{Configured, Endpoints, LinkSettings, Name, Target};

    /// Of links that nobody opens.
    pub(in crate::link) fn settings() -> LinkSettings {
        LinkSettings {
            lease: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            reconnect_min: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(5),
            batch_interval: Duration::ZERO,
            batches_max: 8,
            message_bytes_max: 1 << 20,
        }
    }

    #[test]
    fn an_endpoint_is_a_plain_http_uri_with_a_host() {
        assert!(Target::of_uri("http://127.0.0.1:9700", &settings()).is_ok());
        for refused in ["127.0.0.1:9700", "logic:9700", "https://logic:9700", "", "http://"] {
            let reason = Target::of_uri(refused, &settings()).expect_err(refused);
            assert!(reason.starts_with(&format!("{refused:?} ")), "{reason}");
        }
    }

    #[test]
    fn a_name_is_a_host_and_a_port() {
        let logic = || Name { host: "logic.internal".to_owned(), port: 9700 };
        for text in ["dns:logic.internal:9700", "dns:///logic.internal:9700"] {
            match Configured::parse(text, &settings()) {
                Ok(Configured::Named(name)) => assert_eq!(name, logic()),
                other => panic!("{text}: {other:?}"),
            }
        }
        for (refused, because) in [
            ("dns:", "must be a name and a port"),
            ("dns:logic", "must be a name and a port"),
            ("dns::9700", "must be a name and a port"),
            ("dns:logic:0", "must be a name and a port"),
            ("dns:logic:65536", "must be a name and a port"),
            ("dns:http://logic:9700", "must be a name and a port"),
            ("dns:lo gic:9700", "must be a name and a port"),
            ("dns://10.0.0.10/logic:9700", "names a name server"),
            ("dns:10.0.0.1:9700", "write \"http://10.0.0.1:9700\""),
        ] {
            let reason = Configured::parse(refused, &settings()).expect_err(refused);
            assert!(reason.contains(because), "{reason}");
        }
    }

    #[test]
    fn an_endpoint_that_is_listed_twice_gets_one_link() {
        let listed = [
            "http://logic-0:9700",
            "dns:logic:9700",
            "http://Logic-0:9700/",
            "http://logic-0:9701",
            "dns:///LOGIC:9700",
            "dns:logic:9701",
        ];
        let listed = listed.map(str::to_owned);
        let endpoints = Endpoints::read(&listed, &settings()).expect("valid");
        assert_eq!(endpoints.fixed.len(), 2);
        assert_eq!(endpoints.names.len(), 2);
        assert_eq!(endpoints.repeated, ["http://Logic-0:9700/", "dns:///LOGIC:9700"]);
        assert_eq!(endpoints.places(16), 16);
        let endpoints = Endpoints::read(&listed[..1], &settings()).expect("valid");
        assert_eq!(endpoints.places(16), 1, "a list has the links that it names");
    }

    #[test]
    fn an_address_of_a_name_is_connected_to_and_asked_for_under_the_name() {
        let name = Name { host: "logic.internal".to_owned(), port: 9700 };
        for (address, uri) in [
            ("10.0.0.1:9700", "http://10.0.0.1:9700"),
            ("[fd00::1]:9700", "http://[fd00::1]:9700"),
            ("[fe80::1%3]:9700", "http://[fe80::1]:9700"),
        ] {
            let address = address.parse().expect("an address");
            let target = Target::of_name(&name, address, &settings()).expect("usable");
            assert_eq!(&*target.uri, uri);
            assert_eq!(target.address(), Some(uri[7..].parse().expect("an address")));
        }
        let named = Target::of_uri("http://logic-0.logic:9700", &settings()).expect("usable");
        assert_eq!((named.host_and_port(), named.address()), (("logic-0.logic", 9700), None));
    }
}
