//! A name server of one name, and a gateway's command line that asks it: in a mount namespace of its own,
//! with its own `/etc/resolv.conf`. What resolves is the system's resolver, as in production.
//!
//! It takes root, for port 53 and for mounting; nothing is changed outside of the namespace.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// What is answered when anybody asks for an address of the name.
#[derive(Clone, Debug)]
pub enum Answer {
    Addresses(Vec<SocketAddr>),
    ServerFailure,
    NoSuchName,
    /// Nothing is answered at all.
    Silence,
}

pub struct NameServer {
    address: Ipv4Addr,
    answer: Arc<Mutex<Answer>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// Starts one.
    pub fn start() -> Self {
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 53, high, low.clamp(1, 254));
        let socket = UdpSocket::bind((address, 53))
            .unwrap_or_else(|error| panic!("{address}:53 over UDP: {error}"));
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("set");
        let answer = Arc::new(Mutex::new(Answer::Silence));
        let stop = Arc::new(AtomicBool::new(false));
        let (says, stopped) = (answer.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut question = [0; 1_500];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, asker)) = socket.recv_from(&mut question) else { continue };
                let answer = says.lock().expect("lock").clone();
                if let Some(reply) = reply(&question[..length], &answer) {
                    // An asker that is gone asks no more.
                    let _gone = socket.send_to(&reply, asker);
                }
            }
        });
        Self { address, answer, stop, thread: Some(thread) }
    }

    pub fn say(&self, answer: Answer) {
        *self.answer.lock().expect("lock") = answer;
    }

    /// What to put before a command line, so that it asks this server. The folder has to outlive the
    /// process.
    #[track_caller]
    pub fn asked_by(&self, folder: &Path) -> Vec<String> {
        let write =
            |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("written");
        let address = self.address;
        write("resolv.conf", &format!("nameserver {address}\noptions timeout:1 attempts:1\n"));
        write("nsswitch.conf", "hosts: files dns\n");
        let script = "for file in resolv.conf nsswitch.conf; do \
                      [ ! -e /etc/$file ] || mount --bind \"$0/$file\" /etc/$file || exit 1; done; \
                      exec \"$@\"";
        let folder = folder.to_str().expect("UTF-8");
        let wrapper = ["unshare", "--mount", "--", "sh", "-c", script, folder].map(str::to_owned);
        let probe = Command::new(&wrapper[0]).args(&wrapper[1..]).arg("true").output();
        let probe = probe.expect("unshare is there: apt-get install util-linux");
        let refused = String::from_utf8_lossy(&probe.stderr);
        assert!(probe.status.success(), "root may not mount in a namespace of its own: {refused}");
        wrapper.to_vec()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the name server did not panic");
        }
    }
}

/// The reply to a question (RFC 1035), if there is to be one.
fn reply(question: &[u8], answer: &Answer) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    const A: [u8; 2] = [0, 1];
    let name = question.get(HEADER..)?.iter().position(|byte| *byte == 0)? + 1;
    let end = HEADER + name + 4;
    let kind = question.get(HEADER + name..HEADER + name + 2)?;
    let (code, addresses) = match answer {
        Answer::Addresses(addresses) if kind == A => (0, &addresses[..]),
        Answer::Addresses(_) => (0, &[][..]),
        Answer::ServerFailure => (2, &[][..]),
        Answer::NoSuchName => (3, &[][..]),
        Answer::Silence => return None,
    };
    let mut reply = question.get(..2)?.to_vec();
    reply.extend([0x81, 0x80 | code, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
    reply.extend(question.get(HEADER..end)?);
    for address in addresses {
        let IpAddr::V4(ip) = address.ip() else { panic!("{address} is not of IPv4") };
        // The name of the question; an address; good for no time at all.
        reply.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        reply.extend(ip.octets());
    }
    Some(reply)
}
