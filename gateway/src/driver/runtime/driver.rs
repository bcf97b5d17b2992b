//! The driver itself: what the owner calls, and the poll.

use std::{
    cell::RefCell,
    fmt,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use millrace_uring::{Handler, ListenerId, Nobody, Options, SocketId, Statistics};

use super::{
    Bell, Runtime,
    shared::{Accepting, Event, Receiving, Sending, Shared, Stage},
    tasks,
};
use crate::driver::{Driver, RealTime};

/// Most listeners of a driver.
const LISTENERS_MAX: usize = 255;

/// How long a dropped driver waits for its tasks to let go of their sockets.
const DROP_WAIT_MAX: Duration = Duration::from_secs(2);

/// See the module. The runtime makes it stay on its thread.
pub struct RuntimeDriver<R: Runtime> {
    runtime: R,
    shared: Rc<RefCell<Shared>>,
    bell: R::Bell,
    /// Empty, with its capacity, while no poll is under way.
    events: Vec<Event>,
}

impl<R: Runtime> fmt::Debug for RuntimeDriver<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = self.shared.borrow();
        f.debug_struct("RuntimeDriver")
            .field("sockets", &shared.live())
            .field("statistics", &shared.statistics)
            .finish_non_exhaustive()
    }
}

fn check(options: &Options) -> io::Result<()> {
    let refuse = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    let limit = millrace_uring::descriptor_limit()?;
    if options.sockets_max == 0 || u64::from(options.sockets_max) > limit {
        return refuse(format!(
            "sockets_max is {}, it must be between 1 and RLIMIT_NOFILE, {limit}",
            options.sockets_max
        ));
    }
    if options.accept_spare >= options.sockets_max {
        return refuse(format!(
            "accept_spare is {}, it must be less than sockets_max, {}",
            options.accept_spare, options.sockets_max
        ));
    }
    if options.receive_buffers == 0 || options.receive_buffer_bytes == 0 {
        return refuse("receive_buffers and receive_buffer_bytes must be at least 1".to_owned());
    }
    Ok(())
}

impl<R: Runtime> Driver for RuntimeDriver<R> {
    type Waker = <R::Bell as Bell>::Waker;
    type Time = RealTime;

    fn new(options: Options) -> io::Result<Self> {
        check(&options)?;
        let mut runtime = R::new(options.sockets_max)?;
        let shared = Rc::new(RefCell::new(Shared::new(options)));
        let bell = R::Bell::new()?;
        let rung = {
            let shared = Rc::downgrade(&shared);
            move || {
                let Some(shared) = shared.upgrade() else { return };
                let shared = &mut *shared.borrow_mut();
                shared.is_rung = true;
                shared.end_run();
            }
        };
        runtime.run(async {
            R::spawn(tasks::watch(Rc::clone(&shared), bell.watch(Rc::new(rung))?));
            R::spawn(tasks::glance(Rc::clone(&shared)));
            io::Result::Ok(())
        })?;
        Ok(Self { runtime, shared, bell, events: Vec::new() })
    }

    fn listen(
        &mut self,
        address: SocketAddr,
        backlog: u32,
    ) -> io::Result<(ListenerId, SocketAddr)> {
        let index = self.shared.borrow().accepting.len();
        if index >= LISTENERS_MAX {
            return Err(io::Error::other(format!("more than {LISTENERS_MAX} listeners")));
        }
        let shared = Rc::clone(&self.shared);
        let bound = self.runtime.run(async move {
            let (listener, bound) = R::listen(address, backlog)?;
            {
                let shared = &mut *shared.borrow_mut();
                shared.accepting.push(Accepting::default());
                shared.listeners_open += 1;
            }
            R::spawn(tasks::accept::<R>(shared, listener, index));
            io::Result::Ok(bound)
        })?;
        Ok((ListenerId::from_index(index as u32), bound))
    }

    fn stop_accepting(&mut self) {
        self.shared.borrow_mut().stop_accepting();
    }

    fn waker(&self) -> Self::Waker {
        self.bell.waker()
    }

    fn poll(&mut self, timeout: Option<Duration>, handler: &mut impl Handler) -> io::Result<usize> {
        // Before the bell is asked: whatever rings from here on is not to be forgotten.
        self.shared.borrow_mut().is_rung = false;
        let may_wait = timeout != Some(Duration::ZERO) && self.bell.fall_asleep();
        self.runtime.run(turn::<R>(&self.shared, may_wait, timeout));
        let rung = self.bell.look();
        let handled = self.dispatch(handler);
        if rung {
            self.shared.borrow_mut().statistics.woken += 1;
            handler.woken();
        }
        Ok(handled)
    }

    fn take_buffer(&mut self) -> Vec<u8> {
        self.shared.borrow_mut().take_send_buffer()
    }

    fn send(&mut self, socket: SocketId, bytes: Vec<u8>) {
        let shared = &mut *self.shared.borrow_mut();
        match shared.get_mut(socket) {
            Some(slot) if slot.stage == Stage::Open => {
                assert!(slot.sending.is_none(), "at most one send in flight a socket");
                let length = bytes.len();
                slot.sending = Some(Box::new(Sending { bytes, length, offset: 0 }));
                shared.list(socket);
            }
            _ => shared.keep_send_buffer(bytes),
        }
    }

    fn is_sending(&self, socket: SocketId) -> bool {
        self.shared.borrow().get(socket).is_some_and(|slot| slot.sending.is_some())
    }

