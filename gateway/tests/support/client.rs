//! Blocking clients of the wire protocol, over TCP and WebSocket.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use millrace_protocol::{
    command,
    frame::{self, Flags, HEADER_BYTES, Header},
    limits::BODY_BYTES_MAX_CEILING,
    session::{Error, Login, LoginReply},
};
use prost::Message;
use tungstenite::client::IntoClientRequest;

use super::PATIENCE;

/// A frame as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub command: u16,
    pub request_id: u32,
    pub body: Vec<u8>,
}

impl Frame {
    /// The ERROR in it.
    #[track_caller]
    pub fn error(&self) -> Error {
        assert_eq!(self.command, command::ERROR, "{self:?}");
        Error::decode(self.body.as_slice()).expect("an Error")
    }
}

/// A client, whatever it is connected by.
pub trait Client {
    fn send(&mut self, command: u16, request_id: u32, body: &[u8]);
    /// The next frame, or `None` at the end of the connection.
    fn receive(&mut self) -> Option<Frame>;

    fn log_in(&mut self, user: &str, token: &str) -> LoginReply {
        let login = Login {
            user_id: user.to_owned(),
            token: token.to_owned(),
            device_id: "d1".to_owned(),
            platform: "test".to_owned(),
            ..Default::default()
        };
        self.send(command::LOGIN, 1, &login.encode_to_vec());
        let reply = self.receive().expect("a reply");
        assert_eq!((reply.command, reply.request_id), (command::reply(command::LOGIN), 1));
        LoginReply::decode(reply.body.as_slice()).expect("a LoginReply")
    }

    /// Sends a request and returns what answers it.
    fn ask(&mut self, command: u16, request_id: u32, body: &[u8]) -> Frame {
        self.send(command, request_id, body);
        let frame = self.receive().expect("an answer");
        assert_eq!(frame.request_id, request_id, "{frame:?}");
        frame
    }
}

pub struct Tcp(pub TcpStream);

impl Tcp {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.set_nodelay(true).expect("set");
        Self(stream)
    }
}

impl Client for Tcp {
    fn send(&mut self, command: u16, request_id: u32, body: &[u8]) {
        let mut bytes = Vec::new();
        frame::write(&mut bytes, command, Flags::NONE, request_id, body);
        self.0.write_all(&bytes).expect("written");
    }

    fn receive(&mut self) -> Option<Frame> {
        let mut header = [0; HEADER_BYTES];
        match self.0.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return None,
            Err(error) => panic!("reading failed: {error}"),
        }
        let header = Header::decode(&header, BODY_BYTES_MAX_CEILING).expect("a header");
        let mut body = vec![0; header.body_length as usize];
        self.0.read_exact(&mut body).expect("a body");
        Some(Frame { command: header.command, request_id: header.request_id, body })
    }
}

pub struct WebSocket(pub tungstenite::WebSocket<TcpStream>);

impl WebSocket {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.set_nodelay(true).expect("set");
        let mut request = format!("ws://{address}/ws").into_client_request().expect("a request");
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", "millrace.v1".parse().expect("a header"));
        let (socket, response) = tungstenite::client(request, stream).expect("upgraded");
        assert_eq!(response.headers()["Sec-WebSocket-Protocol"], "millrace.v1");
        Self(socket)
    }

    /// Reads until the close frame and returns its code.
    pub fn close_code(&mut self) -> u16 {
        loop {
            match self.0.read().expect("a message") {
                tungstenite::Message::Close(Some(close)) => return close.code.into(),
                tungstenite::Message::Close(None) => panic!("a close without a code"),
                _ => {}
            }
        }
    }
}

impl Client for WebSocket {
    fn send(&mut self, command: u16, request_id: u32, body: &[u8]) {
        let mut bytes = Vec::new();
        frame::write(&mut bytes, command, Flags::NONE, request_id, body);
        self.0.send(tungstenite::Message::binary(bytes)).expect("sent");
    }

    fn receive(&mut self) -> Option<Frame> {
        loop {
            match self.0.read().expect("a message") {
                tungstenite::Message::Binary(bytes) => {
                    let (header, body) =
                        bytes.split_first_chunk::<HEADER_BYTES>().expect("a header");
                    let header = Header::decode(header, BODY_BYTES_MAX_CEILING).expect("a header");
                    assert_eq!(body.len(), header.body_length as usize, "one frame a message");
                    return Some(Frame {
                        command: header.command,
                        request_id: header.request_id,
                        body: body.to_vec(),
                    });
                }
                tungstenite::Message::Close(_) => return None,
                _ => {}
            }
        }
    }
}

/// A GET of the administrative side: status and body.
pub fn http(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("written");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("a response");
    let status = response.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = response.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status.expect("a status"), body.to_owned())
}
