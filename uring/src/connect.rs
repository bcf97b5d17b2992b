//! Outgoing connections: a socket in the descriptor table, bound to a source address if wanted,
//! and connected, all on the ring, one step in the kernel at a time.

use std::io;
use std::net::SocketAddr;

use crate::address::RawAddress;
use crate::driver::Driver;
use crate::operation::{Kind, Operation, Tag};
use crate::ring::Completion;
use crate::socket::{NONE, Stage};
use crate::{Handler, SocketId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Socket,
    Bind,
    Connect,
}

/// A connection under way. Boxed, since the kernel reads the addresses.
#[derive(Debug)]
pub(crate) struct Connecting {
    remote: RawAddress,
    source: Option<RawAddress>,
    /// The step that is in the kernel.
    step: Step,
}

impl Connecting {
    /// Whether the step in the kernel may take long; the others complete at once.
    pub(crate) fn may_wait(&self) -> bool {
        self.step == Step::Connect
    }
}

impl Driver {
    /// Starts a connection to `address`, from `source` if given (port 0: the port is chosen by the
    /// kernel when it knows the destination, so that a source address serves some 28,000
    /// connections to *each* destination; binding needs Linux 6.11). TCP_NODELAY is set.
    ///
    /// The outcome comes with [`Handler::connected`]; the id may be closed before that.
    ///
    /// # Errors
    /// ENFILE when the descriptor tables of all rings are full; `InvalidInput` when the two addresses are not
    /// of one family.
    pub fn connect(
        &mut self,
        address: SocketAddr,
        source: Option<SocketAddr>,
        context: u64,
    ) -> io::Result<SocketId> {
        if source.is_some_and(|source| source.is_ipv4() != address.is_ipv4()) {
            let text = "source and destination are not of one address family";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let Some(ring) = self.rings.choose(0) else {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        };
        let connecting = Box::new(Connecting {
            remote: RawAddress::encode(&address),
            source: source.as_ref().map(RawAddress::encode),
            step: Step::Socket,
        });
        let id = self.insert_socket(ring, Stage::Connecting, context);
        let link = self.lent.connecting.insert(connecting);
        let socket = self.sockets.get_mut(id).expect("just inserted");
        socket.link = link;
        socket.announced = true;
        let domain = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        self.rings.push(ring, Operation::socket(connect_tag(id), domain));
        Ok(id)
    }

    pub(crate) fn on_connect(
        &mut self,
        tag: Tag,
        completion: Completion,
        handler: &mut impl Handler,
    ) {
        let Some(socket) = self.sockets.find(tag.slot, tag.generation) else {
            self.statistics.completions_stale += 1;
            return;
        };
        let id = SocketId::new(tag.slot, tag.generation);
        let link = socket.link;
        let context = socket.context;
        let connecting = self.lent.connecting.get_mut(link);
        if connecting.step == Step::Socket
            && let Ok(descriptor) = u32::try_from(completion.result)
        {
            socket.descriptor = descriptor;
        }
        if socket.stage == Stage::Closing {
            socket.link = NONE;
            self.lent.connecting.remove(link);
            self.leave_if_idle(id);
            return;
        }
        if completion.result < 0 {
            socket.link = NONE;
            socket.stage = Stage::Failed;
            self.lent.connecting.remove(link);
            self.statistics.connect_failed += 1;
            let error = io::Error::from_raw_os_error(-completion.result);
            handler.connected(id, context, Err(error));
            return;
        }
        if connecting.step == Step::Connect {
            socket.link = NONE;
            socket.stage = Stage::Open;
            self.lent.connecting.remove(link);
            self.statistics.connected += 1;
            handler.connected(id, context, Ok(()));
            self.arm_receive(id);
            return;
        }
        let (ring, descriptor) = (socket.ring, socket.descriptor);
        self.next_step(id, ring, link, descriptor);
    }

    /// The socket exists, or is bound: what comes next.
    fn next_step(&mut self, id: SocketId, ring: u8, link: u32, descriptor: u32) {
        let option = Tag::new(Kind::Option, id.slot(), id.generation());
        let connecting = self.lent.connecting.get_mut(link);
        if connecting.step == Step::Socket {
            let name = libc::TCP_NODELAY;
            let no_delay = Operation::option_on(option, descriptor, libc::IPPROTO_TCP, name);
            self.rings.push(ring, no_delay);
            if let Some(source) = &connecting.source {
                connecting.step = Step::Bind;
                let name = libc::IP_BIND_ADDRESS_NO_PORT;
                let late_port = Operation::option_on(option, descriptor, libc::SOL_IP, name);
                self.rings.push(ring, late_port);
                // SAFETY: the address is boxed in `lent` and left alone until the completion.
                let operation = unsafe { Operation::bind(connect_tag(id), descriptor, source) };
                self.rings.push(ring, operation);
                return;
            }
        }
        connecting.step = Step::Connect;
        let remote: *const RawAddress = &connecting.remote;
        // SAFETY: the address is boxed in `lent` and left alone until the completion.
        let operation = unsafe { Operation::connect(connect_tag(id), descriptor, remote) };
        self.rings.push(ring, operation);
    }
}

pub(crate) fn connect_tag(id: SocketId) -> Tag {
    Tag::new(Kind::Connect, id.slot(), id.generation())
}
