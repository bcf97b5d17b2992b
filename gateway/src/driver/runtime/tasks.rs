//! The tasks: one for each socket, one for each listener, and one that ends a run which is not to
//! wait.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use millrace_uring::{ListenerId, SocketId};

use super::{
    Runtime, Socket,
    shared::{Event, Receiving, Shared, Stage},
};

/// How long accepting rests after an error that will not go away by itself (EMFILE, ENOMEM).
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// Sends and receives for one socket until it is closed.
pub(super) struct SocketTask<S> {
    pub(super) shared: Rc<RefCell<Shared>>,
    pub(super) id: SocketId,
    /// Taken when it is closed.
    pub(super) socket: Option<S>,
}

impl<S: Socket> Future for SocketTask<S> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let shared = &mut *this.shared.borrow_mut();
        let Some(slot) = shared.get_mut(this.id) else { return Poll::Ready(()) };
        if slot.stage == Stage::Closing {
            // The descriptor is closed here, before anybody hears of it.
            this.socket = None;
            shared.happened(Event::Closed(this.id));
            return Poll::Ready(());
        }
        if !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            slot.waker = Some(context.waker().clone());
        }
        let Some(socket) = &mut this.socket else { return Poll::Ready(()) };
        send(shared, this.id, socket, context);
        receive(shared, this.id, socket, context);
        Poll::Pending
    }
}

/// Carries the send on, as far as it goes.
fn send<S: Socket>(shared: &mut Shared, id: SocketId, socket: &mut S, context: &mut Context<'_>) {
    let Some(slot) = shared.get_mut(id) else { return };
    let Some(mut sending) = slot.sending.take() else {
        if std::mem::take(&mut slot.wants_shutdown) {
            socket.shutdown_write();
        }
        return;
    };
    let mut parts = 0;
    let outcome = loop {
        if sending.offset == sending.length {
            break Ok(());
        }
        match socket.poll_send(context, &mut sending.bytes, sending.offset) {
            Poll::Pending => {
                shared.statistics.sends_continued += u64::from(parts > 0);
                if let Some(slot) = shared.get_mut(id) {
                    slot.sending = Some(sending);
                }
                return;
            }
            Poll::Ready(Ok(0)) => break Err(io::Error::from(io::ErrorKind::WriteZero)),
            Poll::Ready(Ok(bytes)) => {
                parts += 1;
                sending.offset += bytes;
                shared.statistics.sent_bytes += bytes as u64;
            }
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Poll::Ready(Err(error)) => break Err(error),
        }
    };
    match &outcome {
        Ok(()) => shared.statistics.sends += 1,
        Err(_) => shared.statistics.send_failed += 1,
    }
    shared.keep_send_buffer(sending.bytes);
    shared.happened(Event::Sent(id, outcome));
    if let Some(slot) = shared.get_mut(id)
        && std::mem::take(&mut slot.wants_shutdown)
    {
        socket.shutdown_write();
    }
}

/// Receives at most one buffer, if the owner wants to and one is free.
fn receive<S: Socket>(
    shared: &mut Shared,
    id: SocketId,
    socket: &mut S,
    context: &mut Context<'_>,
) {
    let Some(slot) = shared.get_mut(id) else { return };
    let was = slot.receiving;
    if !matches!(was, Receiving::On | Receiving::Granted) || !slot.wants_receive {
        return;
    }
    slot.receiving = Receiving::On;
    // Nobody gets past the line.
    let may_take = was == Receiving::Granted || !shared.has_line();
    let Some(mut buffer) = may_take.then(|| shared.take_receive_buffer()).flatten() else {
        if let Some(slot) = shared.get_mut(id) {
            slot.receiving = Receiving::Parked;
        }
        return shared.park(id);
    };
    let result = loop {
        match socket.poll_receive(context, &mut buffer) {
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Poll::Ready(result) => break result,
            Poll::Pending => return shared.keep_receive_buffer(buffer),
        }
    };
    let Some(slot) = shared.get_mut(id) else { return };
    match result {
        Ok(bytes) if bytes > 0 => {
            slot.receiving = Receiving::Handled;
            shared.statistics.receives += 1;
            shared.statistics.received_bytes += bytes as u64;
            shared.happened(Event::Received(id, buffer));
        }
        result => {
            slot.receiving = Receiving::Ended;
            shared.keep_receive_buffer(buffer);
            shared.happened(Event::Ended(id, result.map(drop)));
        }
    }
}