    fn shutdown_write(&mut self, socket: SocketId) {
        let shared = &mut *self.shared.borrow_mut();
        if let Some(slot) = shared.get_mut(socket) {
            slot.wants_shutdown = true;
            shared.list(socket);
        }
    }

    fn close(&mut self, socket: SocketId) {
        let shared = &mut *self.shared.borrow_mut();
        if let Some(slot) = shared.get_mut(socket) {
            slot.stage = Stage::Closing;
            shared.list(socket);
        }
    }

    fn pause_receive(&mut self, socket: SocketId) {
        if let Some(slot) = self.shared.borrow_mut().get_mut(socket) {
            slot.wants_receive = false;
        }
    }

    fn resume_receive(&mut self, socket: SocketId) {
        let shared = &mut *self.shared.borrow_mut();
        if let Some(slot) = shared.get_mut(socket)
            && !std::mem::replace(&mut slot.wants_receive, true)
        {
            shared.list(socket);
        }
    }

    fn set_context(&mut self, socket: SocketId, context: u64) {
        if let Some(slot) = self.shared.borrow_mut().get_mut(socket) {
            slot.context = context;
        }
    }

    fn sockets(&self) -> usize {
        self.shared.borrow().live()
    }

    fn statistics(&self) -> Statistics {
        self.shared.borrow().statistics
    }

    fn time(&self) -> RealTime {
        RealTime
    }
}

/// One run of the runtime: wakes those who have something to do, and ends when something has
/// happened, the bell has rung or the time is up; at once, but not before the runtime has looked at
/// its sockets, if it may not wait.
async fn turn<R: Runtime>(shared: &RefCell<Shared>, mut may_wait: bool, timeout: Option<Duration>) {
    let mut sleep = pin!(async {
        match timeout {
            Some(timeout) => R::sleep(timeout).await,
            None => std::future::pending().await,
        }
    });
    let mut is_first = true;
    poll_fn(|context| {
        {
            let shared = &mut *shared.borrow_mut();
            if std::mem::take(&mut is_first) {
                shared.has_glanced = false;
                shared.wake_listed();
                may_wait &= !shared.is_rung && !shared.has_line() && shared.events.is_empty();
                if !may_wait && let Some(glance) = &shared.glance {
                    glance.wake_by_ref();
                }
            } else if shared.has_glanced || shared.is_rung || !shared.events.is_empty() {
                return Poll::Ready(());
            }
            shared.main = Some(context.waker().clone());
        }
        if may_wait { sleep.as_mut().poll(context) } else { Poll::Pending }
    })
    .await;
}

impl<R: Runtime> RuntimeDriver<R> {
    /// Hands everything that has happened to the handler.
    fn dispatch(&mut self, handler: &mut impl Handler) -> usize {
        std::mem::swap(&mut self.events, &mut self.shared.borrow_mut().events);
        let handled = self.events.len();
        for event in self.events.drain(..) {
            // The handler does not get the driver, so nobody borrows this a second time.
            let shared = &mut *self.shared.borrow_mut();
            let (Event::Accepted(id, ..)
            | Event::Received(id, _)
            | Event::Ended(id, _)
            | Event::Sent(id, _)
            | Event::Closed(id)) = event;
            let Some(slot) = shared.get_mut(id) else {
                debug_assert!(false, "a slot is freed by its last event");
                continue;
            };
            let is_open = slot.stage == Stage::Open;
            let context = slot.context;
            match event {
                Event::Accepted(_, listener, peer) => {
                    slot.context = handler.accepted(id, listener, peer);
                }
                Event::Received(_, mut bytes) => {
                    slot.receiving = Receiving::On;
                    if is_open {
                        handler.received(id, context, &mut bytes);
                    }
                    shared.keep_receive_buffer(bytes);
                    shared.list(id);
                }
                Event::Ended(_, result) if is_open => handler.receive_ended(id, context, result),
                Event::Sent(_, result) if is_open => handler.sent(id, context, result),
                Event::Ended(..) | Event::Sent(..) => {}
                Event::Closed(_) => {
                    shared.remove(id);
                    shared.statistics.closed += 1;
                    handler.closed(id, context);
                }
            }
        }
        handled
    }

    /// Lets go of every socket and listener, for a bounded time.
    fn leave(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + DROP_WAIT_MAX;
        self.stop_accepting();
        while Instant::now() < deadline {
            // Again in every round: the last accepts may still come.
            let ids = self.shared.borrow().ids();
            for id in ids {
                self.close(id);
            }
            {
                let shared = self.shared.borrow();
                if shared.live() == 0 && shared.listeners_open == 0 {
                    break;
                }
            }
            self.poll(Some(Duration::from_millis(20)), &mut Nobody)?;
        }
        let shared = &self.shared;
        self.runtime.run(async {
            {
                let shared = &mut *shared.borrow_mut();
                shared.is_leaving = true;
                for waker in [shared.glance.take(), shared.watch.take()].into_iter().flatten() {
                    waker.wake();
                }
            }
            R::sleep(Duration::from_millis(1)).await;
            // Whoever is left is not to keep what keeps them.
            let shared = &mut *shared.borrow_mut();
            (shared.glance, shared.watch, shared.main) = (None, None, None);
            shared.accepting.clear();
        });
        Ok(())
    }
}

impl<R: Runtime> Drop for RuntimeDriver<R> {
    fn drop(&mut self) {
        // The kernel closes what is left when the runtime goes.
        let _left = self.leave();
    }
}
