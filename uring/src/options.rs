//! The sizes of a driver, their defaults and the relations between them.

use std::io;

use crate::sys;

/// Most sockets a driver can have: the slot has 24 bits in a completion's user data.
const SOCKETS_CEILING: u32 = 1 << 24;

/// Most entries of a provided buffer ring, by the kernel.
const RECEIVE_BUFFERS_CEILING: u16 = 1 << 15;

/// The sizes of a [`Driver`](crate::Driver).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Entries of the direct descriptor table, accepted and connected sockets together. The kernel
    /// allows no more than RLIMIT_NOFILE for each ring. When full: accepting pauses, and
    /// `connect` fails with ENFILE.
    pub sockets_max: u32,
    /// Entries of the submission queue. When full, submissions wait in a list and go out in order.
    pub submission_entries: u32,
    /// Entries of the completion queue, at least four times `submission_entries`. When full, the
    /// kernel keeps completions in a list of its own; this is counted.
    pub completion_entries: u32,
    /// Receive buffers, a power of two up to 32,768. When none is free, sockets wait in line and
    /// the bytes stay in the kernel.
    pub receive_buffers: u16,
    /// Bytes of one receive buffer.
    pub receive_buffer_bytes: u32,
    /// Table entries that accepting leaves free, for `connect`. Less than `sockets_max`.
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
            sockets_max: 16_384,
            submission_entries: 1024,
            completion_entries: 8192,
            receive_buffers: 256,
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
        let refuse = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        let limit = sys::descriptor_limit()?;
        if self.sockets_max == 0 || self.sockets_max > SOCKETS_CEILING {
            return refuse(format!(
                "sockets_max is {}, it must be between 1 and {SOCKETS_CEILING}",
                self.sockets_max
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
        if self.submission_entries == 0
            || u64::from(self.completion_entries) < 4 * u64::from(self.submission_entries)
        {
            return refuse(format!(
                "completion_entries is {}, it must be at least four times submission_entries, {}, \
                 and that at least 1",
                self.completion_entries, self.submission_entries
            ));
        }
        if !self.receive_buffers.is_power_of_two() || self.receive_buffers > RECEIVE_BUFFERS_CEILING
        {
            return refuse(format!(
                "receive_buffers is {}, it must be a power of two up to {RECEIVE_BUFFERS_CEILING}",
                self.receive_buffers
            ));
        }
        if self.receive_buffer_bytes == 0 || self.receive_buffer_bytes > 1 << 24 {
            return refuse(format!(
                "receive_buffer_bytes is {}, it must be between 1 and 16 MiB",
                self.receive_buffer_bytes
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_above_the_descriptor_limit_is_refused_by_name() {
        let limit = sys::descriptor_limit().expect("the limit can be read");
        let Ok(above) = u32::try_from(limit + 1) else { return };
        if above > SOCKETS_CEILING {
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