/// Accepts until the driver stops accepting.
pub(super) async fn accept<R: Runtime>(
    shared: Rc<RefCell<Shared>>,
    listener: R::Listener,
    index: usize,
) {
    let id = ListenerId::from_index(u32::try_from(index).expect("few listeners"));
    loop {
        // For room, or the end.
        let may_go_on = poll_fn(|context| {
            let shared = &mut *shared.borrow_mut();
            let accepting = &mut shared.accepting[index];
            accepting.waker = Some(context.waker().clone());
            if accepting.is_stopping {
                return Poll::Ready(false);
            }
            let is_full = !shared.has_room();
            if is_full && !shared.is_full {
                shared.statistics.accept_paused += 1;
            }
            shared.is_full = is_full;
            if is_full { Poll::Pending } else { Poll::Ready(true) }
        });
        if !may_go_on.await {
            break;
        }
        let mut accepting = pin!(R::accept(&listener));
        let accepted = poll_fn(|context| {
            if let Poll::Ready(accepted) = accepting.as_mut().poll(context) {
                return Poll::Ready(Some(accepted));
            }
            let shared = &mut *shared.borrow_mut();
            let accepting = &mut shared.accepting[index];
            accepting.waker = Some(context.waker().clone());
            if accepting.is_stopping { Poll::Ready(None) } else { Poll::Pending }
        });
        match accepted.await {
            None => break,
            Some(Ok((socket, peer))) => {
                let task = {
                    let shared_now = &mut *shared.borrow_mut();
                    let socket_id = shared_now.insert();
                    shared_now.statistics.accepted += 1;
                    shared_now.happened(Event::Accepted(socket_id, id, canonical(peer)));
                    SocketTask { shared: Rc::clone(&shared), id: socket_id, socket: Some(socket) }
                };
                R::spawn(task);
            }
            Some(Err(error)) => {
                shared.borrow_mut().statistics.accept_failed += 1;
                // The client gave up, or a signal came; the next one may follow at once.
                let is_passing = matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted
                        | io::ErrorKind::Interrupted
                        | io::ErrorKind::NotConnected
                        | io::ErrorKind::InvalidInput
                );
                if !is_passing {
                    R::sleep(RETRY_AFTER).await;
                }
            }
        }
    }
    drop(listener);
    let shared = &mut *shared.borrow_mut();
    shared.listeners_open -= 1;
    shared.end_run();
}

/// An IPv4 client of an IPv6 listener is shown with its IPv4 address.
fn canonical(peer: SocketAddr) -> SocketAddr {
    match peer.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, peer.port()),
        IpAddr::V6(_) => peer,
    }
}

/// Ends each run that is not to wait, once the tasks before it had their turn.
pub(super) async fn glance(shared: Rc<RefCell<Shared>>) {
    poll_fn(|context| {
        let shared = &mut *shared.borrow_mut();
        shared.glance = Some(context.waker().clone());
        shared.has_glanced = true;
        shared.end_run();
        if shared.is_leaving { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Watches the bell until the driver leaves.
pub(super) async fn watch(shared: Rc<RefCell<Shared>>, bell: impl Future<Output = ()>) {
    let mut bell = pin!(bell);
    poll_fn(|context| {
        {
            let shared = &mut *shared.borrow_mut();
            shared.watch = Some(context.waker().clone());
            if shared.is_leaving {
                return Poll::Ready(());
            }
        }
        bell.as_mut().poll(context)
    })
    .await;
}
