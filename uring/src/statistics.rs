//! What a driver counts.

/// Counters of a driver since its creation. All of them only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Clients accepted and announced.
    pub accepted: u64,
    /// Accepts that the kernel ended with an error (ENFILE, EMFILE, ENOMEM, ECONNABORTED …), and
    /// clients that were gone before they could be announced.
    pub accept_failed: u64,
    /// Times accepting stopped because the table had no more room than the spare entries.
    pub accept_paused: u64,
    /// Outgoing connections established.
    pub connected: u64,
    /// Outgoing connections that failed.
    pub connect_failed: u64,
    /// Receive completions with bytes.
    pub receives: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Receives that ended because no buffer was free (ENOBUFS); they waited in line.
    pub receive_starved: u64,
    /// Sends whose whole buffer went out.
    pub sends: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Partial sends that the driver continued.
    pub sends_continued: u64,
    /// Sends that failed, those ended by a close not counted.
    pub send_failed: u64,
    /// Sockets closed.
    pub closed: u64,
    /// Completions that met a later generation of their slot; anything but 0 is a bug.
    pub completions_stale: u64,
    /// Enters after which the completion queue had overflowed into the kernel's list.
    pub completions_overflowed: u64,
    /// Submissions that found the queue full and waited in the list.
    pub submissions_overflowed: u64,
    /// Cancellations issued again because the first one met its target at a bad moment.
    pub cancels_repeated: u64,
    /// Wake-ups handed to the handler.
    pub woken: u64,
    /// Calls of io_uring_enter.
    pub enters: u64,
}
