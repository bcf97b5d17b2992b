//! The sizes of a driver, their defaults and the relations between them.

use std::io;

use crate::rings::MAIN;
use crate::sys;

/// Most sockets a driver can have, all rings together: the slot has 24 bits in a completion's user data.
const SOCKETS_CEILING: u64 = 1 << 24;

/// Most entries of a provided buffer ring, by the kernel.
const RECEIVE_BUFFERS_CEILING: u16 = 1 << 15;

/// Which ring a new socket goes to, accepted or connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// The first one with room. Few sockets then keep few rings busy, and each busy ring costs a
    /// system call in every turn.
    #[default]
    Fill,
    /// The one with most room, so that all of them are about equally full. For tests and
    /// measurements of many rings with few sockets.
    Spread,
}

/// The sizes of a [`Driver`](crate::Driver).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Rings, from 1. The first is the main one, the others are its satellites.
    pub rings: u8,
    /// Entries of the direct descriptor table of each ring, accepted and connected sockets
    /// together. The kernel allows no more than RLIMIT_NOFILE for each ring. When all are full:
    /// accepting pauses, and `connect` fails with ENFILE.
    pub sockets_max: u32,
    /// Which ring a new socket goes to.
    pub placement: Placement,
    /// Entries of the main ring's submission queue. When full, submissions wait in a list and go out in order.
    pub submission_entries: u32,
    /// Entries of its completion queue, at least four times `submission_entries`. When full, the
    /// kernel keeps completions in a list of its own; this is counted.
    pub completion_entries: u32,
    /// Its receive buffers, a power of two up to 32,768. When none is free, sockets wait in line
    /// and the bytes stay in the kernel.
    pub receive_buffers: u16,
    /// `submission_entries` of each satellite.
    pub satellite_submission_entries: u32,
    /// `completion_entries` of each satellite.
    pub satellite_completion_entries: u32,
    /// `receive_buffers` of each satellite.
    pub satellite_receive_buffers: u16,
    /// Bytes of one receive buffer, on all rings.
    pub receive_buffer_bytes: u32,
    /// Entries of each table that accepting leaves free, for `connect`. Less than `sockets_max`.
    pub accept_spare: u32,
    /// Send buffers kept for [`Driver::take_buffer`](crate::Driver::take_buffer). Those above this
    /// number are freed.
    pub send_buffers_max: usize,
    /// Capacity in bytes above which a send buffer is freed and not kept.
    pub send_buffer_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rings: 1,
            sockets_max: 16_384,
            placement: Placement::Fill,
            submission_entries: 1024,
            completion_entries: 8192,
            receive_buffers: 256,
            satellite_submission_entries: 256,
            satellite_completion_entries: 4096,
            satellite_receive_buffers: 64,
            receive_buffer_bytes: 2048,
            accept_spare: 16,
            send_buffers_max: 256,
            send_buffer_bytes_max: 64 * 1024,
        }
    }
}

impl Options {
    /// Checks the values and their relations; the error says which one is wrong and why.
    pub(crate) fn check(&self) -> io::Result<()> {
        let limit = sys::descriptor_limit()?;
        if self.rings == 0 {
            return refuse("rings is 0, it must be between 1 and 255".into());
        }
        let sockets = u64::from(self.sockets_max) * u64::from(self.rings);
        if sockets == 0 || sockets > SOCKETS_CEILING {
            return refuse(format!(
                "rings is {} and sockets_max is {}, their product must be between 1 and \
                 {SOCKETS_CEILING}",
                self.rings, self.sockets_max
            ));
        }
        if u64::from(self.sockets_max) > limit {
            return refuse(format!(
                "sockets_max is {}, but RLIMIT_NOFILE allows a ring {limit}; \
                 raise the limit (ulimit -n, LimitNOFILE=) or use more rings",
                self.sockets_max
            ));
        }
        if self.accept_spare >= self.sockets_max {
            return refuse(format!(
                "accept_spare is {}, it must be less than sockets_max, {}",
                self.accept_spare, self.sockets_max
            ));
        }
        self.check_queues("", self.submission_entries, self.completion_entries)?;
        self.check_buffers("", self.receive_buffers)?;
        if self.rings > 1 {
            let (entries, completions) =
                (self.satellite_submission_entries, self.satellite_completion_entries);
            self.check_queues("satellite_", entries, completions)?;
            self.check_buffers("satellite_", self.satellite_receive_buffers)?;
        }
        if self.receive_buffer_bytes == 0 || self.receive_buffer_bytes > 1 << 24 {
            return refuse(format!(
                "receive_buffer_bytes is {}, it must be between 1 and 16 MiB",
                self.receive_buffer_bytes
            ));
        }
        Ok(())
    }

    fn check_queues(&self, prefix: &str, submissions: u32, completions: u32) -> io::Result<()> {
        if submissions == 0 || u64::from(completions) < 4 * u64::from(submissions) {
            return refuse(format!(
                "{prefix}completion_entries is {completions}, it must be at least four times \
                 {prefix}submission_entries, {submissions}, and that at least 1"
            ));
        }
        Ok(())
    }

    fn check_buffers(&self, prefix: &str, buffers: u16) -> io::Result<()> {
        if !buffers.is_power_of_two() || buffers > RECEIVE_BUFFERS_CEILING {
            return refuse(format!(
                "{prefix}receive_buffers is {buffers}, it must be a power of two up to \
                 {RECEIVE_BUFFERS_CEILING}"
            ));
        }
        Ok(())
    }

    /// Entries of a ring's completion queue.
    pub(crate) fn completions_of(&self, ring: u8) -> u32 {
        if ring == MAIN { self.completion_entries } else { self.satellite_completion_entries }
    }

    /// Receive buffers of a ring.
    pub(crate) fn receive_buffers_of(&self, ring: u8) -> u16 {
        if ring == MAIN { self.receive_buffers } else { self.satellite_receive_buffers }
    }
}

fn refuse(text: String) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_above_the_descriptor_limit_is_refused_by_name() {
        let limit = sys::descriptor_limit().expect("the limit can be read");
        let Ok(above) = u32::try_from(limit + 1) else { return };
        if u64::from(above) > SOCKETS_CEILING {
            return;
        }
        let error = Options { sockets_max: above, ..Options::default() }
            .check()
            .expect_err("above the limit");
        assert!(error.to_string().contains("RLIMIT_NOFILE"), "{error}");
        assert!(error.to_string().contains(&limit.to_string()), "{error}");
    }

    #[test]
    fn relations_between_the_sizes_are_checked() {
        let good = Options { sockets_max: 64, ..Options::default() };
        assert!(good.check().is_ok());
        for wrong in [
            Options { sockets_max: 0, ..good.clone() },
            Options { rings: 0, ..good.clone() },
            Options { rings: 255, sockets_max: 1 << 17, accept_spare: 0, ..good.clone() },
            Options { rings: 2, satellite_submission_entries: 0, ..good.clone() },
            Options { rings: 2, satellite_completion_entries: 1023, ..good.clone() },
            Options { rings: 2, satellite_receive_buffers: 48, ..good.clone() },
            Options { accept_spare: 64, ..good.clone() },
            Options { submission_entries: 0, ..good.clone() },
            Options { completion_entries: 4095, submission_entries: 1024, ..good.clone() },
            Options { receive_buffers: 0, ..good.clone() },
            Options { receive_buffers: 3, ..good.clone() },
            Options { receive_buffer_bytes: 0, ..good },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }
}
