//! Many clients in one thread: each asks one thing at a time, over a plain socket.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use millrace_protocol::{
    Code,
    command::{ERROR, LOGIN, LOGOUT, reply},
    frame::{self, Flags, HEADER_BYTES, Header},
    session,
};
use prost::Message;

use super::{PATIENCE, logic::ECHO};

pub struct Clients {
    sockets: Vec<TcpStream>,
    /// The number of the next question, the same for all.
    next: u64,
    /// Questions answered `logic_unavailable`.
    pub refused: u64,
}

impl Clients {
    pub fn log_in(gateway: SocketAddr, count: usize) -> Self {
        let connect = |number| {
            let mut socket = TcpStream::connect(gateway).expect("connected");
            socket.set_read_timeout(Some(PATIENCE)).expect("set");
            socket.set_nodelay(true).expect("set");
            let login =
                session::Login { user_id: format!("user-{number}"), ..session::Login::default() };
            write(&mut socket, LOGIN, 1, &login.encode_to_vec());
            let (header, body) = read(&mut socket);
            assert_eq!(header.command, reply(LOGIN));
            let answer = session::LoginReply::decode(&*body).expect("a LoginReply");
            assert_eq!(answer.code, 0, "{answer:?}");
            socket
        };
        Self { sockets: (0..count).map(connect).collect(), next: 1, refused: 0 }
    }

    /// Everybody asks, then everybody reads the answer: an echo, or that logic is away for now.
    pub fn ask_all(&mut self) {
        let body = self.next.to_be_bytes();
        let request_id = 10 + self.next as u32;
        self.next += 1;
        for socket in &mut self.sockets {
            write(socket, ECHO, request_id, &body);
        }
        for socket in &mut self.sockets {
            let (header, answer) = read(socket);
            assert_eq!(header.request_id, request_id, "each is answered once, and in order");
            if header.command == ERROR {
                let error = session::Error::decode(&*answer).expect("an Error");
                assert_eq!(error.code, Code::LogicUnavailable.number(), "{error:?}");
                self.refused += 1;
            } else {
                assert_eq!((header.command, &answer[..]), (reply(ECHO), &body[..]));
            }
        }
    }

    pub fn log_out(mut self) {
        for socket in &mut self.sockets {
            write(socket, LOGOUT, 2, b"");
            assert_eq!(read(socket).0.command, reply(LOGOUT));
        }
    }
}

fn write(socket: &mut TcpStream, command: u16, request_id: u32, body: &[u8]) {
    let mut bytes = Vec::new();
    frame::write(&mut bytes, command, Flags::NONE, request_id, body);
    socket.write_all(&bytes).expect("connected as before");
}

#[track_caller]
fn read(socket: &mut TcpStream) -> (Header, Vec<u8>) {
    let mut header = [0; HEADER_BYTES];
    socket.read_exact(&mut header).expect("connected as before");
    let header = Header::decode(&header, 1 << 20).expect("a header");
    let mut body = vec![0; header.body_length as usize];
    socket.read_exact(&mut body).expect("a body");
    (header, body)
}
