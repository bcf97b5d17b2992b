//! The worlds a driver can be in: the machine's own loopback, and the simulation.

use std::{
    io::{self, Read, Write},
    marker::PhantomData,
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use millrace_gateway::driver::{
    Driver, Options,
    simulated::{self, Faults, Network},
};

/// Where drivers and clients live.
pub trait World: Sized {
    type Driver: Driver;
    type Client: Client;

    fn new(seed: u64) -> Self;

    fn driver(&self, options: Options) -> Self::Driver;

    /// Connects; as an error only what the peer would see.
    fn connect(&self, address: SocketAddr) -> io::Result<Self::Client>;
}

/// A client that never waits: `WouldBlock` instead.
pub trait Client {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// 0 is the end of stream.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize>;
    fn shutdown_write(&mut self);
    fn reset(self);
    fn local_address(&self) -> SocketAddr;
}

/// Sockets of this machine.
pub struct Real<D>(PhantomData<D>);

impl<D: Driver> World for Real<D> {
    type Driver = D;
    type Client = TcpStream;

    fn new(_seed: u64) -> Self {
        Self(PhantomData)
    }

    fn driver(&self, options: Options) -> D {
        D::new(options).expect("the driver works on this machine")
    }

    fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(20))?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Client for TcpStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(self, bytes)
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        Read::read(self, bytes)
    }

    fn shutdown_write(&mut self) {
        // Fails when the connection is gone already.
        let _gone = self.shutdown(Shutdown::Write);
    }

    fn reset(self) {
        rustix::net::sockopt::set_socket_linger(&self, Some(Duration::ZERO)).unwrap();
    }

    fn local_address(&self) -> SocketAddr {
        self.local_addr().unwrap()
    }
}

/// A network in memory.
pub struct Simulated<const FAULTS: bool>(Network);

impl<const FAULTS: bool> World for Simulated<FAULTS> {
    type Driver = simulated::Driver;
    type Client = simulated::Client;

    fn new(seed: u64) -> Self {
        Self(Network::new(seed, if FAULTS { Faults::many() } else { Faults::none() }))
    }

    fn driver(&self, options: Options) -> simulated::Driver {
        simulated::Driver::on(&self.0, options)
    }

    fn connect(&self, address: SocketAddr) -> io::Result<simulated::Client> {
        self.0.connect(address)
    }
}

impl Client for simulated::Client {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Self::write(self, bytes)
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        Self::read(self, bytes)
    }

    fn shutdown_write(&mut self) {
        Self::shutdown_write(self);
    }

    fn reset(self) {
        Self::reset(self);
    }

    fn local_address(&self) -> SocketAddr {
        Self::local_address(self)
    }
}
